# SPDX-License-Identifier: Apache-2.0
"""PREFIX.manifest.json: every field against what the files hold, by an xxHash of another make and numpy.

docs/manifest.md says what each field means.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from nets import Net, conv, gemm, random, save_net

import make_large
import make_record
from support import snapshot

MANIFEST = "m.manifest.json"
KNOWN = {"tensor", "offset", "bytes", "hash"}


def load(folder: Path) -> dict:
    """The manifest of an export to folder/m."""
    return json.loads((folder / MANIFEST).read_text())


def check_files(folder: Path) -> dict:
    """Fail unless the manifest tells the truth about every byte of every file; returns it."""
    manifest = load(folder)
    files = snapshot(folder)
    del files[MANIFEST]
    assert sorted(f["name"] for f in manifest["files"]) == sorted(files)
    for entry in manifest["files"]:
        data, whole, at = files[entry["name"]], xxhash.xxh3_128(), 0
        assert set(entry) == {"name", "bytes", "parts", "hash_of_part_hashes"}
        assert entry["bytes"] == len(data)
        for part in entry["parts"]:
            assert set(part) == KNOWN
            begin, end = part["offset"], part["offset"] + part["bytes"]
            assert at <= begin < end <= len(data), "parts are in order and do not overlap"
            assert not any(data[at:begin]), "what is in no part is zero"
            assert part["hash"] == xxhash.xxh3_128_hexdigest(data[begin:end])
            whole.update(bytes.fromhex(part["hash"]))
            at = end
        assert not any(data[at:])
        assert entry["hash_of_part_hashes"] == whole.hexdigest()
    return manifest


def check_inputs(manifest: dict, *paths: Path) -> None:
    """Fail unless these are the inputs, in order."""
    assert manifest["inputs"] == [
        {"name": p.name, "bytes": p.stat().st_size, "modified_ns": str(p.stat().st_mtime_ns)}
        for p in paths
    ]


def check_text(entry: dict, path: Path) -> None:
    """Fail unless an entry is that of a record or a config."""
    data = path.read_bytes()
    wanted = {"name": path.name, "bytes": len(data), "hash": xxhash.xxh3_128_hexdigest(data)}
    assert entry == wanted


def check_errors(entry: dict, w: np.ndarray, scale: np.ndarray, low: int, high: int) -> None:
    """Fail unless an entry of "weights" has the statistics of w quantized by scale."""
    w, scale = w.astype(np.float32), np.asarray(scale, np.float32)
    q = np.clip(np.rint(w / scale), low, high).astype(np.float32)
    error = np.abs(w - q * scale)
    noise = np.mean(error.astype(np.float64) ** 2)
    signal = np.mean(w.astype(np.float64) ** 2)
    assert entry["elements"] == w.size
    assert entry["scales"] == scale.size
    assert entry["mean_square_error"] == pytest.approx(noise, rel=1e-4)
    assert entry["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=1e-3)
    assert np.float32(entry["max_error"]) == error.max()
    assert entry["clipped"] == int(np.sum(error > np.float32(0.51) * scale))


# ---- synthetic models ----------------------------------------------------------------------------

SPECS = {
    "matmul": make_large.Spec(count=3, size=160),
    "channels": make_large.Spec(count=3, size=160, per_channel=True, layout="external"),
    "gemm": make_large.Spec(count=2, size=96, op="gemm", per_channel=True, dtype="float16"),
    "conv": make_large.Spec(count=2, size=24, op="conv", per_channel=True),
    "int4": make_large.Spec(count=2, size=128, bits=4),
}


@pytest.mark.parametrize("layout", ["per-tensor", "single", "never"])
@pytest.mark.parametrize("name", SPECS)
def test_synthetic(quantfold, tmp_path, name, layout):
    spec, source, out = SPECS[name], tmp_path / "in", tmp_path / "o"
    make_large.write(source, spec)
    where = ["--external", "never"]
    if layout != "never":
        where = ["--external", "always", "--external-layout", layout]
    quantfold.export(
        source / "model.onnx", source / "record.txt", out / "m", "--manifest", "--no-fsync", *where
    )
    manifest = check_files(out)
    assert manifest["quantfold"] == quantfold("--version").out.split()[1]
    assert manifest["hash"] == "xxh3-128"
    data = [source / "weights.bin"] if spec.layout == "external" else []
    check_inputs(manifest, source / "model.onnx", *data)
    check_text(manifest["record"], source / "record.txt")
    assert "config" not in manifest
    assert [w["tensor"] for w in manifest["weights"]] == [f"w{i}" for i in range(spec.count)]
    half = 1 << (spec.bits - 1)
    for i, entry in enumerate(manifest["weights"]):
        scale = np.array(make_large.scales(spec), np.float32)
        shape = [1] * len(spec.shape)
        shape[spec.channel_axis] = -1
        assert entry["layer"] == f"m{i}"
        assert entry["bits"] == spec.bits and entry["source_type"] == spec.dtype
        check_errors(entry, make_large.weight(spec, i), scale.reshape(shape), -half, half - 1)


def test_threads_and_shards_do_not_show(quantfold, tmp_path):
    spec, source = make_large.Spec(count=9, size=256, layout="external"), tmp_path / "in"
    make_large.write(source, spec)
    args = ("--manifest", "--no-fsync", "--external", "always")

    def export(folder: str, *extra) -> Path:
        out = tmp_path / folder
        quantfold.export(source / "model.onnx", source / "record.txt", out / "m", *args, *extra)
        return out

    wanted = snapshot(export("1", "--threads", "1"))
    for threads in (2, 8):
        assert snapshot(export(str(threads), "--threads", threads)) == wanted
    for shard in (2, 0, 1):
        export("s", "--shard", f"{shard}/3")
    assert quantfold("commit", "--save-path", tmp_path / "s" / "m", "--no-fsync").code == 0
    assert snapshot(tmp_path / "s") == wanted


@pytest.mark.parametrize("first", [(), ("--manifest",), ("--stats",)])
@pytest.mark.parametrize("then", [(), ("--manifest",)])
def test_what_is_taken_up_was_measured(quantfold, tmp_path, first, then):
    """Parts of a run with other options of the manifest are not taken over: they lack its figures."""
    spec, source = make_large.Spec(count=4, size=128, layout="external"), tmp_path / "in"
    make_large.write(source, spec)
    args = (source / "model.onnx", source / "record.txt")
    more = ("--no-fsync", "--external", "always")
    quantfold.export(*args, tmp_path / "one" / "m", *then, *more)
    wanted, out = snapshot(tmp_path / "one"), tmp_path / "o" / "m"
    for shard, options in enumerate((first, then)):
        quantfold.export(*args, out, *options, "--shard", f"{shard}/2", *more)
    result = quantfold("commit", "--save-path", out, "--no-fsync")
    if first == then:
        assert result.code == 0, result.err
    else:
        assert result.code == 1 and "shards are missing: 0 of 2" in result.err
        quantfold.export(*args, out, *then, "--resume", *more)
    assert snapshot(tmp_path / "o") == wanted


def test_what_names_the_inputs(quantfold, tmp_path):
    """The same bytes at another time are other inputs; the outputs' hashes are the same."""
    spec, source = make_large.Spec(size=64), tmp_path / "in"
    make_large.write(source, spec)
    found = []
    for folder in ("a", "b"):
        quantfold.export(
            source / "model.onnx", source / "record.txt", tmp_path / folder / "m", "--manifest"
        )
        found.append(load(tmp_path / folder))
        (source / "model.onnx").touch()
    assert found[0].pop("inputs") != found[1].pop("inputs")
    assert found[0] == found[1]


