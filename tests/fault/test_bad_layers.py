# SPDX-License-Identifier: Apache-2.0
"""Layers that cannot be quantized as their record asks: an error that names the layer and says why,
with nothing written; and, where it is the layer's form, the same reason in `inspect`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import Net
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper
from test_odd_models import close, export, record, rnn_scales, scales
from test_qdq_graphs import Activation, Weights, finish, integers, pair, rnn, two_convs, weight

from support import DEPLOY


def conv_model(shape=(4, 2, 3, 3), turned=False, op="Conv", bias: int = 0, **attributes):
    """One layer "c", whose shapes need not fit."""
    net = Net()
    w = net.weight("w", normal(*shape, scale=0.3))
    w = net.op("Transpose", [w], "turn", perm=[1, 0, 2, 3]) if turned else w
    inputs = [net.input("x", normal(1, 4, 8, 8)), w]
    inputs += [net.weight("b", normal(bias))] if bias else []
    net.op(op, inputs, "c", "y", **{"kernel_shape": [3, 3]} | attributes)
    return unchecked(net, "y")


def unchecked(net: Net, *outputs: str) -> onnx.ModelProto:
    """The model without shape inference, which looks at what is wrong here."""
    made = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    graph = helper.make_graph(net.nodes, "net", net.inputs, made, net.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def matrix_model(*shape: int) -> onnx.ModelProto:
    net = Net()
    net.op("MatMul", [net.input("x", normal(2, 4)), net.weight("w", normal(*shape))], "c", "y")
    return unchecked(net, "y")


def lstm_model(change: Callable = lambda net, inputs: None, **attributes) -> onnx.ModelProto:
    """An LSTM "c" of 8 units; `change` is of its inputs."""
    net = Net()
    inputs = [net.input("x", normal(5, 2, 6))]
    inputs += [net.weight(n, normal(1, 32, k, scale=0.3)) for n, k in (("W", 6), ("R", 8))]
    inputs += [net.weight("B", normal(1, 64, scale=0.1)), ""]
    inputs += [net.input(n, normal(1, 2, 8)) for n in "hc"]
    change(net, inputs)
    net.op("LSTM", inputs, "c", ["y", "y_h", "y_c"], **{"hidden_size": 8} | attributes)
    return unchecked(net, "y", "y_h", "y_c")


def pool_model() -> onnx.ModelProto:
    net = Net()
    net.op("AveragePool", [net.input("x", normal(1, 2, 8, 8))], "c", "y", kernel_shape=[2, 2])
    return unchecked(net, "y")


def turn_w(net: Net, inputs: list) -> None:
    inputs[1] = net.op("Transpose", ["W"], "turn", perm=[0, 1, 2])


def peepholes(net: Net, inputs: list) -> None:
    inputs.append(net.weight("P", normal(1, 24)))


def constant_state(net: Net, inputs: list) -> None:
    """Through operators that lead nowhere."""
    inputs[5] = net.op("Relu", [net.op("Neg", [net.weight("start", normal(1, 2, 8))], "n")], "r")


def no_state(_: Net, inputs: list) -> None:
    inputs[6] = ""


# a model, and words of the reason
FORMS = {
    "kernel_shape": (lambda: conv_model(kernel_shape=[3]), "kernel_shape and the weight's rank"),
    "four dimensions": (
        lambda: conv_model((4, 2, 3, 3, 3, 3), kernel_shape=[3, 3, 3, 3]),
        "only 1, 2 or 3 spatial dimensions",
    ),
    "turned weight": (lambda: conv_model((2, 4, 3, 3), True), "behind a Transpose node"),
    "group 0": (lambda: conv_model(group=0), "group attribute is not positive"),
    "group below 0": (lambda: conv_model(group=-2), "group attribute is not positive"),
    "group of outputs": (lambda: conv_model((3, 2, 3, 3), group=2), "output channels are not"),
    "group of inputs": (
        lambda: conv_model((3, 2, 3, 3), op="ConvTranspose", group=2),
        "input channels are not divisible",
    ),
    "nine dimensions": (lambda: matrix_model(*[1] * 7, 4, 3), "more than 8 dimensions"),
    "three dimensions": (lambda: matrix_model(1, 4, 3), "does not have two dimensions"),
    "no elements": (lambda: matrix_model(4, 0), "empty"),
    "layout": (lambda: lstm_model(layout=1), "only layout 0"),
    "turned W": (lambda: lstm_model(turn_w), "behind a Transpose"),
    "peepholes": (lambda: lstm_model(peepholes), "peephole weights"),
    "constant state": (lambda: lstm_model(constant_state), "does not come from a graph input"),
    "no state": (lambda: lstm_model(no_state), "initial_c is not connected"),
    "activations": (
        lambda: lstm_model(activations=["Tanh", "Tanh", "Tanh"]),
        "activations must be absent",
    ),
}


def refused(
    quantfold, folder: Path, model: onnx.ModelProto, layer: dict, words: str, *args
) -> None:
    """An error of the layer, and nothing written."""
    layers = {"c": layer}
    result = export(quantfold, folder, model, layers, "--json", *args, expect=1)
    found = json.loads(result.out)["findings"]
    said = [f for f in found if f["severity"] == "error" and f["item"] == "c"]
    assert any(words in f["message"] for f in said), found
    assert not (folder / "out").exists() or not list((folder / "out").iterdir())


@pytest.mark.parametrize("name", FORMS)
def test_forms(quantfold, tmp_path, name):
    """Beside the export, `inspect` tells it before there is any record."""
    make, words = FORMS[name]
    model = make()
    layer = rnn_scales(4) if any(n.op_type == "LSTM" for n in model.graph.node) else scales(1)
    refused(quantfold, tmp_path, model, layer, words)
    seen = json.loads(quantfold("inspect", tmp_path / "model.onnx", "--json").out)["layers"]
    assert not seen[0]["quantizable"] and words in seen[0]["reason"]


def test_a_state_from_far_away(quantfold, tmp_path):
    """Which is quantized, as it depends on an input."""

    def far(net: Net, inputs: list) -> None:
        inputs[5] = net.op("Neg", [net.op("Add", [net.weight("k", normal(1)), "h"], "a")], "n")

    model = lstm_model(far)
    export(quantfold, tmp_path, model, {"c": rnn_scales(4)})
    feeds = {"x": normal(5, 2, 6), "h": normal(1, 2, 8), "c": normal(1, 2, 8)}
    close(tmp_path, feeds, 15)


FIELDS = {
    "pool of four bits": (pool_model, scales(1) | {"dst_type": "INT4"}, "average pooling does not"),
    "pool of two scales": (pool_model, scales(2), "average pooling takes 1"),
    "pool that is balanced": (
        pool_model,
        scales(1) | {"tensor_balance_factor": [1.0, 1.0]},
        "tensor_balance_factor is not supported for AveragePool",
    ),
    "LSTM that is balanced": (
        lstm_model,
        rnn_scales(4) | {"tensor_balance_factor": [1.0] * 6},
        "tensor_balance_factor is not supported for LSTM",
    ),
    "LSTM of four bits": (
        lstm_model,
        rnn_scales(4) | {"act_type": "INT4"},
        "the activations of LSTM can have 8 or 16 bits",
    ),
    "factors too few": (
        conv_model,
        scales(1) | {"tensor_balance_factor": [1.0]},
        "the layer has 2 input channels",
    ),
    "bias too long": (
        lambda: conv_model(bias=5),
        scales(1),
        "5 values, which does not fit 4 output channels",
    ),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(quantfold, tmp_path, name):
    """What a record must not have for such a layer."""
    make, layer, words = FIELDS[name]
    model, key = make(), "c"
    if words.startswith("average pooling does not"):  # the reference looks at the name
        key = "c.AvgPool"
        model.graph.node[0].name = key
    layers = record({key: layer})
    result = export(quantfold, tmp_path, model, layers, "--json", expect=1)
    found = json.loads(result.out)["findings"]
    assert any(words in f["message"] and f["item"] == key for f in found), found
    assert not (tmp_path / "out").exists()


# ---- QDQ models ----------------------------------------------------------------------------------


def turned_weight() -> onnx.ModelProto:
    """A Transpose between DequantizeLinear and a Conv."""
    net = Net(opset=21, ir_version=10)
    x = pair(net, net.input("x", normal(1, 4, 6, 6)), "in", Activation())
    w = weight(net, normal(4, 2, 1, 1), "w", Weights(axis=None))
    w = net.op("Transpose", [w], "turn", perm=[1, 0, 2, 3])
    return finish(net, net.op("Conv", [x, w], "c"))


def clipped_weight(constant: bool) -> onnx.ModelProto:
    """Integers behind a Clip whose upper bound is a graph input, or of two elements."""
    net, model = two_convs(Activation(), Weights("int8"))
    graph = model.graph
    if constant:
        graph.initializer.append(integers([100, 100], "int8", "high"))
    else:
        graph.input.append(helper.make_tensor_value_info("high", TensorProto.INT8, []))
    graph.initializer.append(integers(-128, "int8", "low"))
    at = next(i for i, n in enumerate(graph.node) if n.name == "w1_dq")
    graph.node[at].input[0] = "clipped"
    graph.node.insert(at, helper.make_node("Clip", ["w1", "low", "high"], ["clipped"], "clip"))
    return model


def rescaled_weight() -> onnx.ModelProto:
    """Another scale in DequantizeLinear than in QuantizeLinear."""
    net, model = two_convs(Activation(), Weights(axis=None, integers=False))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
    next(n for n in model.graph.node if n.name == "w1_dq").input[1] = "other"
    return model


def uneven_rnn(edit: Callable) -> onnx.ModelProto:
    net, model = rnn("LSTM", True, None)
    tensors = {t.name: t for t in model.graph.initializer}
    edit(model, tensors)
    return model


def wider_state(model: onnx.ModelProto, tensors: dict) -> None:
    """16 bits in initial_h, 8 in the input."""
    tensors["hidden_z"].CopyFrom(integers(0, "int16", "hidden_z"))


def narrower_recurrence(model: onnx.ModelProto, tensors: dict) -> None:
    """4 bits in R, 8 in W."""
    stored = numpy_helper.to_array(tensors["r"])
    tensors["r"].CopyFrom(integers(stored // 16, "int4", "r"))
    tensors["r_z"].CopyFrom(integers(0, "int4", "r_z"))
    model.opset_import[0].version = 21
    model.ir_version = 10


def float_recurrence(model: onnx.ModelProto, tensors: dict) -> None:
    """R in floats."""
    tensors["r"].CopyFrom(numpy_helper.from_array(normal(1, 32, 8), "r"))
    next(n for n in model.graph.node if n.op_type == "LSTM").input[2] = "r"
    gone = next(n for n in model.graph.node if n.name == "r_dq")
    model.graph.node.remove(gone)


QDQ = {
    "16 bits": (
        lambda: two_convs(Activation(), Weights("int16", integers=False))[1],
        "c1",
        "its weight has 16 bits",
    ),
    "turned": (turned_weight, "c", "behind a Transpose of other than two dimensions"),
    "clipped": (lambda: clipped_weight(False), "c1", "bounds that are not constant"),
    "clipped to two": (lambda: clipped_weight(True), "c1", "bounds that are not constant"),
    "rescaled": (rescaled_weight, "c1", "scales in QuantizeLinear and DequantizeLinear differ"),
    "state": (lambda: uneven_rnn(wider_state), "rnn", "different numbers of bits"),
    "recurrence": (lambda: uneven_rnn(narrower_recurrence), "rnn", "in different ways"),
    "float recurrence": (lambda: uneven_rnn(float_recurrence), "rnn", "recurrence weight is not"),
}


@pytest.mark.parametrize("name", QDQ)
def test_qdq_layers(quantfold, tmp_path, name):
    """And it stays float if that is wished."""
    make, layer, words = QDQ[name]
    onnx.save(make(), tmp_path / "q.onnx")
    line = ("export", "--model", tmp_path / "q.onnx", "--save-path", tmp_path / "m", "--json")
    result = quantfold(*line)
    found = json.loads(result.out)["findings"]
    said = [f for f in found if f["severity"] == "error"]
    assert result.code == 1 and said[0]["item"] == layer and words in said[0]["message"], found
    assert not (tmp_path / DEPLOY).exists()
    report = json.loads(quantfold(*line, "--on-unsupported", "float").out)
    warned = [f for f in report["findings"] if f["severity"] == "warning" and f["item"] == layer]
    assert any(words in f["message"] for f in warned), report["findings"]
    assert layer not in [l["name"] for l in report.get("layers", [])]
