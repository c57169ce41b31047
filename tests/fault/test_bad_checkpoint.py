# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that lie, and systems that refuse.

Every run ends with the right exit code and a message that names the file and the item at fault, and
leaves nothing in the target folder, or what was there before.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import checkpoints as ck
import pytest
import torch
from safetensors.torch import save_file
from test_bad_input import remount_read_only, tmpfs

from support import snapshot

WRONG_INPUT, WRONG_USAGE, SYSTEM_FAILED = 1, 2, 3
WEIGHT = b"\x3c\x00" * 64 * 64
HUGE = 1 << 60


def entry(start: int = 0, length: int = 8192, shape=(64, 64), dtype: str = "BF16") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + length]}


def craft(header: dict | str | bytes, data: bytes = WEIGHT, length: int | None = None) -> bytes:
    """A safetensors file from its parts; `length` in place of the header's true one."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


class Folder:
    """A checkpoint to spoil, and the target of a run."""

    def __init__(self, quantfold, path: Path):
        self.quantfold, self.source, self.out = quantfold, path / "in", path / "out"
        self.source.mkdir()
        (self.source / "config.json").write_text(json.dumps(ck.config()))

    def file(self, data: bytes, name: str = "model.safetensors") -> None:
        (self.source / name).write_bytes(data)

    def index(self, weight_map, **more) -> None:
        text = json.dumps({"metadata": {}, "weight_map": weight_map, **more})
        (self.source / "model.safetensors.index.json").write_text(text)

    def run(self, *extra, scheme: str = "w8a16", **options):
        command = ["checkpoint", "--model", self.source, "--out", self.out, "--scheme", scheme]
        return self.quantfold(*command, *extra, **options)

    def refused(self, *words, expect: int | tuple = WRONG_INPUT, extra=(), **options) -> str:
        before = snapshot(self.out) if self.out.exists() else None
        result = self.run(*extra, **options)
        codes = expect if isinstance(expect, tuple) else (expect,)
        assert result.code in codes, f"exit {result.code}: {result.err}"
        for word in words:
            assert str(word) in result.err, f"{word!r} is not in the message:\n{result.err}"
        after = snapshot(self.out) if self.out.exists() else None
        assert after == before, "the target folder changed"
        return result.err


@pytest.fixture
def folder(quantfold, tmp_path) -> Folder:
    return Folder(quantfold, tmp_path)


def test_the_good_one_is_good(folder):
    folder.file(craft({"a.weight": entry()}))
    result = folder.run()
    assert result.code == 0, result.err
    assert set(ck.read(folder.out)) == {"a.weight_packed", "a.weight_shape", "a.weight_scale"}


# ---- the length of the header --------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_short_file(folder, length):
    folder.file(bytes(length))
    folder.refused("model.safetensors")


@pytest.mark.parametrize(
    "length", [0, 1, 20, 8300, 9000, 100_000_001, 1 << 32, 1 << 63, (1 << 64) - 8, (1 << 64) - 1]
)
def test_header_length(folder, length):
    folder.file(craft({"a.weight": entry()}, length=length))
    folder.refused("model.safetensors")


def test_truncated_at_every_place(folder):
    data = craft({"a.weight": entry()})
    places = {*range(0, 120, 3), *range(120, len(data), 777), len(data) - 1}
    for place in sorted(places):
        folder.file(data[:place])
        folder.refused("model.safetensors")


def test_longer_than_its_tensors(folder):
    folder.file(craft({"a.weight": entry()}) + b"\0")
    folder.refused("model.safetensors", "behind the last tensor")


# ---- the header ----------------------------------------------------------------------------------

TEXT = json.dumps(entry())
HEADERS = {
    "nothing": "",
    "array": "[]",
    "number": "3",
    "spaces first": ' {"a.weight": %s}' % TEXT,
    "mark first": '\ufeff{"a.weight": %s}' % TEXT,
    "cut": '{"a.weight": %s' % TEXT,
    "behind": '{"a.weight": %s} x' % TEXT,
    "two": '{"a.weight": %s}{}' % TEXT,
    "NUL behind": '{"a.weight": %s}\0' % TEXT,
    "NUL inside": '{"a.wei\0ght": %s}' % TEXT,
    "NUL escape": '{"a.weight\\u0000b": %s}' % TEXT,
    "not UTF-8": b'{"a\xff.weight": %s}' % TEXT.encode(),
    "surrogate": b'{"a\xed\xa0\x80.weight": %s}' % TEXT.encode(),
    "deep": '{"a.weight":' + "[" * 5000 + "]" * 5000 + "}",
    "deeper": '{"a.weight":' + '{"a":' * 200000,
    "twice": '{"a.weight": %s, "a.weight": %s}' % (TEXT, TEXT),
    "dtype twice": '{"a.weight": {"dtype": "BF16", "dtype": "F32", "shape": [64, 64], '
    '"data_offsets": [0, 8192]}}',
    "member flood": '{"a.weight": {%s}}' % ",".join(f'"{i}":0' for i in range(200000)),
    "metadata list": '{"__metadata__": [], "a.weight": %s}' % TEXT,
    "metadata number": '{"__metadata__": {"a": 1}, "a.weight": %s}' % TEXT,
    "metadata twice": '{"__metadata__": {}, "__metadata__": {}, "a.weight": %s}' % TEXT,
}


@pytest.mark.parametrize("name", HEADERS)
def test_header_text(folder, name):
    folder.file(craft(HEADERS[name]))
    folder.refused("model.safetensors")


@pytest.mark.parametrize("missing", ["dtype", "shape", "data_offsets"])
def test_missing_member(folder, missing):
    folder.file(craft({"a.weight": {k: v for k, v in entry().items() if k != missing}}))
    folder.refused("model.safetensors", "a.weight")


WRONG = [None, True, "x", 3, -1, 1.5, [], {}, [[]], ["0", "8192"], [0], [0, 1, 2], [-1, 5]]
WRONG += [[0, 1e300], [0.5, 8192], [8192, 0], [0, 8191], [0, 8193], [1, 8193], [HUGE, HUGE + 8192]]
WRONG += [[64, -64], [64, 64, 2], [64, 63], [64.5, 64], [1 << 53, 1 << 53], [HUGE, 16], [1e308, 2]]


MEMBERS = ["dtype", "shape", "data_offsets"]
# a dtype that is not known is copied
WRONG_MEMBERS = [(m, v) for m in MEMBERS for v in WRONG if (m, v) != ("dtype", "x")]


@pytest.mark.parametrize("member, value", WRONG_MEMBERS, ids=str)
def test_wrong_member(folder, member, value):
    folder.file(craft({"a.weight": {**entry(), member: value}}))
    folder.refused("a.weight", "model.safetensors")


def test_unknown_dtype(folder):
    """Formats grow: such a tensor is copied as it is."""
    header = {"a.weight": entry(), "b.weight": entry(8192, 3, [2, 3], "F4_NEW")}
    folder.file(craft(header, WEIGHT + b"xyz"))
    assert folder.run().code == 0
    data = (folder.out / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    stated = json.loads(data[8 : 8 + length])["b.weight"]
    assert (stated["dtype"], stated["shape"]) == ("F4_NEW", [2, 3])
    start, end = stated["data_offsets"]
    assert data[8 + length :][start:end] == b"xyz"


@pytest.mark.parametrize("value", [None, [], 7, "x"])
def test_wrong_entry(folder, value):
    folder.file(craft({"a.weight": value}))
    folder.refused("a.weight", "model.safetensors")


SPANS = {
    "overlap": [(0, 8192), (4096, 8192)],
    "same": [(0, 8192), (0, 8192)],
    "inside": [(0, 8192), (0, 128)],
    "hole": [(0, 8192), (8200, 8192)],
    "hole first": [(8, 8192), (8200, 8192)],
    "beyond": [(0, 8192), (8192, 1 << 40)],
}


@pytest.mark.parametrize("name", SPANS)
def test_spans(folder, name):
    header = {
        f"{'ab'[i]}.weight": entry(start, length, (length // 128, 64))
        for i, (start, length) in enumerate(SPANS[name])
    }
    folder.file(craft(header, WEIGHT + WEIGHT + bytes(8 if "hole" in name else 0)))
    folder.refused("model.safetensors", ".weight")


def test_shape_that_overflows(folder):
    """Products that are right modulo 2^64, and those that no memory holds."""
    for shape in ([1 << 32, 1 << 32], [1 << 33, 1 << 31, 64, 64], [1 << 62, 4], [1 << 52] * 9):
        for dtype in ("BF16", "F64", "BOOL"):
            folder.file(craft({"a.weight": entry(0, 0, shape, dtype)}, b""))
            folder.refused("a.weight", "model.safetensors")


def test_many_dims(folder):
    """A shape of a hundred thousand dims is no matrix, and no harm."""
    header = {"a.weight": entry(), "b.weight": entry(8192, 2, [1] * 100_000)}
    folder.file(craft(header, WEIGHT + b"\0\0"))
    result = folder.run()
    assert result.code == 0, result.err
    assert set(snapshot(folder.out)) == {"model.safetensors", "config.json"}


def test_flipped_bytes_never_crash(folder):
    """Any outcome but a crash, a sanitizer report or a half-written target."""
    tensors = {"a.weight": ck.normal(64, 64, 1), "b.weight": ck.normal(40, 40, 2)}
    save_file(tensors, folder.source / "model.safetensors", metadata={"format": "pt"})
    data = (folder.source / "model.safetensors").read_bytes()
    rng = random.Random(3)
    for i in range(80):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            broken[rng.randrange(400 if i % 2 else len(data))] = rng.randrange(256)
        folder.file(bytes(broken))
        shutil.rmtree(folder.out, ignore_errors=True)
        result = folder.run("--scheme", rng.choice(["w8a8", "w4a16:group=8"]))
        assert result.code in (0, WRONG_INPUT), result.err
        left = set(os.listdir(folder.out)) if folder.out.exists() else set()
        assert left == ({"model.safetensors", "config.json"} if result.code == 0 else set())


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16", "w4a16:group=32"])
def test_not_finite(folder, dtype, value, scheme):
    weight = ck.normal(96, 64, 1).to(dtype)
    weight[77, 33] = float(value)
    save_file({"a.weight": weight}, folder.source / "model.safetensors")
    folder.refused("model.safetensors", "a", scheme=scheme)


def test_too_large_for_float32(folder):
    weight = torch.ones(64, 64, dtype=torch.float64)
    weight[3, 3] = 1e300
    save_file({"a.weight": weight}, folder.source / "model.safetensors")
    folder.refused("model.safetensors", "a")


def test_not_finite_is_copied_elsewhere(folder):
    """In a tensor that is not quantized it is nobody's business."""
    tensors = {"a.weight": torch.ones(64, 64), "a.bias": torch.full((64,), float("nan"))}
    save_file(tensors, folder.source / "model.safetensors")
    assert folder.run().code == 0


