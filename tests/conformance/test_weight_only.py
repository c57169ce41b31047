# SPDX-License-Identifier: Apache-2.0
"""--weight-only and --dedup: what is written against a numpy recomputation, and what runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import F32, Net, Options, conv, gemm, random, records_for, save_net
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import make_record
from support import DEPLOY, FAKE, payload, run_model, snapshot, sqnr_db

BF16 = ml_dtypes.bfloat16
MODELS = (DEPLOY, FAKE)
EPSILON = {np.dtype(F32): 2.0**-23, np.dtype(np.float16): 2.0**-10, np.dtype(BF16): 2.0**-7}


# ---- what must come out ------------------------------------------------------------------------


@dataclass
class Scheme:
    """A scheme and what it does to a matrix."""

    text: str
    bits: int
    group: int = 0

    def scales(self, w: np.ndarray, axis: int, dtype=F32) -> np.ndarray:
        """Scales found for a matrix whose output channels lie along `axis`."""
        x = np.abs(w.astype(F32))
        largest = x.max(axis=1 - axis)
        if self.group:
            blocks = np.stack(np.split(x, w.shape[1 - axis] // self.group, axis=1 - axis))
            largest = np.moveaxis(blocks.max(axis=2 - axis), 0, 1 - axis)
        found = (largest / F32({8: 127.5, 4: 7.5}[self.bits])).astype(dtype)
        return np.where(found == 0, np.asarray(EPSILON[np.dtype(dtype)], dtype), found)

    def spread(self, scales: np.ndarray, axis: int) -> np.ndarray:
        """Scales as an array that broadcasts to the matrix."""
        if scales.ndim == 2:
            return np.repeat(scales, self.group, axis=1 - axis)
        return np.expand_dims(scales, 1 - axis) if scales.ndim else scales

    def integers(self, w: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
        low = -(2 ** (self.bits - 1))
        divided = w.astype(F32) / self.spread(scales, axis).astype(F32)
        return np.clip(np.rint(divided), low, -low - 1).astype(np.int8)


W8, W4 = Scheme("w8a16", 8), Scheme("w4a16", 4)
W4G, W8G = Scheme("w4a16:group=16", 4, 16), Scheme("w8a16:group=32", 8, 32)
SCHEMES = [W8, W4, W4G, W8G]


def tensors(path: Path) -> dict[str, TensorProto]:
    """Initializers of a model and of its subgraphs; no name may come twice."""
    found = {}
    stack = [onnx.load(str(path), load_external_data=False).graph]
    while stack:
        graph = stack.pop()
        for t in graph.initializer:
            assert t.name not in found, t.name
            found[t.name] = t
        stack += [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found


def values(tensor: TensorProto, folder: Path) -> np.ndarray:
    """A tensor as an array, wherever its bytes are."""
    raw = payload(tensor, folder)
    if tensor.data_type == TensorProto.INT4:
        pairs = np.frombuffer(raw, np.uint8)
        nibbles = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1).astype(np.int8)
        return np.where(nibbles > 7, nibbles - 16, nibbles)[: np.prod(tensor.dims)].reshape(
            tensor.dims
        )
    inner = TensorProto()
    inner.CopyFrom(tensor)
    inner.ClearField("data_location")
    inner.ClearField("external_data")
    inner.raw_data = raw
    return numpy_helper.to_array(inner)


def producer(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """The one node that makes a tensor."""
    (node,) = [n for n in graph.node if name in n.output]
    return node


def check_matrix(path: Path, name: str, w: np.ndarray, axis: int, scheme: Scheme, **given):
    """`name` is dequantized from the right integers; returns its values as float32."""
    model = onnx.load(str(path), load_external_data=False)
    stored = tensors(path)
    assert name not in stored
    made = producer(model.graph, name)
    half = w.dtype.itemsize == 2 and model.opset_import[0].version >= 19
    dtype = w.dtype if half else np.dtype(F32)
    if w.dtype != dtype:
        assert made.op_type == "Cast"
        assert made.attribute[0].i == helper.np_dtype_to_tensor_dtype(w.dtype)
        made = producer(model.graph, made.input[0])
    assert made.op_type == "DequantizeLinear" and len(made.input) == 2
    q, s = (values(stored[i], path.parent) for i in made.input)
    scales = given.get("scales", None)
    scales = scheme.scales(w, axis, dtype) if scales is None else scales.astype(dtype)
    assert s.dtype == dtype and s.shape == scales.shape
    assert s.tobytes() == scales.tobytes()
    assert (
        stored[made.input[0]].data_type == {8: TensorProto.INT8, 4: TensorProto.INT4}[scheme.bits]
    )
    np.testing.assert_array_equal(q, scheme.integers(w, scales, axis))
    attributes = {a.name: a.i for a in made.attribute}
    if scales.ndim == 0:
        assert not attributes
    elif scheme.group:
        assert attributes == {"axis": 1 - axis, "block_size": scheme.group}
    else:
        assert attributes == {"axis": axis}
    return q.astype(F32) * scheme.spread(scales, axis).astype(F32)


def with_values(path: Path, replaced: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The float model with other weights."""
    model = onnx.load(str(path))
    for t in model.graph.initializer:
        if t.name in replaced:
            w = replaced[t.name].astype(helper.tensor_dtype_to_np_dtype(t.data_type))
            t.CopyFrom(numpy_helper.from_array(w, t.name))
    return model


def check_outputs(path: Path, net: Net, exported: Path, replaced: dict, least_db: float):
    """As the float model with dequantized weights, to rounding; near the float model."""
    np_path = exported.parent / "dequantized.onnx"
    onnx.save(with_values(path, replaced), str(np_path))
    ours, wanted, exact = (run_model(p, net.feeds) for p in (exported, np_path, path))
    for a, b, x in zip(ours, wanted, exact):
        tolerance = 2e-2 if a.dtype == np.float16 else 1e-4
        np.testing.assert_allclose(
            a.astype(F32), b.astype(F32), rtol=tolerance, atol=tolerance * np.abs(b).max()
        )
        assert sqnr_db(x, a) >= least_db
    np_path.unlink()


