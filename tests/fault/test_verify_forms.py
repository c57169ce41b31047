# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on outputs in forms that few models have: functions of the model's own, tensors
in any data field, sources that are read twice or bit by bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import fields
import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import Net, conv
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper
from test_verify import Output, Spoiler, add_first, errors, setter, verify

import make_record
from support import DEPLOY, FAKE, run_model, sqnr_db

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


def test_overloads(quantfold, with_functions, tmp_path):
    """Functions of one name, which ONNX tells apart by a third part of it."""
    o, out = with_functions, tmp_path / "out"
    model = onnx.load(str(o.model))
    other = onnx.FunctionProto()
    other.CopyFrom(model.functions[0])
    other.overload = "other"
    other.node[1].op_type = "Div"
    model.functions.append(other)
    model.ir_version = 10
    onnx.save(model, str(tmp_path / "m.onnx"))
    quantfold.export(tmp_path / "m.onnx", o.record, out / "m")
    source = ("--against", tmp_path / "m.onnx", "--record", o.record)
    assert verify(quantfold, out / "m", *source)["ok"]
    Spoiler(out, random.Random(0)).edit(
        FAKE, lambda m: setter(op_type="Sub")(m.functions[2].node[1])
    )
    found = errors(verify(quantfold, out / "m"))
    assert [(f["check"], f["item"]) for f in found] == [("agreement", "Scaled")], found


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
    "name": (in_function(1, setter(name="Chosen")), "is missing"),
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
    "operator of a branch": (in_branch(lambda g: setter(op_type="Abs")(g.node[1])), "Picked"),
    "tensor of a branch": (in_branch(lambda g: first_float(g.node[0], 9)), "level"),
    "output of a branch": (in_branch(lambda g: setter(name="l0")(g.output[0])), "Picked"),
    "node of a branch": (in_branch(lambda g: g.node.pop(2)), "Picked"),
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


# ---- tensors in any data field -------------------------------------------------------------------

DTYPES = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int16": np.int16,
    "uint16": np.uint16,
    "int32": np.int32,
    "uint32": np.uint32,
    "int64": np.int64,
    "uint64": np.uint64,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
}
FORMS = ["raw", "packed", "unpacked"]


def other_tensors() -> list[TensorProto]:
    """Three elements of each dtype, the second not 0."""
    made = []
    for name, dtype in DTYPES.items():
        values = np.array([0, 1, 1]) if name == "bool" else np.array([3, 2, 5])
        values = values + 4j if name.startswith("complex") else values
        made.append(numpy_helper.from_array(values.astype(dtype), f"of_{name}"))
    words = helper.make_tensor("of_text", TensorProto.STRING, [2], [b"one", b"two"])
    return [*made, words]


@pytest.fixture(scope="module")
def of_all_dtypes(quantfold, tmp_path_factory) -> dict[str, Output]:
    """A Conv, and initializers of every dtype that no node reads, in each form of the source and then
    of both models."""
    made = {}
    for form in FORMS:
        base = tmp_path_factory.mktemp(form)
        net = Net(opset=21, ir_version=10)
        y = conv(net, net.input("x", normal(2, 4, 6, 6)), normal(6, 4, 3, 3, seed=1, scale=0.3))
        net.output(net.op("Relu", [y], "r", "y"))
        names = tuple(t.name for t in other_tensors() if t.data_type != TensorProto.STRING)
        model = net.model()
        model.graph.initializer.extend(other_tensors())
        onnx.checker.check_model(model)
        fields.store(model, base / "model.onnx", form, names)
        save_record(base / "record.txt", 6)
        out = Output(base / "out", base / "model.onnx", base / "record.txt")
        quantfold.export(out.model, out.record, out.folder / "m")
        made[form] = out
    return made


