# SPDX-License-Identifier: Apache-2.0
"""Models that are valid but unusual, or broken in ways that once went wrong: each is a regression."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from support import DEPLOY, FAKE, run_model

F32 = np.float32


def record(layers: dict) -> str:
    """Record text; lists become repeated fields."""
    out = []
    for key, fields in layers.items():
        body = []
        for name, value in fields.items():
            for v in value if isinstance(value, list) else [value]:
                body.append(f"    {name}: {json.dumps(v)}")
        out.append(f'record {{\n  key: "{key}"\n  value {{\n' + "\n".join(body) + "\n  }\n}\n")
    return "".join(out)


def scales(n: int = 1, scale_w: float = 0.02, **more) -> dict:
    """A plausible record value."""
    return {"scale_d": 0.02, "offset_d": 0, "scale_w": [scale_w] * n, "offset_w": [0] * n} | more


def rnn_scales(gates: int, **more) -> dict:
    """The same for an RNN, one scale a gate."""
    return (
        scales(gates, scale_h=0.01, offset_h=0, scale_r=[0.02] * gates, offset_r=[0] * gates) | more
    )


def tensor(name: str, *shape: int, dtype=F32, seed: int = 0) -> onnx.TensorProto:
    """A seeded weight in about [-1, 1]."""
    values = np.random.default_rng(seed).uniform(-1, 1, shape).astype(dtype)
    return numpy_helper.from_array(values, name)


def value(name: str, shape, dtype=TensorProto.FLOAT):
    """A graph input or output."""
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, inits, opset=13, **graph) -> onnx.ModelProto:
    """A model of one graph."""
    g = helper.make_graph(nodes, "g", inputs, outputs, inits, **graph)
    return helper.make_model(g, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def export(quantfold, folder, m, layers, *args, expect=0):
    """Saves, exports, returns the result; outputs are in folder/out."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(m.SerializeToString())
    (folder / "record.txt").write_text(layers if isinstance(layers, str) else record(layers))
    prefix = folder / "out" / "m"
    return quantfold.export(
        folder / "model.onnx", folder / "record.txt", prefix, *args, expect=expect
    )


def initializers(path) -> dict:
    """By name, of the main graph."""
    loaded = onnx.load(path)
    return {t.name: numpy_helper.to_array(t) for t in loaded.graph.initializer}


def close(folder, feeds, least_db=25.0) -> None:
    """fake_quant gives what the float model gives, up to quantization."""
    exact = run_model(folder / "model.onnx", feeds)
    got = run_model(folder / "out" / FAKE, feeds)
    for a, b in zip(exact, got):
        a, b = a.astype(np.float64), b.astype(np.float64)
        noise = np.mean((a - b) ** 2) + 1e-30
        assert 10 * np.log10(np.mean(a**2) / noise) > least_db


def conv(x: str, w: str, out: str, name: str):
    """A 1x1 Conv."""
    return helper.make_node("Conv", [x, w], [out], name=name, kernel_shape=[1, 1])


def if_model(then_names=("then", "relu"), else_names=("else", "relu2")) -> onnx.ModelProto:
    """A Conv in each branch of an If, both over one weight of the outer graph."""
    branches = []
    for names in (then_names, else_names):
        nodes = [
            conv("x", "w", "t", names[0]),
            helper.make_node("Relu", ["t"], ["r"], name=names[1]),
        ]
        branches.append(helper.make_graph(nodes, "branch", [], [value("r", [1, 3, 4, 4])]))
    node = helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1])
    inputs = [value("x", [1, 2, 4, 4]), value("flag", [], TensorProto.BOOL)]
    return model([node], inputs, [value("y", [1, 3, 4, 4])], [tensor("w", 3, 2, 1, 1)])


@pytest.mark.parametrize("flag", [True, False])
def test_branches_that_share_a_weight(quantfold, tmp_path, flag):
    export(quantfold, tmp_path, if_model(), {"then": scales(3), "else": scales(3)})
    x = np.random.default_rng(1).uniform(-2, 2, (1, 2, 4, 4)).astype(F32)
    close(tmp_path, {"x": x, "flag": np.array(flag)})


def branches_of(path) -> list[bytes]:
    """The serialized subgraphs of the first node that has any."""
    for node in onnx.load(path).graph.node:
        graphs = [a.g.SerializeToString() for a in node.attribute if a.HasField("g")]
        if graphs:
            return graphs
    raise AssertionError("no subgraph")