def test_record_and_config_are_named(quantfold, tmp_path):
    digits = Path(__file__).resolve().parents[2] / "datasets" / "digits"
    config = digits / "config.json"
    args = (digits / "model.onnx", digits / "record.txt", tmp_path / "m")
    quantfold.export(*args, "--config", config, "--manifest")
    manifest = load(tmp_path)
    check_text(manifest["record"], digits / "record.txt")
    check_text(manifest["config"], config)


# ---- other ways of writing -----------------------------------------------------------------------


def weight_only_errors(w: np.ndarray, entry: dict) -> None:
    """An error is at most half a step of the group's largest magnitude, and clipping is none."""
    groups = np.abs(w).reshape(w.shape[0], -1, 32).max(axis=2) / 7.5
    assert entry["scales"] == groups.size
    assert 0 < entry["max_error"] <= groups.max() * 0.55
    assert 0 < entry["mean_square_error"] < groups.max() ** 2 / 4


def test_weight_only_groups(quantfold, tmp_path):
    net = Net(opset=21, ir_version=10)
    w = random(64, 128, seed=1, scale=0.2)
    net.output(gemm(net, net.input("x", random(4, 128)), w, name="a", transB=1))
    path = save_net(net, tmp_path)
    args = ("--weight-only", "w4a16:group=32", "--manifest", "--external", "always")
    result = quantfold("export", "--model", path, "--save-path", tmp_path / "o" / "m", *args)
    assert result.code == 0, result.err
    manifest = check_files(tmp_path / "o")
    (entry,) = manifest["weights"]
    assert (entry["layer"], entry["bits"], entry["elements"]) == ("a", 4, w.size)
    weight_only_errors(w, entry)