F8 = {"a.weight": torch.ones(64, 64).to(torch.float8_e4m3fn)}


@pytest.mark.parametrize(
    "scales",
    [
        {},
        {"a.weight_scale": torch.ones(64, dtype=torch.int32)},
        {"a.weight_scale": torch.ones(63)},
        {"a.weight_scale_inv": torch.ones(2, 2)},
        {"a.weight_scale_inv": torch.ones(0)},
        {"a.weight_scale": torch.full((1,), float("nan"))},
        {"a.weight_scale": torch.full((64,), float("inf"))},
        {"a.weight_scale_inv": torch.full((1,), 3e38)},
    ],
    ids=lambda s: "-".join(
        f"{n[9:]}{list(t.shape)}{t.flatten()[:1].tolist()}" for n, t in s.items()
    ),
)
def test_fp8_scales(folder, scales):
    weights = {"a.weight": (torch.ones(64, 64) * 448).to(torch.float8_e4m3fn)}
    save_file({**weights, **scales}, folder.source / "model.safetensors")
    folder.refused("model.safetensors", "a")


@pytest.mark.parametrize("block", [[0, 0], [0, 32], [-1, 32], ["a", 3], [1e300, 1], [1 << 53, 1]])
def test_fp8_blocks(folder, block):
    """Blocks that make no sense are no blocks; then one scale for each does not fit."""
    settings = ck.config(quantization_config={"quant_method": "fp8", "weight_block_size": block})
    (folder.source / "config.json").write_text(json.dumps(settings))
    scales = {"a.weight_scale_inv": torch.ones(2, 2)}
    save_file({**F8, **scales}, folder.source / "model.safetensors")
    folder.refused("model.safetensors", "a.weight_scale_inv")


