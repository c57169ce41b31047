# SPDX-License-Identifier: Apache-2.0
"""Runnable models of unusual models, and what cannot be made runnable: the message names the node
and the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_odd_models import conv, export, model, record, rnn_scales, scales, tensor, value
from test_runnable_layers import Net, numbers

from runnable import compare, make_runnable, relative
from support import DEPLOY, FAKE, run_model, snapshot

HALF = TensorProto.FLOAT16


def runnable_of(quantfold, folder) -> str:
    return make_runnable(quantfold, folder / "run", folder / "out" / DEPLOY)


def agree(quantfold, folder, feed) -> None:
    ours = run_model(runnable_of(quantfold, folder), feed)
    assert relative(ours, run_model(folder / "out" / FAKE, feed)) <= 1e-5


# ---- shapes ----


@pytest.mark.parametrize("form", ["int8", "packed"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dims", [[6, 7], [4, 1, 1], [1], [], [1, 1, 6, 7], [1, 4, 6, 7]])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_operands_of_different_rank(quantfold, tmp_path, form, known, dims, first, constant):
    """An Add aligns its operands at their last dims: only there is an extent one of channels."""
    x = np.random.default_rng(0).uniform(-3, 3, (2, 4, 6, 7)).astype(np.float32)
    w, path = numbers(4, (5, 4, 1, 1), -8, 7), tmp_path / "deploy.onnx"
    net = Net("Conv", x, w, form=form)
    net.known_shape = known
    net.save(path, [0.01], kernel_shape=[1, 1])
    m = onnx.load(path)
    m.graph.input[0].name = "free"
    m.graph.input.append(helper.make_tensor_value_info("pos", 1, dims))
    pos = np.full(dims, 0.25, np.float32)
    if constant:
        m.graph.initializer.append(numpy_helper.from_array(pos, "pos"))
    m.graph.node.insert(
        0, helper.make_node("Add", ["pos", "free"] if first else ["free", "pos"], ["x"], "add")
    )
    onnx.save(m, path)
    ours = make_runnable(quantfold, tmp_path, path)
    sums = np.einsum("oc,nchw->nohw", w[:, :, 0, 0], np.clip(np.rint((x + 0.25) * 20), -128, 127))
    (got,) = run_model(ours, {"free": x} | ({} if constant else {"pos": pos}))
    assert np.array_equal(got, sums.astype(np.float32) * np.float32(0.01))


# ---- where float32 sums are not exact ----


@pytest.mark.parametrize("kind", ["INT8", "INT16"])
def test_sums_that_float32_cannot_hold(quantfold, tmp_path, capsys, kind):
    """Long sums: fake_quant adds in float32 and is off, the runnable model is not."""
    terms, rng = 20000 if kind == "INT8" else 60, np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.uniform(0.5, 1, (terms, 6)).astype(np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    m = model([node], [value("x", [3, terms])], [value("y", [3, 6])], [weight])
    step = 1 / 127 if kind == "INT8" else 1 / 32767
    layer = scales(1, 1 / 127, act_type=kind, wts_type="INT8") | {"scale_d": step}
    export(quantfold, tmp_path, m, {"m": layer})
    path = runnable_of(quantfold, tmp_path)
    feed = {"x": rng.uniform(0.5, 1, (3, terms)).astype(np.float32)}
    result = compare(tmp_path / "out" / FAKE, path, [feed])
    with capsys.disabled():
        print("\n" + "\n".join([result.row(f"long sums, {kind}"), *result.inexact()]), end="")
    (x,) = result.layers
    assert x.peak > 2**24 and x.different > 0 and result.relative <= 1e-5


# ---- types and places ----


@pytest.mark.parametrize("opset", [11, 14, 17])
def test_float16(quantfold, tmp_path, opset):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["t"], name="c", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["t"], ["s"]),
        helper.make_node("AveragePool", ["s"], ["p"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    w = tensor("w", 3, 2, 1, 1, dtype=np.float16)
    m = model(nodes, [value("x", [1, 2, 4, 4], HALF)], [value("y", [1, 3, 3, 3], HALF)], [w], opset)
    export(quantfold, tmp_path, m, {"c": scales(3), "pool": scales(1, 1.0)})
    x = np.random.default_rng(0).uniform(0, 1, (1, 2, 4, 4)).astype(np.float16)
    agree(quantfold, tmp_path, {"x": x})


@pytest.mark.parametrize("op, gates", [("LSTM", 4), ("GRU", 3)])
def test_float16_rnn(quantfold, tmp_path, op, gates):
    """One step, so that fake_quant says the same."""
    inits = [tensor(n, 1, gates * 2, k, dtype=np.float16) for n, k in (("W", 3), ("R", 2))]
    states = ["h", "c"] if op == "LSTM" else ["h"]
    outs = ["Y", "Yh", "Yc"][: len(states) + 1]
    more = {} if op == "LSTM" else {"linear_before_reset": 1}
    node = helper.make_node(
        op, ["x", "W", "R", "", "", *states], outs, name="r", hidden_size=2, **more
    )
    inputs = [value("x", [1, 3, 3], HALF)] + [value(s, [1, 3, 2], HALF) for s in states]
    outputs = [value("Y", [1, 1, 3, 2], HALF)] + [value(o, [1, 3, 2], HALF) for o in outs[1:]]
    m = model([node], inputs, outputs, inits, opset=14)
    export(quantfold, tmp_path, m, {"r": rnn_scales(gates, scale_r=[0.01] * gates)})
    rng = np.random.default_rng(3)
    feed = {
        i.name: rng.uniform(-1, 1, [d.dim_value for d in i.type.tensor_type.shape.dim]).astype(
            np.float16
        )
        for i in inputs
    }
    for a, b in zip(
        run_model(runnable_of(quantfold, tmp_path), feed),
        run_model(tmp_path / "out" / FAKE, feed),
    ):
        assert a.dtype == b.dtype == np.float16 and a.shape == b.shape
        assert np.max(np.abs(a.astype(np.float64) - b)) <= 2**-11  # an ulp of float16 near 1


@pytest.mark.parametrize("op, gates, clip", [("LSTM", 4, None), ("GRU", 3, None), ("GRU", 3, 0.2)])
@pytest.mark.parametrize("lengths", [None, [0, 4, 2], [4, 4, 4]])
def test_rnn_lengths_and_clip(quantfold, tmp_path, op, gates, clip, lengths):
    """Batches that end early, and gates that are clipped. int16 states are fine enough for fake_quant,
    which quantizes the first alone, to say nearly the same in every step."""
    inits = [tensor("W", 1, gates * 5, 3), tensor("R", 1, gates * 5, 5)]
    states = ["h", "c"] if op == "LSTM" else ["h"]
    more = {} if op == "LSTM" else {"linear_before_reset": 1}
    more |= {"clip": clip} if clip else {}
    names = ["x", "W", "R", "", "n" if lengths else "", *states]
    node = helper.make_node(
        op, names, ["Y", "Yh", "Yc"][: len(states) + 1], "r", hidden_size=5, **more
    )
    inputs = [value("x", [4, 3, 3])] + [value(s, [1, 3, 5]) for s in states]
    inputs += [value("n", [3], TensorProto.INT32)] if lengths else []
    outputs = [value("Y", [4, 1, 3, 5])] + [value(o, [1, 3, 5]) for o in node.output[1:]]
    m = model([node], inputs, outputs, inits, opset=14)
    fine = {"act_type": "INT16", "scale_d": 1 / 16384, "scale_h": 1 / 16384}
    export(quantfold, tmp_path, m, {"r": rnn_scales(gates) | fine})
    rng = np.random.default_rng(6)
    feed = {"x": rng.uniform(-1, 1, (4, 3, 3)).astype(np.float32)}
    feed |= {s: rng.uniform(-1, 1, (1, 3, 5)).astype(np.float32) for s in states}
    feed |= {"n": np.array(lengths, np.int32)} if lengths else {}
    ours = run_model(runnable_of(quantfold, tmp_path), feed)
    wanted = run_model(tmp_path / "out" / FAKE, feed)
    assert relative(ours, wanted) <= 1e-4
    if lengths:
        for batch, end in enumerate(lengths):
            assert not ours[0][end:, :, batch].any()


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_rnn_opsets(quantfold, tmp_path, opset):
    inits = [tensor("W", 1, 8, 3), tensor("R", 1, 8, 2)]
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "", "", "h", "c"], ["Y", "Yh", "Yc"], name="r", hidden_size=2
    )
    inputs = [value("x", [1, 2, 3]), value("h", [1, 2, 2]), value("c", [1, 2, 2])]
    outputs = [value("Y", [1, 1, 2, 2]), value("Yh", [1, 2, 2])]
    m = model([node], inputs, outputs, inits, opset=opset)
    export(quantfold, tmp_path, m, {"r": rnn_scales(4)})
    rng = np.random.default_rng(4)
    feed = {
        i.name: rng.uniform(-1, 1, [d.dim_value for d in i.type.tensor_type.shape.dim]).astype(
            np.float32
        )
        for i in inputs
    }
    agree(quantfold, tmp_path, feed)


def test_weights_alone(quantfold, tmp_path):
    """A deploy model of which weights alone are quantized can be run already."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    m = model([node], [value("x", [2, 64])], [value("y", [2, 8])], [tensor("w", 64, 8)], 21)
    onnx.save(m, tmp_path / "m.onnx")
    args = ["--model", tmp_path / "m.onnx", "--weight-only", "w4a16:group=32"]
    result = quantfold("export", *args, "--save-path", tmp_path / "out" / "m")
    assert result.code == 0, result.err
    agree(quantfold, tmp_path, {"x": np.ones((2, 64), np.float32)})
    again = make_runnable(quantfold, tmp_path / "b", tmp_path / "m.onnx", *args[2:])
    assert again.read_bytes() == (tmp_path / "run" / "m_runnable_model.onnx").read_bytes()


