# SPDX-License-Identifier: Apache-2.0
"""QDQ import on graphs made for it: each way to write a quantized layer, and what cannot be expressed.

The oracle is ONNX Runtime on the QDQ model itself, which knows nothing of our import. Every layer's
output must agree with that model's to within the step by which its input is quantized; where no value
sits on a tie it agrees far better, and that is the bar here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import F32, Net, random
from onnx import TensorProto, helper, numpy_helper

from support import DEPLOY, FAKE, check_model, payload, run_model, sqnr_db

KINDS = {
    "int8": (TensorProto.INT8, np.int8, -128, 127),
    "uint8": (TensorProto.UINT8, np.uint8, 0, 255),
    "int16": (TensorProto.INT16, np.int16, -32768, 32767),
    "uint16": (TensorProto.UINT16, np.uint16, 0, 65535),
    "int4": (TensorProto.INT4, ml_dtypes.int4, -8, 7),
    "uint4": (TensorProto.UINT4, ml_dtypes.uint4, 0, 15),
    "int32": (TensorProto.INT32, np.int32, -(2**31), 2**31 - 1),
}
CLOSE_DB = 80  # no ties: what is left is the order of float additions


def middle(kind: str) -> int:
    """The zero point that is 0 in the signed domain."""
    low, high = KINDS[kind][2:]
    return (low + high + 1) // 2


def integers(values, kind: str, name: str) -> TensorProto:
    """An integer tensor of any of the kinds."""
    return numpy_helper.from_array(np.asarray(values).astype(KINDS[kind][1]), name)


@dataclass
class Activation:
    """How activations are quantized."""

    kind: str = "uint8"
    scale: float = 0.0371
    zero: int | None = 100
    scale_dtype: type = np.float32
    hidden: str = ""  # "constant": parameters in Constant nodes; "identity": behind Identity
    clip: tuple[int, int] | None = None


def parameter(net: Net, name: str, tensor: TensorProto, hidden: str) -> str:
    """A scale or zero point, as plainly as `hidden` allows."""
    tensor.name = name
    if hidden == "constant":
        net.nodes.append(helper.make_node("Constant", [], [name], f"{name}_node", value=tensor))
        return name
    net.tensor(tensor)
    if hidden == "identity":
        return net.op("Identity", [name], f"{name}_same")
    return name


def pair(net: Net, x: str, name: str, a: Activation) -> str:
    """Q and DQ behind `x`."""
    inputs = [
        parameter(
            net, f"{name}_s", numpy_helper.from_array(np.array(a.scale, a.scale_dtype)), a.hidden
        )
    ]
    if a.zero is not None:
        inputs.append(parameter(net, f"{name}_z", integers(a.zero, a.kind, "z"), a.hidden))
    q = net.op("QuantizeLinear", [x, *inputs], f"{name}_q")
    if a.clip:
        bounds = [net.tensor(integers(v, a.kind, f"{name}_c{i}")) for i, v in enumerate(a.clip)]
        q = net.op("Clip", [q, *bounds], f"{name}_clip")
    return net.op("DequantizeLinear", [q, *inputs], f"{name}_dq")


@dataclass
class Weights:
    """How weights are quantized."""

    kind: str = "int8"
    axis: int | None = 0  # None: per tensor
    integers: bool = True  # DQ of integers; else Q and DQ of floats
    zero: int | None = 0  # added to the middle; None: no zero point is written
    scale_dtype: type = np.float32
    written_axis: int | None = None


def weight(net: Net, w: np.ndarray, name: str, how: Weights) -> str:
    """A quantized weight, symmetric unless `zero` says otherwise."""
    rest = tuple(i for i in range(w.ndim) if i != how.axis)
    largest = np.abs(w).max(axis=rest if how.axis is not None else None)
    low, high = KINDS[how.kind][2:]
    scale = (largest / ((high - low) // 2)).astype(how.scale_dtype)
    zero = middle(how.kind) + (how.zero or 0)
    shape = [-1 if i == how.axis else 1 for i in range(w.ndim)]
    spread = scale.astype(F32).reshape(shape if how.axis is not None else ())
    q = np.clip(np.rint(w / spread) + zero, low, high)
    inputs = [net.weight(f"{name}_s", scale)]
    if how.zero is not None:
        inputs.append(net.tensor(integers(np.full(scale.shape, zero), how.kind, f"{name}_z")))
    attributes = {}
    if how.axis is not None:
        attributes["axis"] = how.axis if how.written_axis is None else how.written_axis
    if how.integers:
        stored = net.tensor(integers(q, how.kind, name))
    else:
        stored = net.op("QuantizeLinear", [net.weight(name, w), *inputs], f"{name}_q", **attributes)
    return net.op("DequantizeLinear", [stored, *inputs], f"{name}_dq", **attributes)


def bias32(net: Net, b: np.ndarray, scale: np.ndarray, name: str) -> str:
    """An int32 bias behind DQ."""
    q = np.rint(b / scale).astype(np.int32)
    inputs = [net.weight(name, q), net.weight(f"{name}_s", np.asarray(scale, F32))]
    return net.op("DequantizeLinear", inputs, f"{name}_dq", axis=0)


def finish(net: Net, *outputs: str) -> onnx.ModelProto:
    for o in outputs:
        net.output(o)
    return net.model()


def export(quantfold, folder: Path, model: onnx.ModelProto, *extra, expect: int = 0):
    """Exports without a record; returns the two models' paths and the report."""
    path = folder / "q.onnx"
    onnx.save(model, path)
    args = ["export", "--model", path, "--save-path", folder / "m", "--json", "--quiet", *extra]
    result = quantfold(*args)
    assert result.code == expect, f"exit {result.code}: {result.err}\n{result.out}"
    return json.loads(result.out)