@pytest.mark.parametrize("names", [("", ""), ("same", "same"), ("c", "r")])
def test_subgraphs_without_layers_stay_as_they_are(quantfold, tmp_path, names):
    m = if_model(names, names)
    m.graph.node.insert(0, conv("x", "v", "main", "c"))
    m.graph.initializer.append(tensor("v", 3, 2, 1, 1, seed=2))
    m.graph.output.append(value("main", [1, 3, 4, 4]))
    export(quantfold, tmp_path, m, {"c": scales(3)})
    for name in (DEPLOY, FAKE):
        assert branches_of(tmp_path / "out" / name) == branches_of(tmp_path / "model.onnx")


def test_new_input_name_that_both_branches_use_inside(quantfold, tmp_path):
    m = if_model()
    export(quantfold, tmp_path, m, {"then": scales(3)}, "--input-names", "t")
    x = np.random.default_rng(1).uniform(-2, 2, (1, 2, 4, 4)).astype(F32)
    for flag in (True, False):
        run_model(tmp_path / "out" / FAKE, {"t": x, "flag": np.array(flag)})


def test_input_that_is_an_output(quantfold, tmp_path):
    nodes = [conv("x", "w", "y", "c")]
    outputs = [value("x", [1, 2, 4, 4]), value("y", [1, 3, 4, 4])]
    m = model(nodes, [value("x", [1, 2, 4, 4])], outputs, [tensor("w", 3, 2, 1, 1)])
    names = ("--input-names", "in", "--output-names", "copy,out")
    export(quantfold, tmp_path, m, {"c": scales(3)}, *names)
    x = np.ones((1, 2, 4, 4), F32)
    copy, out = run_model(tmp_path / "out" / FAKE, {"in": x})
    assert np.array_equal(copy, x) and out.shape == (1, 3, 4, 4)
    graph = onnx.load(tmp_path / "out" / FAKE).graph
    assert [i.name for i in graph.input] == ["in"]
    assert [o.name for o in graph.output] == ["copy", "out"]


def test_an_output_that_is_listed_twice(quantfold, tmp_path):
    """With a name for each place, each has a tensor of its own."""
    twice = [value("y", [1, 3, 4, 4])] * 2
    m = model(
        [conv("x", "w", "y", "c")], [value("x", [1, 2, 4, 4])], twice, [tensor("w", 3, 2, 1, 1)]
    )
    result = export(quantfold, tmp_path, m, {"c": scales(3)}, "--output-names", "a,a", expect=1)
    assert "'a' is given twice" in result.err
    export(quantfold, tmp_path, m, {"c": scales(3)}, "--output-names", "a,b")
    x = np.random.default_rng(1).uniform(-2, 2, (1, 2, 4, 4)).astype(F32)
    a, b = run_model(tmp_path / "out" / FAKE, {"x": x})
    assert np.array_equal(a, b)
    del m.graph.output[1]
    onnx.save(m, tmp_path / "model.onnx")
    (exact,) = run_model(tmp_path / "model.onnx", {"x": x})
    assert np.max(np.abs(a - exact)) < 0.1


@pytest.mark.parametrize("op,gates", [("LSTM", 4), ("GRU", 3)])
def test_float16_rnn(quantfold, tmp_path, op, gates):
    inits = [tensor(n, 1, gates * 2, k, dtype=np.float16) for n, k in (("W", 3), ("R", 2))]
    lstm = op == "LSTM"
    names = ["x", "W", "R", "", "", "h"] + (["c"] if lstm else [])
    outs = ["Y", "Yh"] + (["Yc"] if lstm else [])
    more = {} if lstm else {"linear_before_reset": 1}
    half = TensorProto.FLOAT16
    inputs = [value("x", [5, 1, 3], half), value("h", [1, 1, 2], half)]
    inputs += [value("c", [1, 1, 2], half)] if lstm else []
    outputs = [value("Y", [5, 1, 1, 2], half), value("Yh", [1, 1, 2], half)]
    node = helper.make_node(op, names, outs, name="r", hidden_size=2, **more)
    m = model([node], inputs, outputs, inits, opset=14)
    export(quantfold, tmp_path, m, {"r": rnn_scales(gates, scale_r=[0.01] * gates)})
    onnx.checker.check_model(str(tmp_path / "out" / FAKE), full_check=True)
    feeds = {i.name: np.zeros([d.dim_value for d in i.type.tensor_type.shape.dim], np.float16)
             for i in inputs}  # fmt: skip
    for out in run_model(tmp_path / "out" / FAKE, feeds):
        assert out.dtype == np.float16