def test_weights_alone_beside_quantized_layers(quantfold, tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="m"),
        helper.make_node("MatMul", ["t", "v"], ["y"], name="n"),
    ]
    weights = [tensor("w", 64, 32), tensor("v", 32, 8, seed=1)]
    m = model(nodes, [value("x", [2, 64])], [value("y", [2, 8])], weights, 21)
    export(quantfold, tmp_path, m, {"m": scales()}, "--weight-only", "w8a16")
    agree(quantfold, tmp_path, {"x": np.ones((2, 64), np.float32)})


def test_a_float_model_is_refused(quantfold, tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    onnx.save(model([node], [value("x", [2])], [value("y", [2])], []), tmp_path / "m.onnx")
    args = ["--model", tmp_path / "m.onnx", "--emit", "runnable", "--save-path", tmp_path / "o"]
    result = quantfold("export", *args)
    assert result.code == 1 and "nothing in this model is quantized" in result.err
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_two_layers_share_a_weight(quantfold, tmp_path):
    nodes = [conv("x", "w", "a", "c1"), conv("x", "w", "b", "c2")]
    outputs = [value("a", [1, 4, 2, 2]), value("b", [1, 4, 2, 2])]
    for wts in ("INT8", "INT4"):
        for key in ("wts_type", "dst_type"):
            m = model(nodes, [value("x", [1, 4, 2, 2])], outputs, [tensor("w", 4, 4, 1, 1)])
            layer = scales(4, 0.15, **{key: wts})
            folder = tmp_path / f"{wts}{key}"
            folder.mkdir()
            export(quantfold, folder, m, {"c1": layer, "c2": layer})
            x = np.random.default_rng(1).uniform(-1, 1, (1, 4, 2, 2)).astype(np.float32)
            agree(quantfold, folder, {"x": x})


def test_external_data_stays_outside(quantfold, tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="m")
    m = model([node], [value("x", [2, 64])], [value("y", [2, 64])], [tensor("w", 64, 64)])
    export(quantfold, tmp_path, m, {"m": scales(wts_type="INT4")}, "--external", "always")
    path = runnable_of(quantfold, tmp_path)
    files = snapshot(path.parent)
    assert set(files) == {"m_runnable_model.onnx", "w_runnable.external"}
    assert files["w_runnable.external"] == (tmp_path / "out" / "w_deploy.external").read_bytes()
    agree(quantfold, tmp_path, {"x": np.ones((2, 64), np.float32)})


# ---- refusals ----


def deploy_of(path, change, op="Gemm", **attributes) -> None:
    net = Net(op, np.ones((2, 4)), numbers(1, [4, 3], -100, 100))
    net.save(path, [0.1], **attributes)
    m = onnx.load_from_string(path.read_bytes())
    change(m, {n.name: n for n in m.graph.node})
    path.write_bytes(m.SerializeToString())


def set_attribute(node, name, new):
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, new)])