def test_fp8_that_is_not_chosen(folder):
    save_file(
        {**F8, "a.weight_scale": torch.ones(1), "b.weight": torch.ones(64, 64)},
        folder.source / "model.safetensors",
    )
    folder.refused("model.safetensors", "a.weight", extra=["--include", "^b"])


def test_group_that_does_not_divide(folder):
    """All of them are counted, and the first are named."""
    wrong = {f"{i}.weight": torch.ones(64, 40 + 8 * i) for i in range(6)}
    save_file(
        wrong | {"n" * 500 + ".weight": torch.ones(64, 65)}, folder.source / "model.safetensors"
    )
    said = folder.refused("6 chosen weights", "0.weight (40)", scheme="w4a16:group=32")
    assert "3.weight" not in said and ", ...;" in said  # 64 columns
    save_file({"a.weight": torch.ones(64, 72)}, folder.source / "model.safetensors")
    said = folder.refused("of 1 chosen weight cannot", "a.weight (72)", scheme="w4a16:group=16")
    assert "..." not in said


def test_names_that_quantizing_makes(folder):
    tensors = {"a.weight": torch.ones(64, 64), "a.weight_scale": torch.ones(64)}
    save_file(tensors, folder.source / "model.safetensors")
    folder.refused("a.weight_scale")


