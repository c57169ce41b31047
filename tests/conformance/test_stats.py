# SPDX-License-Identifier: Apache-2.0
"""--stats: every number in the manifest against numpy, and the same bytes whoever calculates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import F32, Net, Options, conv, gemm, random, records_for, save_net
from onnx import numpy_helper

import make_record
from support import FAKE

REPO = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("QUANTFOLD_GOLDEN", REPO.parent / "shared" / "golden"))
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()) if GOLDEN.is_dir() else []
MANIFEST = "m.manifest.json"
NEAR_ZERO = 2.0**-23


# ---- what must come out ------------------------------------------------------------------------


def sampled(n: int) -> np.ndarray:
    """Indices of the elements that histograms count: docs/report.md."""
    if n <= 16384:
        return np.arange(n)
    periods = range(-(-n // 131072))
    starts = [p * 131072 + 7 * p % 128 * 1024 for p in periods]
    return np.concatenate([np.arange(s, min(s + 1024, n)) for s in starts if s < n])


def int_bins(q: np.ndarray, bits: int) -> list[int]:
    bins = (q.astype(int) + 2 ** (bits - 1)) >> max(bits - 6, 0)
    return np.bincount(bins, minlength=min(64, 2**bits)).tolist()


def float_bins(w: np.ndarray, scale: np.ndarray, bits: int) -> list[int]:
    """Below the range, 64 parts of it, above; every step in float32."""
    width = F32(2**bits / 64)
    from_ = F32(-(2 ** (bits - 1)) - 0.5) - width
    bins = np.clip((w / scale - from_) * (F32(1) / width), F32(0), F32(65))
    assert bins.dtype == F32
    return np.bincount(bins.astype(int), minlength=66).tolist()


@dataclass
class Weight:
    """A weight as it is stored, its scales, the scale of each element, and the channel of each."""

    w: np.ndarray
    scales: np.ndarray
    spread: np.ndarray
    labels: np.ndarray
    bits: int = 8

    def check(self, entry: dict) -> None:
        """Whether the manifest's entry is right."""
        w, scale = self.w.astype(F32), self.spread
        low, high = -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        q = np.clip(np.rint(w / scale), low, high).astype(np.int8)
        error = w - q.astype(F32) * scale
        alive = np.zeros(self.labels.max() + 1, bool)
        alive[np.unique(self.labels[q != 0])] = True
        some = sampled(w.size)
        bins = float_bins(w.reshape(-1)[some], scale.reshape(-1)[some], self.bits)
        counts = {
            "elements": w.size,
            "bits": self.bits,
            "scales": self.scales.size,
            "channels": alive.size,
            "dead_channels": int((~alive).sum()),
            "saturated": int(((q == low) | (q == high)).sum()),
            "near_zero_scales": int((self.scales <= NEAR_ZERO).sum()),
            "clipped": int((np.abs(error) > F32(0.51) * scale).sum()),
            "histogram": {
                "from": low - 0.5,
                "to": high + 0.5,
                "sampled": some.size,
                "float": bins[1:-1],
                "below": bins[0],
                "above": bins[-1],
                "quantized": int_bins(q.reshape(-1)[some], self.bits),
            },
        }
        assert {k: entry[k] for k in counts} == counts
        floats = {
            "scale_min": self.scales.min(),
            "scale_max": self.scales.max(),
            "max_error": np.abs(error).max(),
        }
        assert {k: F32(entry[k]) for k in floats} == floats
        energy, noise = (w.astype(float) ** 2).sum(), (error.astype(float) ** 2).sum()
        assert entry["mean_square_error"] == pytest.approx(noise / w.size, rel=1e-4)
        assert entry["sqnr_db"] == pytest.approx(10 * np.log10(energy / noise), abs=1e-3)


def read(folder: Path, name: str = MANIFEST) -> dict:
    return json.loads((folder / name).read_text())


def weights_of(manifest: dict) -> dict[str, dict]:
    return {w["tensor"]: w for w in manifest["weights"]}


# ---- nets --------------------------------------------------------------------------------------