def test_rnn_activations_follow_act_type_alone(quantfold, tmp_path):
    inits = [tensor("W", 1, 8, 3), tensor("R", 1, 8, 2)]
    states = [value("h", [1, 1, 2]), value("c", [1, 1, 2])]
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "", "", "h", "c"], ["Y", "Yh", "Yc"], name="r", hidden_size=2
    )
    m = model([node], [value("x", [5, 1, 3]), *states], [value("Y", [5, 1, 1, 2])], inits)
    layer = rnn_scales(4, dst_type="INT8", act_type="INT16")
    export(quantfold, tmp_path, m, {"r": layer})
    node = onnx.load(tmp_path / "out" / DEPLOY).graph.node[0]
    assert {a.name: a.i for a in node.attribute}["quant_dtype"] == 6


def test_float16_pool_without_value_info(quantfold, tmp_path):
    half = TensorProto.FLOAT16
    nodes = [
        conv("x", "w", "t", "c"),
        helper.make_node("Relu", ["t"], ["r"]),
        helper.make_node("AveragePool", ["r"], ["p"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Relu", ["p"], ["y"]),
    ]
    w = tensor("w", 3, 2, 1, 1, dtype=np.float16)
    m = model(nodes, [value("x", [1, 2, 4, 4], half)], [value("y", [1, 3, 3, 3], half)], [w])
    export(quantfold, tmp_path, m, {"pool": scales(1, 1.0)})
    x = np.random.default_rng(0).uniform(0, 1, (1, 2, 4, 4)).astype(np.float16)
    close(tmp_path, {"x": x})


@pytest.mark.parametrize("perm", [None, [1, 0], [0, 1]])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("wts", ["INT8", "INT4"])
def test_weight_behind_a_transpose(quantfold, tmp_path, perm, trans_b, wts):
    """K = 4 inputs, N = 6 outputs, whichever way the weight is stored."""
    turned = (perm != [0, 1]) != bool(trans_b)
    shape = (6, 4) if turned else (4, 6)
    attrs = {} if perm is None else {"perm": perm}
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], **attrs),
        helper.make_node("Gemm", ["x", "wt"], ["y"], name="g", transB=trans_b),
    ]
    m = model(nodes, [value("x", [3, 4])], [value("y", [3, 6])], [tensor("w", *shape)])
    step = 0.02 if wts == "INT8" else 0.15
    per_column = [step * (1 + i / 10) for i in range(6)]
    layer = scales(6, wts_type=wts) | {"scale_w": per_column}
    export(quantfold, tmp_path, m, {"g": layer})
    w = numpy_helper.to_array(m.graph.initializer[0])
    by_column = np.array(per_column, F32)
    lo, hi = (-128, 127) if wts == "INT8" else (-8, 7)
    q = np.clip(np.rint(w / (by_column[:, None] if turned else by_column)), lo, hi)
    assert np.array_equal(initializers(tmp_path / "out" / FAKE)["w"], q)
    stored = initializers(tmp_path / "out" / DEPLOY)["w"]
    if wts == "INT8":
        assert np.array_equal(stored, q)
    else:
        pairs = q.reshape(6, 2, 2) if turned else q.reshape(2, 2, 6).transpose(0, 2, 1)
        low, high = pairs[..., 0].astype(np.int64) & 15, pairs[..., 1].astype(np.int64) & 15
        assert np.array_equal(stored.astype(np.uint8), low | high << 4)
    x = np.random.default_rng(3).uniform(-2, 2, (3, 4)).astype(F32)
    close(tmp_path, {"x": x}, 25 if wts == "INT8" else 12)


@pytest.mark.parametrize("shape", [(), (1,), (2, 1), (1, 1), (1, 6), (2, 6), (6,)])
def test_gemm_bias_that_broadcasts(quantfold, tmp_path, shape):
    bias = numpy_helper.from_array(
        np.arange(1, 1 + np.prod(shape, dtype=int), dtype=F32).reshape(shape) / 8, "b"
    )
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="g")
    m = model([node], [value("x", [2, 4])], [value("y", [2, 6])], [tensor("w", 4, 6), bias])
    layer = scales(6) | {"scale_w": [0.02 + i / 500 for i in range(6)]}
    export(quantfold, tmp_path, m, {"g": layer})
    x = np.random.default_rng(3).uniform(-2, 2, (2, 4)).astype(F32)
    close(tmp_path, {"x": x}, 30)