def test_quantized_already(folder):
    folder.file(craft({"a.weight": entry()}))
    assert folder.run().code == 0
    shutil.rmtree(folder.source)
    folder.out.rename(folder.source)
    folder.refused("config.json", "compressed-tensors")


# ---- the index -----------------------------------------------------------------------------------

PLACES = ["../secret.safetensors", "sub/../../secret.safetensors", "/etc/secret.safetensors", ""]
PLACES += ["..", ".", "sub/m.safetensors", ".hidden.safetensors", "m.bin", "m\x01.safetensors"]
PLACES += ["a\x01..\x01..\x01secret.safetensors", "m\n.safetensors"]


@pytest.mark.parametrize("place", PLACES)
def test_places_in_the_index(folder, place):
    """Only names of files of the folder itself, wherever they would lead."""
    (folder.source.parent / "secret.safetensors").write_bytes(craft({"a.weight": entry()}))
    (folder.source / "sub").mkdir()
    folder.file(craft({"a.weight": entry()}), "sub/m.safetensors")
    if place and "/" not in place and not place.startswith("."):
        folder.file(craft({"a.weight": entry()}), place)
    folder.index({"a.weight": place})
    folder.refused("model.safetensors.index.json", "a.weight")


@pytest.mark.parametrize("value", [None, 3, [], {}, True])
def test_types_in_the_index(folder, value):
    folder.file(craft({"a.weight": entry()}))
    folder.index({"a.weight": value})
    folder.refused("model.safetensors.index.json", "a.weight")
    folder.index(value)
    folder.refused("model.safetensors.index.json")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": {}}', "\xff", "{}{}", "[" * 90000])
def test_text_of_the_index(folder, text):
    folder.file(craft({"a.weight": entry()}))
    path = folder.source / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin-1"))
    folder.refused("model.safetensors.index.json")


def test_missing_shard(folder):
    folder.file(craft({"a.weight": entry()}), "1.safetensors")
    folder.index({"a.weight": "1.safetensors", "b.weight": "2.safetensors"})
    folder.refused("2.safetensors", "cannot find")


def test_index_and_shards_disagree(folder):
    folder.file(craft({"a.weight": entry()}), "1.safetensors")
    folder.file(craft({"b.weight": entry()}), "2.safetensors")
    cases = [
        ({"a.weight": "1.safetensors", "b.weight": "1.safetensors"}, "b.weight"),
        ({"a.weight": "2.safetensors", "b.weight": "1.safetensors"}, "a.weight"),
        ({"a.weight": "1.safetensors", "c.weight": "2.safetensors"}, "c.weight"),
        (
            {"a.weight": "1.safetensors", "b.weight": "2.safetensors", "c.weight": "1.safetensors"},
            "c",
        ),
    ]
    for weight_map, name in cases:
        folder.index(weight_map)
        folder.refused("model.safetensors.index.json", name)
    folder.file(craft({"b.weight": entry(), "c.weight": entry(8192)}, WEIGHT * 2), "2.safetensors")
    folder.index({"a.weight": "1.safetensors", "b.weight": "2.safetensors"})
    folder.refused("model.safetensors.index.json", "2 tensors", "3")


def test_a_tensor_in_two_shards(folder):
    folder.file(craft({"a.weight": entry()}), "1.safetensors")
    folder.file(craft({"a.weight": entry()}), "2.safetensors")
    folder.refused("a.weight", "two tensors")
    folder.index({"a.weight": "1.safetensors", "b.weight": "2.safetensors"})
    folder.refused("a.weight", "two tensors")


# ---- links and other files -----------------------------------------------------------------------


def outside(folder: Folder, data: bytes) -> Path:
    """A file that is nobody's business."""
    path = folder.source.parent / "secret"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("absolute", [True, False])
def test_links_that_lead_out(folder, name, absolute):
    folder.file(craft({"a.weight": entry()}))
    data = craft({"a.weight": entry()}) if name == "model.safetensors" else b"{}"
    place = outside(folder, data)
    (folder.source / name).unlink(missing_ok=True)
    (folder.source / name).symlink_to(place if absolute else Path("..") / place.name)
    folder.refused(name, "link")


@pytest.mark.parametrize("target", ["../private", ".", "..", "sub"])
def test_linked_folders_stay_behind(folder, target):
    """Wherever they lead; what stands in a folder of the model's own goes along once."""
    folder.file(craft({"a.weight": entry()}))
    for name in (folder.source.parent / "private", folder.source / "sub"):
        name.mkdir()
        (name / "key.txt").write_text("secret")
    (folder.source / "link").symlink_to(target)
    (folder.source / "loop").symlink_to("loop")
    (folder.source / "sub" / "again").symlink_to("..")
    result = folder.run()
    assert result.code == 0, result.err
    wanted = {"config.json", "model.safetensors", "sub", "sub/key.txt"}
    assert {str(p.relative_to(folder.out)) for p in folder.out.rglob("*")} == wanted
    assert "not taken along: link\n" in result.out


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes.txt"])
def test_pipe(folder, name):
    """It is not waited for; beside the model it is passed over."""
    folder.file(craft({"a.weight": entry()}))
    (folder.source / name).unlink(missing_ok=True)
    os.mkfifo(folder.source / name)
    if name == "notes.txt":
        assert folder.run().code == 0 and not (folder.out / name).exists()
    else:
        folder.refused(name, timeout=10)


def test_control_characters_in_file_names(folder):
    """A name that would become another path is not taken along."""
    folder.file(craft({"a.weight": entry()}))
    folder.file(b"x", "a\x01..\x01..\x01b.txt")
    folder.file(craft({"b.weight": entry()}), "a\x01..\x01..\x01c.safetensors")
    (folder.source / "model.safetensors").rename(folder.source / "m.safetensors")
    result = folder.run()
    assert result.code == 0, result.err
    assert set(snapshot(folder.out)) == {"m.safetensors", "config.json"}
    assert sorted(os.listdir(folder.out.parent)) == ["in", "out"]


@pytest.mark.parametrize("name", ["run", "complete", "plan.json", "quantfold.manifest.json"])
def test_files_called_as_our_own(folder, name):
    """They go along all the same, but for the manifest, which would be that of something else."""
    folder.file(craft({"a.weight": entry()}))
    folder.file(b"theirs", name)
    result = folder.run("--resume", "--manifest")
    assert result.code == 0, result.err
    files = snapshot(folder.out)
    assert set(files) == {"model.safetensors", "config.json", name, "quantfold.manifest.json"}
    if name == "quantfold.manifest.json":
        json.loads(files[name])
    else:
        assert files[name] == b"theirs"


# ---- config.json ---------------------------------------------------------------------------------


def test_no_config(folder):
    folder.file(craft({"a.weight": entry()}))
    (folder.source / "config.json").unlink()
    folder.refused("config.json", "cannot find")


CONFIGS = ["", "[]", "3", "{", '{"a": 1', '{"a": 1} x', '{"a": 1}{"b": 2}', '{"a": "\\u0000"}']
CONFIGS += ['{"a": "\0"}', '{\0"a": 1}', '{"a": "\xff"}', '{"a":' * 100000, '{"a": "b\\']


@pytest.mark.parametrize("text", CONFIGS, ids=lambda t: ascii(t[:12]))
def test_config_text(folder, text):
    folder.file(craft({"a.weight": entry()}))
    (folder.source / "config.json").write_bytes(text.encode("latin-1"))
    folder.refused("config.json")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", 3, None])
def test_quantized_by_others(folder, method):
    folder.file(craft({"a.weight": entry()}))
    settings = ck.config(quantization_config={"quant_method": method})
    (folder.source / "config.json").write_text(json.dumps(settings))
    folder.refused("config.json", "quantized already")


FP8 = '{"quant_method": "fp8"}'
OTHERS = {
    "text": '{"quantization_config": "gptq"}',
    "list": '{"quantization_config": []}',
    "compression": '{"compression_config": {"quant_method": "compressed-tensors"}}',
    "with fp8": '{"quantization_config": %s, "compression_config": "x"}' % FP8,
    "part": '{"text_config": {"quantization_config": {"quant_method": "awq"}}}',
    "fp8 part": '{"a": {"text_config": {"quantization_config": %s}}}' % FP8,
    "escaped": '{"quantization\\u005fconfig": {"quant_method": "gptq"}}',
    "second": '{"quantization_config": %s, "quantization_config": "gptq"}' % FP8,
    "twice": '{"quantization_config": %s, "quantization_config": %s}' % (FP8, FP8),
}


@pytest.mark.parametrize("name", OTHERS)
def test_quantized_in_other_words(folder, name):
    folder.file(craft({"a.weight": entry()}))
    (folder.source / "config.json").write_text(OTHERS[name])
    folder.refused("config.json", "quantized already")


def test_escaped_name_is_replaced(folder):
    folder.file(craft({"a.weight": entry()}))
    text = '{"a": 1.0, "quantization\\u005fconfig": %s, "b": 2}' % FP8
    (folder.source / "config.json").write_text(text)
    assert folder.run().code == 0
    written = (folder.out / "config.json").read_text()
    assert "u005f" not in written and '"a": 1.0' in written and "fp8" not in written
    assert list(json.loads(written)) == ["a", "b", "quantization_config"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_type": 3, "dtype": [], "torch_dtype": {}},
        {"quantization_config": None},
        {"quantization_config": {"quant_method": "fp8"}, "b": {"compression_config": None}},
        {"a": 'x\\"}{[', "b": {"quantization": 1}, "c": ["]", "\\"]},
    ],
    ids=str,
)
def test_odd_configs_stay_whole(folder, settings):
    """Whatever stands in it, the other members come out as they went in."""
    folder.file(craft({"a.weight": entry()}))
    (folder.source / "config.json").write_text(json.dumps(settings))
    assert folder.run().code == 0
    written = json.loads((folder.out / "config.json").read_text())
    assert written.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert written == {k: v for k, v in settings.items() if k != "quantization_config"}


