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
from test_qdq_graphs import Activation, Weights, pair, residual, weight
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


def taken_names_model() -> onnx.ModelProto:
    """A node of the source has the name that the end of a quantization would get."""
    model = conv_net().model()
    next(n for n in model.graph.node if n.name == "r").name = "c.quant.fakequant.sub"
    return model


def half_pairs_model() -> onnx.ModelProto:
    """A residual Add of float16, with a pair on each side."""
    net, half = Net(opset=21, ir_version=10), np.float16
    a = Activation(scale_dtype=half)
    first = pair(net, net.input("x", normal(2, 4, 6, 6).astype(half)), "in", a)
    w = weight(net, normal(4, 4, 1, 1, seed=1), "w", Weights(scale_dtype=half))
    c = net.op("Conv", [first, w], "c")
    y = net.op("Add", [pair(net, c, "branch", a), first], "add", "y")
    net.output(net.op("Relu", [y], "r", "z"), TensorProto.FLOAT16)
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
    "half pairs": (half_pairs_model, None, ("--from", "qdq")),
    "taken names": (taken_names_model, CONV_RECORD, ()),
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


# ---- ways to spoil them --------------------------------------------------------------------------

BOTH = {"agreement", "against"}
RULES = {"structure", "against"}
EVERY = BOTH | RULES


def at(which: str, node: str, change: Callable) -> Callable[[Spoiler], None]:
    """A change of a node."""
    return lambda s: s.node(which, node, change)


def attribute(which: str, node: str, name: str, **fields) -> Callable[[Spoiler], None]:
    return lambda s: s.attribute(which, node, name, **fields)


def value(which: str, name: str, change: Callable) -> Callable[[Spoiler], None]:
    return lambda s: s.values(which, name, change)


def tensor(which: str, name: str, change: Callable) -> Callable[[Spoiler], None]:
    return lambda s: s.tensor(which, name, change)


def edit(which: str, change: Callable) -> Callable[[Spoiler], None]:
    return lambda s: s.edit(which, change)


def drop_attribute(name: str) -> Callable:
    def work(node: onnx.NodeProto) -> None:
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)

    return work


def drop_node(name: str) -> Callable:
    """Those that read it read what it read."""

    def work(model: onnx.ModelProto) -> None:
        gone = next(n for n in model.graph.node if n.name == name)
        for n in model.graph.node:
            for i, read in enumerate(n.input):
                if read == gone.output[0]:
                    n.input[i] = gone.input[0]
        model.graph.node.remove(gone)

    return work


def twice(node: onnx.NodeProto) -> None:
    node.attribute.append(node.attribute[0])


def reshape(*dims: int) -> Callable:
    def work(t: TensorProto) -> None:
        del t.dims[:]
        t.dims.extend(dims)

    return work


def cast_data(dtype) -> Callable:
    """Another dtype with the same numbers."""

    def work(t: TensorProto) -> None:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(dtype), t.name))

    return work


def import_domain(name: str) -> Callable:
    return lambda m: m.opset_import.append(helper.make_opsetid(name, 1))


def pass_through(model: onnx.ModelProto) -> None:
    """A node between the graph's output and what makes it."""
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.append(helper.make_node("Identity", ["inner"], ["y"], "outer"))


def list_initializer(model: onnx.ModelProto) -> None:
    kind = helper.make_tensor_value_info("shift", TensorProto.FLOAT, [1, 8, 1, 1])
    model.graph.input.append(kind)


