# SPDX-License-Identifier: Apache-2.0
"""docs/formats against files that quantfold writes and inputs that it takes or refuses.

The tables of the documents are read and compared with what a small model of every kind of layer
becomes, so that neither can change without the other.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from support import run_model

REPO = Path(__file__).resolve().parents[2]
FORMATS = REPO / "docs" / "formats"
TYPES = {1: "FLOAT", 2: "INT", 3: "STRING", 4: "TENSOR", 6: "FLOATS", 7: "INTS", 8: "STRINGS"}
RECORD = """
record { key: "conv" value { scale_d: 0.0123 offset_d: -3 scale_w: [0.011, 0.012, 0.013, 0.014]
  offset_w: [0, 0, 0, 0] tensor_balance_factor: [1, 2, 0.5, 1] act_type: "INT8" wts_type: "INT8" } }
record { key: "pool" value { scale_d: 0.1 offset_d: 0 scale_w: 1 offset_w: 0 } }
record { key: "fc" value { scale_d: 0.05 offset_d: 2 scale_w: [.01, .02, .03, .04, .05, .06]
  offset_w: [0, 0, 0, 0, 0, 0] act_type: "INT8" wts_type: "INT4" } }
record { key: "mm" value { scale_d: 0.5 offset_d: 1 scale_w: 0.01 offset_w: 0 act_type: "INT16" } }
record { key: "rnn" value { scale_d: 0.25 offset_d: 4 scale_w: [.01, .02, .03, .04]
  offset_w: [0, 0, 0, 0] scale_h: 0.125 offset_h: -5 scale_r: [.05, .06, .07, .08]
  offset_r: [0, 0, 0, 0] act_type: "INT8" } }
"""


def section(name: str, title: str) -> str:
    """Text of one section of a document."""
    text = (FORMATS / name).read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no section '{title}'"
    return found[1]


def table(text: str, n: int = 0) -> list[list[str]]:
    """Rows of the n-th table of a text, without head and rule."""
    blocks = re.findall(r"((?:^\|.*\|\n)+)", text, re.MULTILINE)
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in blocks[n].splitlines()]
    return rows[2:]


def codes(cell: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`]*)`", cell)


def make_model(path: Path) -> dict[str, np.ndarray]:
    """conv + pool + fc (transB) + matmul with a bias, and an LSTM; returns the weights."""
    rng = np.random.default_rng(5)
    shapes = {"W": (4, 4, 3, 3), "B": (4,), "G": (6, 4), "M": (6, 5), "b": (5,)}
    shapes |= {"LW": (1, 12, 3), "LR": (1, 12, 3), "LB": (1, 24)}
    w = {k: rng.normal(0, 0.05, s).astype(np.float32) for k, s in shapes.items()}
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "W", "B"], ["c"], name="conv", kernel_shape=[3, 3]),
        node("AveragePool", ["c"], ["p"], name="pool", kernel_shape=[4, 4]),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("Gemm", ["f", "G"], ["g"], name="fc", transB=1),
        node("MatMul", ["g", "M"], ["m"], name="mm"),
        node("Add", ["m", "b"], ["y"], name="add"),
        node(
            "LSTM",
            ["s", "LW", "LR", "LB", "", "h0", "c0"],
            ["Y", "Yh", "Yc"],
            name="rnn",
            hidden_size=3,
        ),
    ]

    def value(name: str, *dims: int):
        return helper.make_tensor_value_info(name, T.FLOAT, dims)

    inputs = [value("x", 1, 4, 6, 6), value("s", 2, 1, 3), value("h0", 1, 1, 3)]
    outputs = [value("y", 1, 5), value("Y", 2, 1, 1, 3), value("Yh", 1, 1, 3), value("Yc", 1, 1, 3)]
    graph = helper.make_graph(
        nodes,
        "g",
        [*inputs, value("c0", 1, 1, 3)],
        outputs,
        [numpy_helper.from_array(a, k) for k, a in w.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return w


@pytest.fixture(scope="module")
def written(quantfold, tmp_path_factory):
    """The folder, the weights, and both models by name."""
    folder = tmp_path_factory.mktemp("formats")
    weights = make_model(folder / "float.onnx")
    (folder / "r.txt").write_text(RECORD)
    quantfold.export(folder / "float.onnx", folder / "r.txt", folder / "m")
    models = {t: onnx.load(folder / f"m_{t}_model.onnx") for t in ("deploy", "fake_quant")}
    return folder, weights, models


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes by name."""
    return {n.name: n for n in model.graph.node}


