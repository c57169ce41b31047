# SPDX-License-Identifier: Apache-2.0
"""Every kind of model that datasets/make_large.py writes, small: valid, exported, and right."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import make_large
from make_large import Spec
from support import DEPLOY, FAKE, check_model, run_model

SIZE = 32
KINDS = [
    Spec(3, SIZE, op, layout, dtype, per_channel, bits)
    for op, layout, dtype, per_channel, bits in itertools.product(
        ["matmul", "gemm", "conv"],
        ["inline", "external", "constant"],
        ["float32", "float16"],
        [False, True],
        [8],
    )
] + [Spec(2, SIZE, op, per_channel=True, bits=4) for op in ("matmul", "gemm", "conv")]


def name(spec: Spec) -> str:
    """What pytest calls a case."""
    scales = "channel" if spec.per_channel else "tensor"
    return f"{spec.op}-{spec.layout}-{spec.dtype}-{scales}-{spec.bits}"


def wanted(spec: Spec, index: int) -> np.ndarray:
    """The integers that weight `index` becomes."""
    scales = np.array(make_large.scales(spec), np.float32)
    along = [1] * len(spec.shape)
    along[spec.channel_axis] = scales.size
    weight = make_large.weight(spec, index).astype(np.float32)
    limit = 2 ** (spec.bits - 1)
    return np.clip(np.rint(weight / scales.reshape(along)), -limit, limit - 1)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Initializers of a model, external ones included."""
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def source_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights of a generated model, wherever they are stored."""
    graph = onnx.load(path).graph
    constants = {n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant"}
    found = constants | {t.name: t for t in graph.initializer}
    return {k: numpy_helper.to_array(t) for k, t in found.items()}


def unpacked(stored: np.ndarray, spec: Spec) -> np.ndarray:
    """Deploy weights as a matrix: nibbles taken apart, low one first."""
    if spec.bits == 8:
        return stored
    axis = 0 if spec.op != "conv" else 1
    raw = stored.astype(np.uint8)
    both = np.stack([raw & 15, raw >> 4], axis=axis + 1).astype(np.int8)
    both = both.reshape([2 * d if i == axis else d for i, d in enumerate(stored.shape)])
    return np.where(both > 7, both - 16, both)


def extent(spec: Spec) -> tuple[int, ...]:
    """Shape of the model's input."""
    return (1, SIZE) + ((make_large.EXTENT,) * 2 if spec.op == "conv" else ())


@pytest.mark.parametrize("spec", KINDS, ids=name)
def test_kind(quantfold, tmp_path, spec):
    source, out = tmp_path / "in", tmp_path / "out"
    make_large.write(source, spec)
    check_model(source / "model.onnx")
    weights = source_weights(source / "model.onnx")
    quantfold.export(
        source / "model.onnx", source / "record.txt", out / "m", config=source / "config.json"
    )
    deploy, fake = tensors(out / DEPLOY), tensors(out / FAKE)
    assert len(weights) == spec.count
    for i in range(spec.count):
        assert np.array_equal(weights[f"w{i}"], make_large.weight(spec, i))
        integers = wanted(spec, i)
        if spec.op == "gemm":  # the deploy model has no transB
            integers = integers.T
        assert np.abs(integers).max() > 1
        assert np.array_equal(unpacked(deploy[f"w{i}"], spec), integers)
        assert np.array_equal(fake[f"w{i}"], integers)
    check_model(out / FAKE)
    x = np.random.default_rng(1).standard_normal(extent(spec)).astype(spec.dtype)
    (y,) = run_model(out / FAKE, [x])
    assert y.shape == x.shape and np.isfinite(y).all() and np.abs(y).max() > 0


def test_size_and_repeatability(tmp_path):
    spec = Spec(size=64, layout="external").holding(1 / 1024)
    assert spec.total_bytes == 2**20
    for folder in ("a", "b"):
        make_large.write(tmp_path / folder, spec)
    assert (tmp_path / "a" / "weights.bin").stat().st_size == 2**20
    for file in ("model.onnx", "weights.bin", "record.txt", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_weight_larger_than_the_pool(tmp_path):
    spec = Spec(count=1, size=2100)
    assert spec.layer_bytes // 4 > make_large.POOL
    make_large.write(tmp_path, spec)
    weights = source_weights(tmp_path / "model.onnx")
    assert np.array_equal(weights["w0"], make_large.weight(spec, 0))