def rewrite(folder: Path, form: str, change: Callable = lambda model: None) -> None:
    """Both models with all their initializers in another form; `change` is of the second."""
    for name in (DEPLOY, FAKE):
        model = onnx.load(str(folder / name))
        if name == FAKE:
            change(model)
        tensors = model.graph.initializer
        names = tuple(t.name for t in tensors if t.data_type != TensorProto.STRING)
        for t in tensors:
            if t.name in names:
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t), t.name))
        fields.store(model, folder / name, form, names)


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_dtype_are_sound(quantfold, of_all_dtypes, form, tmp_path):
    """They are copied, whatever field they are in; and looked at in whatever field they are."""
    o = of_all_dtypes[form]
    found = verify(quantfold, o.folder / "m", *against(o))
    assert found["ok"], errors(found)
    source = {t.name: t for t in onnx.load(str(o.model)).graph.initializer}
    for name in (DEPLOY, FAKE):
        for t in onnx.load(str(o.folder / name)).graph.initializer:
            if t.name.startswith("of_"):
                assert np.array_equal(
                    numpy_helper.to_array(t), numpy_helper.to_array(source[t.name])
                )
    for other in FORMS:
        folder = tmp_path / other
        shutil.copytree(o.folder, folder)
        rewrite(folder, other)
        found = verify(quantfold, folder / "m")
        assert found["ok"], errors(found)


def change_second(name: str) -> Callable:
    """Another second element."""

    def work(model: onnx.ModelProto) -> None:
        t = next(t for t in model.graph.initializer if t.name == name)
        if t.data_type == TensorProto.STRING:
            t.string_data[1] = b"to"
            return
        array = numpy_helper.to_array(t).copy()
        array[1] = not array[1] if array.dtype == np.bool_ else array[1] + array.dtype.type(1)
        t.CopyFrom(numpy_helper.from_array(array, t.name))

    return work


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_of_any_dtype(quantfold, of_all_dtypes, dtype, form, tmp_path):
    """By the other model, and by the source."""
    o, folder = of_all_dtypes[form], tmp_path / "out"
    shutil.copytree(o.folder, folder)
    rewrite(folder, form, change_second(f"of_{dtype}"))
    for check, args in (("agreement", ()), ("against", against(o))):
        found = errors(verify(quantfold, folder / "m", *args))
        said = [f for f in found if f["item"] == f"of_{dtype}"]
        assert [f["message"] for f in said if f["check"] == check and "element 1" in f["message"]]


def tensor_bytes(kind: int, field: str, values: list, dims: tuple, form: str = "unpacked") -> bytes:
    """A serialized tensor 'of_float32' with data in any field."""
    t = TensorProto(name="of_float32", data_type=kind, dims=dims)
    if form == "packed":
        getattr(t, field).extend(values)
        return t.SerializeToString()
    return fields.unpacked_bytes(t, field, values)


def two_fields() -> bytes:
    t = TensorProto(name="of_float32", data_type=TensorProto.FLOAT, dims=[1], float_data=[1])
    return t.SerializeToString() + tensor_bytes(TensorProto.FLOAT, "int32_data", [1], ())


FLOAT, DOUBLE, INT8 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT8
COUNT, FIELD = "more or fewer bytes of data", "a field that does not belong"
SPOILT_TENSORS = {
    "element too few": (tensor_bytes(FLOAT, "float_data", [1, 2], (3,)), COUNT),
    "element too many": (tensor_bytes(FLOAT, "float_data", [1, 2, 3, 4], (3,)), COUNT),
    "half a complex number": (
        tensor_bytes(TensorProto.COMPLEX64, "float_data", [1, 2, 3], (2,)),
        COUNT,
    ),
    "varint too few": (tensor_bytes(INT8, "int32_data", [1, 2], (3,)), COUNT),
    "packed varint too few": (tensor_bytes(INT8, "int32_data", [1, 2], (3,), "packed"), COUNT),
    "packed varint too many": (tensor_bytes(INT8, "int32_data", [1, 2], (1,), "packed"), COUNT),
    "packed element too few": (tensor_bytes(FLOAT, "float_data", [1], (2,), "packed"), COUNT),
    "elements of none": (tensor_bytes(FLOAT, "float_data", [1], (0,)), COUNT),
    "field of another": (tensor_bytes(DOUBLE, "float_data", [1, 2], (1,)), FIELD),
    "packed field of another": (tensor_bytes(DOUBLE, "float_data", [1, 2], (1,), "packed"), FIELD),
    "double": (tensor_bytes(FLOAT, "double_data", [1], (2,), "packed"), FIELD),
    "int64": (tensor_bytes(FLOAT, "int64_data", [1], (1,)), FIELD),
    "uint64": (tensor_bytes(FLOAT, "uint64_data", [1], (1,)), FIELD),
    "int32": (tensor_bytes(TensorProto.INT64, "int32_data", [1], (1,)), FIELD),
    "no data": (tensor_bytes(FLOAT, "float_data", [], (2,)), "no data"),
    "several fields": (two_fields(), "several fields"),
    "dtype": (tensor_bytes(99, "float_data", [1], (1,)), "a dtype of no fixed size"),
    "dims": (tensor_bytes(FLOAT, "float_data", [1], (-1,)), "impossible dims"),
}


