# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of runnable models, layer by layer, against sums in int64.

Each test writes a deploy model of one layer by hand, without the engine, makes it runnable and
compares the integers, the sums and the results with plain loops over numpy arrays of int64: equal,
bit for bit.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runnable import expose, find_layers, make_runnable, run_named
from support import run_model

LIMITS = {"INT4": (-8, 7), "INT8": (-128, 127), "INT16": (-32768, 32767)}


# ---- the deploy arithmetic ----


def quantize(x, scale, offset, kind):
    """AscendQuant, with the offset taken off again: int64."""
    low, high = LIMITS[kind]
    rounded = np.round(x.astype(np.float32) * np.float32(scale))
    return np.clip(rounded + np.float32(offset), low, high).astype(np.int64) - offset


def convolve(x, w, strides, dilations, pads, group):
    """A convolution of any rank in int64."""
    rank = x.ndim - 2
    widths = [(0, 0), (0, 0)] + [(pads[i], pads[i + rank]) for i in range(rank)]
    x = np.pad(x, widths)
    kernel = w.shape[2:]
    sizes = [
        (x.shape[2 + i] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    y = np.zeros([x.shape[0], w.shape[0], *sizes], np.int64)
    inputs, outputs = w.shape[1], w.shape[0] // group
    for tap in itertools.product(*map(range, kernel)):
        window = x[
            (slice(None), slice(None))
            + tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilations, sizes, strides)
            )
        ]
        for g in range(group):
            part = window[:, g * inputs : (g + 1) * inputs]
            weights = w[(slice(g * outputs, (g + 1) * outputs), slice(None), *tap)]
            y[:, g * outputs : (g + 1) * outputs] += np.einsum("ni...,oi->no...", part, weights)
    return y


def convolve_transposed(x, w, strides, pads, group, output_padding):
    """A transposed convolution of any rank in int64, by scattering."""
    rank, kernel = x.ndim - 2, w.shape[2:]
    sizes = [(x.shape[2 + i] - 1) * strides[i] + kernel[i] for i in range(rank)]
    full = [n + output_padding[i] for i, n in enumerate(sizes)]
    inputs, outputs = w.shape[0] // group, w.shape[1]
    y = np.zeros([x.shape[0], outputs * group, *full], np.int64)
    for tap in itertools.product(*map(range, kernel)):
        place = tuple(
            slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, x.shape[2:], strides)
        )
        for g in range(group):
            part = x[:, g * inputs : (g + 1) * inputs]
            weights = w[(slice(g * inputs, (g + 1) * inputs), slice(None), *tap)]
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *place)] += np.einsum(
                "ni...,io->no...", part, weights
            )
    cut = tuple(slice(pads[i], full[i] - pads[i + rank]) for i in range(rank))
    return y[(slice(None), slice(None), *cut)]


def wrap(total):
    """What int32 makes of a sum."""
    return total.astype(np.int64).astype(np.uint64).astype(np.uint32).view(np.int32)


# ---- deploy models ----


def pack(w, axis):
    """Pairs of int4 along an axis as int8."""
    even, odd = (np.take(w, range(i, w.shape[axis], 2), axis) for i in (0, 1))
    return ((even & 15) | ((odd & 15) << 4)).astype(np.uint8).view(np.int8)


def native(w, name):
    flat = np.append(w.reshape(-1), np.zeros(w.size % 2, w.dtype))
    raw = ((flat[::2] & 15) | ((flat[1::2] & 15) << 4)).astype(np.uint8).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, w.shape, raw, raw=True)


