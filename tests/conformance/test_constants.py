# SPDX-License-Identifier: Apache-2.0
"""Constants wherever a model may keep them: Constant nodes that go outside, one weight behind one
Transpose for several layers, scales and zero points of every dtype in every data field."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from fields import pack, store
from nets import F32, Net, conv, random
from onnx import TensorProto, helper, numpy_helper
from test_odd_models import export, record, scales
from test_qdq_graphs import Activation, Weights, deploy, finish, ops, pair, weight

from support import DEPLOY, FAKE, check_model, payload, run_model, same_bits, sqnr_db

FLOATS = {"float32": F32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": float}


# ---- Constant nodes that go outside --------------------------------------------------------------


def constants_net() -> Net:
    """A layer, then a large Constant, a small one, and one that is an output of the graph."""
    net = Net()
    y = conv(net, net.input("x", random(1, 4, 16, 16)), random(3, 4, 3, 3, seed=1, scale=0.3))
    y = net.op("Add", [y, net.constant("large", random(1, 3, 16, 16, seed=2))], "add")
    y = net.op("Mul", [y, net.constant("small", random(1, 3, 1, 1, seed=3))], "mul")
    net.output(net.op("Relu", [y], "relu", "y"))
    net.output(net.constant("told", random(20, 20, seed=4)))
    return net


def all_tensors(graph: onnx.GraphProto, kept: dict | None = None) -> dict[str, TensorProto]:
    """Initializers of a graph and of those in its nodes, and tensors of Constant nodes, by name."""
    kept = {} if kept is None else kept
    for t in graph.initializer:
        assert t.name not in kept or kept[t.name] == t, t.name
        kept[t.name] = t
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("g"):
                all_tensors(a.g, kept)
            if node.op_type == "Constant" and a.HasField("t"):
                kept[f"Constant {node.output[0]}"] = a.t
    return kept


def assert_same_outputs(folder: Path, feeds: dict, least_db: float = 25) -> None:
    """Both forms give the same bits, and what the float model gives up to quantization."""
    outside = run_model(folder / "outside" / "out" / FAKE, feeds)
    same_bits(outside, run_model(folder / "inside" / "out" / FAKE, feeds))
    for exact, got in zip(run_model(folder / "inside" / "model.onnx", feeds), outside):
        assert sqnr_db(exact, got) > least_db


OUTSIDE = {
    "always": ["--external", "always"],
    "single": ["--external", "always", "--external-layout", "single"],
    "over the limit": ["--external-threshold", "2000"],
}


@pytest.mark.parametrize("how", OUTSIDE)
def test_large_constants_go_outside(quantfold, tmp_path, how):
    net = constants_net()
    layers = {"c": scales(3)}
    export(quantfold, tmp_path / "inside", net.model(), layers, "--external", "never")
    export(quantfold, tmp_path / "outside", net.model(), layers, *OUTSIDE[how])
    assert_same_outputs(tmp_path, net.feeds)
    out = tmp_path / "outside" / "out"
    for name in (DEPLOY, FAKE):
        model = onnx.load(out / name, load_external_data=False)
        kept = all_tensors(model.graph)
        assert kept["large"].data_location == TensorProto.EXTERNAL
        assert payload(kept["large"], out) == random(1, 3, 16, 16, seed=2).tobytes()
        assert not kept["Constant small"].data_location and "Constant large" not in kept
        assert "Constant told" in kept  # only a node can make an output of a graph
        assert "large_node" not in {n.name for n in model.graph.node}
    assert quantfold("verify", out / "m").code == 0


def branches_net(names=("k", "k")) -> Net:
    """An If with a layer in each branch, behind which a large Constant is added."""
    graphs = []
    for i, name in enumerate(names):
        inside = Net()
        y = inside.op("MatMul", ["x", inside.weight(f"w{i}", random(4, 300, seed=i))], f"m{i}")
        y = inside.op("Add", [y, inside.constant(name, random(2, 300, seed=10 + i))], f"add{i}")
        inside.output(y)
        graphs.append(helper.make_graph(inside.nodes, f"b{i}", [], inside.outputs, inside.tensors))
    net = Net()
    net.input("x", random(2, 4))
    net.input("flag", np.array(True))
    net.op("If", ["flag"], "choose", "y", then_branch=graphs[0], else_branch=graphs[1])
    net.output("y")
    return net


@pytest.mark.parametrize("names", [("k", "k"), ("a", "b")])
@pytest.mark.parametrize("how", OUTSIDE)
def test_large_constants_of_branches_go_outside(quantfold, tmp_path, names, how):
    """Each keeps its own values, though both branches call theirs the same."""
    net = branches_net(names)
    layers = {"m0": scales(1), "m1": scales(1)}
    export(quantfold, tmp_path / "inside", net.model(), layers, "--external", "never")
    export(quantfold, tmp_path / "outside", net.model(), layers, *OUTSIDE[how])
    for flag in (True, False):
        assert_same_outputs(tmp_path, net.feeds | {"flag": np.array(flag)})
    out = tmp_path / "outside" / "out"
    for which in (DEPLOY, FAKE):
        node = onnx.load(out / which, load_external_data=False).graph.node[0]
        for i, a in enumerate(sorted(node.attribute, key=lambda a: a.name == "else_branch")):
            kept = next(t for t in a.g.initializer if list(t.dims) == [2, 300])
            assert kept.data_location == TensorProto.EXTERNAL
            assert payload(kept, out) == random(2, 300, seed=10 + i).tobytes()
            assert f"{names[i]}_node" not in {n.name for n in a.g.node}
    assert quantfold("verify", out / "m").code == 0


# ---- one Transpose for several layers ------------------------------------------------------------


def shared_transpose(second: str, output: bool = False) -> Net:
    """Two layers whose weight is one Transpose of one tensor, and a float operator or an output."""
    net = Net()
    x = net.input("x", random(3, 8))
    turned = net.op("Transpose", [net.weight("w", random(6, 8, seed=1))], "turn", "wt", perm=[1, 0])
    net.output(net.op("Gemm", [x, turned], "one", "y1"))
    z = net.input("z", random(3, 8, seed=2))
    net.output(net.op(second, [z, turned], "two", "y2"))
    if output:
        net.output(turned)
    else:
        net.output(net.op("Exp", [turned], "exp", "y3"))
    return net


def quantized(w: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(w / F32(scale)), -128, 127)


@pytest.mark.parametrize("second", ["Gemm", "MatMul"])
@pytest.mark.parametrize("step", [0.02, 0.03], ids=["same scale", "other scale"])
@pytest.mark.parametrize("form", ["float", "int8"])
@pytest.mark.parametrize("output", [False, True], ids=["operator", "output"])
def test_transpose_that_layers_share(quantfold, tmp_path, second, step, form, output):
    """Each layer gets its own Transpose of its own integers; who else reads it keeps the floats."""
    net = shared_transpose(second, output)
    onnx.checker.check_model(net.model())
    layers = {"one": scales(1, 0.02), "two": scales(1, step)}
    export(quantfold, tmp_path, net.model(), layers, "--fake-quant-weights", form)
    exact = run_model(tmp_path / "model.onnx", net.feeds)
    got = run_model(tmp_path / "out" / FAKE, net.feeds)
    check_model(tmp_path / "out" / FAKE)
    same_bits(got[2:], exact[2:])
    w = random(6, 8, seed=1)
    for i, (name, at) in enumerate((("x", 0.02), ("z", step))):
        assert sqnr_db(exact[i], got[i]) > 20
        steps = np.clip(np.rint(net.feeds[name] / F32(0.02)), -128, 127)
        wanted = (steps @ quantized(w, at).T) * (F32(0.02) * F32(at))
        assert np.allclose(got[i], wanted, rtol=1e-5, atol=1e-5)
    model = onnx.load(tmp_path / "out" / DEPLOY)
    made = {o: n for n in model.graph.node for o in n.output}
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, at in (("one", 0.02), ("two", step)):
        node = next(n for n in model.graph.node if n.name == name)
        turn = made[node.input[1]]
        assert turn.op_type == "Transpose" and list(turn.attribute[0].ints) == [1, 0]
        assert np.array_equal(tensors[turn.input[0]], quantized(w, at))
        assert tensors[turn.input[0]].dtype == np.int8
    found = quantfold(
        *("verify", tmp_path / "out" / "m", "--against", tmp_path / "model.onnx"),
        *("--record", tmp_path / "record.txt"),
    )
    assert found.code == 0, found.err


# ---- dtypes and data fields ----------------------------------------------------------------------


def one_gemm(a: Activation, w: Weights, bias: bool = True) -> tuple[Net, onnx.ModelProto]:
    """A Gemm between pairs, with a bias of int32."""
    net = Net(opset=21, ir_version=10)
    x = pair(net, net.input("x", random(3, 20)), "in", a)
    inputs = [x, weight(net, random(20, 6, seed=1), "w", w)]
    if bias:
        s = numpy_helper.to_array(next(t for t in net.tensors if t.name == "w_s")).astype(F32)
        b = net.weight("b", np.arange(-300, 300, 100, dtype=np.int32))
        tensors = [b, net.weight("b_s", (s * F32(a.scale)).reshape(-1))]
        tensors.append(net.weight("b_z", np.zeros(s.size, np.int32)))
        inputs.append(net.op("DequantizeLinear", tensors, "b_dq", axis=0))
    return net, finish(net, net.op("Gemm", inputs, "g"))


def agrees(quantfold, folder: Path, net: Net, options=()) -> dict:
    """q.onnx of the folder, exported, gives in fake_quant what it gives itself."""
    line = ("export", "--model", folder / "q.onnx", "--save-path", folder / "m", "--json")
    result = quantfold(*line, *options)
    assert result.code == 0, result.out
    wanted = run_model(folder / "q.onnx", net.feeds)
    got = run_model(folder / FAKE, net.feeds)
    assert sqnr_db(wanted[0], got[0]) > 80
    return json.loads(result.out)


PARTS = ("in_s", "in_z", "w_s", "w_z", "b", "b_s", "b_z")


@pytest.mark.parametrize("form", ["raw", "packed", "unpacked"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16"])
def test_parameters_in_any_field(quantfold, tmp_path, kind, form):
    """Scales, zero points and a bias, below zero as well."""
    zero = {"int8": -28, "uint8": 200, "int16": -300, "uint16": 65000}[kind]
    scale = 0.0371 if kind.endswith("t8") else 0.00021
    net, model = one_gemm(Activation(kind, scale, zero), Weights(axis=1))
    store(model, tmp_path / "q.onnx", form, PARTS)
    report = agrees(quantfold, tmp_path, net)
    assert report["layers"][0]["bias"] and ops(deploy(tmp_path)).count("AscendQuant") == 1
    node = next(n for n in deploy(tmp_path).graph.node if n.op_type == "AscendQuant")
    middle = {"uint8": 128, "uint16": 32768}.get(kind, 0)
    assert next(a.f for a in node.attribute if a.name == "offset") == zero - middle


@pytest.mark.parametrize("form", ["raw", "packed"])
@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_four_bit_parameters_in_any_field(quantfold, tmp_path, kind, form):
    """Two zero points to a byte."""
    net, model = one_gemm(Activation(kind, 0.5, 2), Weights(kind, axis=1))
    store(model, tmp_path / "q.onnx", form, ("in_z", "w_z", "w"))
    agrees(quantfold, tmp_path, net)


@pytest.mark.parametrize("form", ["raw", "packed"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_of_any_float(quantfold, tmp_path, dtype, form):
    """The record has what the dtype can hold, to the last bit of a float32."""
    net, model = one_gemm(Activation(scale=0.0371, scale_dtype=FLOATS[dtype]),
                          Weights(axis=1, scale_dtype=FLOATS[dtype]), False)  # fmt: skip
    scales_of = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    store(model, tmp_path / "q.onnx", form, ("in_s", "w_s"))
    made = quantfold("record", "--model", tmp_path / "q.onnx", "--from-qdq", "--output",
                     tmp_path / "r.txt")  # fmt: skip
    assert made.code == 0, made.err
    found = {"scale_d": [], "scale_w": []}
    for line in (tmp_path / "r.txt").read_text().splitlines():
        name, _, text = line.strip().partition(": ")
        if name in found:
            found[name].append(F32(text))
    assert found["scale_d"] == [scales_of["in_s"].astype(F32)]
    assert found["scale_w"] == list(scales_of["w_s"].astype(F32))
    if dtype == "float32":
        agrees(quantfold, tmp_path, net)


def scale_of(kind: int, field: str, values: list, dims=()) -> TensorProto:
    t = TensorProto(name="in_s", data_type=kind, dims=dims)
    getattr(t, field).extend(values)
    return t


WRONG = {
    "int64_data": (scale_of(TensorProto.FLOAT, "int64_data", [1]), "does not belong"),
    "uint64_data": (scale_of(TensorProto.FLOAT, "uint64_data", [1]), "does not belong"),
    "float_data": (scale_of(TensorProto.FLOAT16, "float_data", [0.5], [2]), "does not belong"),
    "double_data": (scale_of(TensorProto.FLOAT, "double_data", [0.5], [2]), "does not belong"),
    "too few": (scale_of(TensorProto.FLOAT16, "int32_data", [1], [2]), "different number"),
    "too many": (scale_of(TensorProto.FLOAT, "float_data", [0.5, 0.5]), "8 bytes of data"),
    "dims": (scale_of(TensorProto.FLOAT16, "int32_data", [1], [-1]), "impossible dims"),
    "none": (scale_of(TensorProto.FLOAT, "float_data", []), "empty"),
    "bool": (scale_of(TensorProto.BOOL, "int32_data", [1]), "numeric dtype"),
    "int64": (scale_of(TensorProto.INT64, "int64_data", [1]), "not a float"),
}


def layer_error(quantfold, folder: Path, item: str = "g") -> str:
    """What an export says of its layer, after which nothing is there."""
    line = ("export", "--model", folder / "q.onnx", "--save-path", folder / "m", "--json")
    result = quantfold(*line)
    assert result.code == 1 and not (folder / DEPLOY).exists()
    found = [f for f in json.loads(result.out)["findings"] if f["severity"] == "error"]
    assert found[0]["item"] == item or f" {item}: " in found[0]["message"], found
    return found[0]["message"]


@pytest.mark.parametrize("name", WRONG)
def test_scales_that_cannot_be_read(quantfold, tmp_path, name):
    """The layer that needs it is named, or, if nothing could read the tensor, the tensor."""
    tensor, words = WRONG[name]
    _, model = one_gemm(Activation(), Weights(axis=1))
    next(t for t in model.graph.initializer if t.name == "in_s").CopyFrom(tensor)
    (tmp_path / "q.onnx").write_bytes(model.SerializeToString())
    item = "in_s" if name == "too many" else "g"
    assert words in layer_error(quantfold, tmp_path, item)


def test_halves_that_are_not_packed(quantfold, tmp_path):
    a = Activation(scale_dtype=np.float16)
    _, model = one_gemm(a, Weights(axis=1, scale_dtype=np.float16), False)
    store(model, tmp_path / "q.onnx", "unpacked", ("in_s",))
    assert "unusual way" in layer_error(quantfold, tmp_path)


FILLS = {"int32": np.int32, "int64": np.int64, "int8": np.int8, "uint16": np.uint16, **FLOATS}


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("value", [0, 3])
@pytest.mark.parametrize("form", ["raw", "packed"])
def test_zero_points_that_are_filled_in(quantfold, tmp_path, fill, value, form):
    """PyTorch makes a bias' zero points with ConstantOfShape and Cast; others than zeros are not for
    us, and then the bias is no constant."""
    net, model = one_gemm(Activation(), Weights(axis=1))
    filled = numpy_helper.from_array(np.array([value], FILLS[fill]))
    graph = model.graph
    shape = numpy_helper.from_array(np.array([6], np.int64), "shape")
    graph.initializer.remove(next(t for t in graph.initializer if t.name == "b_z"))
    graph.initializer.append(shape)
    node = helper.make_node("ConstantOfShape", ["shape"], ["filled"], "fill")
    node.attribute.append(helper.make_attribute("value", pack(filled) if form != "raw" else filled))
    graph.node.insert(0, helper.make_node("Cast", ["filled"], ["b_z"], "cast", to=6))
    graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "q.onnx")
    if value:
        assert "its bias 'b_dq:out' is not a constant" in layer_error(quantfold, tmp_path)
    else:
        assert agrees(quantfold, tmp_path, net)["layers"][0]["bias"]


# ---- names and places of files -------------------------------------------------------------------


def test_equal_names_of_branches_have_files_of_their_own(quantfold, tmp_path):
    """Initializers of two Ifs, all called alike."""
    net = Net()
    y = net.op("MatMul", [net.input("x", random(2, 4)), net.weight("w", random(4, 300))], "m")
    flag, seed = net.input("flag", np.array(True)), 20
    for i in range(2):
        graphs = []
        for j in range(2):
            inside = Net()
            kept = inside.weight("k", random(2, 300, seed=seed))
            inside.output(inside.op("Add", [y, kept], f"add{i}{j}"))
            made = (inside.nodes, f"b{i}{j}", [], inside.outputs, inside.tensors)
            graphs.append(helper.make_graph(*made))
            seed += 1
        y = net.op("If", [flag], f"if{i}", then_branch=graphs[0], else_branch=graphs[1])
    net.output(y)
    layers = {"m": scales(1)}
    export(quantfold, tmp_path / "inside", net.model(), layers, "--external", "never")
    export(quantfold, tmp_path / "outside", net.model(), layers, "--external", "always")
    out = tmp_path / "outside" / "out"
    for suffix in ("deploy", "fakequant"):
        names = [f"k{n}_{suffix}.external" for n in ("", "~2", "~3", "~4")]
        stored = {(out / n).read_bytes() for n in names}
        assert stored == {random(2, 300, seed=s).tobytes() for s in range(20, 24)}
    for value in (True, False):
        assert_same_outputs(tmp_path, net.feeds | {"flag": np.array(value)})
    assert quantfold("verify", out / "m").code == 0


@pytest.mark.parametrize("name", ["n" * 300, "é" * 200, "n" + "é" * 200, "語" * 150])
def test_names_longer_than_those_of_files(quantfold, tmp_path, name):
    """Cut between two characters, and told apart by a hash."""
    net = Net()
    y = net.op("MatMul", [net.input("x", random(2, 4)), net.weight("w", random(4, 300))], "m")
    y = net.op("Add", [y, net.weight(f"{name}a", random(2, 300, seed=1))], "first")
    net.output(net.op("Add", [y, net.weight(f"{name}b", random(2, 300, seed=2))], "second"))
    export(quantfold, tmp_path / "inside", net.model(), {"m": scales(1)}, "--external", "never")
    export(quantfold, tmp_path / "outside", net.model(), {"m": scales(1)}, "--external", "always")
    assert_same_outputs(tmp_path, net.feeds)
    out = tmp_path / "outside" / "out"
    long = [p.name for p in out.iterdir() if "~" in p.name]
    assert len(long) == 4 and all(len(n.encode()) <= 255 for n in long)
    for file in long:
        cut, _, rest = file.partition("~")
        assert name.startswith(cut.encode("utf-8").decode("utf-8")) and len(cut) > 50, file
        assert len(rest.partition("_")[0]) == 32


@pytest.mark.parametrize("how", OUTSIDE)
def test_tensors_of_a_training_graph(quantfold, tmp_path, how):
    """They are copied as they are, and not moved: nothing but a trainer reads them."""
    net = constants_net()
    model = net.model()
    info = model.training_info.add()
    for graph, seed in ((info.initialization, 31), (info.algorithm, 32)):
        start = numpy_helper.from_array(random(30, 30, seed=seed), f"start{seed}")
        node = helper.make_node("Identity", [start.name], [f"o{seed}"], f"n{seed}")
        result = helper.make_tensor_value_info(f"o{seed}", TensorProto.FLOAT, [30, 30])
        graph.CopyFrom(helper.make_graph([node], f"g{seed}", [], [result], [start]))
    export(quantfold, tmp_path, model, {"c": scales(3)}, *OUTSIDE[how])
    out = tmp_path / "out"
    for name in (DEPLOY, FAKE):
        made = onnx.load(out / name, load_external_data=False).training_info[0]
        for graph, seed in ((made.initialization, 31), (made.algorithm, 32)):
            kept = graph.initializer[0]
            assert kept.name == f"start{seed}"
            assert payload(kept, out) == random(30, 30, seed=seed).tobytes()
    assert quantfold("verify", out / "m").code == 0


OUTSIDE_DTYPES = {
    **FLOATS,
    **{n: np.dtype(n).type for n in ("int8", "uint8", "int16", "uint16", "int32", "uint32")},
    **{n: np.dtype(n).type for n in ("int64", "uint64", "bool", "complex64", "complex128")},
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}


@pytest.mark.parametrize("form", ["raw", "packed"])
def test_tensors_of_every_dtype_go_outside(quantfold, tmp_path, form):
    """As raw bytes, whatever field they were in, an odd number of 4-bit elements too."""
    net = Net(opset=21, ir_version=10)
    net.op("MatMul", [net.input("x", random(2, 4)), net.weight("w", random(4, 6))], "m", "y")
    net.output("y")
    wanted = {}
    for name, dtype in OUTSIDE_DTYPES.items():
        low, high = (-8 if name[0] in "ifcb" else 0), (1 if name == "bool" else 7)
        array = np.random.default_rng(1).integers(low, high, 2501, endpoint=True).astype(dtype)
        wanted[name] = numpy_helper.from_array(array, name).raw_data
        net.weight(name, array)
    model = net.model()
    (tmp_path / "src").mkdir()
    store(model, tmp_path / "src" / "model.onnx", form, tuple(OUTSIDE_DTYPES))
    (tmp_path / "r.txt").write_text(record({"m": scales(1)}))
    prefix = tmp_path / "out" / "m"
    quantfold.export(
        tmp_path / "src" / "model.onnx", tmp_path / "r.txt", prefix, "--external", "always"
    )
    for which in (DEPLOY, FAKE):
        loaded = onnx.load(tmp_path / "out" / which, load_external_data=False)
        kept = {t.name: t for t in loaded.graph.initializer}
        for name, raw in wanted.items():
            assert kept[name].data_location == TensorProto.EXTERNAL, name
            assert payload(kept[name], tmp_path / "out") == raw, name
    assert quantfold("verify", prefix).code == 0