def run_export(quantfold, path: Path, out: Path, *args, code: int = 0):
    """An export without a record."""
    result = quantfold("export", "--model", path, "--save-path", out / "m", *args)
    assert result.code == code, f"exit {result.code}:\n{result.err}"
    if not code:
        for path in [out / name for name in MODELS if (out / name).exists()]:
            graph = onnx.load(str(path), load_external_data=False).graph
            if not any(n.op_type.startswith("Ascend") for n in graph.node):
                onnx.checker.check_model(str(path), full_check=True)
    return result


def record_text(entries: dict[str, dict]) -> str:
    """Record text; arrays become repeated fields."""
    lines = []
    for key, fields in entries.items():
        for_key = "".join(
            f"    {name}: {json.dumps(v)}\n"
            for name, given in fields.items()
            for v in (given if isinstance(given, (list, np.ndarray)) else [given])
        )
        lines.append(f'record {{\n  key: "{key}"\n  value {{\n{for_key}  }}\n}}\n')
    return "".join(lines)


def floats(array: np.ndarray) -> list[float]:
    """What a record lists."""
    return [float(x) for x in array.reshape(-1)]


# ---- nets --------------------------------------------------------------------------------------


def two_layers(dtype=F32, opset: int = 21, scale: float = 0.1) -> Net:
    """MatMul, then Gemm with transB, then Gemm without."""
    net = Net(opset=opset, ir_version=10)
    x = net.input("x", random(5, 64).astype(dtype))
    w = net.weight("mm.weight", random(64, 48, seed=1, scale=scale).astype(dtype))
    x = net.op("MatMul", [x, w], "mm")
    x = net.op("Relu", [x], "relu")
    w = net.weight("gt.weight", random(96, 48, seed=2, scale=scale).astype(dtype))
    b = net.weight("gt.bias", random(96, seed=3).astype(dtype))
    x = net.op("Gemm", [x, w, b], "gt", transB=1)
    w = net.weight("gn.weight", random(96, 10, seed=4, scale=scale).astype(dtype))
    net.op("Gemm", [x, w], "gn", "y")
    net.output("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    return net


AXES = {"mm.weight": 1, "gt.weight": 0, "gn.weight": 1}


def weights_of(net: Net) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in net.tensors}


def fitting(scheme: Scheme) -> dict[str, int]:
    """The layers' weights that the group divides."""
    depths = {"mm.weight": 64, "gt.weight": 48, "gn.weight": 96}
    return {n: a for n, a in AXES.items() if not scheme.group or depths[n] % scheme.group == 0}


def excluding(scheme: Scheme) -> list[str]:
    """--exclude for those that it does not."""
    rest = [n for n in AXES if n not in fitting(scheme)]
    return ["--exclude", "|".join(f"^{n}$" for n in rest)] if rest else []


# ---- scales that the export finds --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, np.float16, np.float64], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.text)
def test_found(quantfold, tmp_path, scheme, dtype):
    net = two_layers(dtype)
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", scheme.text, *excluding(scheme))
    weights = weights_of(net)
    for name in MODELS:
        replaced = {
            n: check_matrix(tmp_path / "o" / name, n, weights[n], axis, scheme)
            for n, axis in fitting(scheme).items()
        }
        least = 25 if scheme.bits == 8 else 8
        check_outputs(path, net, tmp_path / "o" / name, replaced, least)


@pytest.mark.parametrize("scheme", [W8, W4G], ids=lambda s: s.text)
def test_bfloat16(quantfold, tmp_path, scheme):
    """ONNX Runtime has no kernels; ONNX's own evaluator has."""
    net = two_layers(BF16)
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", scheme.text)
    weights = weights_of(net)
    for name in MODELS:
        for n, axis in fitting(scheme).items():
            check_matrix(tmp_path / "o" / name, n, weights[n], axis, scheme)
        exact, ours = (
            ReferenceEvaluator(str(p)).run(None, net.feeds)[0].astype(F32)
            for p in (path, tmp_path / "o" / name)
        )
        assert sqnr_db(exact, ours) > (25 if scheme.bits == 8 else 8)


@pytest.mark.parametrize("dtype", [np.float16, np.float64], ids=lambda d: np.dtype(d).name)
def test_older_opsets_cast(quantfold, tmp_path, dtype):
    """Before opset 19, DequantizeLinear gives float32 alone."""
    net = two_layers(dtype, opset=13)
    net.ir_version = 8
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16")
    weights = weights_of(net)
    for name in MODELS:
        replaced = {
            n: check_matrix(tmp_path / "o" / name, n, weights[n], axis, W8)
            for n, axis in AXES.items()
        }
        check_outputs(path, net, tmp_path / "o" / name, replaced, 25)
        assert onnx.load(str(tmp_path / "o" / name)).ir_version == 8