def test_one_weight_as_native_and_as_packed_int4(quantfold, tmp_path):
    nodes = [conv("x", "w", "a", "c1"), conv("x", "w", "b", "c2")]
    outputs = [value("a", [1, 4, 2, 2]), value("b", [1, 4, 2, 2])]
    m = model(nodes, [value("x", [1, 4, 2, 2])], outputs, [tensor("w", 4, 4, 1, 1)])
    layers = {"c1": scales(4, 0.15, dst_type="INT4"), "c2": scales(4, 0.15, wts_type="INT4")}
    export(quantfold, tmp_path, m, layers)
    graph = onnx.load(tmp_path / "out" / DEPLOY).graph
    kinds = {t.name: (t.data_type, list(t.dims)) for t in graph.initializer}
    weights = {n.name: kinds[n.input[1]] for n in graph.node if n.op_type == "Conv"}
    assert weights["c1"] == (22, [4, 4, 1, 1])
    assert weights["c2"] == (TensorProto.INT8, [4, 2, 1, 1])


def bn_model(weight: onnx.TensorProto, gamma=1.0) -> onnx.ModelProto:
    """Conv + BatchNormalization, and a Conv that a record can name."""
    nodes = [
        conv("x", "w", "t", "c"),
        helper.make_node("BatchNormalization", ["t", "g", "b", "m", "v"], ["n"], name="bn"),
        conv("n", "w2", "y", "c2"),
    ]
    numbers = [("g", gamma), ("b", 0.1), ("m", 0.2), ("v", 0.5)]
    inits = [numpy_helper.from_array(np.full(3, v, F32), n) for n, v in numbers]
    inits += [weight, tensor("w2", 2, 3, 1, 1)]
    return model(nodes, [value("x", [1, 2, 4, 4])], [value("y", [1, 2, 4, 4])], inits)


def test_batch_norm_behind_a_weight_that_is_cut_off(quantfold, tmp_path):
    w = tensor("w", 3, 2, 1, 1)
    w.raw_data = w.raw_data[:7]
    for record in ({"c2": scales(2)}, {"c": scales(3)}):
        result = export(quantfold, tmp_path, bn_model(w), record, expect=1)
        assert " w: " in result.err and "dims" in result.err


@pytest.mark.parametrize("dims", [[3, 2, 1, -1], [3, 2, 2**62, 4]])
def test_batch_norm_behind_impossible_dims(quantfold, tmp_path, dims):
    w = tensor("w", 3, 2, 1, 1)
    w.dims[:] = dims
    export(quantfold, tmp_path, bn_model(w), {"c": scales(3)}, expect=1)


def test_batch_norm_with_absurd_factors_stays(quantfold, tmp_path):
    m = bn_model(tensor("w", 3, 2, 1, 1), gamma=1e30)
    result = export(quantfold, tmp_path, m, {"c2": scales(2)})
    assert "not folded" in result.err and "bn" in result.err
    nodes = onnx.load(tmp_path / "out" / FAKE).graph.node
    assert any(n.op_type == "BatchNormalization" for n in nodes)


@pytest.mark.parametrize("dtype", [F32, np.float16, np.float64])
def test_batch_norm_behind_any_float(quantfold, tmp_path, dtype):
    """Folded into the weight and a bias of the layer's dtype, if the layer is quantized."""
    m = bn_model(tensor("w", 3, 2, 1, 1, dtype=dtype))
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for t in m.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(dtype), t.name))
    for v in (*m.graph.input, *m.graph.output):
        v.type.tensor_type.elem_type = code
    export(quantfold, tmp_path, m, {"c": scales(3)})
    for name in (DEPLOY, FAKE):
        nodes = onnx.load(tmp_path / "out" / name).graph.node
        assert not any(n.op_type == "BatchNormalization" for n in nodes)
    x = np.random.default_rng(1).uniform(-2, 2, (1, 2, 4, 4)).astype(dtype)
    if dtype is not np.float64:  # for which onnxruntime has no Conv
        close(tmp_path, {"x": x}, 30)
    w, factor = numpy_helper.to_array(m.graph.initializer[4]), F32(1) / np.sqrt(
        F32(0.5) + F32(1e-5)
    )
    wanted = np.clip(np.rint(w.astype(F32) * factor / F32(0.02)), -128, 127)
    stored = initializers(tmp_path / "out" / DEPLOY)
    found = next(v for v in stored.values() if v.shape == (3, 2, 1, 1))
    assert np.max(np.abs(found - wanted)) <= (1 if dtype is np.float16 else 0)