def tensors_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers by name."""
    return {t.name: t for t in model.graph.initializer}


def attributes(node: onnx.NodeProto) -> dict:
    """Values of a node's attributes."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_ascend_quant(written):
    """Attributes in the order and of the types of the table; where it stands, what it is called."""
    nodes = nodes_of(written[2]["deploy"])
    told = [(codes(row[0])[0], row[1]) for row in table(section("deploy.md", "AscendQuant"))]
    for layer in ("conv", "pool", "fc", "mm"):
        quant = nodes[f"{layer}.quant"]
        assert [(a.name, TYPES[a.type]) for a in quant.attribute] == told
        assert quant.output[0] == f"{layer}.quant.output0" == nodes[layer].input[0]
    a = attributes(nodes["conv.quant"])
    assert a["scale"] == np.float32(1) / np.float32(0.0123) and a["offset"] == -3
    assert a["dst_type"] == b"INT8" and attributes(nodes["mm.quant"])["dst_type"] == b"INT16"


def test_dequant_parameter(written, quantfold):
    """The bits of the table, and both examples of the text."""
    folder, _, models = written
    param = tensors_of(models["deploy"])["conv.dequant.param"]
    assert param.data_type == T.UINT64 and list(param.dims) == [4] and len(param.uint64_data) == 4
    text = section("deploy.md", "AscendDequant")
    plain, truncated = (int(value, 16) for value in re.findall(r"0x[0-9a-f]{16}\b", text))
    assert param.uint64_data[0] == plain
    product = np.float32(0.011) * np.float32(0.0123)
    assert plain == int(product.view(np.uint32))

    mode = RECORD.replace(
        'wts_type: "INT8" }', 'wts_type: "INT8" fakequant_precision_mode: "FORCE_FP16_QUANT" }'
    )
    (folder / "mode.txt").write_text(mode)
    quantfold.export(folder / "float.onnx", folder / "mode.txt", folder / "mode")
    forced = tensors_of(onnx.load(folder / "mode_deploy_model.onnx"))["conv.dequant.param"]
    assert forced.uint64_data[0] == truncated == plain & ~0x1FFF
    node = nodes_of(models["deploy"])["conv.dequant"]
    assert list(node.input)[1] == param.name and attributes(node) == {"dtype": 0}
    assert node.output[0] == "conv.dequant.output0"


def test_graph_outputs(written):
    """The last node takes the output's name; the tensor behind the layer gets its node's."""
    nodes = nodes_of(written[2]["deploy"])
    assert nodes["mm.dequant"].output[0] == "y"
    assert nodes["mm.dequant"].input[0] == nodes["add"].output[0] == "add_output0"


