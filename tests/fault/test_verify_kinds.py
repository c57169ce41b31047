# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on each kind of layer and of graph that an export can make: sound as it was
written, and spoilt in one place each. The table of tests/fault/test_verify.py goes on here."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import Net, conv, gemm
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper
from test_qdq_graphs import residual
from test_verify import (
    Corruption,
    Output,
    Spoiler,
    add_first,
    both,
    errors,
    outputs,  # noqa: F401  a fixture
    rename_input,
    set_first,
    setter,
    verify,
)

import make_record
from support import DEPLOY, FAKE

# ---- kinds ---------------------------------------------------------------------------------------


def records(*layers: tuple, act: str = "INT8", wts: str = "INT8") -> str:
    """A record of layers: key and number of weight scales."""
    return make_record.record_text(
        [
            make_record.Record(key, 0.03, -5, [0.01 + i / 999 for i in range(n)], act, wts)
            for key, n in layers
        ]
    )


def conv_net(opset: int = 17, dtype=np.float32) -> Net:
    """One Conv with a bias and a Relu."""
    net = Net(opset=opset, ir_version=10 if opset > 20 else 8)
    w = normal(6, 4, 3, 3, seed=1, scale=0.3).astype(dtype)
    x = net.input("x", normal(2, 4, 6, 6).astype(dtype))
    y = conv(net, x, w, normal(6, seed=2).astype(dtype))
    net.output(net.op("Relu", [y], "r", "y"), helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return net


def wide_net() -> Net:
    """A Gemm whose rows are longer than what is compared at once."""
    net = Net()
    y = gemm(net, net.input("x", normal(1, 4)), normal(4, 70_001, seed=1, scale=0.3))
    net.output(net.op("Relu", [y], "r", "y"))
    return net


def half_rnn_net() -> Net:
    net = Net()
    half = np.float16
    x = net.input("x", normal(5, 2, 6).astype(half))
    h, c = (net.input(n, normal(1, 2, 8).astype(half)) for n in "hc")
    w, r, b = (
        net.weight(n, normal(1, *shape, seed=1, scale=0.3).astype(half))
        for n, shape in (("W", (32, 6)), ("R", (32, 8)), ("B", (64,)))
    )
    made = ["Y", "Y_h", "Y_c"]
    net.op("LSTM", [x, w, r, b, "", h, c], "lstm", made, hidden_size=8)
    for name in made:
        net.output(name, TensorProto.FLOAT16)
    return net


HALF_RNN_RECORD = """record { key: "lstm" value {
  scale_d: 0.02 offset_d: 4 act_type: "INT8" wts_type: "INT8" scale_h: 0.015 offset_h: -3
  scale_w: [0.01, 0.011, 0.012, 0.013] offset_w: [0, 0, 0, 0]
  scale_r: [0.009, 0.0095, 0.0105, 0.014] offset_r: [0, 0, 0, 0]
} }
"""


def sparse_tensor(name: str) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1, 2, 3], np.float32), name)
    places = numpy_helper.from_array(np.array([0, 4, 7], np.int64), f"{name}.places")
    return helper.make_sparse_tensor(values, places, [2, 4])


def odd_attributes_model() -> onnx.ModelProto:
    """A Conv beside a sparse initializer, and a node with lists of tensors, of sparse ones and of
    graphs, which no standard operator has."""
    model = conv_net().model()
    model.graph.sparse_initializer.append(sparse_tensor("thin"))
    floats = [helper.make_tensor(f"t{i}", TensorProto.FLOAT, [2], [i, i + 1]) for i in range(2)]
    graphs = []
    for i in range(2):
        level = helper.make_node("Constant", [], [f"l{i}"], f"level{i}", value_float=i + 0.5)
        result = helper.make_tensor_value_info(f"l{i}", TensorProto.FLOAT, [])
        graphs.append(helper.make_graph([level], f"g{i}", [], [result]))
    node = helper.make_node(
        *("Odd", ["x"], ["z"], "odd"),
        **{"domain": "odd", "tensors": floats, "graphs": graphs, "sparse": sparse_tensor("one")},
        many=[sparse_tensor("first"), sparse_tensor("second")],
    )
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2]))
    model.opset_import.append(helper.make_opsetid("odd", 1))
    return model