def assert_agrees(quantfold, folder: Path, net: Net, model, layers: int, least=CLOSE_DB, extra=()):
    """The export quantizes `layers` layers and its fake_quant model gives the QDQ model's outputs; a
    record made from the model gives the same files."""
    report = export(quantfold, folder, model, *extra)
    assert len(report["layers"]) == layers, report["layers"]
    check_model(folder / FAKE)
    wanted = run_model(folder / "q.onnx", net.feeds)
    for ours, theirs in zip(run_model(folder / FAKE, net.feeds), wanted):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert sqnr_db(theirs, ours) >= least, sqnr_db(theirs, ours)
    assert_record_is_enough(quantfold, folder, extra)
    return report


def assert_record_is_enough(quantfold, folder: Path, extra) -> None:
    """The model's record as a text, exported with, gives the same files."""
    unsupported = [e for e in extra if e in ("--on-unsupported", "float")]
    made = quantfold(
        *("record", "--model", folder / "q.onnx", "--from-qdq", *unsupported),
        *("--output", folder / "r.txt"),
    )
    assert made.code == 0, made.err
    quantfold.export(folder / "q.onnx", folder / "r.txt", folder / "through" / "m", *extra)
    for name in (DEPLOY, FAKE):
        assert (folder / name).read_bytes() == (folder / "through" / name).read_bytes()


def deploy(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / DEPLOY, load_external_data=False)


def ops(model: onnx.ModelProto) -> list[str]:
    return [n.op_type for n in model.graph.node]


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def two_convs(
    a: Activation, w: Weights, opset: int = 21, between=None
) -> tuple[Net, onnx.ModelProto]:
    """conv, Relu, conv, with QDQ before each and behind the last."""
    net = Net(opset=opset, ir_version=10)
    x = pair(net, net.input("x", random(2, 3, 8, 8, seed=1)), "in", a)
    c1 = net.op("Conv", [x, weight(net, random(4, 3, 3, 3, seed=2, scale=0.3), "w1", w)], "c1")
    r = net.op("Relu", [c1], "relu") if between is None else between(net, c1)
    m = pair(net, r, "mid", a)
    c2 = net.op("Conv", [m, weight(net, random(6, 4, 3, 3, seed=3, scale=0.3), "w2", w)], "c2")
    return net, finish(net, pair(net, c2, "out", a))


# ---- the ways to write it ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("w_kind", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("ints", [True, False], ids=["ints", "floats"])
def test_eight_bits(quantfold, tmp_path, kind, w_kind, axis, ints):
    """The usual forms."""
    a = Activation(kind, zero=middle(kind) - 28)
    net, model = two_convs(a, Weights(w_kind, axis, ints), opset=13)
    assert_agrees(quantfold, tmp_path, net, model, 2)
    made = deploy(tmp_path)
    assert ops(made).count("AscendQuant") == 3 and ops(made).count("AscendAntiQuant") == 1
    if ints:
        stored = numpy_helper.to_array(tensor(model, "w1")).astype(int) - middle(w_kind)
        assert np.array_equal(numpy_helper.to_array(tensor(made, "w1")).astype(int), stored)