def test_zeros_and_single_elements(quantfold, tmp_path):
    """A channel of zeros gets the epsilon; K = 1 and N = 1."""
    net = Net(opset=21, ir_version=10)
    w = random(16, 6, seed=1)
    w[:, 2] = 0
    x = net.op("MatMul", [net.input("x", random(3, 16)), net.weight("a", w)], "a_")
    x = net.op("MatMul", [x, net.weight("b", random(6, 1, seed=2))], "b_")
    net.op("MatMul", [x, net.weight("c", random(1, 5, seed=3))], "c_", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    for scheme in (W8, W4):
        run_export(quantfold, path, tmp_path / scheme.text, "--weight-only", scheme.text)
        for name, array in weights_of(net).items():
            check_matrix(tmp_path / scheme.text / DEPLOY, name, array, 1, scheme)


def test_int4_raises_the_ir_version(quantfold, tmp_path):
    net = two_layers()
    net.ir_version = 9
    path = save_net(net, tmp_path)
    for scheme, version in ((W8, 9), (W4, 10)):
        run_export(quantfold, path, tmp_path / scheme.text, "--weight-only", scheme.text)
        for name in MODELS:
            assert onnx.load(str(tmp_path / scheme.text / name)).ir_version == version


@pytest.mark.parametrize(
    "scheme, shape, trans_b",
    [
        (Scheme("w4a16:group=128", 4, 128), (256, 20001), 0),  # bands of columns, odd rows
        (Scheme("w4a16", 4), (700, 6001), 0),  # columns in two passes
        (Scheme("w8a16", 8), (3000, 1500), 0),
        (Scheme("w8a16:group=64", 8, 64), (65600, 33), 0),
        (Scheme("w4a16:group=2", 4, 2), (33, 70000), 1),
        (Scheme("w8a16", 8), (3, 300001), 1),  # rows of several reads
        (Scheme("w8a16", 8), (3, 2200000), 1),  # rows in two passes
    ],
    ids=lambda v: getattr(v, "text", str(v)).replace(":", "-"),
)
def test_large(quantfold, tmp_path, scheme, shape, trans_b):
    """Matrices of several blocks; threads make no difference."""
    net = Net(opset=21, ir_version=10)
    w = random(*shape, seed=5)
    x = net.input("x", random(1, shape[1] if trans_b else shape[0]))
    net.op("Gemm", [x, net.weight("w", w)], "g", "y", transB=trans_b)
    net.output("y")
    path = save_net(net, tmp_path)
    for threads in ("1", "4"):
        args = ("--weight-only", scheme.text, "--threads", threads, "--emit", "deploy")
        run_export(quantfold, path, tmp_path / threads, *args, "--no-fsync")
    check_matrix(tmp_path / "1" / DEPLOY, "w", w, 1 - trans_b, scheme)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "4")