@pytest.mark.parametrize("name", SPOILT_TENSORS)
def test_tensors_that_are_no_tensors(quantfold, of_all_dtypes, name, tmp_path):
    data, words = SPOILT_TENSORS[name]
    folder = tmp_path / "out"
    shutil.copytree(of_all_dtypes["raw"].folder, folder)
    for which in (DEPLOY, FAKE):
        fields.save_unpacked(onnx.load(str(folder / which)), folder / which, {"of_float32": data})
    found = errors(verify(quantfold, folder / "m"))
    said = [f for f in found if f["check"] == "structure" and f["item"] == "of_float32"]
    assert len(said) == 2 and all(words in f["message"] for f in said), found


def test_a_text_too_few(quantfold, of_all_dtypes, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(of_all_dtypes["raw"].folder, folder)
    Spoiler(folder, random.Random(0)).tensor(DEPLOY, "of_text", lambda t: t.string_data.pop())
    found = errors(verify(quantfold, folder / "m"))
    assert any(f["item"] == "of_text" and COUNT in f["message"] for f in found), found


def test_a_text_that_differs(quantfold, of_all_dtypes, tmp_path):
    o, folder = of_all_dtypes["raw"], tmp_path / "out"
    shutil.copytree(o.folder, folder)
    Spoiler(folder, random.Random(0)).edit(FAKE, change_second("of_text"))
    for check, args in (("agreement", ()), ("against", against(o))):
        found = errors(verify(quantfold, folder / "m", *args))
        assert any(f["item"] == "of_text" and f["check"] == check for f in found), found


# ---- what is calculated again --------------------------------------------------------------------

WEIGHTS = {
    "columns in two passes": ((600, 3600), 0, np.float32, "raw"),
    "rows in two passes": ((2, 2_100_000), 1, np.float32, "raw"),
    "varints": ((40, 300), 0, np.float16, "packed"),
    "columns in two passes, varints": ((600, 3600), 0, np.float16, "packed"),
}


@pytest.fixture(scope="module", params=WEIGHTS)
def weight_only(request, quantfold, tmp_path_factory) -> tuple[Output, tuple]:
    """A Gemm whose weight alone is quantized, with scales that the export finds."""
    shape, trans_b, dtype, form = WEIGHTS[request.param]
    base = tmp_path_factory.mktemp("weight_only")
    net = Net(opset=21, ir_version=10)
    w = (np.random.default_rng(1).standard_normal(shape, np.float32) / 8).astype(dtype)
    x = net.input("x", normal(1, shape[1 - (1 - trans_b)]).astype(dtype))
    net.op("Gemm", [x, net.weight("w", w)], "g", "y", transB=trans_b)
    net.output("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    fields.store(net.model(), base / "model.onnx", form, ("w",))
    out = Output(base / "out", base / "model.onnx", base / "none")
    line = ("export", "--model", out.model, "--save-path", out.folder / "m", "--no-fsync")
    assert quantfold(*line, "--weight-only", "w8a16", "--external", "always").code == 0
    return out, ("--against", out.model, "--weight-only", "w8a16")


def flip_middle(folder: Path, name: str) -> None:
    """A bit in the middle of a tensor of the deploy model, wherever that is."""

    def work(data: bytearray) -> None:
        data[len(data) // 2 + 1] ^= 8

    def inline(t: TensorProto) -> None:
        data = bytearray(t.raw_data)
        work(data)
        t.raw_data = bytes(data)

    spoiler = Spoiler(folder, random.Random(0))
    file = folder / f"{name}_deploy.external"
    if file.exists():
        spoiler.bytes(file.name, work)
    else:
        spoiler.tensor(DEPLOY, name, inline)


def test_found_scales_are_found_again(quantfold, weight_only, tmp_path):
    """Sound as it is; a spoilt integer and a spoilt scale are named."""
    o, args = weight_only
    found = verify(quantfold, o.folder / "m", *args)
    assert found["ok"] and found["recomputed"] > 12_000, errors(found)
    for part in ("quantized", "scale"):
        folder = tmp_path / part
        shutil.copytree(o.folder, folder)
        flip_middle(folder, f"w.{part}")
        found = errors(verify(quantfold, folder / "m", *args))
        said = [f for f in found if f["check"] == "against"]
        assert len(said) == 1 and part in said[0]["item"], found
        assert "as recomputed from the source" in said[0]["message"]


def test_integers_in_varints_are_compared(quantfold, of_all_dtypes, tmp_path):
    """Of an output that was saved again: the numbers are the same, the file is not."""
    o, folder = of_all_dtypes["raw"], tmp_path / "out"
    shutil.copytree(o.folder, folder)
    rewrite(folder, "packed")
    found = errors(verify(quantfold, folder / "m", *against(o)))
    assert found and all("the file has" in f["message"] for f in found), found
    s = Spoiler(folder, random.Random(0))
    s.values(DEPLOY, "c.weight", add_first(1))
    s.values(FAKE, "c.weight", add_first(1))
    found = errors(verify(quantfold, folder / "m", *against(o)))
    said = [f for f in found if f["check"] == "against" and f["item"] == "c.weight"]
    assert len(said) == 2 and all("element 0" in f["message"] for f in said), found


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_source_that_is_not_finite(quantfold, of_all_dtypes, value, tmp_path):
    """Which an export refuses, so that the output cannot be of it."""
    o = of_all_dtypes["raw"]
    model = onnx.load(str(o.model))
    weight = next(t for t in model.graph.initializer if t.name == "c.weight")
    array = numpy_helper.to_array(weight).copy()
    array.reshape(-1)[7] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, str(tmp_path / "model.onnx"))
    line = ("--against", tmp_path / "model.onnx", "--record", o.record)
    found = errors(verify(quantfold, o.folder / "m", *line))
    assert any(f"'c.weight' holds {value} at element 7" in f["message"] for f in found), found


# ---- manifests and checkpoints -------------------------------------------------------------------


def leave_folder(folder: Path) -> None:
    """A model that is a link to one outside."""
    (folder / DEPLOY).rename(folder.parent / "elsewhere.onnx")
    (folder / DEPLOY).symlink_to(folder.parent / "elsewhere.onnx")


def name_folder(folder: Path) -> None:
    (folder / "below").mkdir()
    Spoiler(folder, random.Random(0)).manifest(lambda m: m["files"][0].update(name="below"))


def in_manifest(change: Callable) -> Callable[[Path], None]:
    return lambda folder: Spoiler(folder, random.Random(0)).manifest(change)


MANIFESTS = {
    "link": (leave_folder, "a link out of the folder"),
    "folder": (name_folder, "is a folder"),
    "no files": (in_manifest(lambda m: m.pop("files")), "no 'files' or no 'hash'"),
    "no hash": (in_manifest(lambda m: m.pop("hash")), "no 'files' or no 'hash'"),
    "no name": (in_manifest(lambda m: m["files"][0].pop("name")), "no name or no size"),
    "no size": (in_manifest(lambda m: m["files"][0].pop("bytes")), "no name or no size"),
    "size no number": (
        in_manifest(lambda m: m["files"][0].update(bytes="9")),
        "no name or no size",
    ),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_are_wrong(quantfold, of_all_dtypes, name, tmp_path):
    o, folder = of_all_dtypes["raw"], tmp_path / "out"
    quantfold.export(o.model, o.record, folder / "m", "--manifest")
    assert verify(quantfold, folder / "m")["ok"]
    spoil, words = MANIFESTS[name]
    spoil(folder)
    found = [f for f in errors(verify(quantfold, folder / "m")) if f["check"] == "manifest"]
    assert any(words in f["message"] for f in found), found