@pytest.mark.parametrize("opset", [10, 11, 12, 13, 15, 19, 21, 22, 23])
def test_opsets(quantfold, tmp_path, opset):
    """Per tensor from opset 10 on, per channel from 13."""
    net, model = two_convs(Activation(), Weights(axis=0 if opset > 12 else None), opset=opset)
    assert_agrees(quantfold, tmp_path, net, model, 2)


@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_sixteen_bits(quantfold, tmp_path, kind):
    """16-bit activations."""
    a = Activation(kind, 0.00021, middle(kind) + 77)
    net, model = two_convs(a, Weights())
    report = assert_agrees(quantfold, tmp_path, net, model, 2)
    assert {l["activation_bits"] for l in report["layers"]} == {16}


@pytest.mark.parametrize("kind", ["int4", "uint4"])
@pytest.mark.parametrize("ints", [True, False], ids=["ints", "floats"])
def test_four_bit_weights(quantfold, tmp_path, kind, ints):
    """Pairs of input channels are packed; an odd number of them is stored as int8, if they are
    integers already."""
    net, model = two_convs(Activation(), Weights(kind, 0, ints))
    if not ints:  # three input channels
        report = export(quantfold, tmp_path, model, expect=1)
        assert "3 input channels" in report["findings"][0]["message"]
        return
    report = assert_agrees(quantfold, tmp_path, net, model, 2)
    assert [l["weight_bits"] for l in report["layers"]] == [8, 4]


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_four_bit_activations(quantfold, tmp_path, kind):
    net, model = two_convs(Activation(kind, 0.5, middle(kind) + 2), Weights())
    report = assert_agrees(quantfold, tmp_path, net, model, 2)
    assert {l["activation_bits"] for l in report["layers"]} == {4}


@pytest.mark.parametrize("hidden", ["constant", "identity"])
def test_hidden_parameters(quantfold, tmp_path, hidden):
    net, model = two_convs(Activation(hidden=hidden), Weights(), opset=13)
    assert_agrees(quantfold, tmp_path, net, model, 2)


def test_without_zero_points(quantfold, tmp_path):
    """Activations are uint8 from 0 then, and weights are as they are stored."""
    net, model = two_convs(Activation(zero=None), Weights(zero=None), opset=13)
    assert_agrees(quantfold, tmp_path, net, model, 2)


def test_negative_axis(quantfold, tmp_path):
    net, model = two_convs(Activation(), Weights(axis=0, written_axis=-4), opset=13)
    assert_agrees(quantfold, tmp_path, net, model, 2)


def test_narrow_range(quantfold, tmp_path):
    """PyTorch's 7-bit activations: a Clip between Q and DQ."""
    net, model = two_convs(Activation(scale=0.06, zero=40, clip=(0, 127)), Weights(), opset=13)
    assert_agrees(quantfold, tmp_path, net, model, 2)
    assert ops(deploy(tmp_path)).count("Clip") == 3


def test_contrib_domain(quantfold, tmp_path):
    """ONNX Runtime's own copies of the operators."""
    net, model = two_convs(Activation("int16", 0.0002, 5), Weights(), opset=17)
    for node in model.graph.node:
        if node.op_type.endswith("quantizeLinear") or node.op_type.endswith("QuantizeLinear"):
            node.domain = "com.microsoft"
        if node.op_type == "DequantizeLinear":
            node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert_agrees(quantfold, tmp_path, net, model, 2)