# ---- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    ["", "w3a16", "w8", "w8a8:group=32", "w4a16:group=0", "w4a16:group=12", "w4a16:group=-8"],
)
def test_schemes(folder, scheme):
    folder.file(craft({"a.weight": entry()}))
    folder.refused("scheme", expect=WRONG_USAGE, scheme=scheme)


@pytest.mark.parametrize("option", ["--include", "--exclude"])
def test_pattern_that_is_none(folder, option):
    folder.file(craft({"a.weight": entry()}))
    folder.refused(option.strip("-"), extra=[option, "(a"], expect=(WRONG_INPUT, WRONG_USAGE))


def test_nothing_is_chosen(folder):
    folder.file(craft({"a.weight": entry()}))
    folder.refused("no weight is chosen", "1 stay float", "excluded", extra=["--exclude", "a"])
    folder.file(craft({"a.bias": entry()}))
    folder.refused("no weight is chosen", "none of the 1 tensors")


def test_commit_as_json(folder):
    """`ok` and `error`, as other commands have them; not two targets at once."""
    commit = lambda *words: folder.quantfold("commit", "--json", *words)
    result = commit("--out", folder.out)
    told = json.loads(result.out)
    assert result.code == WRONG_INPUT and told["ok"] is False and told["error"] in result.err
    both = commit("--out", folder.out, "--save-path", folder.out / "m")
    assert both.code == WRONG_USAGE and "only one of them" in both.err and not both.out
    folder.file(craft({"a.weight": entry()}))
    result = folder.run("--shard", "0/1")
    assert result.code == 0 and "staged this shard's part of 2 files" in result.out
    assert "wrote" not in result.out and not (folder.out / "model.safetensors").exists()
    result = commit("--out", folder.out)
    assert result.code == 0 and json.loads(result.out)["ok"] is True
    assert (folder.out / "model.safetensors").exists()