def set_tensor(m, array, name="w"):
    (t,) = [t for t in m.graph.initializer if t.name == name]
    t.CopyFrom(numpy_helper.from_array(array, name))


def turn_weight(m, n, perm):
    """A Transpose before the weight, which gets as many dimensions."""
    set_tensor(m, np.ones([4, 3, 1][: len(perm)], np.int8))
    n["l"].input[1] = "turned"
    m.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["turned"], "turn", perm=perm))


def add_to_sums(m, n, bias, cast=False):
    """A MatMul and an Add; with `cast`, of a bias that a graph output shows too."""
    n["l"].op_type, at = "MatMul", list(m.graph.node).index(n["l"]) + 1
    del n["l"].attribute[:]
    m.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    name, sums = "bias", n["l"].output[0]
    n["l"].output[0] = "sums"
    m.graph.node.insert(at, helper.make_node("Add", ["sums", "floats" if cast else name], [sums]))
    if cast:
        m.graph.node.insert(0, helper.make_node("Cast", ["bias"], ["floats"], "cast", to=1))
        m.graph.output.append(helper.make_tensor_value_info("floats", 1, [3]))


def add_anti_quant(m, n):
    node = helper.make_node("AscendAntiQuant", ["x"], ["z"], "anti", scale=1.0, offset=0.0)
    node.attribute.append(helper.make_attribute("dst_type", "INT8"))
    m.graph.node.append(node)


