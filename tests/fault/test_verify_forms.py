# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on outputs in forms that few models have: functions of the model's own, tensors
in any data field, sources that are read twice or bit by bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import Net, conv
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper
from test_verify import Output, Spoiler, errors, setter, verify

import make_record
from support import DEPLOY, FAKE, check_model, run_model, same_bits, sqnr_db

# ---- functions -----------------------------------------------------------------------------------

LOCAL = "local.functions"


def functions() -> list[onnx.FunctionProto]:
    """One with an attribute and a tensor, and one with branches."""
    opsets = [helper.make_opsetid("", 17)]
    factor = helper.make_node("Constant", [], ["f"], "factor")
    factor.attribute.append(onnx.AttributeProto(name="value_float", type=1, ref_attr_name="alpha"))
    shift = numpy_helper.from_array(normal(1, 6, 1, 1, seed=8), "shift")
    nodes = [
        factor,
        helper.make_node("Mul", ["x", "f"], ["m"], "mul"),
        helper.make_node("Constant", [], ["k"], "shift", value=shift),
        helper.make_node("Add", ["m", "k"], ["y"], "add"),
    ]
    scaled = helper.make_function(LOCAL, "Scaled", ["x"], ["y"], nodes, opsets, ["alpha"])
    branches = []
    for i, op in enumerate(("Relu", "Neg")):
        level = numpy_helper.from_array(np.float32(i + 0.5), "level")
        inside = [
            helper.make_node("Constant", [], [f"l{i}"], value=level),
            helper.make_node(op, ["x"], [f"t{i}"]),
            helper.make_node("Mul", [f"t{i}", f"l{i}"], [f"r{i}"]),
        ]
        result = helper.make_tensor_value_info(f"r{i}", TensorProto.FLOAT, [2, 6, 6, 6])
        branches.append(helper.make_graph(inside, f"b{i}", [], [result]))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["flag"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1], name="if"
        ),
    ]
    return [scaled, helper.make_function(LOCAL, "Picked", ["x"], ["y"], nodes, opsets)]


def save_record(path: Path, channels: int, key: str = "c") -> None:
    scales = [0.007 + i / 1000 for i in range(channels)]
    path.write_text(
        make_record.record_text([make_record.Record(key, 0.03, -5, scales, "INT8", "INT8")])
    )


@pytest.fixture(scope="module")
def with_functions(quantfold, tmp_path_factory) -> Output:
    """A Conv, then a call of each function."""
    base = tmp_path_factory.mktemp("functions")
    net = Net()
    y = conv(net, net.input("x", normal(2, 4, 6, 6)), normal(6, 4, 3, 3, seed=1, scale=0.3))
    y = net.op("Scaled", [y], "scaled", domain=LOCAL, alpha=0.75)
    net.op("Picked", [y], "picked", "y", domain=LOCAL)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, 6, 6])
    graph = helper.make_graph(net.nodes, "net", net.inputs, [result], net.tensors)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(LOCAL, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions())
    onnx.checker.check_model(model)
    onnx.save(model, str(base / "model.onnx"))
    save_record(base / "record.txt", 6)
    out = Output(base / "out", base / "model.onnx", base / "record.txt")
    quantfold.export(out.model, out.record, out.folder / "m")
    wanted, got = (run_model(p, net.feeds)[0] for p in (out.model, out.folder / FAKE))
    assert sqnr_db(wanted, got) > 20
    return out


def against(o: Output) -> tuple:
    return ("--against", o.model, "--record", o.record)


def test_functions_that_are_copied_are_sound(quantfold, with_functions):
    o = with_functions
    found = verify(quantfold, o.folder / "m", *against(o))
    assert found["ok"], errors(found)
    for name in (DEPLOY, FAKE):
        model = onnx.load(str(o.folder / name))
        assert list(model.functions) == list(onnx.load(str(o.model)).functions)


def in_function(index: int, change: Callable) -> Callable:
    """A change of one of the functions."""
    return lambda m: change(m.functions[index])


def in_branch(change: Callable) -> Callable:
    """A change of the first branch of the second."""
    return lambda m: change(m.functions[1].node[2].attribute[0].g)


def first_float(node: onnx.NodeProto, value: float) -> None:
    """Another value of a Constant."""
    tensor = node.attribute[0].t
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = value
    tensor.raw_data = array.tobytes()


def add_import(f: onnx.FunctionProto) -> None:
    f.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


SPOILT_FUNCTIONS = {
    "operator": (in_function(0, lambda f: setter(op_type="Div")(f.node[1])), "Scaled"),
    "domain of a node": (in_function(0, lambda f: setter(domain="other")(f.node[1])), "Scaled"),
    "inputs of a node": (in_function(0, lambda f: f.node[1].input.reverse()), "Scaled"),
    "output of a node": (in_function(0, lambda f: f.node[1].output.__setitem__(0, "z")), "Scaled"),
    "name of a node": (in_function(0, lambda f: setter(name="z")(f.node[3])), "Scaled"),
    "attribute of a node": (
        in_function(1, lambda f: setter(i=1)(f.node[0].attribute[0])),
        "keepdims",
    ),
    "reference to an attribute": (
        in_function(0, lambda f: setter(ref_attr_name="beta")(f.node[0].attribute[0])),
        "value_float",
    ),
    "tensor": (in_function(0, lambda f: first_float(f.node[2], 9)), "shift"),
    "node too many": (in_function(0, lambda f: f.node.append(f.node[1])), "Scaled"),
    "name": (in_function(1, setter(name="Chosen")), "the function is not"),
    "its domain": (in_function(1, setter(domain="other")), "Picked"),
    "its input": (in_function(1, lambda f: f.input.append("z")), "Picked"),
    "its output": (in_function(0, lambda f: f.output.__setitem__(0, "m")), "Scaled"),
    "its attributes": (in_function(0, lambda f: f.attribute.append("beta")), "Scaled"),
    "its operator sets": (
        in_function(0, lambda f: setter(version=12)(f.opset_import[0])),
        "Scaled",
    ),
    "operator sets too many": (in_function(0, add_import), "Scaled"),
    "function too few": (lambda m: m.functions.pop(), "functions"),
    "functions swapped": (lambda m: m.functions.reverse(), "Scaled"),
    "operator of a branch": (in_branch(lambda g: setter(op_type="Abs")(g.node[1])), "if "),
    "tensor of a branch": (in_branch(lambda g: first_float(g.node[0], 9)), "level"),
    "output of a branch": (in_branch(lambda g: setter(name="l0")(g.output[0])), "if "),
    "node of a branch": (in_branch(lambda g: g.node.pop(2)), "if "),
}


@pytest.mark.parametrize("which", [DEPLOY, FAKE])
@pytest.mark.parametrize("name", SPOILT_FUNCTIONS)
def test_spoilt_functions_are_found(quantfold, with_functions, name, which, tmp_path):
    """By the other model, and by the source."""
    change, named = SPOILT_FUNCTIONS[name]
    o, folder = with_functions, tmp_path / "out"
    shutil.copytree(o.folder, folder)
    Spoiler(folder, random.Random(0)).edit(which, change)
    found = errors(verify(quantfold, folder / "m"))
    assert "agreement" in {f["check"] for f in found}, found
    texts = [f"{f['item']} {f['message']}" for f in found]
    assert any(named in t for t in texts), texts
    found = errors(verify(quantfold, folder / "m", *against(o)))
    assert any(f["check"] == "against" and Path(f["file"]).name == which for f in found), found
