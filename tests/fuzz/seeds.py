#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Seeds for the fuzz targets: the small models, records and configs that the Python tests make.

    build/venv/bin/python tests/fuzz/seeds.py build-fuzz/seeds

runs those tests with itself in place of the program. Called as the program, it writes down what it
was given, as inputs of the targets that it suits, and then starts the real one.

    build/venv/bin/python tests/fuzz/seeds.py build-fuzz/seeds --keep

chooses from those and from build-fuzz/corpus what goes to tests/fuzz/corpus: as few inputs as reach
all that the whole reaches, the smallest first, up to the bytes that each target may have here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
MOST = 16 * 1024  # bytes of an input; larger ones are slow to run and hold nothing new
KEPT_MOST = 3000  # bytes of an input that is kept
SUITES = [
    "tests/conformance/test_synthetic.py",
    "tests/conformance/test_qdq_graphs.py",
    "tests/conformance/test_qdq_real.py",
    "tests/conformance/test_odd_models.py",
    "tests/conformance/test_random_graphs.py",
    "tests/conformance/test_compact_weights.py",
    "tests/conformance/test_weight_only.py",
    "tests/conformance/test_record_compute.py",
    "tests/fault/test_bad_input.py",
]
# as in fuzz_export.c
SCHEMES = ["", "", "w8a16", "w4a16", "record", "w4a16:group=4", "w4a16:group=32", "w8a16:group=2"]
CHOICES = {
    "emit": ["both", "deploy", "fake-quant"],
    "external": ["auto", "always", "never"],
    "external-layout": ["per-tensor", "single"],
    "fake-quant-weights": ["float", "int8", "shared"],
    "from": ["auto", "float", "qdq"],
    "on-unsupported": ["error", "float"],
    "free-qdq": ["keep", "drop"],
}
# bytes of tests/fuzz/corpus
ROOM = {
    "export": 140_000,
    "onnx": 60_000,
    "qdq": 60_000,
    "external": 30_000,
    "record": 25_000,
    "config": 20_000,
    "safetensors": 10_000,
    "checkpoint": 40_000,
    "json": 10_000,
    "commit": 20_000,
}
FLAGS = {"dedup", "manifest", "json", "dry-run", "verbose", "quiet", "no-fsync", "fsync", "resume"}


def keep(folder: Path, target: str, data: bytes) -> None:
    """Add an input, named by its hash, to a target's seeds."""
    if len(data) > MOST:
        return
    place = folder / target
    place.mkdir(parents=True, exist_ok=True)
    (place / hashlib.sha1(data).hexdigest()).write_bytes(data)


def part(data: bytes) -> bytes:
    """A part with its length in front, as fuzz_cut takes it."""
    data = data[:0xFFFF]
    return struct.pack("<H", len(data)) + data


def options_of(arguments: list[str]) -> dict[str, str]:
    """Long options and their values."""
    found, at = {}, 0
    while at < len(arguments):
        name, given, value = arguments[at].partition("=")
        at += 1
        if not name.startswith("--"):
            continue
        name = name[2:]
        if not given and name not in FLAGS and at < len(arguments):
            value = arguments[at]
            at += 1
        found[name] = value
    return found


def export_options(options: dict[str, str]) -> bytes:
    """The option bytes of fuzz_export.c."""

    def choice(name: str) -> int:
        value = options.get(name)
        return CHOICES[name].index(value) if value in CHOICES[name] else 0

    shape = next(
        n for n in range(16) if n % 3 == choice("emit") and n // 4 % 3 == choice("external")
    )
    shape |= (
        choice("external-layout") << 4 | ("dedup" in options) << 5 | ("manifest" in options) << 6
    )
    kinds = next(
        n
        for n in range(16)
        if n % 3 == choice("fake-quant-weights") and n // 4 % 3 == choice("from")
    )
    kinds |= choice("on-unsupported") << 4 | choice("free-qdq") << 5
    scheme = options.get("weight-only", "")
    number = SCHEMES.index(scheme) if scheme in SCHEMES else 5 if "group" in scheme else 0
    more = ("external-threshold" in options) | ("input-names" in options) << 1
    more |= ("dynamic-axes" in options) << 2
    return bytes([shape, kinds, number, more])


def read(path: str | None) -> bytes:
    """A small file; nothing if it cannot be read."""
    try:
        file = Path(path or "")
        return file.read_bytes() if file.is_file() and file.stat().st_size <= MOST else b""
    except OSError:
        return b""