def become_conv(m, n, op):
    n["l"].op_type = op
    set_attribute(n["l"], "group", 0)


REFUSED = {
    "no weight": (lambda m, n: n["l"].input.pop(), "l: the Gemm", "it has no weight"),
    "weight of an input": (
        lambda m, n: n["l"].input.__setitem__(1, "x"),
        "l: the Gemm",
        "its weight is no constant",
    ),
    "weight of one dimension": (
        lambda m, n: set_tensor(m, np.ones(12, np.int8)),
        "l: the Gemm",
        "no shape that a layer can have",
    ),
    "empty weight": (
        lambda m, n: set_tensor(m, np.ones((4, 0), np.int8)),
        "l: the Gemm",
        "no shape that a layer can have",
    ),
    "turned weight": (
        lambda m, n: turn_weight(m, n, [1, 0, 2]),
        "l: the Gemm",
        "Transpose of its weight is not that of a matrix",
    ),
    "float added": (
        lambda m, n: add_to_sums(m, n, np.ones(3, np.float32)),
        "l: the MatMul",
        "no constant of int32",
    ),
    "bias with other readers": (
        lambda m, n: add_to_sums(m, n, np.ones(3, np.int32), True),
        "l: the MatMul",
        "its bias has other users",
    ),
    "quant of nothing": (
        lambda m, n: n["l.quant"].input.__setitem__(0, ""),
        "l.quant: the AscendQuant",
        "no input or no output",
    ),
    "dequant of nothing": (
        lambda m, n: n["l.dequant"].input.__setitem__(0, "x"),
        "l.dequant: the AscendDequant",
        "behind no layer",
    ),
    "anti-quant of floats": (
        add_anti_quant,
        "anti: the AscendAntiQuant",
        "its input is no output of an AscendQuant",
    ),
    "group": (lambda m, n: become_conv(m, n, "Conv"), "l: the Conv", "its group is 0"),
    "group of a ConvTranspose": (
        lambda m, n: become_conv(m, n, "ConvTranspose"),
        "l: the ConvTranspose",
        "its group is 0",
    ),
    "alpha": (lambda m, n: set_attribute(n["l"], "alpha", 0.5), "l: the Gemm", "alpha"),
    "transA": (lambda m, n: set_attribute(n["l"], "transA", 1), "l: the Gemm", "transA"),
    "float weight": (
        lambda m, n: set_tensor(m, np.ones((4, 3), np.float32)),
        "l: the Gemm",
        "float32, not int8",
    ),
    "weight that does not fit": (
        lambda m, n: set_tensor(m, np.ones((7, 3), np.int8)),
        "l: the Gemm",
        "7 input channels, its input 4",
    ),
    "operator": (
        lambda m, n: setattr(n["l"], "op_type", "Softmax"),
        "l: the Softmax",
        "no integer",
    ),
    "dst_type": (
        lambda m, n: set_attribute(n["l.quant"], "dst_type", "UINT8"),
        "l.quant: the AscendQuant",
        "dst_type",
    ),
    "scale": (
        lambda m, n: set_attribute(n["l.quant"], "scale", float("nan")),
        "l.quant: the AscendQuant",
        "scale",
    ),
    "offset": (
        lambda m, n: set_attribute(n["l.quant"], "offset", 0.5),
        "l.quant: the AscendQuant",
        "offset",
    ),
    "large offset": (
        lambda m, n: set_attribute(n["l.quant"], "offset", 128.0),
        "l.quant: the AscendQuant",
        "offset",
    ),
    "parameter": (
        lambda m, n: set_tensor(m, np.ones(1, np.float32), "p"),
        "l.dequant: the AscendDequant",
        "uint64",
    ),
    "no quant": (
        lambda m, n: n["l"].input.__setitem__(0, "x"),
        "l: the Gemm",
        "no output of an AscendQuant",
    ),
    "another reader": (
        lambda m, n: m.graph.node.append(helper.make_node("Relu", ["q"], ["z"], "odd")),
        "odd: the Relu",
        "reads the integers of 'l.quant'",
    ),
    "opset": (
        lambda m, n: setattr(m.opset_import[0], "version", 9),
        "l.quant: the AscendQuant",
        "opset 9",
    ),
    "domain": (
        lambda m, n: (
            m.opset_import.append(helper.make_opsetid("quantfold.npu", 1)),
            m.graph.node.append(helper.make_node("F", ["x"], ["z"], "f", domain="quantfold.npu")),
        ),
        "l.quant: the AscendQuant",
        "quantfold.npu",
    ),
    "sum is an output": (
        lambda m, n: m.graph.output.append(helper.make_tensor_value_info("total", 1, [2, 3])),
        "l: the Gemm",
        "output of the graph",
    ),
    "integers are an output": (
        lambda m, n: m.graph.output.append(helper.make_tensor_value_info("q", 1, [2, 4])),
        "l.quant: the AscendQuant",
        "output of the graph",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run(quantfold, tmp_path, name):
    change, node, reason = REFUSED[name]
    deploy_of(tmp_path / "d.onnx", change)
    args = ["--model", tmp_path / "d.onnx", "--emit", "runnable", "--save-path", tmp_path / "m"]
    result = quantfold("export", *args)
    assert result.code == 1, result.err
    assert node in result.err and reason in result.err
    assert not (tmp_path / "m_runnable_model.onnx").exists()


def lstm(**changes) -> onnx.ModelProto:
    fields = dict(hidden_size=2, quant_scale_x=9.0, quant_scale_h=9.0, quant_dtype=2) | changes
    lengths = fields.pop("lengths", "")
    params, shape = fields.pop("params", 8), fields.pop("shape", (1, 8, 3))
    node = helper.make_node(
        "BasicLSTMInplaceFillWindowCache",
        ["x", "w", "r", "h", "c", "b", lengths, "", "p"],
        ["y"],
        "rnn",
        **fields,
    )
    inits = [
        numpy_helper.from_array(np.ones(shape, np.int8), "w"),
        numpy_helper.from_array(np.ones((1, 8, 2), np.int8), "r"),
        numpy_helper.from_array(np.ones((1, 16), np.int32), "b"),
        numpy_helper.from_array(np.full(params, 0x3F800000, np.uint64), "p"),
    ]
    inputs = [value("x", [2, 1, 3]), value("h", [1, 1, 2]), value("c", [1, 1, 2])]
    inputs += [value("n", [1], TensorProto.INT32)] * bool(lengths)
    return model([node], inputs, [value("y", [2, 1, 1, 2])], inits, 11)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"direction": "reverse"}, "direction"),
        ({"activations": ["Relu"]}, "activations"),
        ({"clip": 3.0}, "clips"),
        ({"input_forget": 1}, "input_forget"),
        ({"quant_dtype": 5}, "quant_dtype"),
        ({"quant_scale_h": 0.0}, "quant_scale"),
        ({"quant_sqrt_mode_x": 1}, "quant_sqrt_mode"),
        ({"params": 10}, "dequant parameter"),
        ({"shape": (8, 3)}, "no constant of one direction"),
        ({"shape": (2, 8, 3)}, "no constant of one direction"),
        ({"hidden_size": 3}, "dequant parameter|weight"),
    ],
)
def test_rnn_that_cannot_be_run(quantfold, tmp_path, changes, reason):
    (tmp_path / "d.onnx").write_bytes(lstm(**changes).SerializeToString())
    args = ["--model", tmp_path / "d.onnx", "--emit", "runnable", "--save-path", tmp_path / "m"]
    result = quantfold("export", *args)
    assert result.code == 1 and "rnn: the BasicLSTM" in result.err
    assert any(word in result.err for word in reason.split("|")), result.err