def twins() -> Net:
    """Two layers of the same weight."""
    net = Net()
    w = random(96, 96, seed=1, scale=0.2)
    x = net.input("x", random(4, 96))
    for name in ("a", "b"):
        x = gemm(net, x, w.copy(), name=name, transB=1)
    net.output(x)
    return net


def test_dedup(quantfold, tmp_path):
    """Equal tensors are one part; so are those that both models share."""
    path = save_net(twins(), tmp_path)
    records = [make_record.Record(n, 0.05, 0, [0.006]) for n in ("a", "b")]
    (tmp_path / "r.txt").write_text(make_record.record_text(records))
    parts = {}
    for name, extra in {"plain": [], "once": ["--dedup"]}.items():
        quantfold.export(
            path, tmp_path / "r.txt", tmp_path / name / "m", "--manifest", "--external", "always",
            "--fake-quant-weights", "shared", *extra,
        )  # fmt: skip
        manifest = check_files(tmp_path / name)
        parts[name] = [
            p["tensor"]
            for f in manifest["files"]
            if f["name"].endswith(".external")
            for p in f["parts"]
        ]
    assert sorted(parts["plain"]) == ["a.weight", "b.weight"]
    assert parts["once"] == ["a.weight"]


def test_folded_and_exact_weights(quantfold, tmp_path):
    """Statistics are of the weight after folding; a weight of multiples of its scale has no error."""
    net = Net()
    w = random(4, 3, 3, 3, seed=1, scale=0.3)
    gamma = np.array([0.5, 2, 1, 0.25], np.float32)
    exact = (np.arange(8 * 4 * 9).reshape(8, 4, 3, 3) % 200 - 100).astype(np.float32) / 128
    y = conv(net, net.input("x", random(1, 3, 8, 8)), w, name="c")
    bn = [net.weight(f"bn.{n}", v) for n, v in
          (("g", gamma), ("b", gamma * 0), ("m", gamma * 0), ("v", gamma * 0 + 1))]  # fmt: skip
    y = net.op("BatchNormalization", [y, *bn], "bn", epsilon=0.0)
    net.output(conv(net, y, exact, name="d"))
    path = save_net(net, tmp_path)
    records = [
        make_record.Record("c", 0.05, 0, [0.004]),
        make_record.Record("d", 0.05, 0, [1 / 128]),
    ]
    (tmp_path / "r.txt").write_text(make_record.record_text(records))
    quantfold.export(path, tmp_path / "r.txt", tmp_path / "o" / "m", "--manifest")
    entries = {e["layer"]: e for e in check_files(tmp_path / "o")["weights"]}
    folded = w * gamma[:, None, None, None]
    check_errors(entries["c"], folded, np.array([0.004]), -128, 127)
    assert entries["d"]["max_error"] == 0 and entries["d"]["clipped"] == 0
    assert entries["d"]["sqnr_db"] is None, "no noise: a ratio that is no number"