def collect(folder: Path, arguments: list[str]) -> None:
    """Write down the inputs of one call of the program."""
    options = options_of(arguments)
    model, record, config = (read(options.get(k)) for k in ("model", "record", "config"))
    if arguments[:1] == ["inspect"] and len(arguments) > 1:
        model = read(arguments[1])
    if record:
        keep(folder, "record", record)
    if config:
        keep(folder, "config", config)
    if "dynamic-axes" in options:
        keep(folder, "json", b"\0" + options["dynamic-axes"].encode())
    if "activations" in options:
        keep(folder, "json", b"\1" + read(options["activations"]))
    if not model:
        return
    keep(folder, "onnx", model)
    if b"DequantizeLinear" in model:
        keep(folder, "qdq", b"\0" + model)
        keep(folder, "qdq", b"\1" + model)
    if arguments[0] in ("export", "check"):
        head = export_options(options) + part(record) + part(config)
        keep(folder, "export", head + model)
    beside = [f for f in Path(options.get("model", arguments[-1])).parent.iterdir() if f.is_file()]
    for file in beside:
        if file.name.encode() in model and len(file.name) == len("w.bin"):
            data = model.replace(file.name.encode(), b"w.bin")
            keep(folder, "external", part(read(str(file))) + data)


def external(folder: Path) -> None:
    """Models whose weight lies in each of the places that fuzz_external.c makes."""
    import numpy as np
    from onnx import TensorProto, helper

    for location, offset, length in [
        ("w.bin", None, None),
        ("w.bin", 0, 48),
        ("w.bin", 16, 48),
        ("./w.bin", None, 48),
        ("sub/w.bin", 0, 48),
        ("sub/../w.bin", None, None),
        ("link", 8, None),
        ("out", None, None),
        ("out2", None, None),
        ("up/secret", None, None),
        ("../secret", None, None),
        ("loop", None, None),
        ("pipe", None, None),
        ("sub", None, None),
        ("empty", None, None),
        ("/etc/passwd", None, None),
        ("w.bin", (1 << 64) - 1, 48),
        ("w.bin", 1 << 63, 1 << 63),
    ]:
        weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 4])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in [("location", location), ("offset", offset), ("length", length)]:
            if value is not None:
                weight.external_data.add(key=key, value=str(value))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], "g", [x], [y], [weight]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        data = np.arange(16, dtype=np.float32).tobytes()
        keep(folder, "external", part(data) + model.SerializeToString())


def safetensors(folder: Path) -> None:
    """Headers, sound and not."""
    import numpy as np

    def file(header: dict | str, data: bytes) -> bytes:
        text = header if isinstance(header, str) else json.dumps(header)
        return struct.pack("<Q", len(text)) + text.encode() + data

    def tensor(dtype: str, shape: list, start: int, end: int) -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}

    sound = {"a": tensor("F32", [2, 2], 0, 16), "b.weight": tensor("BF16", [3], 16, 22)}
    keep(folder, "safetensors", file(sound, bytes(22)))
    keep(folder, "safetensors", file(sound | {"__metadata__": {"format": "pt"}}, bytes(22)))
    keep(folder, "safetensors", file({}, b""))
    keep(folder, "safetensors", file({"s": tensor("I64", [], 0, 8)}, bytes(8)))
    keep(folder, "safetensors", file({"e": tensor("F16", [0, 7], 0, 0)}, b""))
    keep(folder, "safetensors", file({"q": tensor("F8_E4M3", [4], 0, 4)}, bytes(4)))
    keep(folder, "safetensors", file({"q": tensor("F4", [4], 0, 2)}, bytes(2)))
    keep(folder, "safetensors", file({"a": tensor("F32", [1 << 62, 4], 0, 16)}, bytes(16)))
    keep(folder, "safetensors", file('{"a":[' + "[" * 40, b""))

    # whole checkpoints: options, config.json, index, model.safetensors
    layer = {
        "model.embed_tokens.weight": tensor("F32", [4, 4], 0, 64),
        "model.layers.0.mlp.up_proj.weight": tensor("F32", [4, 8], 64, 192),
        "model.layers.0.norm.weight": tensor("F32", [4], 192, 208),
        "lm_head.weight": tensor("F16", [2, 4], 208, 224),
    }
    data = np.linspace(-1, 1, 52, dtype=np.float32).tobytes() + bytes(16)
    index = {"metadata": {}, "weight_map": {name: "model.safetensors" for name in layer}}
    config = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
    old = config | {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}}
    scaled = {
        "a.weight": tensor("F8_E4M3", [4, 4], 0, 16),
        "a.weight_scale_inv": tensor("F32", [2, 2], 16, 32),
    }
    for scheme in range(8):
        for more, names in ((0, ""), (1, json.dumps(index)), (0x32, "")):
            text = part(json.dumps(config).encode()) + part(names.encode())
            keep(folder, "checkpoint", bytes([scheme, more]) + text + file(layer, data))
        text = part(json.dumps(old).encode()) + part(b"")
        keep(folder, "checkpoint", bytes([scheme, 0]) + text + file(scaled, bytes(range(48, 80))))