def test_batch_norm_whose_statistics_are_read(quantfold, tmp_path):
    """One that trains gives what it found out too, and stays."""
    m = bn_model(tensor("w", 3, 2, 1, 1))
    node = next(n for n in m.graph.node if n.name == "bn")
    node.output.extend(["mean", "var"])
    node.attribute.append(helper.make_attribute("training_mode", 1))
    m.opset_import[0].version = 15
    m.graph.output.append(value("mean", [3]))
    export(quantfold, tmp_path, m, {"c": scales(3)})
    x = np.random.default_rng(1).uniform(-2, 2, (1, 2, 4, 4)).astype(F32)
    close(tmp_path, {"x": x}, 25)
    for name in (DEPLOY, FAKE):
        nodes = onnx.load(tmp_path / "out" / name).graph.node
        assert any(n.op_type == "BatchNormalization" for n in nodes)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_weight_that_is_not_finite_behind_batch_norm(quantfold, tmp_path, bad):
    w = tensor("w", 3, 2, 1, 1)
    array = numpy_helper.to_array(w).copy()
    array.reshape(-1)[4] = bad
    result = export(
        quantfold,
        tmp_path,
        bn_model(numpy_helper.from_array(array, "w")),
        {"c": scales(3)},
        expect=1,
    )
    assert f"'w' holds {bad} at element 4" in result.err


def test_rnn_with_two_wrong_weights(quantfold, tmp_path):
    inits = [tensor("W", 1, 8, 3), tensor("R", 1, 8, 2), tensor("B", 1, 16)]
    for t in inits[:2]:
        t.raw_data = t.raw_data[:5]
    states = [value("h", [1, 1, 2]), value("c", [1, 1, 2])]
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "B", "", "h", "c"], ["Y", "Yh", "Yc"], name="r", hidden_size=2
    )
    m = model([node], [value("x", [5, 1, 3]), *states], [value("Y", [5, 1, 1, 2])], inits)
    result = export(quantfold, tmp_path, m, {"r": rnn_scales(4)}, expect=1)
    assert " W: " in result.err


def test_wide_elements_in_narrow_fields(quantfold, tmp_path):
    """COMPLEX128 does not belong into int64_data; whatever it means, it is passed on inline."""
    odd = onnx.TensorProto(name="odd", data_type=TensorProto.COMPLEX128, dims=[200])
    odd.int64_data.extend(range(200))
    m = model([conv("x", "w", "y", "c")], [value("x", [1, 2, 4, 4])], [value("y", None)],
              [tensor("w", 3, 2, 1, 1), odd])  # fmt: skip
    export(quantfold, tmp_path, m, {"c": scales(3)}, "--external", "always")
    kept = next(t for t in onnx.load(tmp_path / "out" / FAKE).graph.initializer if t.name == "odd")
    assert list(kept.int64_data) == list(range(200))


def test_cycles_and_nodes_without_outputs(quantfold, tmp_path):
    cycle = [
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["a"]),
        conv("x", "a", "y", "c"),
    ]
    x, y = value("x", [1, 2, 4, 4]), value("y", None)
    result = export(quantfold, tmp_path, model(cycle, [x], [y], []), {"c": scales()}, expect=1)
    assert "cycle" in result.err
    dangling = helper.make_node("Conv", ["x", "w"], [""], name="c", kernel_shape=[1, 1])
    m = model([dangling], [x], [], [tensor("w", 3, 2, 1, 1)])
    result = export(quantfold, tmp_path, m, {"c": scales(3)}, expect=1)
    assert "output" in result.err


def test_nodes_in_any_order(quantfold, tmp_path):
    nodes = [
        conv("b", "w2", "y", "c2"),
        helper.make_node("Relu", ["a"], ["b"]),
        conv("x", "w", "a", "c"),
    ]
    inits = [tensor("w", 3, 2, 1, 1), tensor("w2", 2, 3, 1, 1)]
    m = model(nodes, [value("x", [1, 2, 4, 4])], [value("y", [1, 2, 4, 4])], inits)
    export(quantfold, tmp_path, m, {"c": scales(3), "c2": scales(2)})
    onnx.checker.check_model(str(tmp_path / "out" / FAKE))