# ---- operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
def test_conv_transpose(quantfold, tmp_path, group, axis, kind):
    """ONNX has a scale for each channel of a group, a record one for each of all."""
    net = Net(opset=21, ir_version=10)
    x = pair(net, net.input("x", random(1, 4, 5, 5)), "in", Activation())
    w = weight(net, random(4, 3, 3, 3, seed=4), "w", Weights(kind, axis))
    y = net.op("ConvTranspose", [x, w], "t", group=group)
    assert_agrees(quantfold, tmp_path, net, finish(net, y), 1)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("axis", [None, "channels"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("bias", ["none", "float", "int32"])
def test_gemm(quantfold, tmp_path, trans_b, axis, kind, bias):
    net = Net(opset=21, ir_version=10)
    a = Activation()
    x = pair(net, net.input("x", random(3, 70)), "in", a)
    w = random(40, 70, seed=5) if trans_b else random(70, 40, seed=5)
    where = None if axis is None else 0 if trans_b else 1
    inputs = [x, weight(net, w, "w", Weights(kind, where))]
    b = random(40, seed=6)
    if bias == "float":
        inputs.append(net.weight("b", b))
    if bias == "int32":
        scale = numpy_helper.to_array(next(t for t in net.tensors if t.name == "w_s"))
        inputs.append(bias32(net, b, np.broadcast_to(scale * F32(a.scale), 40).copy(), "b"))
    y = net.op("Gemm", inputs, "g", transB=trans_b)
    report = assert_agrees(
        quantfold, tmp_path, net, finish(net, y), 1, 60 if bias == "float" else CLOSE_DB
    )
    assert report["layers"][0]["bias"] == (bias != "none")


@pytest.mark.parametrize("order", ["plain", "behind", "before"])
@pytest.mark.parametrize("ints", [True, False], ids=["ints", "floats"])
@pytest.mark.parametrize("axis", [None, "channels"])
def test_matmul(quantfold, tmp_path, order, ints, axis):
    """With a Transpose behind DQ, or between the floats and Q."""
    net = Net(opset=17)
    x = pair(net, net.input("x", random(2, 5, 12)), "in", Activation())
    w = random(12, 10, seed=7)
    out = 1 if order != "behind" else 0
    how = Weights("int8", None if axis is None else out, ints)
    if order == "before":
        if ints:
            pytest.skip("integers are stored as they are")
        turned = Net(opset=17)
        made = weight(turned, w, "w", how)
        for t in turned.tensors:
            if t.name == "w":
                t.CopyFrom(numpy_helper.from_array(w.T.copy(), "w"))
        net.tensors += turned.tensors
        flip = net.op("Transpose", ["w"], "flip", perm=[1, 0])
        turned.nodes[0].input[0] = flip
        net.nodes += turned.nodes
    elif order == "behind":
        made = net.op("Transpose", [weight(net, w.T.copy(), "w", how)], "flip", perm=[1, 0])
    else:
        made = weight(net, w, "w", how)
    m = net.op("MatMul", [x, made], "m")
    y = net.op("Add", [m, net.weight("b", random(10, seed=8))], "add")
    assert_agrees(quantfold, tmp_path, net, finish(net, y), 1, 60)


def test_shared_weight_and_activation(quantfold, tmp_path):
    """One DQ feeds two layers, and a float operator as well."""
    net = Net(opset=17)
    x = pair(net, net.input("x", random(3, 16)), "in", Activation())
    w = weight(net, random(16, 16, seed=9), "w", Weights(axis=1))
    one, two = net.op("MatMul", [x, w], "one"), net.op("MatMul", [x, w], "two")
    norm = net.op("Mul", [x, x], "square")
    total = net.op("Sum", [one, two, norm, net.op("ReduceSum", [w], "sum")], "all")
    assert_agrees(quantfold, tmp_path, net, finish(net, total), 2)
    made = ops(deploy(tmp_path))
    assert made.count("AscendQuant") == 1 and made.count("AscendAntiQuant") == 1


def test_average_pool(quantfold, tmp_path):
    net = Net(opset=17)
    x = pair(net, net.input("x", random(1, 3, 9, 9)), "in", Activation())
    y = net.op("AveragePool", [x], "p", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    w = weight(net, random(2, 3, 1, 1, seed=1), "w", Weights())
    z = net.op("Conv", [pair(net, y, "mid", Activation(scale=0.0137)), w], "c")
    assert_agrees(quantfold, tmp_path, net, finish(net, z), 2)


def rnn(op: str, ints: bool, axis) -> tuple[Net, onnx.ModelProto]:
    gates = 4 if op == "LSTM" else 3
    net = Net(opset=17)
    a = Activation("int8", 0.02, 3)
    x = pair(net, net.input("x", random(5, 2, 6, scale=0.5)), "in", a)
    h = pair(
        net, net.input("h", random(1, 2, 8, scale=0.5)), "hidden", Activation("int8", 0.013, -4)
    )
    w = weight(net, random(1, gates * 8, 6, seed=2, scale=0.3), "w", Weights("int8", axis, ints))
    r = weight(net, random(1, gates * 8, 8, seed=3, scale=0.3), "r", Weights("int8", axis, ints))
    inputs = [x, w, r, net.weight("b", random(1, 2 * gates * 8, seed=4, scale=0.1)), "", h]
    outputs = ["y", "y_h"]
    more = {"linear_before_reset": 1}
    if op == "LSTM":
        inputs.append(net.input("c", random(1, 2, 8, seed=5)))
        outputs.append("y_c")
        more = {}
    net.op(op, inputs, "rnn", outputs, hidden_size=8, **more)
    return net, finish(net, *outputs)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("ints", [True, False], ids=["ints", "floats"])
@pytest.mark.parametrize("axis", [None, 1])
def test_rnn(quantfold, tmp_path, op, ints, axis):
    net, model = rnn(op, ints, axis)
    assert_agrees(quantfold, tmp_path, net, model, 1, 60)


def test_batch_norm_stays(quantfold, tmp_path):
    """Its factors are not in the weight's scales, so it is not folded."""
    net = Net(opset=17)
    x = pair(net, net.input("x", random(2, 3, 6, 6)), "in", Activation())
    c = net.op("Conv", [x, weight(net, random(4, 3, 3, 3), "w", Weights(integers=False))], "c")
    stats = [random(4, seed=1), random(4, seed=2), random(4, seed=3), np.abs(random(4, seed=4))]
    y = net.op(
        "BatchNormalization", [c, *[net.weight(f"n{i}", v) for i, v in enumerate(stats)]], "n"
    )
    assert_agrees(quantfold, tmp_path, net, finish(net, y), 1)
    assert "BatchNormalization" in ops(deploy(tmp_path))


# ---- between the layers ------------------------------------------------------------------------


def pooled(net: Net, x: str) -> str:
    """Pairs with the same parameters around operators that make no difference to them."""
    a = Activation()
    y = net.op("Relu", [pair(net, x, "p1", a)], "r1")
    y = net.op("MaxPool", [pair(net, y, "p2", a)], "pool", kernel_shape=[2, 2])
    return net.op("Transpose", [pair(net, y, "p3", a)], "t", perm=[0, 1, 3, 2])


def test_redundant_pairs_go(quantfold, tmp_path):
    net, model = two_convs(Activation(), Weights(), 17, pooled)
    assert_agrees(quantfold, tmp_path, net, model, 2)
    assert ops(deploy(tmp_path)).count("AscendQuant") == 3


def test_layer_behind_operators(quantfold, tmp_path):
    """No pair right before the second layer: what it reads is on the grid of one further up."""

    def between(net, x):
        y = pair(net, x, "up", Activation())
        y = net.op("Relu", [y], "r1")
        both = net.op("Concat", [y, pair(net, x, "up2", Activation())], "cat", axis=2)
        return net.op("MaxPool", [both], "pool", kernel_shape=[2, 2])

    net = Net(opset=17)
    x = pair(net, net.input("x", random(2, 3, 8, 8, seed=1)), "in", Activation())
    c1 = net.op("Conv", [x, weight(net, random(4, 3, 3, 3, seed=2), "w1", Weights())], "c1")
    m = between(net, c1)
    c2 = net.op("Conv", [m, weight(net, random(6, 4, 3, 3, seed=3), "w2", Weights())], "c2")
    assert_agrees(quantfold, tmp_path, net, finish(net, c2), 2)
    assert "AscendAntiQuant" not in ops(deploy(tmp_path))


def residual() -> tuple[Net, onnx.ModelProto]:
    net = Net(opset=17)
    first = pair(net, net.input("x", random(2, 4, 6, 6)), "in", Activation())
    w = weight(net, random(4, 4, 3, 3, seed=1, scale=0.3), "w", Weights())
    c = net.op("Conv", [first, w], "c", pads=[1, 1, 1, 1])
    total = net.op("Add", [pair(net, c, "branch", Activation(scale=0.053)), first], "add")
    w2 = weight(net, random(2, 4, 1, 1, seed=2), "w2", Weights())
    y = net.op("Conv", [pair(net, total, "sum", Activation(scale=0.061)), w2], "c2")
    return net, finish(net, y)


def test_residual_add(quantfold, tmp_path):
    """What Add reads is quantized there too; one AscendQuant serves the layer and the Add."""
    net, model = residual()
    assert_agrees(quantfold, tmp_path, net, model, 2)
    made = ops(deploy(tmp_path))
    assert made.count("AscendQuant") == 3 and made.count("AscendAntiQuant") == 2
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(ops(deploy(tmp_path)))


def test_dropped_pairs(quantfold, tmp_path):
    """--free-qdq drop: Add reads floats, which is near the QDQ model but not the same."""
    net, model = residual()
    assert_agrees(quantfold, tmp_path, net, model, 2, 25, ["--free-qdq", "drop"])
    made = ops(deploy(tmp_path))
    assert made.count("AscendQuant") == 2 and "AscendAntiQuant" not in made


def test_quantized_graph_input(quantfold, tmp_path):
    """A uint8 input has DQ alone behind it, which stays."""
    net = Net(opset=17)
    values = np.random.default_rng(0).integers(0, 255, (1, 3, 8, 8)).astype(np.uint8)
    x = net.input("x", values)
    scale, zero = net.weight("s", np.array(0.02, F32)), net.weight("z", np.array(120, np.uint8))
    x = net.op("DequantizeLinear", [x, scale, zero], "dq")
    y = net.op("Conv", [x, weight(net, random(4, 3, 3, 3), "w", Weights())], "c")
    assert_agrees(quantfold, tmp_path, net, finish(net, y), 1)
    # no deploy model, though nothing in it quantizes
    args = ["--model", tmp_path / "q.onnx", "--save-path", tmp_path / "m", "--emit", "runnable"]
    assert quantfold("export", *args).code == 0
    runnable = onnx.load(tmp_path / "m_runnable_model.onnx")
    assert any(f.domain == "quantfold.npu" for f in runnable.functions)
    wanted = run_model(tmp_path / FAKE, net.feeds)
    for ours, theirs in zip(run_model(tmp_path / "m_runnable_model.onnx", net.feeds), wanted):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_subgraph(quantfold, tmp_path):
    """Layers in the branches of an If."""
    then, other = Net(opset=17), Net(opset=17)
    for n, seed in ((then, 1), (other, 2)):
        x = pair(n, "x", f"in{seed}", Activation())
        w = weight(n, random(4, 6, seed=seed), f"w{seed}", Weights(axis=None))
        n.output(n.op("MatMul", [x, w], f"m{seed}"))
    net = Net(opset=17)
    net.input("x", random(3, 4))
    net.input("flag", np.array(True))
    graphs = [
        helper.make_graph(n.nodes, f"g{i}", [], n.outputs, n.tensors)
        for i, n in enumerate((then, other))
    ]
    y = net.op("If", ["flag"], "choose", then_branch=graphs[0], else_branch=graphs[1])
    assert_agrees(quantfold, tmp_path, net, finish(net, y), 2)


def test_external_weights(quantfold, tmp_path):
    net, model = two_convs(Activation(), Weights(), 17)
    onnx.save(
        model, tmp_path / "q.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    result = quantfold("export", "--model", tmp_path / "q.onnx", "--save-path", tmp_path / "m")
    assert result.code == 0, result.err
    wanted = run_model(tmp_path / "q.onnx", net.feeds)
    assert sqnr_db(wanted[0], run_model(tmp_path / FAKE, net.feeds)[0]) >= CLOSE_DB
    assert payload(tensor(deploy(tmp_path), "w1"), tmp_path) == (
        numpy_helper.to_array(tensor(onnx.load(tmp_path / "q.onnx"), "w1")).tobytes()
    )


def test_all_ways_write_the_same_bytes(quantfold, tmp_path):
    """Threads, instruction sets, ways to write."""
    net, model = two_convs(Activation(), Weights("uint8"), 17)
    export(quantfold, tmp_path, model)
    first = [(tmp_path / f).read_bytes() for f in (DEPLOY, FAKE)]
    for extra, env in (
        [["--threads", "1"], {}],
        [["--io", "mmap"], {}],
        [[], {"QUANTFOLD_ISA": "scalar"}],
    ):
        args = ["--model", tmp_path / "q.onnx", "--save-path", tmp_path / "again", *extra]
        assert quantfold("export", *args, env=env or None).code == 0
        assert first == [
            (tmp_path / f.replace("m_", "again_", 1)).read_bytes() for f in (DEPLOY, FAKE)
        ]


# ---- what cannot be expressed ------------------------------------------------------------------


def unsupported() -> dict:
    """A model each, and what the message must say."""

    def conv_of(a: Activation, w: Weights, edit=None):
        net, model = two_convs(a, w)
        if edit:
            edit(model)
        return net, model

    def per_channel_input(model):
        for t in model.graph.initializer:
            if t.name == "in_s":
                t.CopyFrom(numpy_helper.from_array(np.full(3, 0.03, F32), "in_s"))
            if t.name == "in_z":
                t.CopyFrom(integers([100] * 3, "uint8", "in_z"))

    def weight_only():
        net = Net(opset=21, ir_version=10)
        x = net.input("x", random(2, 8))
        return net, finish(
            net, net.op("MatMul", [x, weight(net, random(8, 4), "w", Weights(axis=1))], "m")
        )

    def calculated_scale():
        net = Net(opset=17)
        x = net.input("x", random(2, 8))
        q, s, z = net.op("DynamicQuantizeLinear", [x], "dyn", ["dq", "ds", "dz"])
        d = net.op("DequantizeLinear", [q, s, z], "dqn")
        return net, finish(
            net, net.op("MatMul", [d, weight(net, random(8, 4), "w", Weights(axis=None))], "c1")
        )

    def wrong_axis():
        net = Net(opset=17)
        x = pair(net, net.input("x", random(2, 8)), "in", Activation())
        return net, finish(
            net, net.op("MatMul", [x, weight(net, random(8, 4), "w", Weights(axis=0))], "m")
        )

    def blocked():
        net = Net(opset=21, ir_version=10)
        x = pair(net, net.input("x", random(2, 8)), "in", Activation())
        w = net.tensor(integers(np.arange(32).reshape(8, 4) % 7, "int8", "w"))
        s = net.weight("s", np.full((2, 4), 0.1, F32))
        d = net.op("DequantizeLinear", [w, s], "wdq", axis=0, block_size=4)
        return net, finish(net, net.op("MatMul", [x, d], "m"))

    return {
        "zero point": (conv_of(Activation(), Weights("uint8", 0, True, 3)), "zero point 3"),
        "zero point of floats": (
            conv_of(Activation(), Weights("uint8", 0, False, 3)),
            "zero point 3",
        ),
        "int16 weights": (conv_of(Activation(), Weights("int16")), "dtype int16"),
        "per-channel input": (conv_of(Activation(), Weights(), per_channel_input), "per channel"),
        "weight alone": (weight_only(), "its input is not"),
        "calculated scale": (calculated_scale(), "not a constant"),
        "wrong axis": (wrong_axis(), "along axis 0"),
        "blocked scales": (blocked(), "blocked"),
    }


@pytest.mark.parametrize("name", unsupported())
def test_unsupported(quantfold, tmp_path, name):
    """An error that names the layer and the reason; or the layer stays float, with the same
    numbers."""
    (net, model), words = unsupported()[name]
    findings = export(quantfold, tmp_path, model, expect=1)["findings"]
    errors = [f for f in findings if f["severity"] == "error"]
    assert errors and words in errors[0]["message"], findings
    assert errors[0]["item"] in {n.name for n in model.graph.node}
    assert not (tmp_path / DEPLOY).exists()
    if name == "per-channel input":  # the one in which a layer is left to quantize
        report = assert_agrees(
            quantfold, tmp_path, net, model, 1, extra=["--on-unsupported", "float"]
        )
        assert {f["severity"] for f in report["findings"]} == {"warning"}


@pytest.mark.parametrize("name", ["int16 weights", "per-channel input", "wrong axis"])
def test_a_record_of_what_is_unsupported(quantfold, tmp_path, name):
    """The record names the layer, and the model cannot say it otherwise than in QDQ."""
    (net, model), words = unsupported()[name]
    onnx.save(model, tmp_path / "q.onnx")
    layer = next(n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul"))
    text = f'record {{ key: "{layer}" value {{ scale_d: 0.03 offset_d: 0 scale_w: 0.02 offset_w: 0 }} }}'
    (tmp_path / "r.txt").write_text(text)
    line = ("export", "--model", tmp_path / "q.onnx", "--record", tmp_path / "r.txt", "--json")
    line += ("--save-path", tmp_path / "m")
    found = json.loads(quantfold(*line).out)["findings"]
    said = [f for f in found if f["severity"] == "error" and f["item"] == layer]
    assert any(words in f["message"] for f in said), found
    assert not (tmp_path / DEPLOY).exists()
    found = json.loads(quantfold(*line, "--on-unsupported", "float").out)["findings"]
    said = [f for f in found if f["severity"] == "warning" and f["item"] == layer]
    assert any("the layer stays float" in f["message"] for f in said), found


def test_float_layer_beside_quantized(quantfold, tmp_path):
    """A layer with a zero point in its weight stays float, and its weight becomes float."""
    net = Net(opset=17)
    x = pair(net, net.input("x", random(2, 8)), "in", Activation())
    a = net.op(
        "MatMul", [x, weight(net, random(8, 4), "w1", Weights("uint8", None, True, 5))], "asym"
    )
    b = net.op("MatMul", [x, weight(net, random(8, 4, seed=1), "w2", Weights(axis=None))], "sym")
    model = finish(net, net.op("Add", [a, b], "add"))
    report = assert_agrees(quantfold, tmp_path, net, model, 1, extra=["--on-unsupported", "float"])
    assert any("asym" in f["item"] and f["severity"] == "warning" for f in report["findings"])
    assert "DequantizeLinear" not in ops(deploy(tmp_path))


def test_nothing_to_take(quantfold, tmp_path):
    """A float model without a record, and one that is said to be QDQ."""
    net = Net()
    x = net.input("x", random(2, 4))
    model = finish(net, net.op("MatMul", [x, net.weight("w", random(4, 4))], "m"))
    assert (
        "a record is needed"
        in export(quantfold, tmp_path, model, expect=1)["findings"][0]["message"]
    )
    export(quantfold, tmp_path, model, "--from", "qdq", expect=1)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4", "uint4"])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("stored", ["raw", "int32_data"])
def test_large_integers(quantfold, tmp_path, kind, trans_b, stored):
    """Weights of many blocks: every integer arrives, turned where transB asks it, packed if 4 bits."""
    shape = (1501, 1202) if trans_b else (1202, 1501)
    low, high = KINDS[kind][2:]
    q = np.random.default_rng(3).integers(low, high + 1, shape)
    net = Net(opset=21, ir_version=10)
    x = pair(net, net.input("x", random(2, 1202)), "in", Activation())
    tensor_of = integers(q, kind, "w")
    if stored == "int32_data":
        raw = np.frombuffer(tensor_of.raw_data, np.uint8 if kind != "int8" else np.int8)
        tensor_of.ClearField("raw_data")
        tensor_of.int32_data.extend(raw.astype(int).tolist())
    net.tensor(tensor_of)
    scale = net.weight("s", np.full(1501, 0.01, F32))
    zero = net.tensor(integers(np.full(1501, middle(kind)), kind, "z"))
    w = net.op("DequantizeLinear", ["w", scale, zero], "wdq", axis=0 if trans_b else 1)
    model = finish(net, net.op("Gemm", [x, w], "g", transB=trans_b))
    export(quantfold, tmp_path, model)
    wanted = (q.T if trans_b else q) - middle(kind)
    made = numpy_helper.to_array(tensor(deploy(tmp_path), "w")).astype(int)
    if kind.endswith("int4"):  # pairs of rows share a byte, the first in the low half
        made = np.stack([made & 15, made >> 4 & 15], 1).reshape(1202, 1501)
        made = (made ^ 8) - 8
    assert np.array_equal(made, wanted)
    fake = onnx.load(tmp_path / FAKE)
    assert np.array_equal(numpy_helper.to_array(tensor(fake, "w")).astype(int), wanted)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("bound", [0, 1])
def test_clipped_weights(quantfold, tmp_path, kind, bound):
    """Brevitas clips integers that are in range already; a Clip that would do something is told."""
    net, model = two_convs(Activation(), Weights(kind), 21)
    low, high = KINDS[kind][2:]
    low += 1  # the weights' narrow range
    names = [("low", low), ("high", high - bound)]
    model.graph.initializer.extend(integers(v, kind, n) for n, v in names)
    at = next(i for i, n in enumerate(model.graph.node) if n.name == "w1_dq")
    clip = helper.make_node("Clip", ["w1", "low", "high"], ["w1_clipped"], "w1_clip")
    model.graph.node[at].input[0] = "w1_clipped"
    model.graph.node.insert(at, clip)
    if bound:
        findings = export(quantfold, tmp_path, model, expect=1)["findings"]
        assert findings[0]["item"] == "c1" and "narrower range" in findings[0]["message"]
    elif kind == "int4":  # onnxruntime has no Clip of int4
        export(quantfold, tmp_path, model)
    else:
        assert_agrees(quantfold, tmp_path, net, model, 2)


def test_inspect(quantfold, tmp_path):
    """Layers of a QDQ model with their weights and scales; why one cannot be expressed."""
    net, model = two_convs(Activation(), Weights("uint8"), 17)
    onnx.save(model, tmp_path / "q.onnx")
    layers = json.loads(quantfold("inspect", tmp_path / "q.onnx", "--json").out)["layers"]
    assert [(l["name"], l["weight"], l["dtype"]) for l in layers] == [
        ("c1", "w1", "uint8"),
        ("c2", "w2", "uint8"),
    ]
    assert all(l["quantizable"] for l in layers) and layers[1]["channels"] == 6
    net, model = two_convs(Activation(), Weights("uint8", 0, True, 3), 17)
    onnx.save(model, tmp_path / "q.onnx")
    assert "zero point 3" in quantfold("inspect", tmp_path / "q.onnx").out