def commit(folder: Path) -> None:
    """plan.json and journal of a run of one shard, from the program itself."""
    binary = os.environ["QUANTFOLD_SEED_BIN"]
    digits = REPO / "datasets" / "digits"
    for extra in ([], ["--manifest"], ["--external", "always"]):
        with tempfile.TemporaryDirectory() as out:
            subprocess.run(
                [binary, "export", "--model", digits / "model.onnx", "--record"]
                + [digits / "record.txt", "--save-path", f"{out}/p", "--shard", "0/1", *extra],
                check=True,
                capture_output=True,
            )
            run = Path(out) / ".p.quantfold-partial" / "run"
            plan, journal = (run / "plan.json").read_bytes(), (run / "journal.0-of-1").read_bytes()
            keep(folder, "commit", part(plan) + journal)
            small = json.loads(plan)
            small["files"] = [{"name": "p_deploy_model.onnx", "bytes": 16}]
            keep(folder, "commit", part(json.dumps(small).encode()) + journal)


def small_json(folder: Path) -> None:
    """Dynamic axes and ranges in all their forms."""
    for text in ['{"x": {"0": "batch", "2": "w"}}', '{"x": [0, 2], "y": [1]}', '{"x": {}}']:
        keep(folder, "json", b"\0" + text.encode())
    for text in [
        '{"conv1": {"min": -0.7, "max": 2.0}}',
        '{"fc": {"scale_d": 0.02, "offset_d": -12}}',
        '{"lstm": {"min": -1.0, "max": 1.0, "h_min": -1.0, "h_max": 1.0}}',
        '{"gru": {"scale_d": 0.1, "offset_d": 0, "scale_h": 0.1, "offset_h": 3}}',
    ]:
        keep(folder, "json", b"\1" + text.encode())


def choose(seeds: Path) -> None:
    """Fill tests/fuzz/corpus."""
    build = REPO / "build-fuzz"
    for target, room in ROOM.items():
        place = REPO / "tests" / "fuzz" / "corpus" / target
        sources = [p for p in (seeds / target, build / "corpus" / target, place) if p.is_dir()]
        with tempfile.TemporaryDirectory() as folder:
            # a copy: others may be fuzzing, and -max_len would cut what is too long
            every, merged = Path(folder) / "every", Path(folder) / "merged"
            every.mkdir()
            merged.mkdir()
            for file in (f for source in sources for f in source.iterdir()):
                if file.stat().st_size <= KEPT_MOST:
                    shutil.copy(file, every / hashlib.sha1(file.read_bytes()).hexdigest())
            program = build / "tests" / "fuzz" / f"fuzz_{target}"
            subprocess.run([program, "-merge=1", merged, every], check=True, capture_output=True)
            inputs = sorted(merged.iterdir(), key=lambda p: (p.stat().st_size, p.name))
            place.mkdir(parents=True, exist_ok=True)
            for old in place.iterdir():
                old.unlink()
            for file in inputs:
                room -= file.stat().st_size
                if room >= 0:
                    (place / file.name[:16]).write_bytes(file.read_bytes())
        print(f"{target}: {len(list(place.iterdir()))} of {len(inputs)} inputs")


def main() -> int:
    """Collect, or stand in for the program while collecting."""
    if "QUANTFOLD_SEED_FOLDER" in os.environ:
        binary = os.environ["QUANTFOLD_SEED_BIN"]
        try:
            collect(Path(os.environ["QUANTFOLD_SEED_FOLDER"]), sys.argv[1:])
        except OSError:
            pass  # a test of files that cannot be read
        os.execv(binary, [binary, *sys.argv[1:]])
    folder = Path(sys.argv[1]).resolve()
    if "--keep" in sys.argv:
        choose(folder)
        return 0
    binary = Path(os.environ.get("QUANTFOLD_BIN", REPO / "build" / "quantfold")).resolve()
    os.environ["QUANTFOLD_SEED_BIN"] = str(binary)
    external(folder)
    safetensors(folder)
    commit(folder)
    small_json(folder)
    environment = dict(os.environ)
    environment["QUANTFOLD_SEED_FOLDER"] = str(folder)
    environment["QUANTFOLD_BIN"] = str(Path(__file__).resolve())
    options = ["-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *SUITES, *options], cwd=REPO, env=environment
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