def test_a_value_that_is_not_finite(quantfold, tmp_path):
    net = Net(opset=21, ir_version=10)
    w = random(16, 6)
    w[3, 4] = np.inf
    net.op("MatMul", [net.input("x", random(3, 16)), net.weight("w", w)], "mm", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    result = run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", code=1)
    assert "'w' holds inf at element 22" in result.err


# ---- who reads the matrix ----------------------------------------------------------------------


def tied(opset: int = 21) -> Net:
    """An embedding that is the head's weight as well, and that a Transpose is shown too."""
    net = Net(opset=opset, ir_version=10)
    ids = net.input("ids", np.array([[1, 5, 2, 7]], np.int64))
    table = net.weight("table", random(40, 32, seed=1, scale=0.2))
    x = net.op("Gather", [table, ids], "embed")
    w = net.weight("proj", random(32, 32, seed=2, scale=0.2))
    x = net.op("MatMul", [x, w], "mm")
    turned = net.op("Transpose", [table], "turn", perm=[1, 0])
    net.op("MatMul", [x, turned], "head", "y")
    net.output("y")
    return net


@pytest.mark.parametrize("layout", ["never", "always", "single"])
def test_tied_embeddings(quantfold, tmp_path, layout):
    """One initializer, one DequantizeLinear, all its readers behind it; written once."""
    net = tied()
    path = save_net(net, tmp_path)
    external = ["--external", "always", "--external-layout", "single"]
    args = external if layout == "single" else ["--external", layout]
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", *args)
    weights = weights_of(net)
    for name in MODELS:
        exported = tmp_path / "o" / name
        replaced = {
            "table": check_matrix(exported, "table", weights["table"], 0, W8),
            "proj": check_matrix(exported, "proj", weights["proj"], 1, W8),
        }
        check_outputs(path, net, exported, replaced, 25)
        graph = onnx.load(str(exported), load_external_data=False).graph
        assert sum(n.op_type == "DequantizeLinear" for n in graph.node) == 2
        assert {n.name for n in graph.node if "table" in n.input} == {"embed", "turn"}
        assert sorted(t.name for t in graph.initializer) == [
            *("proj.quantized", "proj.scale", "table.quantized", "table.scale")
        ]
    written = sum(len(b) for b in snapshot(tmp_path / "o").values())
    assert written < 2 * (40 * 32 + 32 * 32 + 4 * 72 + 2000) + (8192 if layout == "single" else 0)


def test_found_layers_are_listed(quantfold, tmp_path):
    path = save_net(tied(), tmp_path)
    args = ("--weight-only", "w4a16:group=16", "--exclude", "^proj$")
    out = run_export(quantfold, path, tmp_path / "o", *args, "-v").out
    assert "quantized 1 of 2 layers" in out
    assert "head  W4 in groups of 16, weight only" in out
    assert "mm  stays float: --include and --exclude do not choose it" in out
    doc = json.loads(run_export(quantfold, path, tmp_path / "o", *args, "--json").out)
    (layer,) = doc["layers"]
    assert layer["name"] == "head" and layer["weight"] == "table" and layer["weight_only"]
    assert (layer["weight_bits"], layer["activation_bits"], layer["group"]) == (4, 0, 16)
    assert layer["channels"] == 40 * 2
    check = quantfold("check", "--model", path, "--weight-only", "w4a16")
    assert check.code == 0 and "2 layers" in check.out


def test_constant_nodes_and_identities(quantfold, tmp_path):
    """A Constant becomes the DequantizeLinear; an Identity reads it."""
    net = Net(opset=21, ir_version=10)
    w = random(32, 16, seed=1)
    same = net.op("Identity", [net.constant("w", w)], "id")
    net.op("MatMul", [net.input("x", random(2, 32)), same], "mm", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16")
    for name in MODELS:
        check_matrix(tmp_path / "o" / name, "w", w, 1, W8)
        graph = onnx.load(str(tmp_path / "o" / name)).graph
        assert [n.op_type for n in graph.node] == ["DequantizeLinear", "Identity", "MatMul"]
        ours, exact = (run_model(p, net.feeds)[0] for p in (tmp_path / "o" / name, path))
        assert sqnr_db(exact, ours) > 25


def test_subgraphs(quantfold, tmp_path):
    """A weight of a branch's own, and one of the main graph that only a branch reads."""
    inner, outer = random(16, 8, seed=1), random(16, 8, seed=2)

    def branch(weight: str, own: list) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", weight], [f"{weight}_y"], f"mm_{weight}")
        result = helper.make_tensor_value_info(f"{weight}_y", TensorProto.FLOAT, [3, 8])
        return helper.make_graph([node], f"with_{weight}", [], [result], own)

    net = Net(opset=21, ir_version=10)
    net.input("x", random(3, 16))
    net.input("which", np.array(True))
    net.weight("outer", outer)
    net.op(
        *("If", ["which"], "choose", "y"),
        then_branch=branch("inner", [numpy_helper.from_array(inner, "inner")]),
        else_branch=branch("outer", []),
    )
    net.output("y")
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", "--external", "always")
    for name in MODELS:
        exported = tmp_path / "o" / name
        graph = onnx.load(str(exported)).graph
        check_matrix(exported, "outer", outer, 1, W8)
        then = next(a.g for n in graph.node for a in n.attribute if a.name == "then_branch")
        assert [n.op_type for n in then.node] == ["DequantizeLinear", "MatMul"]
        assert [t.name for t in then.initializer] == ["inner.quantized", "inner.scale"]
        for which in (True, False):
            feeds = net.feeds | {"which": np.array(which)}
            ours, exact = (run_model(p, feeds)[0] for p in (exported, path))
            assert sqnr_db(exact, ours) > 25


def test_matmuls_that_are_none_of_ours(quantfold, tmp_path):
    """Weights that are no constant matrix, Conv, three dimensions: left, and said why."""
    net = Net(opset=21, ir_version=10)
    x = conv(net, net.input("x", random(1, 3, 8, 8)), random(4, 3, 3, 3), name="c")
    x = net.op("MatMul", [x, net.weight("stack", random(4, 8, 8, seed=1))], "three")
    x = net.op("MatMul", [x, x], "square")
    net.op("MatMul", [x, net.weight("w", random(8, 4, seed=2))], "mm", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    doc = json.loads(
        run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", "--json").out
    )
    assert [layer["name"] for layer in doc["layers"]] == ["mm"]
    assert {s["name"]: s["reason"] for s in doc["skipped"]} == {
        "c": "its weight is not that of a MatMul or Gemm",
        "three": "its weight does not have two dimensions",
        "square": "its weight is not a constant tensor",
    }
    before, after = (tensors(p) for p in (path, tmp_path / "o" / DEPLOY))
    for name in ("c.weight", "stack"):
        assert before[name] == after[name]


# ---- choosing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, chosen",
    [
        ([], {"mm", "gt", "gn"}),
        (["--include", "^g"], {"gt", "gn"}),
        (["--include", r"mm\.weight|gn"], {"mm", "gn"}),  # by tensor, by node
        (["--exclude", "weight$"], None),
        (["--exclude", "^mm$"], {"gt", "gn"}),
        (["--include", "^g[tn]$", "--exclude", "gt"], {"gn"}),
        (["--include", "nothing"], None),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_include_and_exclude(quantfold, tmp_path, args, chosen):
    path = save_net(two_layers(), tmp_path)
    args = ["--weight-only", "w8a16", "--json", *args]
    result = run_export(quantfold, path, tmp_path / "o", *args, code=0 if chosen else 1)
    if chosen:
        assert {layer["name"] for layer in json.loads(result.out)["layers"]} == chosen
    else:
        assert "finds no weight" in result.err and "--include and --exclude" in result.err
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--weight-only", "w3a16"], "it must be w8a16, w4a16"),
        (["--weight-only", "w4a16:group="], "it must be w8a16, w4a16"),
        (["--weight-only", "w4a16:group=1"], "a group of 2 or more"),
        (["--weight-only", "w4a16:group=33"], "an even number"),
        (["--weight-only", "w4a16:group=12x"], "a group of 2 or more"),
        (["--weight-only", "w8a16 "], "it must be w8a16, w4a16"),
        (["--weight-only", "record"], "needs a record"),
        (["--weight-only", "w8a16", "--include", "a(b"], "--include takes a POSIX extended"),
        (["--weight-only", "w8a16", "--exclude", "[z"], "'[z' is none"),
        (["--include", "x"], "--weight-only"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_usage(quantfold, tmp_path, args, words):
    path = save_net(two_layers(), tmp_path)
    result = run_export(quantfold, path, tmp_path / "o", *args, code=2)
    assert words in result.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "scheme, opset, need", [(W8, 12, 13), (W8G, 20, 21), (W4, 20, 21), (W4G, 13, 21)]
)
def test_opset_too_low(quantfold, tmp_path, scheme, opset, need):
    """One finding, however many layers there are."""
    net = two_layers(opset=opset)
    net.ir_version = 7
    path = save_net(net, tmp_path)
    args = ("--weight-only", scheme.text, *excluding(scheme))
    result = run_export(quantfold, path, tmp_path / "o", *args, code=1)
    assert f"uses opset {opset}" in result.err and f"opset_version={need}" in result.err
    assert result.err.count("opset_version") == 1


def test_a_group_that_does_not_divide(quantfold, tmp_path):
    path = save_net(two_layers(), tmp_path)
    result = run_export(quantfold, path, tmp_path / "o", "--weight-only", "w4a16:group=64", code=1)
    assert "gt: its weight has 48 input channels, which groups of 64 do not divide" in result.err
    assert "gn: its weight has 96 input channels" in result.err and "mm:" not in result.err
    assert "--exclude" in result.err


# ---- scales of a record ------------------------------------------------------------------------


def export_record(quantfold, path: Path, text: str, *args, code: int = 0):
    """--weight-only record, into the folder o."""
    (path.parent / "r.txt").write_text(text)
    args = ("--record", path.parent / "r.txt", "--weight-only", "record", *args)
    return run_export(quantfold, path, path.parent / "o", *args, code=code)


@pytest.mark.parametrize("dtype", [F32, np.float16], ids=lambda d: np.dtype(d).name)
def test_record(quantfold, tmp_path, dtype):
    """Per channel, in groups (channel by channel in the record), per tensor."""
    net = two_layers(dtype)
    path = save_net(net, tmp_path)
    weights = weights_of(net)
    rng = np.random.default_rng(7)
    groups = rng.uniform(0.02, 0.06, (4, 48)).astype(F32)  # as stored: K / 16 by N
    rows = rng.uniform(0.002, 0.004, (96,)).astype(F32)
    entries = {
        "mm": {"scale_w": floats(groups.T), "wts_type": "INT4"},
        "gt": {"scale_w": floats(rows), "offset_w": [0] * 96, "wts_type": "INT8"},
        "gn": {"scale_w": 0.003},
    }
    result = export_record(quantfold, path, record_text(entries), "-v")
    assert "mm  W4 in groups of 16, weight only" in result.out
    assert "gt  W8 per channel, weight only" in result.out
    assert "gn  W8 per tensor, weight only" in result.out
    given = {
        "mm.weight": (W4G, groups),
        "gt.weight": (W8, rows),
        "gn.weight": (W8, np.array(0.003, F32)),
    }
    for name in MODELS:
        replaced = {
            n: check_matrix(tmp_path / "o" / name, n, weights[n], AXES[n], scheme, scales=scales)
            for n, (scheme, scales) in given.items()
        }
        check_outputs(path, net, tmp_path / "o" / name, replaced, 8)


def test_record_groups_of_rows(quantfold, tmp_path):
    """[N, K]: the record's order is the stored one."""
    net = two_layers()
    path = save_net(net, tmp_path)
    scales = np.random.default_rng(3).uniform(0.02, 0.06, (96, 3)).astype(F32)
    export_record(
        quantfold, path, record_text({"gt": {"scale_w": floats(scales), "wts_type": "INT4"}})
    )
    for name in MODELS:
        w = weights_of(net)["gt.weight"]
        check_matrix(tmp_path / "o" / name, "gt.weight", w, 0, W4G, scales=scales)


def test_per_tensor_scales_need_opset_10_alone(quantfold, tmp_path):
    net = Net(opset=10, ir_version=5)
    w = random(64, 48, scale=0.1)
    net.op("MatMul", [net.input("x", random(5, 64)), net.weight("w", w)], "mm", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    export_record(quantfold, path, record_text({"mm": {"scale_w": 0.01}}))
    dequantized = check_matrix(tmp_path / "o" / FAKE, "w", w, 1, W8, scales=np.array(0.01, F32))
    check_outputs(path, net, tmp_path / "o" / FAKE, {"w": dequantized}, 25)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scale_w": [0.1] * 7}, "scale_w has 7 values; the layer takes 1, 48"),
        ({"scale_w": [0.1] * 48 * 5}, "a number of groups that divides its 64"),
        ({"scale_w": [0.1] * 47 + [0.0]}, "scale_w[47] is 0"),
        ({"scale_w": 0.1, "wts_type": "INT6"}, "wts_type is 'INT6'"),
        ({"scale_w": 0.1, "offset_w": 3}, "offset_w[0] is 3"),
        ({"scale_w": 0.1, "offset_w": [0, 0]}, "the same number"),
        ({"scale_w": 0.1, "tensor_balance_factor": [1.0]}, "tensor_balance_factor means nothing"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_records(quantfold, tmp_path, fields, words):
    path = save_net(two_layers(), tmp_path)
    result = export_record(quantfold, path, record_text({"mm": fields}), code=1)
    assert words in result.err and "r.txt:1" in result.err


def test_scales_out_of_the_range_of_halves(quantfold, tmp_path):
    path = save_net(two_layers(np.float16), tmp_path)
    result = export_record(quantfold, path, record_text({"mm": {"scale_w": 1e-9}}), code=1)
    assert "which is 0 in float16" in result.err


def test_without_the_scheme_scale_d_is_needed(quantfold, tmp_path):
    path = save_net(two_layers(), tmp_path)
    text = record_text({"mm": {"scale_w": 0.1, "offset_w": 0}})
    (tmp_path / "r.txt").write_text(text)
    args = ("--record", tmp_path / "r.txt")
    assert "cannot find scale_d" in run_export(quantfold, path, tmp_path / "o", *args, code=1).err
    assert (
        "finds no weight"
        in export_record(
            quantfold,
            path,
            record_text({"mm": {"scale_w": 0.1, "offset_w": 0, "scale_d": 0.1, "offset_d": 0}}),
            code=1,
        ).err
    )


def test_records_of_other_layers(quantfold, tmp_path):
    """A Conv cannot be a weight-only layer."""
    net = Net(opset=21, ir_version=10)
    net.output(conv(net, net.input("x", random(1, 1, 8, 8)), random(2, 1, 3, 3), name="c"))
    path = save_net(net, tmp_path)
    result = export_record(quantfold, path, record_text({"c": {"scale_w": 0.1}}), code=1)
    assert "that can be a MatMul or Gemm with a constant matrix" in result.err


@pytest.mark.parametrize("same", [True, False])
def test_two_records_of_one_matrix(quantfold, tmp_path, same):
    net = Net(opset=21, ir_version=10)
    w = net.weight("w", random(16, 16, seed=1, scale=0.2))
    x = net.op("MatMul", [net.input("x", random(4, 16)), w], "first")
    net.op("MatMul", [x, w], "second", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    entries = {"first": {"scale_w": 0.01}, "second": {"scale_w": 0.01 if same else 0.02}}
    result = export_record(quantfold, path, record_text(entries), code=0 if same else 1)
    if same:
        check_matrix(
            *(tmp_path / "o" / DEPLOY, "w", weights_of(net)["w"], 1, W8),
            scales=np.array(0.01, F32),
        )
    else:
        assert "that of layer 'first' too, and their records differ" in result.err


def mixed(tmp_path) -> tuple[Net, Path, str]:
    """A net, and a record that quantizes its second layer with its activations."""
    net = two_layers()
    path = save_net(net, tmp_path)
    records = records_for(path, net, Options(only=["gt"]))
    return net, path, make_record.record_text(records)


@pytest.mark.parametrize("form", ["float", "int8", "shared"])
def test_mixed_with_quantized_layers(quantfold, tmp_path, form):
    """The record's layer is as without --weight-only, the others are weight-only layers."""
    net, path, text = mixed(tmp_path)
    (tmp_path / "q.txt").write_text(text)
    args = ("--record", tmp_path / "q.txt", "--fake-quant-weights", form)
    plain = tmp_path / "plain"
    run_export(quantfold, path, plain, *args)
    result = run_export(quantfold, path, tmp_path / "o", *args, "--weight-only", "w8a16", "-v")
    assert "gt  A8W8 per tensor, bias" in result.out and "mm  W8 per channel, weight" in result.out
    weights = weights_of(net)
    for name in MODELS:
        exported = tmp_path / "o" / name
        before, after = (
            {k: payload(t, p.parent) for k, t in tensors(p).items()}
            for p in (plain / name, exported)
        )
        for key in ("gt.weight", "gt.bias"):
            assert before[key] == after[key]
        for n in ("mm.weight", "gn.weight"):
            check_matrix(exported, n, weights[n], AXES[n], W8)
    ours, theirs, exact = (
        run_model(p, net.feeds)[0] for p in (tmp_path / "o" / FAKE, plain / FAKE, path)
    )
    assert sqnr_db(theirs, ours) > 25 and sqnr_db(exact, ours) > 18


def test_mixed_in_one_record(quantfold, tmp_path):
    net, path, text = mixed(tmp_path)
    text += record_text({"mm": {"scale_w": [0.003] * 48}})
    result = export_record(quantfold, path, text, "-v")
    assert "gt  A8W8" in result.out and "mm  W8 per channel, weight only" in result.out
    assert "gn  stays float: it has no record" in result.out


def test_one_tensor_of_both_kinds(quantfold, tmp_path):
    """A record names one of two layers that share a weight: it keeps its own integers."""
    net = Net(opset=21, ir_version=10)
    w = net.weight("w", random(16, 16, seed=1, scale=0.2))
    x = net.op("MatMul", [net.input("x", random(4, 16)), w], "first")
    net.op("MatMul", [net.op("Relu", [x], "relu"), w], "second", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    text = make_record.record_text(records_for(path, net, Options(only=["first"])))
    (tmp_path / "r.txt").write_text(text)
    args = ("--record", tmp_path / "r.txt", "--weight-only", "w8a16")
    run_export(quantfold, path, tmp_path / "o", *args)
    for name in MODELS:
        check_matrix(tmp_path / "o" / name, "w", weights_of(net)["w"], 1, W8)
    assert {"w.quantized", "w.scale", "first.weight"} <= set(tensors(tmp_path / "o" / DEPLOY))
    ours, exact = (run_model(p, net.feeds)[0] for p in (tmp_path / "o" / FAKE, path))
    assert sqnr_db(exact, ours) > 18


# ---- files -------------------------------------------------------------------------------------


def place(tensor: TensorProto) -> dict[str, str]:
    assert tensor.data_location == TensorProto.EXTERNAL
    return {e.key: e.value for e in tensor.external_data}


def external_source(net: Net, folder: Path, one: bool) -> Path:
    """The net with its tensors in one file, or in one each."""
    folder.mkdir()
    model = net.model()
    onnx.save(
        *(model, str(folder / "model.onnx")),
        save_as_external_data=True,
        all_tensors_to_one_file=one,
        location="data.bin" if one else None,
        size_threshold=0,
    )
    return folder / "model.onnx"


@pytest.mark.parametrize("one", [True, False], ids=["one file", "many files"])
@pytest.mark.parametrize("layout", ["per-tensor", "single"])
def test_external_sources(quantfold, tmp_path, one, layout):
    """The same integers, in external files again, whatever the threads."""
    net = two_layers()
    path = external_source(net, tmp_path / "src", one)
    for threads in ("1", "4"):
        args = ("--weight-only", W4G.text, "--external-layout", layout, "--threads", threads)
        run_export(quantfold, path, tmp_path / threads, *args)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "4")
    for name in MODELS:
        for n, axis in AXES.items():
            check_matrix(tmp_path / "1" / name, n, weights_of(net)[n], axis, W4G)
        stored = tensors(tmp_path / "1" / name)
        for n in AXES:
            assert stored[f"{n}.quantized"].data_location == TensorProto.EXTERNAL
            large = n == "gt.weight"  # 96 * 3 scales
            assert (stored[f"{n}.scale"].data_location == TensorProto.EXTERNAL) == large
    files = {f for f in snapshot(tmp_path / "1") if f.endswith(".external")}
    expected = (
        "m_deploy_model.external" if layout == "single" else "mm.weight.quantized_deploy.external"
    )
    assert expected in files


def test_shared_files(quantfold, tmp_path):
    """--fake-quant-weights shared: the integers are the same in both models, so in one file."""
    path = save_net(two_layers(), tmp_path)
    for scheme in (W8, W4):
        out = tmp_path / scheme.text
        args = ("--weight-only", scheme.text, "--fake-quant-weights", "shared")
        run_export(quantfold, path, out, *args)
        ours, theirs = (tensors(out / name)["mm.weight.quantized"] for name in MODELS)
        assert ours.data_location == TensorProto.EXTERNAL
        assert list(ours.external_data) == list(theirs.external_data)
        check_matrix(out / FAKE, "mm.weight", random(64, 48, seed=1, scale=0.1), 1, scheme)


def test_shared_integers_and_own_scales(quantfold, tmp_path):
    """The job writes integers for one model and scales for both."""
    path = external_source(two_layers(), tmp_path / "src", True)
    args = ("--weight-only", W4G.text, "--fake-quant-weights", "shared")
    run_export(quantfold, path, tmp_path / "o", *args)
    ours, theirs = (tensors(tmp_path / "o" / name) for name in (FAKE, DEPLOY))
    assert place(ours["gt.weight.quantized"]) == place(theirs["gt.weight.quantized"])
    assert place(ours["gt.weight.scale"]) != place(theirs["gt.weight.scale"])
    for name in MODELS:
        for n, axis in AXES.items():
            check_matrix(tmp_path / "o" / name, n, weights_of(two_layers())[n], axis, W4G)


def test_ways_of_writing(quantfold, tmp_path):
    path = external_source(two_layers(), tmp_path / "src", True)
    ways = ("pwrite", "mmap", "direct")
    for io in ways:
        run_export(quantfold, path, tmp_path / io, "--weight-only", W4G.text, "--io", io)
    first, *others = (snapshot(tmp_path / io) for io in ways)
    assert all(files == first for files in others)
    check_matrix(
        tmp_path / "mmap" / FAKE, "gt.weight", weights_of(two_layers())["gt.weight"], 0, W4G
    )


@pytest.mark.parametrize("emit", ["deploy", "fake-quant"])
def test_one_model(quantfold, tmp_path, emit):
    path = save_net(two_layers(), tmp_path)
    run_export(quantfold, path, tmp_path / "b", "--weight-only", "w4a16")
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w4a16", "--emit", emit)
    both, one = snapshot(tmp_path / "b"), snapshot(tmp_path / "o")
    assert len(one) == 1 and one.items() <= both.items()


# ---- dedup -------------------------------------------------------------------------------------


def twins(different: bool = False) -> Net:
    """Two Gemms and two tables, each pair of the same bytes; with `different`, but for one."""
    net = Net(opset=21, ir_version=10)
    w, table = random(128, 128, seed=1, scale=0.2), random(128, 128, seed=2)
    x = net.input("x", random(4, 128))
    for name in ("a", "b"):
        if name == "b" and different:
            w, table = w.copy(), table.copy()
            w[120, 3] += 1  # where nothing is sampled
            table[-1, -1] += 1
        x = gemm(net, x, w, name=name, transB=1)
        ids = net.weight(f"{name}.ids", np.array([1, 2, 3, 4], np.int64))
        x = net.op(
            "Add",
            [x, net.op("Gather", [net.weight(f"{name}.t", table), ids], name + "g")],
            name + "s",
        )
    net.output(x)
    return net


@pytest.mark.parametrize("different", [False, True], ids=["equal", "different"])
@pytest.mark.parametrize("layout", ["per-tensor", "single"])
def test_dedup(quantfold, tmp_path, layout, different):
    """Copies and quantized weights; the models are the same models."""
    net = twins(different)
    path = save_net(net, tmp_path)
    text = make_record.record_text(
        records_for(
            path,
            net,
            Options(ranges={"a": (0.05, 0), "b": (0.05, 0)}, scales={"a": [0.01], "b": [0.01]}),
        )
    )
    (tmp_path / "r.txt").write_text(text)
    args = ("--record", tmp_path / "r.txt", "--external", "always", "--external-layout", layout)
    plain = run_export(quantfold, path, tmp_path / "plain", *args, "--json")
    result = run_export(quantfold, path, tmp_path / "o", *args, "--dedup", "--json")
    # weights as int8 and as float32, tables as float32 twice
    saved = 0 if different else 128 * 128 * (1 + 4 + 2 * 4)
    assert json.loads(result.out)["bytes_saved"] == saved
    assert json.loads(plain.out)["bytes_saved"] == 0
    for name in MODELS:
        stored = tensors(tmp_path / "o" / name)
        for suffix in ("weight", "t"):
            same = place(stored[f"a.{suffix}"]) == place(stored[f"b.{suffix}"])
            assert same != different
        before = {
            k: payload(t, tmp_path / "plain") for k, t in tensors(tmp_path / "plain" / name).items()
        }
        assert before == {k: payload(t, tmp_path / "o") for k, t in stored.items()}
    ours, theirs = (run_model(tmp_path / f / FAKE, net.feeds) for f in ("o", "plain"))
    assert ours[0].tobytes() == theirs[0].tobytes()
    if not different:
        summary = run_export(quantfold, path, tmp_path / "o", *args, "--dedup").out
        assert "by writing equal tensors once" in summary
        sizes = [sum(map(len, snapshot(tmp_path / f).values())) for f in ("plain", "o")]
        assert sizes[0] - sizes[1] >= saved


def test_dedup_keeps_what_differs_in_scales(quantfold, tmp_path):
    net = twins()
    path = save_net(net, tmp_path)
    ranges = {"a": (0.05, 0), "b": (0.05, 0)}
    options = Options(ranges=ranges, scales={"a": [0.01], "b": [0.011]})
    (tmp_path / "r.txt").write_text(make_record.record_text(records_for(path, net, options)))
    args = ("--record", tmp_path / "r.txt", "--external", "always", "--dedup")
    run_export(quantfold, path, tmp_path / "o", *args)
    stored = tensors(tmp_path / "o" / DEPLOY)
    assert place(stored["a.weight"]) != place(stored["b.weight"])
    assert place(stored["a.t"]) == place(stored["b.t"])


def test_dedup_with_shared_files(quantfold, tmp_path):
    """fake_quant names the place that the deploy model's tensor borrowed."""
    net = twins()
    path = save_net(net, tmp_path)
    options = Options(ranges={"a": (0.05, 0), "b": (0.05, 0)}, scales={"a": [0.01], "b": [0.01]})
    (tmp_path / "r.txt").write_text(make_record.record_text(records_for(path, net, options)))
    args = ("--record", tmp_path / "r.txt", "--fake-quant-weights", "shared", "--dedup")
    run_export(quantfold, path, tmp_path / "o", *args)
    places = [place(tensors(tmp_path / "o" / m)[f"{n}.weight"]) for m in MODELS for n in "ab"]
    assert all(p == places[0] for p in places)
    onnx.load(str(tmp_path / "o" / FAKE))


@pytest.mark.parametrize("external", ["never", "always"])
@pytest.mark.parametrize("different", [False, True], ids=["equal", "different"])
def test_dedup_of_matrices(quantfold, tmp_path, different, external):
    """Equal matrices have one set of initializers, inside a model too."""
    net = twins(different)
    path = save_net(net, tmp_path)
    args = ("--weight-only", "w4a16:group=16", "--dedup", "--external", external)
    run_export(quantfold, path, tmp_path / "o", *args)
    weights = weights_of(net)
    for name in MODELS:
        exported = tmp_path / "o" / name
        for n in ("a.weight", "b.weight"):
            check_matrix(exported, n, weights[n], 0, W4G)
        assert ("b.weight.quantized" in tensors(exported)) == different
        ours, exact = (run_model(p, net.feeds)[0] for p in (exported, path))
        assert sqnr_db(exact, ours) > 8


def test_dedup_of_matrices_between_branches(quantfold, tmp_path):
    """Branches cannot see each other's initializers."""
    w = random(16, 8, seed=1)

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", f"w_{name}"], [f"y_{name}"], f"mm_{name}")
        result = helper.make_tensor_value_info(f"y_{name}", TensorProto.FLOAT, [3, 8])
        own = [numpy_helper.from_array(w, f"w_{name}")]
        return helper.make_graph([node], name, [], [result], own)

    net = Net(opset=21, ir_version=10)
    net.input("x", random(3, 16))
    net.input("which", np.array(True))
    net.op("If", ["which"], "if", "y", then_branch=branch("a"), else_branch=branch("b"))
    net.output("y")
    path = save_net(net, tmp_path)
    run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", "--dedup")
    for which in (True, False):
        feeds = net.feeds | {"which": np.array(which)}
        ours, exact = (run_model(p, feeds)[0] for p in (tmp_path / "o" / FAKE, path))
        assert sqnr_db(exact, ours) > 25


# ---- with what else there is -------------------------------------------------------------------


def test_qdq_models(quantfold, tmp_path):
    """Layers between Q and DQ are taken as ever, without a record; the others are weight-only."""
    net = Net(opset=21, ir_version=10)
    x = net.input("x", random(4, 32))
    scale, zero = net.weight("s", np.array(0.03, F32)), net.weight("z", np.array(0, np.int8))
    x = net.op("QuantizeLinear", [x, scale, zero], "q")
    x = net.op("DequantizeLinear", [x, scale, zero], "dq")
    stored = np.random.default_rng(1).integers(-127, 127, (32, 16)).astype(np.int8)
    w = net.op("DequantizeLinear", [net.weight("w", stored), scale, zero], "dqw")
    x = net.op("MatMul", [x, w], "quantized")
    plain = random(16, 8, seed=2)
    net.op("MatMul", [x, net.weight("plain.weight", plain)], "plain", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    result = run_export(quantfold, path, tmp_path / "o", "--weight-only", "w8a16", "-v")
    assert "quantized  A8W8 per tensor" in result.out
    assert "plain  W8 per channel, weight only" in result.out and "warning" not in result.err
    for name in MODELS:
        check_matrix(tmp_path / "o" / name, "plain.weight", plain, 1, W8)
    ours, exact = (run_model(p, net.feeds)[0] for p in (tmp_path / "o" / FAKE, path))
    assert sqnr_db(exact, ours) > 25


def test_config(quantfold, tmp_path):
    """A layer that the config enables is not said to stay float."""
    net, path, text = mixed(tmp_path)
    (tmp_path / "r.txt").write_text(text)
    layer = make_record.layer_config(False)
    config = {n: layer | {"retrain_enable": n != "gn"} for n in ("mm", "gt", "gn")}
    (tmp_path / "c.json").write_text(make_record.config_text(config))
    args = ("--record", tmp_path / "r.txt", "--config", tmp_path / "c.json")
    err = run_export(quantfold, path, tmp_path / "o", *args, "--weight-only", "w8a16").err
    assert "stays float" not in err
    assert "gn: the config disables this layer, but --weight-only quantizes its weight" in err
    assert "stays float" in run_export(quantfold, path, tmp_path / "o", *args).err


@pytest.mark.parametrize("scheme", [W8, W4G], ids=lambda s: s.text)
def test_shards(quantfold, tmp_path, scheme):
    """Parts that several runs write make the same files."""
    path = external_source(two_layers(), tmp_path / "src", True)
    args = ("--weight-only", scheme.text, "--no-fsync")
    run_export(quantfold, path, tmp_path / "whole", *args)
    for shard in range(3):
        run_export(quantfold, path, tmp_path / "parts", *args, "--shard", f"{shard}/3")
    assert quantfold("commit", "--save-path", tmp_path / "parts" / "m").code == 0
    assert snapshot(tmp_path / "whole") == snapshot(tmp_path / "parts")