@pytest.mark.parametrize("extra", [["--record"], ["--weight-only", "w8a16"]])
def test_a_deploy_model_is_quantized_already(quantfold, tmp_path, extra):
    deploy_of(tmp_path / "d.onnx", lambda m, n: None)
    (tmp_path / "r.txt").write_text(record({"l": scales()}))
    extra = extra + [tmp_path / "r.txt"] * (extra == ["--record"])
    args = ["--model", tmp_path / "d.onnx", "--emit", "runnable", "--save-path", tmp_path / "m"]
    result = quantfold("export", *args, *extra)
    assert result.code == 2 and "quantized already" in result.err


def test_int4_weight_with_another_use(quantfold, tmp_path):
    """Native INT4 becomes bytes, so nothing else may read it."""
    net = Net("MatMul", np.ones((2, 4)), numbers(2, [4, 3], -8, 7), form="native", axis=0)
    net.opset = 21
    net.save(tmp_path / "d.onnx", [0.1])
    m = onnx.load_from_string((tmp_path / "d.onnx").read_bytes())
    m.graph.initializer.append(numpy_helper.from_array(np.float32(1), "s"))
    m.graph.node.append(helper.make_node("DequantizeLinear", ["w", "s"], ["z"], "dq"))
    m.graph.output.append(value("z", [4, 3]))
    (tmp_path / "d.onnx").write_bytes(m.SerializeToString())
    args = ["--model", tmp_path / "d.onnx", "--emit", "runnable", "--save-path", tmp_path / "m"]
    result = quantfold("export", *args)
    assert result.code == 1 and "other users" in result.err