def test_clipped_weights_count(quantfold, tmp_path):
    spec, source = make_large.Spec(size=64), tmp_path / "in"
    make_large.write(source, spec)
    text = (source / "record.txt").read_text()
    scale = make_large.scales(spec)[0]
    assert f"{scale}" in text or f"{scale:.9g}" in text
    records = [make_record.Record("m0", 0.05, 0, [0.0002])]
    (source / "record.txt").write_text(make_record.record_text(records))
    quantfold.export(
        source / "model.onnx", source / "record.txt", tmp_path / "o" / "m", "--manifest"
    )
    (entry,) = check_files(tmp_path / "o")["weights"]
    assert entry["clipped"] > 100
    check_errors(entry, make_large.weight(spec, 0), np.array([0.0002]), -128, 127)


@pytest.mark.parametrize("shards", [0, 2])
def test_a_run_without_one_takes_the_old_one_away(quantfold, tmp_path, shards):
    """It describes what is there no more. A file of the name that is no manifest stays."""
    spec, source, out = make_large.Spec(size=64), tmp_path / "in", tmp_path / "o"
    make_large.write(source, spec)
    args = (source / "model.onnx", source / "record.txt", f"{out}/")
    quantfold.export(*args, "--manifest")
    assert (out / "manifest.json").exists()
    for mine in ("", '{"name": "an app", "quantfold": 1}', "{"):
        if mine:
            (out / "manifest.json").write_text(mine)
        for shard in range(shards):
            quantfold.export(*args, "--shard", f"{shard}/{shards}")
        result = None if shards else quantfold.export(*args)
        if shards:
            result = quantfold("commit", "--save-path", f"{out}/")
            assert result.code == 0, result.err
        assert sorted(p.name for p in out.iterdir())[-1] == (
            "manifest.json" if mine else "fake_quant_model.onnx"
        )
        assert not mine or (out / "manifest.json").read_text() == mine


@pytest.mark.parametrize("verify", [True, False])
def test_a_runnable_model_is_put_beside_what_a_manifest_describes(quantfold, tmp_path, verify):
    """It takes away only the manifest of an earlier runnable model, and takes the place of none."""
    spec, source, out = make_large.Spec(size=64), tmp_path / "in", tmp_path / "o"
    make_large.write(source, spec)
    args = (source / "model.onnx", source / "record.txt", out / "m")
    quantfold.export(*args, "--manifest")
    before = (out / "m.manifest.json").read_bytes()
    if verify:
        assert quantfold("verify", out / "m", "--runnable").code == 0
    else:
        quantfold.export(*args, "--emit", "runnable")
    assert (out / "m_runnable_model.onnx").exists()
    assert (out / "m.manifest.json").read_bytes() == before
    for option in ("--manifest", "--stats"):
        run = quantfold("export", "--model", args[0], "--record", args[1], "--save-path", args[2],
                        "--emit", "runnable", option, "--no-fsync")  # fmt: skip
        assert run.code == 1 and "m.manifest.json" in run.err and "m_deploy_model" in run.err
    assert (out / "m.manifest.json").read_bytes() == before
    for gone in out.glob("m_*"):
        gone.unlink()
    quantfold.export(*args, "--emit", "runnable", "--manifest")
    quantfold.export(*args, "--emit", "runnable")
    assert not (out / "m.manifest.json").exists()


def test_a_deploy_model_has_no_statistics(quantfold, tmp_path):
    source, out = tmp_path / "in", tmp_path / "o"
    make_large.write(source, make_large.Spec(size=64))
    quantfold.export(source / "model.onnx", source / "record.txt", out / "m")
    run = quantfold("export", "--model", out / "m_deploy_model.onnx", "--emit", "runnable",
                    "--save-path", out / "r", "--stats")  # fmt: skip
    assert run.code == 2 and "--stats" in run.err and not list(out.glob("r*"))


def test_without_the_option_there_is_none(quantfold, tmp_path):
    spec, source = make_large.Spec(size=16), tmp_path / "in"
    make_large.write(source, spec)
    quantfold.export(source / "model.onnx", source / "record.txt", tmp_path / "o" / "m")
    assert not (tmp_path / "o" / MANIFEST).exists()
    quantfold.export(source / "model.onnx", source / "record.txt", f"{tmp_path}/p/", "--manifest")
    assert (tmp_path / "p" / "manifest.json").exists(), "an empty prefix has no dot"
