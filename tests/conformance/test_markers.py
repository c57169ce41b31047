# SPDX-License-Identifier: Apache-2.0
"""QuantIdentity markers, which name the layer behind them: an export of a marked model is that of the
model without markers whose nodes have the names already. And tensor_balance_factor of each float.
"""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import F32, Net, conv, random
from onnx import TensorProto, helper, numpy_helper
from test_odd_models import close, export, rnn_scales, scales

from support import DEPLOY, FAKE, assert_same_model, run_model, same_bits, sqnr_db

DOMAIN = "custom_op_domain"


def mark(net: Net, x: str, layer: str, kind: str, marked: bool) -> str:
    """A marker, or nothing."""
    if not marked:
        return x
    given = {"domain": DOMAIN, "op_name": layer, "module_type": kind}
    return net.op("QuantIdentity", [x], f"mark_{layer}", **given)


def build(net: Net, shape: list, *imports: tuple, functions=(), kind=TensorProto.FLOAT):
    """The net's model with the markers' domain among those it imports, where that is listed."""
    result = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph(net.nodes, "net", net.inputs, [result], net.tensors)
    opsets = [helper.make_opsetid(*i) for i in (imports or [("", 17)])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def batch_first(marked: bool) -> tuple[Net, onnx.ModelProto]:
    """An LSTM behind a Transpose that turns batch and time, as torch's batch_first gives: the
    Transpose keeps its name."""
    net = Net()
    x = mark(net, net.input("x", random(2, 5, 6)), "layer", "LSTM", marked)
    x = net.op("Transpose", [x], "turn", perm=[1, 0, 2])
    w, r = (net.weight(n, random(1, 32, k, scale=0.3)) for n, k in (("W", 6), ("R", 8)))
    h, c = (net.input(n, random(1, 2, 8)) for n in "hc")
    inputs = [x, w, r, net.weight("B", random(1, 64, scale=0.1)), "", h, c]
    net.op("LSTM", inputs, "some" if marked else "layer", ["y", "last", "cell"], hidden_size=8)
    return net, build(net, [5, 1, 2, 8], *([("", 17), (DOMAIN, 1)] if marked else []))


def turned(marked: bool) -> tuple[Net, onnx.ModelProto]:
    """A MatMul behind a Transpose, which is named after it."""
    net = Net()
    x = mark(net, net.input("x", random(4, 3)), "layer", "Linear", marked)
    turn = net.op("Transpose", [x], "some" if marked else "layer_transpose", "turned")
    net.op("MatMul", [turn, net.weight("w", random(4, 5))], "other" if marked else "layer", "y")
    return net, build(net, [3, 5], *([("", 17), (DOMAIN, 1)] if marked else []))


@pytest.mark.parametrize("make", [batch_first, turned])
def test_layer_behind_a_transpose(quantfold, tmp_path, make):
    layer = rnn_scales(4) if make is batch_first else scales(1)
    for marked in (True, False):
        net, model = make(marked)
        export(quantfold, tmp_path / str(marked), model, {"layer": layer})
    for name in (DEPLOY, FAKE):
        assert_same_model(tmp_path / "True" / "out" / name, tmp_path / "False" / "out" / name)
    close(tmp_path / "False", net.feeds, 15)
    got = (run_model(tmp_path / m / "out" / FAKE, net.feeds) for m in ("True", "False"))
    same_bits(*got)


def function_of(domain: str) -> onnx.FunctionProto:
    """A function whose body has a node of that domain."""
    nodes = [helper.make_node("Twice", ["x"], ["y"], "inner", domain=domain)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    return helper.make_function("outer.functions", "Outer", ["x"], ["y"], nodes, opsets)


def twice() -> onnx.FunctionProto:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"], "add")]
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function("inner.functions", "Twice", ["x"], ["y"], nodes, opsets)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_domains_that_are_used_stay(quantfold, tmp_path, place):
    """One in the graph and one in a function alone; the markers' goes from wherever it stands."""
    net = Net()
    x = mark(net, net.input("x", random(1, 4, 6, 6)), "layer", "Conv2d", True)
    y = conv(net, x, random(3, 4, 3, 3, seed=1, scale=0.3), name="conv")
    net.op("Outer", [y], "call", "y", domain="outer.functions")
    imports = [("", 17), ("outer.functions", 1), ("inner.functions", 1)]
    imports.insert(place, (DOMAIN, 1))
    functions = [twice(), function_of("inner.functions")]
    model = build(net, [1, 3, 6, 6], *imports, functions=functions)
    export(quantfold, tmp_path, model, {"layer": scales(3)})
    wanted = {("", 17), ("outer.functions", 1), ("inner.functions", 1)}
    for name in (DEPLOY, FAKE):
        made = onnx.load(tmp_path / "out" / name)
        assert {(o.domain, o.version) for o in made.opset_import} == wanted
        assert "QuantIdentity" not in {n.op_type for n in made.graph.node}
        assert "layer" in {n.name for n in made.graph.node}
    onnx.checker.check_model(str(tmp_path / "out" / FAKE))
    (got,) = run_model(tmp_path / "out" / FAKE, net.feeds)
    del model.graph.node[0]  # the marker, which nothing runs
    model.graph.node[0].input[0] = "x"
    onnx.save(model, tmp_path / "plain.onnx")
    (exact,) = run_model(tmp_path / "plain.onnx", net.feeds)
    assert sqnr_db(exact, got) > 15


def test_layer_without_a_batch_axis(quantfold, tmp_path):
    """torch puts an Unsqueeze before it, and the layer is not what was trained."""
    net = Net()
    x = mark(net, net.input("x", random(4, 6, 6)), "layer", "Conv2d", True)
    x = net.op("Unsqueeze", [x, net.weight("axes", np.array([0]))], "more")
    net.op("Conv", [x, net.weight("w", random(3, 4, 3, 3))], "conv", "y", kernel_shape=[3, 3])
    model = build(net, [1, 3, 4, 4], ("", 17), (DOMAIN, 1))
    result = export(quantfold, tmp_path, model, {"layer": scales(3)}, "--json", expect=1)
    found = json.loads(result.out)["findings"][0]
    assert found["item"] == "layer" and "no batch axis" in found["message"]
    assert not (tmp_path / "out").exists()


# ---- tensor_balance_factor -----------------------------------------------------------------------

DTYPES = {"float32": F32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": float}


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_balance_of_any_float(quantfold, tmp_path, op, dtype):
    """The reciprocals are of the layer's dtype, and the input is multiplied by them."""
    kind = DTYPES[dtype]
    net = Net(opset=17)
    shape = (4, 2, 3, 3) if op == "Conv" else (2, 5)
    x = net.input(
        "x", random(1, 2, 6, 6).astype(kind) if op == "Conv" else random(3, 2).astype(kind)
    )
    attributes = {"kernel_shape": [3, 3]} if op == "Conv" else {}
    net.op(op, [x, net.weight("w", random(*shape, scale=0.3).astype(kind))], "c", "y", **attributes)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    model = build(net, [1, 4, 4, 4] if op == "Conv" else [3, 5], kind=code)
    factors = [0.75, 3.0]
    export(quantfold, tmp_path, model, {"c": scales(1) | {"tensor_balance_factor": factors}})
    wanted = (F32(1) / np.array(factors, F32)).astype(kind)
    for name in (DEPLOY, FAKE):
        nodes = {n.name: n for n in onnx.load(tmp_path / "out" / name).graph.node}
        constant = nodes["c.tensor_balance_factor"].attribute[0].t
        assert constant.data_type == code
        assert list(constant.dims) == ([1, 2, 1, 1] if op == "Conv" else [1, 2])
        assert np.array_equal(numpy_helper.to_array(constant).reshape(-1), wanted)
        assert nodes["c.mul"].input[0] == "x"
    result = quantfold(
        *("verify", tmp_path / "out" / "m", "--against", tmp_path / "model.onnx"),
        *("--record", tmp_path / "record.txt"),
    )
    assert result.code == 0, result.err
