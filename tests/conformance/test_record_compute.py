# SPDX-License-Identifier: Apache-2.0
"""`quantfold record` on weights of every dtype and layout, against numpy; and what it refuses."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import F32, Net, conv, gemm, random
from onnx import TensorProto, numpy_helper

EPSILON = np.finfo(F32).eps


def arq(w: np.ndarray, axes: tuple[int, ...] | None, bits: int = 8) -> np.ndarray:
    """max|w| over 2^(b-1) - 1 steps, one more where the extreme is negative."""
    w = w.astype(F32)
    high, low = w.max(axis=axes), w.min(axis=axes)
    steps = F32(2 ** (bits - 1) - 1) + (np.abs(high) < np.abs(low)).astype(F32)
    scale = np.maximum(np.abs(high), np.abs(low)) / steps
    return np.where(scale < EPSILON, F32(1), scale).ravel()


def write(folder: Path, net: Net, layers: dict, ranges: dict | None) -> list:
    """Model, config and ranges as arguments; `layers`: the weight config of each."""
    net.output(net.nodes[-1].output[0])
    onnx.save(net.model(), folder / "m.onnx")
    config = {"version": 1, "batch_num": 1}
    for name, weight in layers.items():
        config[name] = {"retrain_enable": True, "retrain_weight_config": weight}
    (folder / "c.json").write_text(json.dumps(config))
    args = ["record", "--model", folder / "m.onnx", "--config", folder / "c.json"]
    if ranges is not None:
        (folder / "a.json").write_text(json.dumps(ranges))
        args += ["--activations", folder / "a.json"]
    return args


def scales(text: str, field: str = "scale_w") -> np.ndarray:
    return np.array([F32(v) for v in re.findall(rf"\b{field}: (\S+)", text)])


RANGE = {"min": -1.0, "max": 2.0}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("channel_wise", [True, False])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_convolutions(quantfold, tmp_path, dtype, channel_wise, op):
    """Grouped; the channels of a ConvTranspose go group by group."""
    w = random(4, 2, 3, 3, seed=1).astype(getattr(ml_dtypes, dtype, dtype))
    w[1] = -np.abs(w[1])
    net = Net()
    x = net.input("x", random(1, 4, 8, 8).astype(w.dtype if dtype != "bfloat16" else F32))
    conv(net, x, w, op=op, group=2)
    args = write(tmp_path, net, {"c": {"channel_wise": channel_wise}}, {"c": RANGE})
    result = quantfold(*args)
    assert result.code == 0, result.err
    if op == "Conv" and channel_wise:
        wanted = arq(w, (1, 2, 3))
    elif channel_wise:
        wanted = arq(w.reshape(2, 2, 2, 3, 3), (1, 3, 4))
    else:
        wanted = arq(w, None)
    assert np.array_equal(scales(result.out), wanted)
    assert np.array_equal(scales(result.out, "scale_d"), [F32(3) / F32(255)])
    assert "offset_d: -43\n" in result.out


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
def test_large_gemm(quantfold, tmp_path, trans_b, bits):
    """More elements than a thread takes at once; threads and instruction sets give the same text."""
    net = Net()
    w = random(*((3000, 1000) if trans_b else (1000, 3000)), seed=2)
    w.flat[1_500_000] = -9
    gemm(net, net.input("x", random(2, 1000)), w, transB=trans_b)
    weight = {"dst_type": f"INT{bits}"}
    args = write(tmp_path, net, {"g": weight}, {"g": {"scale_d": 0.5, "offset_d": 3}})
    result = quantfold(*args)
    assert result.code == 0, result.err
    assert np.array_equal(scales(result.out), arq(w, None, bits))
    for extra, isa in ((["--threads", "1"], None), ([], "scalar")):
        env = os.environ | ({"QUANTFOLD_ISA": isa} if isa else {})
        assert quantfold(*args, *extra, env=env).out == result.out


def test_average_pool_and_zero_weights(quantfold, tmp_path):
    net = Net()
    x = net.op("AveragePool", [net.input("x", random(1, 2, 8, 8))], "p", kernel_shape=[2, 2])
    conv(net, x, np.zeros((3, 2, 3, 3), F32))
    args = write(tmp_path, net, {"p": {}, "c": {}}, {"p": RANGE, "c": {"min": 0, "max": 1e-30}})
    result = quantfold(*args)
    assert result.code == 0, result.err
    assert np.array_equal(scales(result.out), np.ones(4, F32))
    assert "scale_d: 1.0\n    offset_d: -128\n" in result.out  # too narrow a range
    (tmp_path / "r.txt").write_text(result.out)
    quantfold.export(tmp_path / "m.onnx", tmp_path / "r.txt", tmp_path / "out")


def net_of_one() -> Net:
    net = Net()
    gemm(net, net.input("x", random(2, 4)), random(4, 3))
    return net


WRONG_RANGES = {
    "no range": ({}, "range of its input is not known"),
    "unknown layer": ({"g": RANGE, "h": RANGE}, "h: no node has this name"),
    "one bound": ({"g": {"min": -1}}, "min and max"),
    "both kinds": ({"g": {"min": -1, "max": 1, "scale_d": 1, "offset_d": 0}}, "either"),
    "bounds in the wrong order": ({"g": {"min": 1, "max": -1}}, "the first below the second"),
    "beyond float32": ({"g": {"min": -1, "max": 1e39}}, "finite float32"),
    "a word": ({"g": {"min": "low", "max": 1}}, "not a number"),
    "a spelling": ({"g": {"mim": -1, "max": 1}}, 'did you mean "min"'),
    "a list": ({"g": [1, 2]}, "an object"),
    "half an offset": ({"g": {"scale_d": 1, "offset_d": 0.5}}, "an integer"),
    "a negative scale": ({"g": {"scale_d": -1, "offset_d": 0}}, "positive"),
    "offset out of range": ({"g": {"scale_d": 1, "offset_d": 30000}}, "offset_d is 30000"),
}


@pytest.mark.parametrize("name", WRONG_RANGES)
def test_wrong_ranges(quantfold, tmp_path, name):
    ranges, words = WRONG_RANGES[name]
    result = quantfold(*write(tmp_path, net_of_one(), {"g": {}}, ranges))
    assert result.code == 1 and words in result.err, result.err
    assert not result.out


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"g": {"min": -1, "max": 1}} x', "\0", "[" * 5000]
)
def test_no_json(quantfold, tmp_path, text):
    args = write(tmp_path, net_of_one(), {"g": {}}, {})
    (tmp_path / "a.json").write_text(text)
    result = quantfold(*args)
    assert result.code == 1 and "a.json" in result.err, result.err


def test_same_layer_twice(quantfold, tmp_path):
    args = write(tmp_path, net_of_one(), {"g": {}}, {})
    (tmp_path / "a.json").write_text('{"g": {"min": -1, "max": 1}, "g": {"min": -2, "max": 1}}')
    assert "given twice" in quantfold(*args).err


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_weight(quantfold, tmp_path, value):
    net = Net()
    w = random(4, 3)
    w[2, 1] = value
    gemm(net, net.input("x", random(2, 4)), w)
    result = quantfold(*write(tmp_path, net, {"g": {}}, {"g": RANGE}))
    assert result.code == 1 and "element 7" in result.err and "g.weight" in result.err


def test_wrong_config(quantfold, tmp_path):
    """A layer that the model does not have; channels of a Gemm."""
    result = quantfold(*write(tmp_path, net_of_one(), {"gg": {}}, {"g": RANGE}))
    assert result.code == 1 and "gg" in result.err
    weight = {"channel_wise": True}
    result = quantfold(*write(tmp_path, net_of_one(), {"g": weight}, {"g": RANGE}))
    assert result.code == 1 and "channel_wise" in result.err


def test_output_that_cannot_be(quantfold, tmp_path):
    args = write(tmp_path, net_of_one(), {"g": {}}, {"g": RANGE})
    (tmp_path / "file").write_text("")
    result = quantfold(*args, "--output", tmp_path / "file" / "r.txt")
    assert result.code == 3 and "file" in result.err
    assert quantfold(*args, "--output", f"{tmp_path}/").code == 1
    (tmp_path / "r.txt").write_text("before")
    (tmp_path / "a.json").write_text("{}")
    assert quantfold(*args, "--output", tmp_path / "r.txt").code == 1
    assert (tmp_path / "r.txt").read_text() == "before"


@pytest.mark.parametrize("name", ["m.onnx", "w.bin", "c.json", "a.json", "link"])
def test_output_in_place_of_an_input(quantfold, tmp_path, name):
    """It would be the end of a model."""
    args = write(tmp_path, net_of_one(), {"g": {}}, {"g": RANGE})
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    (tmp_path / "link").symlink_to("m.onnx")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert len(before) == 5
    result = quantfold(*args, "--output", tmp_path / name)
    assert result.code == 1 and name in result.err and "--output" in result.err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert quantfold(*args, "--output", tmp_path / "r.txt").code == 0


@pytest.mark.parametrize("through", ["p", "link"])
def test_output_to_a_pipe(quantfold, tmp_path, through):
    """A pipe stays one."""
    args = write(tmp_path, net_of_one(), {"g": {}}, {"g": RANGE})
    os.mkfifo(tmp_path / "p")
    (tmp_path / "link").symlink_to("p")
    result = quantfold(*args, "--output", tmp_path / through)
    assert result.code == 1 and "pipe" in result.err
    assert (tmp_path / "p").is_fifo() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    "args",
    [[], ["--model", "m"], ["--model", "m", "--config", "c", "--from-qdq"], ["--config", "c"]],
    ids=str,
)
def test_usage(quantfold, args):
    assert quantfold("record", *args).code == 2