def move_first(name: str) -> Callable:
    def work(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        nodes.sort(key=lambda n: n.name != name)
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    return work


def odd(name: str) -> Callable[[onnx.ModelProto], onnx.AttributeProto]:
    """An attribute of the node that no standard operator has."""

    def find(model: onnx.ModelProto) -> onnx.AttributeProto:
        node = next(n for n in model.graph.node if n.name == "odd")
        return next(a for a in node.attribute if a.name == name)

    return find


def in_odd(name: str, change: Callable) -> Callable[[Spoiler], None]:
    return edit(FAKE, lambda m: change(odd(name)(m)))


def first_value(t: TensorProto) -> None:
    array = numpy_helper.to_array(t).copy()
    array.reshape(-1)[0] += 1
    t.CopyFrom(numpy_helper.from_array(array, t.name))


def branch(change: Callable) -> Callable[[onnx.ModelProto], None]:
    """A change of a branch that has a layer."""

    def work(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == "choose")
        change(node.attribute[0].g)

    return work


MADE = "c.quant.fakequant"
CORRUPTIONS = {
    # before opset 11
    "bound of a Clip": Corruption(
        attribute(FAKE, f"{MADE}.clip", "max", f=126.0), EVERY, MADE, "old"
    ),
    "bound of a Clip missing": Corruption(
        at(FAKE, f"{MADE}.clip", drop_attribute("max")), EVERY, MADE, "old"
    ),
    "bounds of other names": Corruption(
        at(FAKE, f"{MADE}.clip", lambda n: setter(name="least")(n.attribute[0])),
        EVERY,
        "a Clip with both bounds",
        "old",
    ),
    "number that rounds": Corruption(
        value(FAKE, f"{MADE}.round_magic", add_first(1)), RULES, "does not round", "old"
    ),
    "other number subtracted": Corruption(
        rename_input(FAKE, f"{MADE}.round", 1, f"{MADE}.scale.output0"),
        RULES,
        "does not round",
        "old",
    ),
    "Add that rounds": Corruption(
        at(FAKE, f"{MADE}.round_up", setter(op_type="Mul")), RULES, "does not round", "old"
    ),
    "opset too new in both": Corruption(
        both(lambda s, w: s.edit(w, lambda m: setter(version=13)(m.opset_import[0]))),
        RULES,
        "operator set 13",
        "old",
    ),
    # 16-bit floats
    "Cast before the arithmetic": Corruption(
        attribute(FAKE, f"{MADE}.cast", "to", i=TensorProto.DOUBLE),
        RULES,
        "does not cast to float32",
        "half",
    ),
    "Cast behind the arithmetic": Corruption(
        attribute(FAKE, "c.fakedequant.cast", "to", i=TensorProto.FLOAT),
        RULES,
        "c.fakedequant.cast",
        "half",
    ),
    "Cast of a state": Corruption(
        attribute(FAKE, "lstm.initial_c.cast", "to", i=TensorProto.FLOAT16),
        RULES,
        "lstm.initial_c.cast",
        "half rnn",
    ),
    "Cast of an output": Corruption(
        attribute(FAKE, "lstm.output1.cast", "to", i=TensorProto.BFLOAT16),
        RULES,
        "lstm.output1.cast",
        "half rnn",
    ),
    "state of the half LSTM": Corruption(
        rename_input(FAKE, "lstm.initial_c.cast", 0, "h"), BOTH, "lstm", "half rnn"
    ),
    # four bits
    "type of the bias' Cast": Corruption(
        attribute(DEPLOY, "c.bias_quant", "to", i=10), RULES, "the bias is cast", "four bits"
    ),
    "Cast of the bias missing": Corruption(
        edit(DEPLOY, drop_node("c.bias_quant")), RULES, "there is no Cast", "four bits"
    ),
    "Cast of another bias": Corruption(
        rename_input(DEPLOY, "c.bias_quant", 0, "c.dequant.param"), EVERY, "c", "four bits"
    ),
    "bias no constant": Corruption(
        rename_input(DEPLOY, "c.bias_quant", 0, "x"), EVERY, "not a constant", "four bits"
    ),
    "bit of a native int4 weight": Corruption(
        lambda s: s.bytes(DEPLOY, flip_weight("c.weight", DEPLOY, s)), BOTH, "c.weight", "native"
    ),
    "bit beside native int4": Corruption(
        value(FAKE, "c.weight", add_first(1)), BOTH, "c.weight", "native as int8"
    ),
    "end of a long row": Corruption(
        value(DEPLOY, "g.weight", lambda f: f.__setitem__(-1, f[-1] ^ 0x10)),
        BOTH,
        "element 280003",
        "wide",
    ),
    "middle of a long row": Corruption(
        value(DEPLOY, "g.weight", lambda f: f.__setitem__(40_000, f[40_000] ^ 1)),
        BOTH,
        "element 40000 ",
        "wide as int8",
    ),
    # pairs that stay
    "scale of AscendAntiQuant": Corruption(
        attribute(DEPLOY, "in_q.anti_quant", "scale", f=0.5), EVERY, "in_q.anti_quant", "pairs"
    ),
    "offset of AscendAntiQuant": Corruption(
        attribute(DEPLOY, "in_q.anti_quant", "offset", f=7.0), RULES, "in_q.anti_quant", "pairs"
    ),
    "dst_type of AscendAntiQuant": Corruption(
        attribute(DEPLOY, "in_q.anti_quant", "dst_type", s=b"INT16"),
        RULES,
        "in_q.anti_quant",
        "pairs",
    ),
    "AscendAntiQuant of floats": Corruption(
        rename_input(DEPLOY, "in_q.anti_quant", 0, "x"), EVERY, "must read an AscendQuant", "pairs"
    ),
    "scale behind a pair": Corruption(
        value(FAKE, "in_q.anti_quant.fake_antiquant.scale", add_first(1)),
        BOTH,
        "in_q.anti_quant.fake_antiquant.mul",
        "pairs",
    ),
    "Cast behind a pair": Corruption(
        attribute(FAKE, "in_q.anti_quant.fake_antiquant.mul.cast", "to", i=TensorProto.FLOAT),
        BOTH,
        "in_",
        "half pairs",
    ),
    "scale under a taken name": Corruption(
        value(FAKE, f"{MADE}.scale", add_first(1)), BOTH, "c.quant.fakequant.sub", "taken names"
    ),
    # what few models have
    "value of a sparse initializer": Corruption(
        edit(FAKE, lambda m: first_value(m.graph.sparse_initializer[0].values)),
        BOTH,
        "thin",
        "odd",
    ),
    "place of a sparse initializer": Corruption(
        edit(FAKE, lambda m: first_value(m.graph.sparse_initializer[0].indices)),
        BOTH,
        "thin.places",
        "odd",
    ),
    "sparse initializer missing": Corruption(
        edit(FAKE, lambda m: m.graph.sparse_initializer.pop()), BOTH, "thin", "odd"
    ),
    "sparse initializer too many": Corruption(
        edit(FAKE, lambda m: m.graph.sparse_initializer.append(sparse_tensor("more"))),
        BOTH,
        "more",
        "odd",
    ),
    "tensor of a list": Corruption(
        in_odd("tensors", lambda a: first_value(a.tensors[1])), BOTH, "t1", "odd"
    ),
    "tensor of a list missing": Corruption(
        in_odd("tensors", lambda a: a.tensors.pop()), BOTH, "'tensors'", "odd"
    ),
    "graph of a list": Corruption(
        in_odd("graphs", lambda a: setter(f=9)(a.graphs[1].node[0].attribute[0])),
        BOTH,
        "level1",
        "odd",
    ),
    "graph of a list missing": Corruption(
        in_odd("graphs", lambda a: a.graphs.pop()), BOTH, "'graphs'", "odd"
    ),
    "sparse attribute": Corruption(
        in_odd("sparse", lambda a: first_value(a.sparse_tensor.values)), BOTH, "one", "odd"
    ),
    "sparse attribute of a list": Corruption(
        in_odd("many", lambda a: first_value(a.sparse_tensors[1].indices)),
        BOTH,
        "second.places",
        "odd",
    ),
    "sparse attribute missing": Corruption(
        in_odd("many", lambda a: a.sparse_tensors.pop()), BOTH, "'many'", "odd"
    ),
    # layers in branches
    "node behind its readers": Corruption(
        edit(DEPLOY, move_first("choose")), RULES, "before it is made", "branches"
    ),
    "input of a branch": Corruption(
        edit(FAKE, branch(lambda g: setter(op_type="Tanh")(g.node[-1]))), BOTH, "r", "branches"
    ),
    "initializer of a branch": Corruption(
        edit(FAKE, branch(lambda g: first_value(g.initializer[0]))), BOTH, "w", "branches"
    ),
    # weights that are quantized alone
    "type of the scales": Corruption(
        both(lambda s, w: s.tensor(w, "w.scale", cast_data(np.float64))),
        RULES,
        "expected a float",
        "groups",
    ),
    "type of the integers": Corruption(
        both(lambda s, w: s.tensor(w, "w.quantized", setter(data_type=TensorProto.UINT8))),
        RULES,
        "expected int8 or int4",
        "groups",
    ),
    "size of the blocks": Corruption(
        both(lambda s, w: s.attribute(w, "w.dequantize", "block_size", i=8)),
        RULES,
        "block_size 8",
        "groups",
    ),
    "axis of the scales": Corruption(
        both(lambda s, w: s.attribute(w, "w.dequantize", "axis", i=2)),
        RULES,
        "axis 2",
        "groups",
    ),
    "scale of 16 bits": Corruption(
        value(DEPLOY, "w.scale", set_first(-1)), EVERY, "w.scale", "half scales"
    ),
    # a copy of the source
    "text of a copy": Corruption(
        edit(FAKE, setter(doc_string="changed")), {"against"}, "as it is", "copies"
    ),
    "weight of a copy": Corruption(
        value(DEPLOY, "c.weight", add_first(1)), BOTH, "as it is", "copies"
    ),
}


def flip_weight(name: str, which: str, s: Spoiler) -> Callable[[bytearray], None]:
    """A bit of raw data, found by its bytes."""
    model = onnx.load(str(s.folder / which))
    raw = next(t.raw_data for t in model.graph.initializer if t.name == name)

    def work(data: bytearray) -> None:
        data[bytes(data).index(raw) + 5] ^= 0x20

    return work


def assert_found(quantfold, folder: Path, args: tuple, c: Corruption) -> None:
    """By the checks that must find it, with the inputs and without; and named."""
    found = errors(verify(quantfold, folder / "m", *args))
    assert c.checks <= {f["check"] for f in found}, found
    texts = [" ".join((f["file"], f["item"], f["message"])) for f in found]
    assert any(c.names in t for t in texts), texts
    alone = errors(verify(quantfold, folder / "m"))
    assert c.checks - {"against"} <= {f["check"] for f in alone}, alone


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_found(quantfold, kinds, name, tmp_path):
    c = CORRUPTIONS[name]
    o, args = kinds[c.kind]
    folder = tmp_path / "out"
    shutil.copytree(o.folder, folder)
    c.spoil(Spoiler(folder, random.Random(0)))
    assert_found(quantfold, folder, args, c)


# ---- rules of single models ----------------------------------------------------------------------


def reread(name: str, old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    """An input of a node."""

    def work(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == name)
        node.input[list(node.input).index(old)] = new

    return work


LSTM = "BasicLSTMInplaceFillWindowCache"
PLAIN = {
    # AscendQuant and AscendDequant
    "AscendQuant of nobody": Corruption(
        edit(DEPLOY, reread("d", "d.quant.output0", "r:out")), EVERY, "nothing reads"
    ),
    "AscendQuant of two outputs": Corruption(
        at(DEPLOY, "c.quant", lambda n: n.output.append("more")), RULES, "2 outputs"
    ),
    "AscendDequant of no layer": Corruption(
        edit(DEPLOY, reread("c.dequant", "c:out", "x")), EVERY, "does not come behind"
    ),
    "sums that others read": Corruption(
        edit(DEPLOY, reread("r", "c.dequant.output0", "c:out")), EVERY, "also read by others"
    ),
    "scale of AscendDequant": Corruption(
        value(DEPLOY, "c.dequant.param", set_first(1 << 31)), EVERY, "holds the scale -0"
    ),
    "domain by its name": Corruption(
        at(DEPLOY, "c.dequant", setter(domain="ai.onnx")), RULES, "of domain 'ai.onnx'"
    ),
    "AscendDequant of another domain": Corruption(
        at(DEPLOY, "c.dequant", setter(domain="npu")), RULES, "of domain 'npu'"
    ),
    "attribute twice": Corruption(at(DEPLOY, "c.quant", twice), RULES, "twice"),
    "parameter no initializer": Corruption(
        edit(DEPLOY, reread("c.dequant", "c.dequant.param", "x")), RULES, "packed dequant scales"
    ),
    # layers
    "kernel_shape": Corruption(
        at(DEPLOY, "c", lambda n: next(a for a in n.attribute if a.ints == [3, 3]).ints.pop()),
        EVERY,
        "kernel_shape",
    ),
    "no group": Corruption(attribute(DEPLOY, "c", "group", i=0), EVERY, "group is 0"),
    "group that does not divide": Corruption(
        attribute(DEPLOY, "c", "group", i=4), EVERY, "multiple of group"
    ),
    "weight of one dimension": Corruption(
        tensor(DEPLOY, "g.weight", reshape(5760)), EVERY, "expected a matrix"
    ),
    "weight turned": Corruption(attribute(DEPLOY, "g", "transB", i=1), EVERY, "transB is 1"),
    "weight no constant": Corruption(
        edit(DEPLOY, reread("c", "c.weight", "x")), EVERY, "is not a constant"
    ),
    # the arithmetic of fake_quant
    "scale infinite": Corruption(
        value(FAKE, f"{MADE}.scale", set_first(np.inf)), EVERY, "its scale is inf"
    ),
    "offset no integer": Corruption(
        value(FAKE, f"{MADE}.offset", set_first(0.5)), EVERY, "no integer in its range"
    ),
    "arithmetic of nothing": Corruption(
        edit(FAKE, reread(f"{MADE}.mul", "x", "")), RULES, "reads nothing"
    ),
    "other offset subtracted": Corruption(
        edit(FAKE, reread(f"{MADE}.sub", f"{MADE}.offset.output0", f"{MADE}.scale.output0")),
        RULES,
        "subtract the offset",
    ),
    "scale as an integer": Corruption(
        tensor(FAKE, "c.fakedequant.dqscale", cast_data(np.int32)), RULES, "c.fakedequant.mul"
    ),
    "scale as an unknown float": Corruption(
        tensor(FAKE, "c.fakedequant.dqscale", cast_data(np.float64)), RULES, "expected float32"
    ),
    "scales behind another": Corruption(
        edit(FAKE, reread("c.fakedequant.mul", "c:out", "x")), EVERY, "does not come behind layer"
    ),
    "scales no Mul": Corruption(
        at(FAKE, "c.fakedequant.mul", setter(op_type="Div")), EVERY, "c.fakedequant.mul"
    ),
    "float weight no constant": Corruption(
        edit(FAKE, reread("c", "c.weight", "x")), EVERY, "is not a constant"
    ),
    "weight of another dtype": Corruption(
        tensor(FAKE, "c.weight", setter(data_type=TensorProto.INT32)), RULES, "is int32"
    ),
    # graphs
    "no op_type": Corruption(at(DEPLOY, "r", setter(op_type="")), EVERY, "no op_type"),
    "marker left": Corruption(
        at(DEPLOY, "r", setter(op_type="QuantIdentity")), EVERY, "QuantIdentity"
    ),
    "initializer as an input": Corruption(
        edit(DEPLOY, list_initializer), EVERY, "listed as a graph input"
    ),
    "domain of markers": Corruption(
        edit(DEPLOY, import_domain("custom_op_domain")), EVERY, "custom_op_domain"
    ),
    "output of another node": Corruption(edit(FAKE, pass_through), BOTH, "outer"),
    "version of the format": Corruption(edit(FAKE, setter(ir_version=7)), BOTH, "ir_version is 7"),
    "training graph": Corruption(
        edit(FAKE, lambda m: m.training_info.add()), BOTH, "1 training graphs"
    ),
    # recurrent layers
    "quant_dtype": Corruption(
        attribute(DEPLOY, "lstm", "quant_dtype", i=3), RULES, "quant_dtype is 3", "rnn"
    ),
    "scale of a state": Corruption(
        attribute(DEPLOY, "lstm", "quant_scale_h", f=-1.0), EVERY, "quant_scale_h is -1", "rnn"
    ),
    "square roots": Corruption(
        attribute(DEPLOY, "lstm", "quant_sqrt_mode_x", i=1), RULES, "quant_sqrt_mode", "rnn"
    ),
    "direction": Corruption(
        attribute(DEPLOY, "lstm", "direction", s=b"reverse"), RULES, "direction", "rnn"
    ),
    "W no constant": Corruption(
        edit(DEPLOY, reread("lstm", "W", "x")), RULES, "input 1 is not a constant", "rnn"
    ),
    "dtype of W": Corruption(
        tensor(DEPLOY, "W", setter(data_type=TensorProto.UINT8)), EVERY, "is uint8", "rnn"
    ),
    "bias too long": Corruption(
        tensor(DEPLOY, "B", reshape(2, 32)), RULES, "expected [1, 64]", "rnn"
    ),
    "clean_cache": Corruption(
        at(DEPLOY, "lstm", lambda n: n.input.__setitem__(7, "h")), RULES, "clean_cache", "rnn"
    ),
    "inputs too few": Corruption(
        at(DEPLOY, "lstm", lambda n: n.input.pop()), RULES, "8 inputs", "rnn"
    ),
    "float bias too long": Corruption(
        tensor(FAKE, "B", reshape(2, 32)), BOTH, "those of the bias", "rnn"
    ),
    "dtype of the float bias": Corruption(
        tensor(FAKE, "B", cast_data(np.float64)), BOTH, "float form", "rnn"
    ),
    "operator of the layer": Corruption(
        at(FAKE, "lstm", setter(op_type="RNN")), BOTH, "expected LSTM", "rnn"
    ),
    "float W of another shape": Corruption(
        tensor(FAKE, "W", reshape(1, 6, 32)), BOTH, "do not belong to the weight", "rnn"
    ),
    "R for W": Corruption(edit(FAKE, reread("lstm", "W", "R")), BOTH, "input 1 is 'R'", "rnn"),
    "Cast of int8 W": Corruption(
        attribute(FAKE, "lstm.weight.cast", "to", i=TensorProto.DOUBLE),
        BOTH,
        "behind a Cast to float32",
        "rnn_int8",
    ),
    "dims of W's scales": Corruption(
        tensor(FAKE, "lstm.weight.scale", reshape(32, 1, 1)), BOTH, "do not have dims", "rnn_int8"
    ),
    "activation of W": Corruption(
        edit(FAKE, reread("lstm", "lstm.anti_quant.fake_antiquant.mul.output0", "x")),
        BOTH,
        "does not come through",
        "rnn",
    ),
    "scale behind the activation": Corruption(
        value(FAKE, "lstm.anti_quant.fake_antiquant.scale", add_first(1)),
        BOTH,
        "whose reciprocal",
        "rnn",
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_rules_of_single_models(quantfold, outputs, name, tmp_path):  # noqa: F811
    c = PLAIN[name]
    o, folder = outputs[c.kind], tmp_path / "out"
    shutil.copytree(o.folder, folder)
    (folder / "m.manifest.json").unlink()
    c.spoil(Spoiler(folder, random.Random(0)))
    assert_found(quantfold, folder, ("--against", o.model, "--record", o.record), c)


@pytest.mark.parametrize(
    "name",
    [
        *("c.quant", "c.dequant", "c.fakedequant.mul", "c.fakedequant.dqscale", "c.weight.cast"),
        *(f"{MADE}.{part}" for part in ("sub", "clip", "add", "round", "mul", "scale", "offset")),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_names_that_the_source_has_taken(quantfold, tmp_path, name, form):
    """Ours get a number behind them, and are known all the same."""
    model = conv_net().model()
    next(n for n in model.graph.node if n.name == "r").name = name
    onnx.save(model, str(tmp_path / "model.onnx"))
    (tmp_path / "r.txt").write_text(CONV_RECORD)
    line = ("--record", tmp_path / "r.txt")
    quantfold.export(
        tmp_path / "model.onnx", tmp_path / "r.txt", tmp_path / "out" / "m", *FORMS[form]
    )
    found = verify(quantfold, tmp_path / "out" / "m", "--against", tmp_path / "model.onnx", *line)
    assert found["ok"] and found["layers"] == found["agreeing"] == 1, errors(found)