@pytest.mark.parametrize("field,text", [("scale_d", "1e-39"), ("scale_w", "[1e-39, 1e-39, 1e-39]")])
def test_subnormal_scales_are_refused(quantfold, tmp_path, field, text):
    m = model([conv("x", "w", "y", "c")], [value("x", [1, 2, 4, 4])], [value("y", None)],
              [tensor("w", 3, 2, 1, 1)])  # fmt: skip
    fields = {"scale_d": "0.1", "scale_w": "[1, 1, 1]", "offset_w": "[0, 0, 0]", "offset_d": "0"}
    fields[field] = text
    body = " ".join(f"{k}: {v}" for k, v in fields.items())
    result = export(quantfold, tmp_path, m, f'record {{ key: "c" value {{ {body} }} }}', expect=1)
    assert (
        field in result.err
        and "normal" in result.err
        and "e-40" in result.err
        or "e-39" in result.err
    )


def test_scale_product_that_underflows(quantfold, tmp_path):
    m = model([conv("x", "w", "y", "c")], [value("x", [1, 2, 4, 4])], [value("y", None)],
              [tensor("w", 3, 2, 1, 1)])  # fmt: skip
    layer = scales(3, 1e-30) | {"scale_d": 1e-30}
    result = export(quantfold, tmp_path, m, {"c": layer}, expect=1)
    assert "scale_w[0]" in result.err and "float32" in result.err


def test_external_tensors_over_the_limit_move_once(quantfold, tmp_path):
    """The reference reads such a tensor again from its new place and fails (facts 8)."""
    m = model([conv("x", "w", "y", "c")], [value("x", [1, 64, 2, 2])], [value("y", None)],
              [tensor("w", 64, 64, 1, 1), tensor("free", 3000, seed=4)])  # fmt: skip
    tmp_path.joinpath("src").mkdir()
    onnx.save_model(m, tmp_path / "src" / "model.onnx", save_as_external_data=True,
                    all_tensors_to_one_file=True, location="data.bin", size_threshold=0)  # fmt: skip
    (tmp_path / "src" / "record.txt").write_text(record({"c": scales(64)}))
    prefix = tmp_path / "out" / "m"
    args = ("--external-threshold", "100")
    quantfold.export(
        tmp_path / "src" / "model.onnx", tmp_path / "src" / "record.txt", prefix, *args
    )
    for name in (DEPLOY, FAKE):
        got = initializers(tmp_path / "out" / name)
        assert np.array_equal(got["free"], numpy_helper.to_array(tensor("free", 3000, seed=4)))


def test_hundreds_of_external_files(quantfold, tmp_path):
    """More files than descriptors that are kept open."""
    inits = [tensor(f"t{i}", 300, seed=i) for i in range(450)]
    m = model([conv("x", "w", "y", "c")], [value("x", [1, 2, 4, 4])], [value("y", None)],
              [tensor("w", 3, 2, 1, 1), *inits])  # fmt: skip
    export(quantfold, tmp_path, m, {"c": scales(3)}, "--external", "always")
    got = initializers(tmp_path / "out" / DEPLOY)
    assert all(np.array_equal(got[t.name], numpy_helper.to_array(t)) for t in inits)
    assert len(list((tmp_path / "out").glob("*_deploy.external"))) == 450


def test_errors_of_opening_are_in_the_json(quantfold, tmp_path):
    missing = tmp_path / "missing"
    for command in ("check", "export"):
        extra = ["--save-path", tmp_path / "o" / "m"] if command == "export" else []
        run = quantfold(command, "--model", missing, "--record", missing, "--json", *extra)
        assert run.code == 1
        findings = json.loads(run.out)["findings"]
        assert len(findings) == 2 and all("missing" in f["message"] for f in findings)


def test_names_that_are_not_utf8_in_json(quantfold, tmp_path):
    m = model([conv("x", "w", "y", "cXX")], [value("x", [1, 2, 4, 4])], [value("y", None)],
              [tensor("w", 3, 2, 1, 1)])  # fmt: skip
    (tmp_path / "m.onnx").write_bytes(m.SerializeToString().replace(b"cXX", b"c\xff\xfe"))
    run = quantfold("inspect", tmp_path / "m.onnx", "--json")
    assert json.loads(run.out)["layers"][0]["name"] == "c\ufffd\ufffd"


def test_inspect_tells_of_a_graph_with_holes(quantfold, tmp_path):
    m = model([conv("x", "nothing", "y", "c")], [value("x", [1, 2, 4, 4])], [value("y", None)], [])
    (tmp_path / "m.onnx").write_bytes(m.SerializeToString())
    run = quantfold("inspect", tmp_path / "m.onnx")
    assert run.code == 1 and "nothing" in run.err