def test_no_model(folder):
    shutil.rmtree(folder.source)
    folder.refused("cannot find", folder.source)
    folder.source.write_text("a file")
    folder.refused(folder.source)


def test_folder_without_weights(folder):
    folder.refused(folder.source, ".safetensors")


def test_out_is_in(folder):
    folder.file(craft({"a.weight": entry()}))
    before = snapshot(folder.source)
    for out in (folder.source, f"{folder.source}/.", f"{folder.source}//", folder.source / "../in"):
        folder.out = Path(out)
        command = ["checkpoint", "--model", folder.source, "--out", out, "--scheme", "w8a16"]
        result = folder.quantfold(*command)
        assert result.code == WRONG_INPUT and "own folder" in result.err
    (folder.source.parent / "link").symlink_to(folder.source)
    folder.out = folder.source.parent / "link"
    folder.refused("own folder")
    assert snapshot(folder.source) == before


def test_target_with_other_weights(folder):
    folder.file(craft({"a.weight": entry()}))
    folder.out.mkdir()
    (folder.out / "model-00001-of-00002.safetensors").write_bytes(b"old")
    folder.refused("model-00001-of-00002.safetensors", "empty folder")


def test_target_with_another_index(folder):
    """Loaders would read it in place of the one file beside it."""
    folder.file(craft({"a.b.weight": entry()}))
    folder.out.mkdir()
    (folder.out / "model.safetensors.index.json").write_text("{}")
    folder.refused("model.safetensors.index.json", "empty folder")