def test_weights_and_bias(written):
    """The arithmetic and the layouts of the text."""
    _, w, models = written
    t = tensors_of(models["deploy"])
    scales = np.float32([0.011, 0.012, 0.013, 0.014])
    q = np.clip(np.rint(w["W"] / scales.reshape(4, 1, 1, 1)), -128, 127).astype(np.int8)
    assert t["W"].data_type == T.INT8 and t["W"].raw_data == q.tobytes()
    b = np.rint(w["B"] / (scales * np.float32(0.0123))).astype(np.int32)
    assert t["B"].data_type == T.INT32 and list(t["B"].int32_data) == list(b)
    # transB: stored as [K, N]; INT4 from wts_type: pairs of rows, half as many bytes
    columns = np.float32([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    q = np.clip(np.rint(w["G"].T / columns), -8, 7).astype(np.int8)
    packed = (q[0::2] & 15) | (q[1::2] << 4)
    assert list(t["G"].dims) == [2, 6] and t["G"].raw_data == packed.astype(np.int8).tobytes()
    assert attributes(nodes_of(models["deploy"])["fc"])["transB"] == 0
    # the Add behind a MatMul holds its bias
    assert t["b"].data_type == T.INT32


def test_native_int4(written, quantfold):
    """INT4 from dst_type: ONNX's own type, in the order of storage."""
    folder, w, _ = written
    text = RECORD.replace('act_type: "INT8" wts_type: "INT4"', 'dst_type: "INT4"')
    (folder / "native.txt").write_text(text)
    quantfold.export(folder / "float.onnx", folder / "native.txt", folder / "n")
    t = tensors_of(onnx.load(folder / "n_deploy_model.onnx"))["G"]
    columns = np.float32([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    q = np.clip(np.rint(w["G"].T / columns), -8, 7).astype(np.int8).ravel()
    assert t.data_type == T.INT4 and list(t.dims) == [4, 6]
    assert t.raw_data == ((q[0::2] & 15) | (q[1::2] << 4)).astype(np.int8).tobytes()


def test_lstm(written):
    """Inputs, attributes and the parameter of the replaced node."""
    nodes, t = nodes_of(written[2]["deploy"]), tensors_of(written[2]["deploy"])
    text = section("deploy.md", "LSTM and GRU")
    row = table(text)[0]
    assert nodes["rnn"].op_type == codes(row[0])[0]
    roles = [role.strip(' `"') for role in row[1].split(",")]
    names = {"X": "s", "W": "LW", "R": "LR", "initial_h": "h0", "initial_c": "c0", "B": "LB"}
    names |= {"sequence_lens": "", "": "", "<layer>.dequant.param": "rnn.dequant.param"}
    assert list(nodes["rnn"].input) == [names[role] for role in roles]
    told = {code: kind for row in table(text, 1) for code in codes(row[0]) for kind in [row[1]]}
    types = {a.name: TYPES[a.type] for a in nodes["rnn"].attribute}
    defaults = re.findall(r"`(\w+)`", text.partition("defaults ")[2].partition("; and\n")[0])
    defaults = [d for d in defaults if d != "linear_before_reset"]  # of the GRU
    assert set(types) == {"hidden_size", *defaults, *told}
    assert {name: types[name] for name in told} == told
    a = attributes(nodes["rnn"])
    assert (a["quant_scale_x"], a["quant_offset_x"]) == (4, 4) and a["quant_dtype"] == 2
    assert (a["quant_scale_h"], a["quant_offset_h"]) == (8, -5) and a["clip"] == -1
    first = np.float32([0.01, 0.02, 0.03, 0.04]) * np.float32(0.25)
    second = np.float32([0.05, 0.06, 0.07, 0.08]) * np.float32(0.125)
    bits = np.concatenate([first, second]).view(np.uint32)
    assert list(t["rnn.dequant.param"].uint64_data) == [int(v) for v in bits]


def test_balance(written):
    """1 / factor in front of the AscendQuant."""
    nodes = nodes_of(written[2]["deploy"])
    constant = nodes["conv.tensor_balance_factor"].attribute[0].t
    assert list(constant.dims) == [1, 4, 1, 1] and list(constant.float_data) == [1, 0.5, 2, 1]
    assert nodes["conv.quant"].input[0] == nodes["conv.mul"].output[0] == "conv.mul.output0"


def test_fake_quant_parts(written):
    """Every node of the expansion is in the table, and nothing else is."""
    nodes = nodes_of(written[2]["fake_quant"])
    rows = table(section("fake_quant.md", "AscendQuant becomes"))
    steps = [codes(row[0])[0] for row in rows]
    constants = [c for row in rows for c in codes(row[2])[0::2]]
    ours = [name.rpartition(".")[2] for name in nodes if name.startswith("conv.quant.fakequant.")]
    assert sorted(ours) == sorted(steps + constants)
    for row in rows:
        name = f"conv.quant.fakequant.{codes(row[0])[0]}"
        assert nodes[name].op_type == codes(row[1])[0].partition("(")[0]
        assert nodes[name].output[0] == f"{name}.output0"
    for name in constants:
        value = nodes[f"conv.quant.fakequant.{name}"].attribute[0].t
        assert not value.dims and len(value.float_data) == 1
    for state in ("quant", "quant1"):
        assert f"rnn.{state}.fakequant.mul" in nodes
        assert f"rnn.anti_{state}.fake_antiquant.mul" in nodes


def test_fake_quant_dequant(written):
    """Dims of dqscale by layer."""
    nodes = nodes_of(written[2]["fake_quant"])
    dims = {
        name: list(nodes[f"{name}.fakedequant.dqscale"].attribute[0].t.dims)
        for name in ("conv", "pool", "fc", "mm")
    }
    assert dims == {"conv": [1, 4, 1, 1], "pool": [1, 1], "fc": [1, 6], "mm": [1, 1]}
    assert nodes["mm.fakedequant.mul"].output[0] == "y"


def test_fake_quant_values(written):
    """Weights hold the deploy model's integers, LSTM weights the dequantized ones; it runs."""
    folder, w, models = written
    deploy, fake = tensors_of(models["deploy"]), tensors_of(models["fake_quant"])
    assert list(fake["W"].float_data) == list(np.frombuffer(deploy["W"].raw_data, np.int8))
    assert list(fake["B"].float_data) == list(deploy["B"].int32_data)
    q = np.frombuffer(deploy["LW"].raw_data, np.int8).reshape(4, -1).astype(np.float32)
    scaled = q * np.float32([0.01, 0.02, 0.03, 0.04]).reshape(4, 1)
    assert list(fake["LW"].float_data) == [float(v) for v in scaled.ravel()]
    path = folder / "m_fake_quant_model.onnx"
    onnx.checker.check_model(str(path))
    shapes = {"x": (1, 4, 6, 6), "s": (2, 1, 3), "h0": (1, 1, 3), "c0": (1, 1, 3)}
    results = run_model(path, {k: np.full(s, 0.3, np.float32) for k, s in shapes.items()})
    assert all(np.isfinite(r).all() for r in results)
    assert w["W"].shape == (4, 4, 3, 3)


def proto_fields(message: str) -> dict[str, tuple[str, str]]:
    """Number and type of the fields of a message of record.proto."""
    text = (REPO / "src" / "proto" / "record.proto").read_text()
    body = re.search(rf"^message {message} \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)[1]
    found = {}
    for label, kind, name, number in re.findall(
        r"^    (\w+) (\w+) (\w+) = (\d+);", body, re.MULTILINE
    ):
        found[name] = (number, f"repeated {kind}" if label == "repeated" else kind)
    return found


def test_record_fields():
    """Names, numbers and types are those of the proto file."""
    text = section("record.md", "Messages")
    told: dict[str, dict[str, tuple[str, str]]] = {}
    message = ""
    for row in table(text):
        message = (codes(row[0]) or [message])[0]
        told.setdefault(message, {})[codes(row[1])[0]] = (row[2], row[3].replace("`", ""))
    for row in table(text, 1):
        names, numbers, types = codes(row[0]), row[1].split(", "), row[2].split(", ")
        if len(names) == 2 and types[0].startswith("repeated"):
            types[1] = f"repeated {types[1]}"
        for name, number, kind in zip(names, numbers, types, strict=True):
            told.setdefault("SingleLayerRecord", {})[name] = (number, kind)
    assert set(told) == {"ScaleOffsetRecord", "MapFiledEntry", "SingleLayerRecord"}
    for name, fields in told.items():
        assert fields == proto_fields(name), name


def check_record(quantfold, folder: Path, text: str) -> tuple[int, str]:
    """Exit code and messages of a check with a record."""
    (folder / "changed.txt").write_text(text)
    run = quantfold("check", "--model", folder / "float.onnx", "--record", folder / "changed.txt")
    return run.code, run.err


def test_record_types(written, quantfold):
    """Each listed word of a type is taken, others are not."""
    folder = written[0]
    rows = {codes(r[0])[0]: r for r in table(section("record.md", "Messages"), 1)}
    base = "scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0"
    for field in ("dst_type", "act_type", "wts_type", "fakequant_precision_mode"):
        words = codes(rows[field][4])
        assert len(words) >= 2
        for word in ["INT4", "INT6", "INT7", "INT8", "INT16", "DEFAULT", "FORCE_FP16_QUANT"]:
            text = f'record {{ key: "fc" value {{ {base} {field}: "{word}" }} }}'
            code, said = check_record(quantfold, folder, text)
            assert (code == 0) == (word in words), f"{field} {word}: {said}"


def test_record_syntax_and_keys(written, quantfold):
    """What the text says of the format, of keys and of entries without effect."""
    folder = written[0]
    fine = "scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0"
    entry = f'record {{ key: "fc" value {{ {fine} }} }}'
    for text, code, message in (
        (f'# note\nrecord < key: "fc"; value < {fine.replace(" scale_w", ", scale_w")} > >', 0, ""),
        (f'record {{ key: "G" value {{ {fine} }} }}', 1, "no node has this name"),
        (f'record {{ key: "fc" value {{ {fine} scales: 1 }} }}', 1, "scales"),
        (f'record {{ key: "fc" value {{ {fine} shift_bit: 1 }} }}', 1, "shift_bit"),
        (f'record {{ key: "fc" value {{ scale_d: 0.5 {fine} }} }}', 0, "the last value counts"),
        (entry + entry, 0, "two records"),
        (entry + f'record {{ key: "fc:0" value {{ {fine} }} }}', 0, "tensor record"),
        (entry + 'record { key: "mm" value { } }', 0, "stays float"),
        (entry + 'record { key: "mm" kv_cache_value { scale: 1 } }', 1, "kv_cache_value alone"),
        (entry + 'prune_record { producer { name: "fc" } }', 0, ""),
        ('prune_record { producer { name: "fc" } }', 1, "empty"),
    ):
        got, said = check_record(quantfold, folder, text)
        assert got == code and message in said, f"{text}: {got}, {said}"


def config_with(path: tuple[str, ...], value) -> str:
    """A config that is right but for one key."""
    layer = {"retrain_enable": True, "retrain_data_config": {}, "retrain_weight_config": {}}
    config = {"version": 1, "batch_num": 1, "conv": layer}
    place = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(config)


def config_keys() -> dict[tuple[str, ...], list[str]]:
    """The keys of config.md as paths, with the row of each."""
    text = (FORMATS / "config.md").read_text()
    found = {(codes(r[0])[0],): r for r in table(text) if codes(r[0])}
    part = ""
    for row in table(text, 1):
        for code in codes(row[0]):
            part = part if code.startswith(".") else code
            inner = (part, code[1:]) if code.startswith(".") else (code,)
            found[("conv", *inner)] = row
    return found


def test_config_keys_and_words(written, quantfold):
    """Each key is known, each word is taken, and a value of a wrong kind is refused by name."""
    folder = written[0]

    def check(text: str) -> tuple[int, str]:
        (folder / "c.json").write_text(text)
        model, record = folder / "float.onnx", folder / "r.txt"
        run = quantfold(
            "check", "--model", model, "--record", record, "--config", folder / "c.json"
        )
        return run.code, run.err

    keys = config_keys()
    assert len(keys) >= 14
    for path, row in keys.items():
        code, said = check(config_with(path, ["wrong"]))
        assert code == 1 and path[-1] in said, f"{path}: {said}"
        if row[1] == "string":
            for word in codes(row[2]):
                said = check(config_with(path, word))[1]
                assert f"{path[-1]} must be" not in said, f"{path} {word}: {said}"
    for inner in ("retrain_data_config", "retrain_weight_config"):
        assert check(config_with(("conv", inner, "extra"), 1))[0] == 1
    code, said = check(config_with(("conv", "extra"), 1))
    assert code == 0 and "extra" in said
    pairs = re.search(r"together: (.*?)\.", (FORMATS / "config.md").read_text())[1]
    for act in (4, 8, 16):
        for wts in (4, 8, 16):
            layer = {
                "retrain_data_config": {"dst_type": f"INT{act}"},
                "retrain_weight_config": {"dst_type": f"INT{wts}"},
            }
            text = json.dumps({"version": 1, "batch_num": 1, "conv": layer})
            assert (check(text)[0] == 0) == (f"A{act}W{wts}" in pairs), (act, wts)


def test_short_definition():
    """The table has the fields that the Python package describes, of every message."""
    tree = ast.parse((REPO / "python" / "quantfold" / "torch" / "config.py").read_text())
    values = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    messages = ast.literal_eval(values["_MESSAGES"])
    told: dict[str, dict[str, str]] = {}
    name = ""
    for row in table(section("config.md", "The short definition")):
        name = (codes(row[0]) or [row[0]])[0] or name
        for field in codes(row[1]):
            told.setdefault(name.replace("the whole", "Definition"), {})[field] = row[2]
            if field == "clip_max_min":
                told["Clips"] = {code: "float" for code in codes(row[2])[1:]}
    assert {name: set(fields) for name, fields in told.items()} == {
        name: set(fields) for name, fields in messages.items()
    }
    for name, fields in messages.items():
        for field, kind in fields.items():
            assert kind.startswith("*") == told[name][field].startswith("repeated"), (name, field)
            if kind.strip("*")[0].islower():
                assert kind.strip("*") in told[name][field], (name, field)