def branches_model() -> onnx.ModelProto:
    """An If whose branches read what a Relu makes, a layer in each."""
    graphs = []
    for i in range(2):
        inside = Net()
        y = inside.op("MatMul", ["made", inside.weight(f"w{i}", normal(4, 6, seed=i))], f"m{i}")
        inside.output(inside.op("Relu", [y], f"r{i}"))
        graphs.append(helper.make_graph(inside.nodes, f"b{i}", [], inside.outputs, inside.tensors))
    net = Net()
    net.op("Relu", [net.input("x", normal(2, 4))], "before", "made")
    flag = net.input("flag", np.array(True))
    net.op("If", [flag], "choose", "y", then_branch=graphs[0], else_branch=graphs[1])
    net.output("y")
    return net.model()


def matrix_net(dtype=np.float32) -> Net:
    net = Net(opset=21, ir_version=10)
    x = net.input("x", normal(3, 16).astype(dtype))
    net.op("MatMul", [x, net.weight("w", normal(16, 6, seed=1).astype(dtype))], "m", "y")
    net.output("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return net


CONV_RECORD, NATIVE = records(("c", 6)), 'dst_type: "INT4"'
FOUR_RECORD = records(("c", 6), act="INT4", wts="INT4")
# a model, a record or None, and options that verify must be given as well
SOURCES: dict[str, tuple] = {
    "old": (lambda: conv_net(10).model(), CONV_RECORD, ()),
    "half": (lambda: conv_net(17, np.float16).model(), CONV_RECORD, ()),
    "four bits": (lambda: conv_net().model(), FOUR_RECORD, ()),
    "native": (
        lambda: conv_net(21).model(),
        CONV_RECORD.replace("act_type", NATIVE + " act_type"),
        (),
    ),
    "wide": (lambda: wide_net().model(), records(("g", 1), wts="INT4"), ()),
    "half rnn": (lambda: half_rnn_net().model(), HALF_RNN_RECORD, ()),
    "pairs": (lambda: residual()[1], None, ("--from", "qdq")),
    "odd": (odd_attributes_model, CONV_RECORD, ()),
    "branches": (branches_model, records(("m0", 1), ("m1", 1)), ()),
    "groups": (lambda: matrix_net().model(), None, ("--weight-only", "w8a16:group=4")),
    "half scales": (lambda: matrix_net(np.float16).model(), None, ("--weight-only", "w4a16")),
    "copies": (lambda: conv_net().model(), 'record { key: "c" value { scale_d: 0 } }', ()),
}
FORMS = {"": [], " as int8": ["--fake-quant-weights", "int8"]}
WITH_FORMS = ("old", "half", "native", "wide", "half rnn", "branches")


@pytest.fixture(scope="module")
def kinds(quantfold, tmp_path_factory) -> dict[str, tuple[Output, tuple]]:
    """An export of each, and how verify is given its inputs."""
    made = {}
    for kind, (model, record, options) in SOURCES.items():
        for form, more in FORMS.items():
            if form and kind not in WITH_FORMS:
                continue
            base = tmp_path_factory.mktemp("kind")
            onnx.save(model(), str(base / "model.onnx"))
            (base / "record.txt").write_text(record or "")
            out = Output(base / "out", base / "model.onnx", base / "record.txt")
            given = (*(("--record", out.record) if record else ()), *options)
            line = ("export", "--model", out.model, "--save-path", out.folder / "m")
            result = quantfold(*line, *given, *more)
            assert result.code == 0, f"{kind}: {result.err}"
            made[kind + form] = (out, ("--against", out.model, *given))
    return made


KINDS = [k + f for k in SOURCES for f in FORMS if not f or k in WITH_FORMS]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sound(quantfold, kinds, kind):
    o, args = kinds[kind]
    found = verify(quantfold, o.folder / "m", *args)
    assert found["ok"], errors(found)
    assert found["checks"]["agreement"]["done"] and found["recomputed"] > 0
    assert found["layers"] == found["agreeing"] or "weight-only" in " ".join(map(str, args))