def test_target_is_a_file(folder):
    folder.file(craft({"a.weight": entry()}))
    folder.out.write_text("x")
    result = folder.run()
    assert result.code == WRONG_INPUT and f"{folder.out}: the target is a file" in result.err
    assert folder.out.read_text() == "x"


def test_folder_where_a_file_goes(folder):
    folder.file(craft({"a.weight": entry()}))
    (folder.out / "config.json").mkdir(parents=True)
    folder.refused("config.json")


# ---- the system refuses --------------------------------------------------------------------------


def larger(folder: Folder) -> None:
    save_file(ck.model(layers=4), folder.source / "model.safetensors")
    (folder.source / "tokenizer.json").write_bytes(bytes(50000))


@pytest.mark.parametrize("size", ["4m", "64k"])
def test_read_only_target(folder, size):
    """Said as such also where nothing is free, as on media that cannot be written."""
    larger(folder)
    with tmpfs(folder.source.parent / "ro", f"size={size}") as place:
        remount_read_only(place)
        folder.out = place / "out"
        folder.refused("ro", "Read-only file system", expect=SYSTEM_FAILED)


@pytest.mark.parametrize("size", ["16k", "64k", "200k"])
def test_full_target(folder, size):
    larger(folder)
    with tmpfs(folder.source.parent / "full", f"size={size}") as place:
        folder.out = place / "out"
        folder.out.mkdir()
        (folder.out / "config.json").write_text("an earlier one")
        folder.refused("full", expect=SYSTEM_FAILED)