class Net:
    """One layer between an AscendQuant and an AscendDequant, as a deploy model has them."""

    def __init__(self, op, x, w, bias=None, axis=1, kind="INT8", form="int8", offset=0, scale=20.0):
        self.op, self.x, self.w, self.bias = op, x.astype(np.float32), w, bias
        self.kind, self.form, self.offset, self.scale = kind, form, offset, scale
        self.axis = axis
        self.between = None
        self.known_shape = True
        self.opset = 11

    def tensors(self):
        stored = {
            "int8": lambda: numpy_helper.from_array(self.w.astype(np.int8), "w"),
            "packed": lambda: numpy_helper.from_array(pack(self.w, self.axis), "w"),
            "native": lambda: native(self.w, "w"),
        }
        out = [stored[self.form]()] if self.w is not None else []
        if self.bias is not None:
            out.append(numpy_helper.from_array(self.bias.astype(np.int32), "b"))
        return out

    def save(self, path: Path, scales, **attributes):
        dims = list(self.x.shape) if self.known_shape else [None] * self.x.ndim
        params = np.asarray(scales, np.float32).view(np.uint32).astype(np.uint64)
        inputs = ["q"] + ["w"] * (self.w is not None) + ["b"] * (self.bias is not None)
        nodes = [
            helper.make_node(
                "AscendQuant",
                ["x"],
                ["q"],
                "l.quant",
                scale=self.scale,
                offset=float(self.offset),
                dst_type=self.kind,
            ),
            *(self.between or []),
            helper.make_node(self.op, inputs, ["total"], "l", **attributes),
            helper.make_node("AscendDequant", ["total", "p"], ["y"], "l.dequant", dtype=0),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", 1, dims)],
            [helper.make_tensor_value_info("y", 1, [None] * self.x.ndim)],
            [*self.tensors(), numpy_helper.from_array(params, "p")],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=6
        )
        path.write_bytes(model.SerializeToString())

    def integers(self):
        return quantize(self.x, self.scale, self.offset, self.kind)


def check(quantfold, folder: Path, net: Net, total, scales, shape, **attributes) -> None:
    """The runnable model's sums are `total`, and its result is those times the scales."""
    net.save(folder / "deploy.onnx", scales, **attributes)
    path = make_runnable(quantfold, folder, folder / "deploy.onnx")
    exposed = expose(path, onnx.load(path), ["q", "l.quant.zero", "total"], "exposed")
    got = run_named(exposed, {"x": net.x})
    assert got["q"].dtype == (np.int16 if net.kind == "INT16" else np.int8)
    assert got["l.quant.zero"] == net.offset
    assert np.array_equal(got["q"].astype(np.int64) - net.offset, net.integers())
    assert got["total"].dtype == np.int32 and got["total"].shape == total.shape
    assert np.array_equal(got["total"], wrap(total))
    wanted = wrap(total).astype(np.float32) * np.asarray(scales, np.float32).reshape(shape)
    assert got["y"].tobytes() == wanted.tobytes()


def numbers(seed, shape, low, high):
    """Integers with many at both ends, where sums are largest."""
    rng = np.random.default_rng(seed)
    w = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.3, np.where(rng.random(shape) < 0.5, low, high), w)


def activations(seed, shape, kind="INT8"):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.2, 1.2, shape) * LIMITS[kind][1] / 20


KINDS = [("INT8", 0), ("INT8", -128), ("INT8", 127), ("INT8", -37), ("INT16", 0), ("INT16", -32768)]
KINDS += [("INT16", 777), ("INT4", 0), ("INT4", -8), ("INT4", 100)]