def one_layer(op: str, w: np.ndarray, group: int = 1, **attributes) -> Net:
    """A net of one layer `c` with weight c.weight, enough for a plan."""
    net = Net(opset=21, ir_version=10)
    if op in ("Conv", "ConvTranspose"):
        channels = w.shape[1] * group if op == "Conv" else w.shape[0]
        x = net.input("x", random(1, channels, *[4] * (w.ndim - 2)).astype(w.dtype))
        y = conv(net, x, w, group=group, op=op, **attributes)
    else:
        depth = w.shape[1] if attributes.get("transB") else w.shape[0]
        x = net.input("x", random(1, depth).astype(w.dtype))
        if op == "MatMul":
            y = net.op("MatMul", [x, net.weight("c.weight", w)], "c")
        else:
            y = gemm(net, x, w, name="c", **attributes)
    net.output(y, 10 if w.dtype == np.float16 else 1)
    return net


def made_scales(magnitudes: np.ndarray, bits: int, spread: float) -> np.ndarray:
    """Some that fit, some that are too small, one that is far too large, one near zero."""
    scales = np.maximum(magnitudes, 1e-3).astype(F32) / F32(2 ** (bits - 1) - 0.5)
    scales[::3] *= F32(spread)
    if scales.size > 4:
        scales[1] *= F32(1e6)
        scales[4] = F32(1e-8)
    return np.array([F32(make_record.float_text(s)) for s in scales], F32)


CASES_OF_LAYERS = {
    "conv": ("Conv", (40, 24, 3, 3), {}),
    "large": ("Conv", (96, 200, 3, 3), {}),
    "depthwise": ("Conv", (48, 1, 3, 3), {"group": 48}),
    "pointwise": ("Conv", (30, 20, 1, 1), {}),
    "deconv": ("ConvTranspose", (10, 14, 3, 3), {}),
    "deconv-groups": ("ConvTranspose", (12, 6, 2, 3), {"group": 3}),
    "deconv-1x1": ("ConvTranspose", (300, 300, 1, 1), {}),
    "matmul": ("MatMul", (300, 170), {}),
    "gemm": ("Gemm", (64, 50), {}),
    "turned": ("Gemm", (150, 90), {"transB": 1}),
    "turned-large": ("Gemm", (600, 1100), {"transB": 1}),
}


def scales_and_labels(op: str, w: np.ndarray, group: int, trans_b: bool, bits: int, per_channel):
    """Scales in the record's order, the same spread over the weight, and each element's channel."""
    index = np.indices(w.shape)
    if op == "Conv":
        labels = index[0]
    elif op == "ConvTranspose":
        labels = index[0] // (w.shape[0] // group) * w.shape[1] + index[1]
    else:
        labels = index[0 if trans_b else 1]
    largest = np.zeros(labels.max() + 1, F32)
    np.maximum.at(largest, labels, np.abs(w.astype(F32)))
    if not per_channel:
        scales = made_scales(largest.max(keepdims=True), bits, 0.8)
        return scales, np.broadcast_to(scales[0], w.shape), labels
    scales = made_scales(largest, bits, 0.6)
    return scales, scales[labels], labels