def without_rights(folder: Folder, *words) -> subprocess.CompletedProcess:
    """As somebody for whom modes count, which they do not for root."""
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []
    command += [folder.quantfold.binary, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_reading_an_output(folder):
    """Without its slash, without its manifest, and without the right to look."""
    folder.file(craft({"a.weight": entry()}))
    assert folder.run("--stats").code == 0
    for place in (folder.out, f"{folder.out}/"):
        assert folder.quantfold("verify", place).code == 0
        assert folder.quantfold("report", place, "--json").code == 0
    folder.out.chmod(0)
    for command in ("report", "verify"):
        result = without_rights(folder, command, folder.out)
        assert result.returncode == SYSTEM_FAILED and "Permission denied" in result.stderr
    folder.out.chmod(0o700)
    (folder.out / "quantfold.manifest.json").unlink()
    result = folder.quantfold("report", folder.out)
    wanted = f"{folder.out}/quantfold.manifest.json: there is no manifest"
    assert result.code == WRONG_INPUT and wanted in result.err


def test_target_without_inodes(folder):
    """Free space says yes, creating a file says no."""
    larger(folder)
    with tmpfs(folder.source.parent / "inodes", "size=4m,nr_inodes=4") as place:
        folder.out = place / "out"
        folder.refused("inodes", expect=SYSTEM_FAILED)


@pytest.mark.parametrize("limit", [100, 4096, 60000, 150000])
@pytest.mark.parametrize("how", ["pwrite", "mmap", "direct"])
def test_file_size_limit(folder, limit, how):
    """The system stops the write in the middle; the signal that comes with it must not kill."""
    larger(folder)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    folder.refused(extra=["--io", how], expect=SYSTEM_FAILED, preexec_fn=limited)


def test_memory_limit(folder):
    larger(folder)
    folder.refused("memory", extra=["--memory-limit", "1K"])