@pytest.mark.parametrize("kind, offset", KINDS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group, dilation, stride", [(1, 1, 1), (2, 2, 1), (4, 1, 2)])
def test_conv(quantfold, tmp_path, kind, offset, rank, group, dilation, stride):
    outputs = 8
    w = numbers(rank, [outputs, 4 // group] + [3] * rank, -128, 127)
    bias = numbers(1, [outputs], -(2**20), 2**20)
    net = Net("Conv", activations(2, [2, 4] + [7] * rank, kind), w, bias, kind=kind, offset=offset)
    pads = [1, 2, 0][:rank] + [0, 1, 2][:rank]
    total = convolve(net.integers(), w, [stride] * rank, [dilation] * rank, pads, group)
    shape = [1, outputs] + [1] * rank
    total += bias.reshape(shape)
    scales = np.random.default_rng(3).uniform(1e-4, 1e-2, outputs)
    check(
        quantfold,
        tmp_path,
        net,
        total,
        scales,
        shape,
        group=group,
        kernel_shape=[3] * rank,
        pads=pads,
        strides=[stride] * rank,
        dilations=[dilation] * rank,
    )


@pytest.mark.parametrize("opset", [10, 11, 13, 17, 21])
@pytest.mark.parametrize("form", ["int8", "packed", "native"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (3, 2, 5), (1, 2, 1, 1, 1), (5, 6, 3, 1)])
def test_conv_weights(quantfold, tmp_path, opset, form, known, shape):
    """Each form of INT4, with and without a shape that tells packed from plain tensors."""
    w = numbers(4, shape, -8, 7)
    rank = len(shape) - 2
    net = Net("Conv", activations(5, [2, shape[1]] + [6] * rank), w, form=form, offset=-11)
    net.known_shape, net.opset = known, opset
    ones = [1] * rank
    total = convolve(net.integers(), w, ones, ones, [0] * 2 * rank, 1)
    check(quantfold, tmp_path, net, total, [0.01], [1], kernel_shape=list(shape[2:]))


TRANSPOSED = [
    # input channels, output channels of a group, group, kernel, kind: which digits are needed
    (4, 3, 1, [3, 3], "INT8"),
    (8, 2, 2, [2, 2], "INT8"),
    (6, 2, 1, [4], "INT8"),
    (4, 2, 2, [2, 3, 2], "INT8"),
    (64, 2, 1, [5, 5], "INT8"),
    (512, 1, 1, [3, 3], "INT8"),
    (4, 2, 1, [3, 3], "INT16"),
    (100, 2, 2, [4, 4], "INT16"),
    (600, 2, 1, [3, 3], "INT16"),
    (8, 2, 1, [3, 3], "INT4"),
]


@pytest.mark.parametrize("offset", [0, -128, 90])
@pytest.mark.parametrize("cin, cout, group, kernel, kind", TRANSPOSED)
def test_conv_transpose(quantfold, tmp_path, cin, cout, group, kernel, kind, offset):
    rank = len(kernel)
    w = numbers(6, [cin, cout, *kernel], -128, 127)
    bias = numbers(7, [cout * group], -(2**24), 2**24)
    x = activations(8, [2, cin] + [4] * rank, kind)
    x[0] = np.abs(x[0]).max() * 3  # one image saturates, so that sums are as large as can be
    net = Net("ConvTranspose", x, w, bias, kind=kind, offset=offset)
    pads, extra = [1] * rank + [0] * rank, [1] * rank
    total = convolve_transposed(net.integers(), w, [2] * rank, pads, group, extra)
    shape = [1, cout * group] + [1] * rank
    total += bias.reshape(shape)
    scales = np.random.default_rng(9).uniform(1e-6, 1e-3, cout * group)
    check(
        quantfold,
        tmp_path,
        net,
        total,
        scales,
        shape,
        group=group,
        kernel_shape=kernel,
        strides=[2] * rank,
        pads=pads,
        output_padding=extra,
    )


@pytest.mark.parametrize("form", ["int8", "packed", "native"])
@pytest.mark.parametrize("known", [True, False])
def test_conv_transpose_weights(quantfold, tmp_path, form, known):
    w = numbers(10, [6, 3, 2, 2], -8, 7)
    net = Net("ConvTranspose", activations(11, [1, 6, 4, 4]), w, form=form, axis=0, offset=5)
    net.known_shape = known
    total = convolve_transposed(net.integers(), w, [1, 1], [0] * 4, 1, [0, 0])
    check(quantfold, tmp_path, net, total, [0.5], [1], kernel_shape=[2, 2], group=1)


@pytest.mark.parametrize("form", ["int8", "packed", "native"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind, offset", KINDS)
@pytest.mark.parametrize("op, with_bias", [("Gemm", True), ("Gemm", False), ("MatMul", False)])
def test_matrix(quantfold, tmp_path, form, known, kind, offset, op, with_bias):
    low, high = (-128, 127) if form == "int8" else (-8, 7)
    w = numbers(12, [10, 7], low, high)
    bias = numbers(13, [7], -(2**30), 2**30) if with_bias else None
    shape = [3, 10] if op == "Gemm" else [2, 3, 10]
    net = Net(op, activations(14, shape, kind), w, bias, 0, kind, form, offset)
    net.known_shape = known
    total = net.integers() @ w + (0 if bias is None else bias)
    check(quantfold, tmp_path, net, total, [0.003], [1])


@pytest.mark.parametrize("form", ["int8", "packed"])
def test_gemm_with_a_turned_weight(quantfold, tmp_path, form):
    """transB, which is left where the weight is behind a Transpose."""
    w = numbers(15, [6, 8], -8, 7)  # [N, K]
    net = Net("Gemm", activations(16, [4, 8]), w, None, 1, form=form)
    check(quantfold, tmp_path, net, net.integers() @ w.T, [0.003], [1], transB=1)


@pytest.mark.parametrize("form", ["int8", "packed", "native"])
def test_weight_behind_a_transpose(quantfold, tmp_path, form):
    w = numbers(17, [6, 8], -8, 7)
    net = Net("MatMul", activations(18, [4, 8]), w, None, 1, form=form)
    net.save(tmp_path / "d.onnx", [0.01])
    model = onnx.load_from_string((tmp_path / "d.onnx").read_bytes())
    turn = helper.make_node("Transpose", ["w"], ["w_turned"], "turn", perm=[1, 0])
    model.graph.node.insert(0, turn)
    next(n for n in model.graph.node if n.name == "l").input[1] = "w_turned"
    (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
    path = make_runnable(quantfold, tmp_path, tmp_path / "d.onnx")
    exposed = expose(path, onnx.load(path), ["total"], "exposed")
    assert np.array_equal(run_named(exposed, {"x": net.x})["total"], net.integers() @ w.T)


@pytest.mark.parametrize("offset", [0, -128, 44])
@pytest.mark.parametrize("padded", [False, True])
def test_average_pool(quantfold, tmp_path, offset, padded):
    """The mean of exact sums; padding is 0, not the offset."""
    net = Net("AveragePool", activations(19, [1, 2, 6, 6]), None, offset=offset)
    x = net.integers()
    if padded:
        net.between = [
            helper.make_node(
                "Constant", [], ["w_"], value=numpy_helper.from_array(np.array([0, 0, 1, 1] * 2))
            ),
            helper.make_node("Pad", ["q", "w_"], ["padded"], "l_pad"),
        ]
        x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (2, 3))[:, :, ::2, ::2]
    mean = (windows.sum((-1, -2)).astype(np.float32) / np.float32(4)) * np.float32(0.05)
    net.save(tmp_path / "d.onnx", [0.05], kernel_shape=[2, 2], strides=[2, 2])
    if padded:
        model = onnx.load_from_string((tmp_path / "d.onnx").read_bytes())
        next(n for n in model.graph.node if n.name == "l").input[0] = "padded"
        (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
    path = make_runnable(quantfold, tmp_path, tmp_path / "d.onnx")
    (y,) = run_model(path, {"x": net.x})
    assert y.tobytes() == mean.tobytes()


@pytest.mark.parametrize("bits", [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x33D6BF95])
def test_scales_are_the_low_half_of_the_parameter(quantfold, tmp_path, bits):
    """Every kind of float32, subnormal ones included; the upper half has no effect."""
    net = Net("MatMul", np.eye(2) / 20, np.array([[1, 0], [0, 1]]))
    net.save(tmp_path / "d.onnx", [1.0])
    model = onnx.load_from_string((tmp_path / "d.onnx").read_bytes())
    (param,) = [t for t in model.graph.initializer if t.name == "p"]
    param.CopyFrom(numpy_helper.from_array(np.array([bits | 0xAB << 40], np.uint64), "p"))
    (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
    (y,) = run_model(make_runnable(quantfold, tmp_path, tmp_path / "d.onnx"), {"x": net.x})
    wanted = np.eye(2, dtype=np.float32) * np.array([bits], np.uint32).view(np.float32)
    assert y.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "MatMul"])
def test_sums_beyond_int32_wrap(quantfold, tmp_path, op):
    """A documented choice; and the export says that it can happen."""
    terms = 600
    shapes = {"Conv": [1, terms, 1], "ConvTranspose": [terms, 1, 1], "MatMul": [terms, 1]}
    w = np.full(shapes[op], -128)
    x = np.full([1, terms, 2] if op != "MatMul" else [2, terms], 1e9)
    net = Net(op, x, w, kind="INT16", offset=-32768, axis=0 if op != "Conv" else 1)
    total = net.integers().sum(1, keepdims=True) * -128
    assert total.min() < -(2**31)
    kernel = {} if op == "MatMul" else {"kernel_shape": [1]}
    check(quantfold, tmp_path, net, total, [1.0], [1], **kernel)
    args = ["--model", tmp_path / "deploy.onnx", "--save-path", tmp_path / "m"]
    assert "can leave the range of int32" in quantfold("export", "--emit", "runnable", *args).err


# ---- LSTM and GRU ----


def sigmoid(v):
    return 1 / (1 + np.exp(-v.astype(np.float64)))


def rnn_reference(lstm, x, h, c, w, r, b, scales, gates, ins):
    """The operator in int64 and float64: outputs, and the sums of each step."""
    scale_x, offset_x, scale_h, offset_h, kind = ins
    half = len(scales) // 2
    spread = [np.repeat(s, len(w) // half) for s in (scales[:half], scales[half:])]
    if not lstm:
        h = (quantize(h, scale_h, offset_h, kind) / scale_h).astype(np.float32)
    ys, most = [], 0
    for t in range(len(x)):
        ax = quantize(x[t], scale_x, offset_x, kind) @ w.T + b[: len(w)]
        ah = quantize(h, scale_h, offset_h, kind) @ r.T + b[len(w) :]
        most = max(most, np.abs(ax).max(), np.abs(ah).max())
        gx, gh = (a.astype(np.float32) * s for a, s in zip((ax, ah), spread))
        if lstm:
            i, o, f, n = np.split(gx + gh, gates, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(n)
            h = sigmoid(o) * np.tanh(c)
        else:
            (xz, xr, xn), (hz, hr, hn) = (np.split(g, gates, axis=1) for g in (gx, gh))
            z = sigmoid(xz + hz)
            h = (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h
        ys.append(h)
    assert most < 2**31
    return np.stack(ys)[:, None], h[None], None if c is None else c[None]


RNN_WEIGHTS = [("int8", False), ("int8", True), ("packed", True), ("native", True)]


@pytest.mark.parametrize("form, channels", RNN_WEIGHTS)
@pytest.mark.parametrize(
    "kind, offsets", [("INT8", (0, 0)), ("INT8", (-60, 17)), ("INT16", (9, -300))]
)
@pytest.mark.parametrize("lstm", [True, False])
def test_rnn(quantfold, tmp_path, lstm, kind, offsets, form, channels):
    gates, size, hidden, batch, steps = 4 if lstm else 3, 6, 8, 3, 7
    rng = np.random.default_rng(20)
    low, high = (-128, 127) if form == "int8" else (-8, 7)
    w, r = (numbers(21, [gates * hidden, n], low, high) for n in (size, hidden))
    b = rng.integers(-9000, 9000, 2 * gates * hidden)
    reach = LIMITS[kind][1]
    scale_x, scale_h = np.float32(reach / 3), np.float32(reach / 1.1)
    unit = 1 / (reach * (high + 1))
    scales = rng.uniform(0.3, 1.2, 2 * (gates * hidden if channels else gates)) * unit
    scales = scales.astype(np.float32)
    x = rng.uniform(-3, 3, [steps, batch, size]).astype(np.float32)
    h, c = (rng.uniform(-1, 1, [1, batch, hidden]).astype(np.float32) for _ in "hc")
    store = {
        "int8": lambda v, n: numpy_helper.from_array(v[None].astype(np.int8), n),
        "packed": lambda v, n: numpy_helper.from_array(pack(v[None], 2), n),
        "native": lambda v, n: native(v[None], n),
    }[form]
    params = scales.view(np.uint32).astype(np.uint64)
    names = ["x", "w", "r", "h"] + ["c"] * lstm + ["b", "", "", "p"]
    node = helper.make_node(
        f"Basic{'LSTM' if lstm else 'GRU'}InplaceFillWindowCache",
        names,
        ["y", "y_h"] + ["y_c"] * lstm,
        "rnn",
        hidden_size=hidden,
        clip=-1.0,
        direction="forward",
        quant_sqrt_mode_x=0,
        quant_sqrt_mode_h=0,
        quant_scale_x=float(scale_x),
        quant_offset_x=float(offsets[0]),
        quant_scale_h=float(scale_h),
        quant_offset_h=float(offsets[1]),
        quant_dtype=2 if kind == "INT8" else 6,
    )
    if not lstm:
        node.attribute.append(helper.make_attribute("linear_before_reset", 1))
    states = [("h", h)] + [("c", c)] * lstm
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, 1, list(v.shape)) for n, v in [("x", x), *states]],
        [helper.make_tensor_value_info(o, 1, [None] * (4 if o == "y" else 3)) for o in node.output],
        [
            store(w, "w"),
            store(r, "r"),
            numpy_helper.from_array(b[None].astype(np.int32), "b"),
            numpy_helper.from_array(params, "p"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    (tmp_path / "d.onnx").write_bytes(model.SerializeToString())
    path = make_runnable(quantfold, tmp_path, tmp_path / "d.onnx")
    ours = run_model(path, {"x": x} | dict(states))
    ins = (scale_x, offsets[0], scale_h, offsets[1], kind)
    wanted = rnn_reference(lstm, x, h[0], c[0] if lstm else None, w, r, b, scales, gates, ins)
    for a, e in zip(ours, wanted):
        # gates are float32 there and float64 here; no state is so near a tie that it is felt
        assert a.shape == e.shape and np.max(np.abs(a - e)) < 3e-6