@pytest.mark.parametrize("dtype", [F32, np.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("wts", ["INT8", "INT4"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["channels", "tensor"])
@pytest.mark.parametrize("name", CASES_OF_LAYERS)
def test_layer(quantfold, tmp_path, name, per_channel, wts, dtype):
    op, shape, attributes = CASES_OF_LAYERS[name]
    if name == "depthwise" and wts == "INT4":
        pytest.skip("pairs of INT4 need an even number of input channels")
    bits, group = 8 if wts == "INT8" else 4, attributes.get("group", 1)
    w = random(*shape, seed=4, scale=0.05).astype(dtype)
    w.reshape(-1)[7::501] *= dtype(8)
    scales, spread, labels = scales_and_labels(
        op, w, group, bool(attributes.get("transB")), bits, per_channel
    )
    path = save_net(one_layer(op, w, **attributes), tmp_path)
    record = make_record.Record("c", 0.1, 0, [float(s) for s in scales], "INT8", wts, [])
    (tmp_path / "r.txt").write_text(make_record.record_text([record]))
    quantfold.export(path, tmp_path / "r.txt", tmp_path / "o" / "m", "--stats")
    entry = weights_of(read(tmp_path / "o"))["c.weight"]
    Weight(w, scales, spread, labels, bits).check(entry)


@pytest.mark.parametrize(
    "scheme, shape, trans_b",
    [
        ("w8a16", (300, 170), 0),
        ("w8a16", (170, 300), 1),
        ("w4a16", (64, 1100), 0),
        ("w4a16:group=16", (640, 90), 0),
        ("w4a16:group=32", (90, 640), 1),
        ("w8a16:group=64", (65600, 33), 0),
        ("w4a16", (700, 6001), 0),  # columns in two passes
        ("w8a16", (3, 2200000), 1),  # rows in two passes
    ],
    ids=lambda v: str(v).replace(":", "-"),
)
def test_found_scales(quantfold, tmp_path, scheme, shape, trans_b):
    """Scales that the sweep finds; a channel of zeros and a small one."""
    axis = 1 - trans_b
    w = random(*shape, seed=6, scale=0.1)
    lines = np.moveaxis(w, axis, 0)
    lines[1] = 0
    lines[2] *= F32(1e-9)
    path = save_net(one_layer("Gemm", w, transB=trans_b), tmp_path)
    args = ("--weight-only", scheme, "--stats", "--no-fsync", "--emit", "deploy")
    run = quantfold("export", "--model", path, "--save-path", tmp_path / "o" / "m", *args)
    assert run.code == 0, run.err
    bits = int(scheme[1])
    group = int(scheme.split("=")[1]) if "=" in scheme else shape[1 - axis]
    blocks = np.moveaxis(w, axis, 0).reshape(shape[axis], -1, group)
    scales = np.abs(blocks).max(axis=2) / F32(2 ** (bits - 1) - 0.5)
    scales[scales == 0] = F32(2**-23)
    spread = np.moveaxis(np.repeat(scales, group, axis=1), 0, axis)
    entry = weights_of(read(tmp_path / "o"))["c.weight"]
    labels = np.broadcast_to(np.expand_dims(np.arange(shape[axis]), 1 - axis), shape)
    Weight(w, scales, spread, labels, bits).check(entry)
    assert entry["dead_channels"] == 1


@pytest.mark.skipif(not CASES, reason=f"no golden files at {GOLDEN}")
@pytest.mark.parametrize("case", CASES)
def test_golden(quantfold, tmp_path, case):
    """Counts of the integers that are in the model, LSTM and INT4 included."""
    beside = GOLDEN / case / "amct_temp" / "temp.onnx"
    model = beside if beside.is_file() else GOLDEN / case / "float.onnx"
    args = ("--stats", "--fake-quant-weights", "int8")
    quantfold.export(model, GOLDEN / case / "record.txt", tmp_path / "m", *args)
    manifest = read(tmp_path)
    fake = onnx.load(str(tmp_path / FAKE))
    tensors = {t.name: t for t in fake.graph.initializer}
    checked = 0
    for entry in manifest["weights"]:
        if entry["tensor"] not in tensors or entry["elements"] > 16384:
            continue
        q = numpy_helper.to_array(tensors[entry["tensor"]]).reshape(-1)
        assert q.dtype == np.int8
        high = 2 ** (entry["bits"] - 1) - 1
        assert entry["saturated"] == int(((q == high) | (q == -high - 1)).sum())
        assert entry["histogram"]["quantized"] == int_bins(q, entry["bits"])
        assert entry["histogram"]["sampled"] == q.size == entry["elements"]
        outside = entry["histogram"]["below"] + entry["histogram"]["above"]
        assert sum(entry["histogram"]["float"]) + outside == q.size
        checked += 1
    named = [w["tensor"] for layer in manifest["layers"] for w in layer["weights"]]
    assert set(named) == {w["tensor"] for w in manifest["weights"]}
    assert checked or not manifest["weights"]


def test_digits(quantfold, tmp_path):
    """Layers of the sample: activations, biases, the layer that stays float."""
    digits = REPO / "datasets" / "digits"
    quantfold.export(digits / "model.onnx", digits / "record.txt", tmp_path / "m", "--stats")
    manifest = read(tmp_path)
    assert [s["name"] for s in manifest["skipped"]] == ["/pool/AveragePool"]
    layers = {x["name"]: x for x in manifest["layers"]}
    assert len(layers) == 5 and all(x["activation_bits"] == 8 for x in layers.values())
    deploy = onnx.load(str(tmp_path / "m_deploy_model.onnx"))
    tensors = {t.name: numpy_helper.to_array(t) for t in deploy.graph.initializer}
    found = 0
    for node in deploy.graph.node:
        if node.name in layers and len(node.input) > 2:
            bias = tensors[node.input[2]].astype(np.int64)
            entry = layers[node.name]["bias"]
            assert entry["elements"] == bias.size
            assert entry["largest"] == int(np.abs(bias).max())
            assert entry["share_of_int32"] == pytest.approx(entry["largest"] / 2**31)
            found += 1
        if node.op_type == "AscendQuant":
            scales = [x["scale_d"] for x in layers.values()]
            given = next(a.f for a in node.attribute if a.name == "scale")
            assert any(1 / s == pytest.approx(given, rel=1e-6) for s in scales)
    assert found == 5


def test_integers(quantfold, tmp_path):
    """Weights that are integers already have counts and no errors."""
    net = Net(opset=21)
    q = np.random.default_rng(5).integers(-128, 128, (60, 40)).astype(np.int8)
    q[3] = 0
    x = net.input("x", random(2, 40))
    xs, xz = net.weight("xs", np.array(0.1, F32)), net.weight("xz", np.array(0, np.int8))
    x = net.op("QuantizeLinear", [x, xs, xz], "q")
    x = net.op("DequantizeLinear", [x, xs, xz], "dq")
    ws = net.weight("ws", (np.arange(60) + 1).astype(F32) / 1000)
    wz = net.weight("wz", np.zeros(60, np.int8))
    w = net.op("DequantizeLinear", [net.weight("w", q), ws, wz], "wdq", axis=0)
    net.op("Gemm", [x, w], "g", "y", transB=1)
    net.output("y")
    path = save_net(net, tmp_path)
    run = quantfold("export", "--model", path, "--save-path", tmp_path / "o" / "m", "--stats")
    assert run.code == 0, run.err
    (entry,) = read(tmp_path / "o")["weights"]
    assert entry["saturated"] == int(((q == -128) | (q == 127)).sum())
    assert entry["dead_channels"] == 1 and entry["channels"] == 60
    assert entry["histogram"]["quantized"] == int_bins(q.reshape(-1), 8)
    assert "float" not in entry["histogram"] and "sqnr_db" not in entry


# ---- whoever calculates ------------------------------------------------------------------------


def mixed(folder: Path) -> tuple[Path, Path]:
    """A net with every kind of job, some of several blocks, and its record."""
    net = Net()
    x = net.input("x", random(1, 24, 6, 6))
    x = conv(net, x, random(40, 24, 3, 3, seed=1, scale=0.1), random(40, seed=9), name="a")
    x = conv(net, x, random(40, 16, 3, 3, seed=2, scale=0.1), name="b", op="ConvTranspose")
    x = net.op("Flatten", [x], "flat")
    depth = 16 * 36
    x = gemm(net, x, random(900, depth, seed=3, scale=0.1), name="c", transB=1)
    x = gemm(net, x, random(900, 300, seed=4, scale=0.1), random(300, seed=8), name="d")
    net.output(x)
    path = save_net(net, folder)
    records = records_for(path, net, Options())
    (folder / "r.txt").write_text(make_record.record_text(records))
    return path, folder / "r.txt"


def test_threads_and_instruction_sets(quantfold, tmp_path):
    path, record = mixed(tmp_path)
    made = {}
    isas = ["scalar", "avx2", "avx512", "neon"]
    for name in ("1", "2", "5", *isas):
        args = ("--stats", "--no-fsync", "--threads", name if name.isdigit() else "2")
        env = os.environ | ({} if name.isdigit() else {"QUANTFOLD_ISA": name})
        run = quantfold.export(path, record, tmp_path / name / "m", *args, expect=None, env=env)
        if run.code == 2 and "no instruction set" in run.err:
            continue
        assert run.code == 0, run.err
        made[name] = (tmp_path / name / MANIFEST).read_bytes()
    assert len(made) >= 4
    assert len(set(made.values())) == 1


def test_external_layouts_and_ways_of_writing(quantfold, tmp_path):
    """How the output is written makes no difference to what was measured."""
    path, record = mixed(tmp_path)
    made = []
    for args in (
        (),
        ("--io", "mmap"),
        ("--io", "direct"),
        ("--emit", "deploy"),
        ("--fake-quant-weights", "shared", "--external-layout", "single"),
        ("--memory-limit", "64M"),
    ):
        quantfold.export(path, record, tmp_path / str(len(made)) / "m", "--stats", *args)
        weights = read(tmp_path / str(len(made)))["weights"]
        made.append(sorted(json.dumps(w) for w in weights))
    assert all(m == made[0] for m in made)


def test_models_are_those_without(quantfold, tmp_path):
    path, record = mixed(tmp_path)
    for name, args in (("plain", ()), ("stats", ("--stats",)), ("manifest", ("--manifest",))):
        quantfold.export(path, record, tmp_path / name / "m", *args)
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "stats" / file.name).read_bytes()
    stats, manifest = read(tmp_path / "stats"), read(tmp_path / "manifest")
    assert stats["files"] == manifest["files"] and stats["inputs"] == manifest["inputs"]
    for full, short in zip(stats["weights"], manifest["weights"]):
        assert {k: full[k] for k in short} == short
    assert "layers" not in manifest


def test_shards_and_resume(quantfold, tmp_path):
    """Parts written by several runs, one of them taken up again, have the manifest of the whole."""
    path, record = mixed(tmp_path)
    args = ("--stats", "--no-fsync", "--external", "always")
    quantfold.export(path, record, tmp_path / "whole" / "m", *args)
    for shard in ("0/3", "1/3", "0/3", "2/3"):
        quantfold.export(
            path, record, tmp_path / "parts" / "m", *args, "--shard", shard, "--resume"
        )
    assert quantfold("commit", "--save-path", tmp_path / "parts" / "m").code == 0
    whole = (tmp_path / "whole" / MANIFEST).read_bytes()
    assert (tmp_path / "parts" / MANIFEST).read_bytes() == whole


def test_killed_and_resumed(quantfold, tmp_path):
    """What a killed run has measured is not measured again, and is the same."""
    net = Net()
    x = net.input("x", random(1, 512))
    for i in range(40):
        x = gemm(net, x, random(512, 512, seed=i, scale=0.1), name=f"g{i}")
    net.output(x)
    path = save_net(net, tmp_path)
    scale = [float(F32(0.004))]
    records = [make_record.Record(f"g{i}", 0.1, 0, scale, "INT8", "INT8", []) for i in range(40)]
    (tmp_path / "r.txt").write_text(make_record.record_text(records))
    args = ("--stats", "--no-fsync", "--external", "always")
    quantfold.export(path, tmp_path / "r.txt", tmp_path / "whole" / "m", *args)
    command = [quantfold.binary, "export", "--model", path, "--record", tmp_path / "r.txt"]
    command += ["--save-path", tmp_path / "cut" / "m", *args, "--resume", "--progress", "never"]
    killed = 0
    for delay in (0.02, 0.04, 0.06):
        with subprocess.Popen(
            [str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            time.sleep(delay)
            run.send_signal(signal.SIGKILL)
            killed += run.wait() < 0
    quantfold.export(path, tmp_path / "r.txt", tmp_path / "cut" / "m", *args, "--resume")
    whole = (tmp_path / "whole" / MANIFEST).read_bytes()
    assert (tmp_path / "cut" / MANIFEST).read_bytes() == whole
    assert killed, "no run was slow enough to be killed"


def test_stats_start_anew_where_a_run_had_none(quantfold, tmp_path):
    """A run that is taken up with --stats does not keep pieces that were not measured."""
    path, record = mixed(tmp_path)
    args = ("--no-fsync", "--external", "always", "--shard")
    quantfold.export(path, record, tmp_path / "m", "--manifest", *args, "0/2")
    for shard in ("0/2", "1/2"):
        quantfold.export(path, record, tmp_path / "m", "--stats", *args, shard, "--resume")
    assert quantfold("commit", "--save-path", tmp_path / "m").code == 0
    assert all("histogram" in w for w in read(tmp_path)["weights"])
