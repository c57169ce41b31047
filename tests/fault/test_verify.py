# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on outputs that are spoilt in one place each.

A corruption says which checks must find it and what a message must name. Each is looked at twice:
by itself, and with a manifest and the inputs of the export; what is found in the second run is the
table that `pytest -s -k table` prints and docs/verify.md shows.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import Net, conv, gemm
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper

import make_large
import make_record
import mutate_verify
from support import DEPLOY, FAKE

OWN = {"structure", "agreement"}  # checks that need nothing but the output
EVERY = OWN | {"manifest", "against"}
SEEDS = [0, 1]


# ---- outputs to spoil ----------------------------------------------------------------------------


def plain_net() -> Net:
    net = Net()
    y = net.input("x", normal(2, 4, 6, 6))
    y = conv(net, y, normal(6, 4, 3, 3, seed=1, scale=0.3), normal(6, seed=2), name="c")
    y = net.op("Relu", [y], "r")
    y = conv(net, y, normal(8, 6, 3, 3, seed=3, scale=0.3), normal(8, seed=4), name="d")
    y = net.op("Add", [y, net.weight("shift", normal(1, 8, 1, 1, seed=5))], "move")
    y = net.op("Flatten", [y], "flat")
    y = gemm(net, y, normal(20, 288, seed=6, scale=0.1), normal(20, seed=7), transB=1)
    y = net.op("MatMul", [y, net.weight("m.weight", normal(20, 12, seed=8))], "m")
    y = net.op("Add", [y, net.weight("m.bias", normal(12, seed=9))], "m_add")
    net.output(net.op("Relu", [y], "last", "y"))
    net.feeds.pop("z", None)
    return net


def plain_record() -> str:
    channels = [0.007 + i / 1000 for i in range(8)]
    return make_record.record_text(
        [
            make_record.Record("c", 0.03, -5, channels[:6], "INT8", "INT8"),
            make_record.Record("d", 0.04, -128, [8 * s for s in channels], "INT8", "INT4"),
            make_record.Record("g", 0.05, 3, [0.004], "INT16", "INT8"),
            make_record.Record("m", 0.06, -7, [0.02], "INT8", "INT8"),
        ]
    )


def rnn_net() -> Net:
    net = Net()
    x = net.input("x", normal(5, 2, 6))
    h, c = net.input("h", normal(1, 2, 8)), net.input("c", normal(1, 2, 8))
    w = net.weight("W", normal(1, 32, 6, seed=1, scale=0.3))
    r = net.weight("R", normal(1, 32, 8, seed=2, scale=0.3))
    b = net.weight("B", normal(1, 64, seed=3, scale=0.1))
    outputs = ["Y", "Y_h", "Y_c"]
    net.op("LSTM", [x, w, r, b, "", h, c], "lstm", outputs, hidden_size=8)
    for name in outputs:
        net.output(name)
    return net


RNN_RECORD = """record { key: "lstm" value {
  scale_d: 0.02 offset_d: 4 act_type: "INT8" wts_type: "INT8"
  scale_h: 0.015 offset_h: -3
  scale_w: [0.01, 0.011, 0.012, 0.013] offset_w: [0, 0, 0, 0]
  scale_r: [0.009, 0.0095, 0.0105, 0.014] offset_r: [0, 0, 0, 0]
} }
"""

KINDS = {
    "plain": [],
    "external": ["--external", "always"],
    "single": ["--external", "always", "--external-layout", "single"],
    "int8": ["--fake-quant-weights", "int8"],
    "rnn": [],
    "rnn_int8": ["--fake-quant-weights", "int8"],
}


@dataclass
class Output:
    """An export: inputs beside the folder that it wrote."""

    folder: Path
    model: Path
    record: Path


@pytest.fixture(scope="module")
def outputs(quantfold, tmp_path_factory) -> dict[str, Output]:
    """One sound export of each kind."""
    made = {}
    for kind, options in KINDS.items():
        base = tmp_path_factory.mktemp(kind)
        net = rnn_net() if kind.startswith("rnn") else plain_net()
        onnx.save(net.model(), str(base / "model.onnx"))
        (base / "record.txt").write_text(RNN_RECORD if kind.startswith("rnn") else plain_record())
        out = Output(base / "out", base / "model.onnx", base / "record.txt")
        quantfold.export(out.model, out.record, out.folder / "m", "--manifest", *options)
        made[kind] = out
    return made


def verify(quantfold, prefix: Path, *args, code: int = 1) -> dict:
    """The JSON of a run; it must have ended as it says, with `code` if it is not well."""
    result = quantfold("verify", prefix, "--json", *args)
    found = json.loads(result.out)
    assert result.code == (0 if found["ok"] else code), result.err
    return found


def errors(found: dict) -> list[dict]:
    return [f for f in found["findings"] if f["severity"] == "error"]


# ---- ways to spoil them --------------------------------------------------------------------------


class Spoiler:
    """A copy of an output, and how to change it."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng

    def edit(self, which: str, change: Callable[[onnx.ModelProto], None]) -> None:
        path = self.folder / which
        model = onnx.load(str(path), load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())

    def tensor(self, which: str, name: str, change: Callable[[TensorProto], None]) -> None:
        """Changes an initializer, or the tensor of a Constant node of that name."""

        def work(model):
            found = [t for t in model.graph.initializer if t.name == name]
            found += [n.attribute[0].t for n in model.graph.node if n.name == name]
            change(found[0])

        self.edit(which, work)

    def node(self, which: str, name: str, change: Callable) -> None:
        self.edit(which, lambda m: change(next(n for n in m.graph.node if n.name == name)))

    def values(self, which: str, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Changes a tensor's elements, whatever field they are in."""

        def work(t: TensorProto):
            array = numpy_helper.to_array(t).copy()
            change(array.reshape(-1))
            kept = numpy_helper.from_array(array, t.name)
            if t.HasField("raw_data"):
                t.raw_data = kept.raw_data
            else:
                field = {"f": "float_data", "i": "int32_data", "u": "uint64_data"}[array.dtype.kind]
                del getattr(t, field)[:]
                getattr(t, field).extend(array.reshape(-1).tolist())

        self.tensor(which, name, work)

    def flip(self, which: str, name: str) -> None:
        """One bit of one element."""

        def work(flat: np.ndarray):
            raw = flat.view(np.uint8)
            raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)

        self.values(which, name, work)

    def attribute(self, which: str, node: str, name: str, **fields) -> None:
        def work(n):
            a = next(a for a in n.attribute if a.name == name)
            for field, value in fields.items():
                setattr(a, field, value)

        self.node(which, node, work)

    def bytes(self, name: str, change: Callable[[bytearray], None]) -> None:
        data = bytearray((self.folder / name).read_bytes())
        change(data)
        (self.folder / name).write_bytes(bytes(data))

    def flip_byte(self, name: str) -> None:
        def work(data):
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)

        self.bytes(name, work)

    def manifest(self, change: Callable[[dict], None]) -> None:
        path = self.folder / "m.manifest.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))


@dataclass
class Corruption:
    """What is done, which checks must find it, and what a message of theirs must name."""

    spoil: Callable[[Spoiler], None]
    checks: set[str]
    names: str
    kind: str = "plain"


def set_first(value):
    def work(flat):
        flat[0] = value

    return work


def add_first(value):
    def work(flat):
        flat[0] += value

    return work


def swap_files(s: Spoiler) -> None:
    a, b = s.folder / "c.weight_deploy.external", s.folder / "d.weight_deploy.external"
    b = s.folder / "g.weight_deploy.external" if not (a.exists() and b.exists()) else b
    names = sorted(p for p in s.folder.glob("*_fakequant.external"))
    assert len(names) >= 2
    one, two = names[0].read_bytes(), names[1].read_bytes()
    names[0].write_bytes(two)
    names[1].write_bytes(one)


def first_external(s: Spoiler) -> str:
    return sorted(p.name for p in s.folder.glob("*_fakequant.external"))[0]


def both(change: Callable[[Spoiler, str], None]) -> Callable[[Spoiler], None]:
    def work(s: Spoiler):
        for which in (DEPLOY, FAKE):
            change(s, which)

    return work


def rename_input(which: str, node: str, at: int, name: str):
    def change(n):
        n.input[at] = name

    return lambda s: s.node(which, node, change)


def remove_dequant(model: onnx.ModelProto) -> None:
    """Those that read the AscendDequant read the layer."""
    gone = next(n for n in model.graph.node if n.name == "c.dequant")
    for n in model.graph.node:
        for i, name in enumerate(n.input):
            if name == gone.output[0]:
                n.input[i] = gone.input[0]
    model.graph.node.remove(gone)


def swap_inputs(n) -> None:
    n.input[0], n.input[1] = n.input[1], n.input[0]


def setter(**fields):
    def work(target):
        for name, value in fields.items():
            setattr(target, name, value)

    return work


def add_attribute(name: str, value):
    return lambda n: n.attribute.append(helper.make_attribute(name, value))


def declare(name: str, kind: int, dims: list[int]):
    """An entry of the deploy model's value_info."""
    info = helper.make_tensor_value_info(name, kind, dims)
    return lambda s: s.edit(DEPLOY, lambda m: m.graph.value_info.append(info))


def make_cycle(model: onnx.ModelProto) -> None:
    nodes = {n.name: n for n in model.graph.node}
    nodes["r"].input[0] = nodes["last"].output[0]


def rename_initializer(model: onnx.ModelProto) -> None:
    for t in model.graph.initializer:
        if t.name == "shift":
            t.name = "drift"
    for n in model.graph.node:
        for i, name in enumerate(n.input):
            if name == "shift":
                n.input[i] = "drift"


def change_dims(t: TensorProto) -> None:
    t.dims[0], t.dims[1] = t.dims[1], t.dims[0]


def wrong_hash(document: dict) -> None:
    part = document["files"][0]["parts"][0]
    part["hash"] = ("0" if part["hash"][0] != "0" else "1") + part["hash"][1:]


def forget_file(document: dict) -> None:
    document["files"].pop(0)


def escape(document: dict) -> None:
    document["files"][0]["name"] = "../../../etc/passwd"


def set_external(key: str, value: str):
    def work(t: TensorProto):
        next(e for e in t.external_data if e.key == key).value = value

    return work


def external_entry(which: str, key: str, value: str):
    def work(s: Spoiler):
        def change(model):
            t = next(t for t in model.graph.initializer if t.data_location)
            set_external(key, value)(t)

        s.edit(which, change)

    return work


def pad_single(s: Spoiler) -> None:
    """A byte between two tensors."""
    files = json.loads((s.folder / "m.manifest.json").read_text())["files"]
    parts = next(f for f in files if f["name"] == "m_fake_quant_model.external")["parts"]
    gaps = [
        at for a, b in zip(parts, parts[1:]) for at in range(a["offset"] + a["bytes"], b["offset"])
    ]
    at = s.rng.choice(gaps)
    s.bytes("m_fake_quant_model.external", lambda d: d.__setitem__(at, 1))


def more_scales(t: TensorProto) -> None:
    t.dims[0] += 1
    t.uint64_data.append(t.uint64_data[0])


ALL = EVERY
PAYLOAD = {"agreement", "manifest", "against"}
STRUCTURAL = {"structure", "manifest", "against"}

CORRUPTIONS = {
    # numbers
    "bit of int8 weight": Corruption(lambda s: s.flip(DEPLOY, "c.weight"), PAYLOAD, "c.weight"),
    "bit of packed int4 weight": Corruption(
        lambda s: s.flip(DEPLOY, "d.weight"), PAYLOAD, "d.weight"
    ),
    "bit of float weight": Corruption(lambda s: s.flip(FAKE, "g.weight"), PAYLOAD, "g.weight"),
    "bit of float form of int4 weight": Corruption(
        lambda s: s.flip(FAKE, "d.weight"), PAYLOAD, "d.weight"
    ),
    "float weight no integer": Corruption(
        lambda s: s.values(FAKE, "c.weight", set_first(2.5)), PAYLOAD | {"structure"}, "c.weight"
    ),
    "float weight out of range": Corruption(
        lambda s: s.values(FAKE, "c.weight", set_first(300)), PAYLOAD | {"structure"}, "c.weight"
    ),
    "sign of a zero": Corruption(
        lambda s: s.values(
            FAKE, "m.weight", lambda f: f.__setitem__(int(np.argmin(np.abs(f))), -0.0)
        ),
        PAYLOAD,
        "m.weight",
    ),
    "bit of int32 bias": Corruption(lambda s: s.flip(DEPLOY, "c.bias"), PAYLOAD, "c.bias"),
    "bias behind MatMul": Corruption(
        lambda s: s.values(DEPLOY, "m.bias", add_first(1)), PAYLOAD, "m.bias"
    ),
    "bit of float bias": Corruption(lambda s: s.flip(FAKE, "g.bias"), PAYLOAD, "g.bias"),
    "same change in both weights": Corruption(
        both(lambda s, w: s.values(w, "c.weight", set_first(1))),
        {"manifest", "against"},
        "c.weight",
    ),
    "same change in both biases": Corruption(
        both(lambda s, w: s.values(w, "g.bias", set_first(12345))),
        {"manifest", "against"},
        "g.bias",
    ),
    "scale of AscendQuant": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "scale", f=33.0), PAYLOAD, "c.quant"
    ),
    "scale of AscendQuant negative": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "scale", f=-33.0), ALL, "c.quant"
    ),
    "scale of AscendQuant infinite": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "scale", f=float("inf")), ALL, "c.quant"
    ),
    "offset of AscendQuant": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "offset", f=-6.0), PAYLOAD, "c.quant"
    ),
    "offset out of range": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "offset", f=128.0), ALL, "c.quant"
    ),
    "offset no integer": Corruption(
        lambda s: s.attribute(DEPLOY, "d.quant", "offset", f=0.5), ALL, "d.quant"
    ),
    "offset in fake_quant": Corruption(
        lambda s: s.values(FAKE, "c.quant.fakequant.offset", add_first(1)),
        PAYLOAD,
        "c.quant.fakequant",
    ),
    "scale in fake_quant": Corruption(
        lambda s: s.flip(FAKE, "g.quant.fakequant.scale"), PAYLOAD, "g.quant.fakequant"
    ),
    "upper bound in fake_quant": Corruption(
        lambda s: s.values(FAKE, "c.quant.fakequant.max_val", set_first(126)),
        ALL,
        "c.quant.fakequant",
    ),
    "dst_type": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "dst_type", s=b"INT4"), ALL, "c.quant"
    ),
    "dst_type unknown": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "dst_type", s=b"INT7"), ALL, "c.quant"
    ),
    "low bits of dequant parameter": Corruption(
        lambda s: s.values(DEPLOY, "c.dequant.param", lambda f: f.__setitem__(2, f[2] ^ 1)),
        PAYLOAD,
        "c.dequant.param",
    ),
    "high bits of dequant parameter": Corruption(
        lambda s: s.values(
            DEPLOY, "c.dequant.param", lambda f: f.__setitem__(1, f[1] | np.uint64(1 << 40))
        ),
        STRUCTURAL,
        "c.dequant.param",
    ),
    "dqscale": Corruption(
        lambda s: s.flip(FAKE, "c.fakedequant.dqscale"), PAYLOAD, "c.fakedequant"
    ),
    "dqscale zero": Corruption(
        lambda s: s.values(FAKE, "c.fakedequant.dqscale", set_first(0)), ALL, "c.fakedequant"
    ),
    "one scale too many": Corruption(
        lambda s: s.tensor(DEPLOY, "c.dequant.param", more_scales), ALL, "c.dequant"
    ),
    "dims of dqscale": Corruption(
        lambda s: s.tensor(FAKE, "c.fakedequant.dqscale", lambda t: t.dims.pop()),
        STRUCTURAL,
        "c.fakedequant.mul",
    ),
    "input too many": Corruption(
        lambda s: s.node(FAKE, "c.quant.fakequant.sub", lambda n: n.input.append("x")),
        STRUCTURAL,
        "c.quant.fakequant",
    ),
    "data in two fields": Corruption(
        lambda s: s.tensor(FAKE, "c.fakedequant.dqscale", setter(raw_data=b"")),
        STRUCTURAL,
        "several fields",
    ),
    "type of a Constant": Corruption(
        lambda s: s.attribute(FAKE, "c.quant.fakequant.scale", "value", type=1),
        STRUCTURAL,
        "c.quant.fakequant",
    ),
    "initializer that is not quantized": Corruption(
        lambda s: s.flip(DEPLOY, "shift"), PAYLOAD, "shift"
    ),
    # types and shapes
    "weight dtype": Corruption(
        lambda s: s.tensor(DEPLOY, "c.weight", setter(data_type=TensorProto.UINT8)), ALL, "c.weight"
    ),
    "bias dtype": Corruption(
        lambda s: s.tensor(DEPLOY, "g.bias", setter(data_type=TensorProto.FLOAT)),
        STRUCTURAL,
        "g.bias",
    ),
    "parameter dtype": Corruption(
        lambda s: s.tensor(DEPLOY, "c.dequant.param", setter(data_type=TensorProto.INT64)),
        STRUCTURAL,
        "c.dequant.param",
    ),
    "weight dims": Corruption(lambda s: s.tensor(DEPLOY, "c.weight", change_dims), ALL, "c.weight"),
    "packed weight dims": Corruption(
        lambda s: s.tensor(DEPLOY, "d.weight", change_dims), ALL, "d.weight"
    ),
    "dims larger than the data": Corruption(
        lambda s: s.tensor(DEPLOY, "shift", lambda t: t.dims.__setitem__(1, 9)),
        STRUCTURAL,
        "shift",
    ),
    "attribute type": Corruption(
        lambda s: s.attribute(DEPLOY, "c.quant", "scale", type=onnx.AttributeProto.INT),
        STRUCTURAL,
        "c.quant",
    ),
    "attribute missing": Corruption(
        lambda s: s.node(DEPLOY, "c.dequant", lambda n: n.ClearField("attribute")),
        STRUCTURAL,
        "c.dequant",
    ),
    "attribute unknown": Corruption(
        lambda s: s.node(
            DEPLOY, "c.quant", lambda n: n.attribute.append(helper.make_attribute("axis", 1))
        ),
        STRUCTURAL,
        "c.quant",
    ),
    "dtype of AscendDequant": Corruption(
        lambda s: s.attribute(DEPLOY, "c.dequant", "dtype", i=1), STRUCTURAL, "c.dequant"
    ),
    # nodes and links
    "AscendDequant removed": Corruption(lambda s: s.edit(DEPLOY, remove_dequant), ALL, "c"),
    "node renamed": Corruption(
        lambda s: s.node(DEPLOY, "r", setter(name="rr")), {"agreement", "manifest", "against"}, "r"
    ),
    "AscendQuant renamed": Corruption(
        lambda s: s.node(DEPLOY, "c.quant", setter(name="cc.quant")), STRUCTURAL, "cc.quant"
    ),
    "AscendDequant renamed": Corruption(
        lambda s: s.node(DEPLOY, "d.dequant", setter(name="dd.dequant")), ALL, "dd.dequant"
    ),
    "node of the expansion renamed": Corruption(
        lambda s: s.node(FAKE, "c.quant.fakequant.round", setter(name="c.quant.round")),
        STRUCTURAL,
        "c.quant.fakequant",
    ),
    "name twice": Corruption(lambda s: s.node(DEPLOY, "r", setter(name="c")), ALL, "c"),
    "op_type": Corruption(lambda s: s.node(DEPLOY, "r", setter(op_type="Tanh")), PAYLOAD, "r"),
    "domain": Corruption(
        lambda s: s.node(DEPLOY, "c.quant", setter(domain="ascend")), STRUCTURAL, "c.quant"
    ),
    "inputs swapped": Corruption(lambda s: s.node(DEPLOY, "d", swap_inputs), ALL, "d"),
    "inputs of an Add swapped": Corruption(
        lambda s: s.node(FAKE, "move", swap_inputs), PAYLOAD, "move"
    ),
    "input of nothing": Corruption(rename_input(DEPLOY, "r", 0, "nowhere"), ALL, "nowhere"),
    "tensor made twice": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        STRUCTURAL,
        "defined twice",
    ),
    "cycle": Corruption(lambda s: s.edit(DEPLOY, make_cycle), STRUCTURAL - {"against"}, "cycle"),
    "order of the nodes": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: m.graph.node.append(m.graph.node.pop(1))),
        STRUCTURAL,
        "before it is made",
    ),
    "perm or strides in one model": Corruption(
        lambda s: s.node(
            DEPLOY,
            "d",
            lambda n: next(a for a in n.attribute if a.name == "strides").ints.__setitem__(0, 2),
        ),
        PAYLOAD,
        "strides",
    ),
    "group": Corruption(lambda s: s.attribute(DEPLOY, "d", "group", i=2), PAYLOAD, "group"),
    "graph output renamed": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: setter(name="z")(m.graph.output[0])), ALL, "z"
    ),
    "graph output of another type": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: setter(elem_type=7)(m.graph.output[0].type.tensor_type)),
        PAYLOAD,
        "y",
    ),
    "graph input missing": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: m.graph.input.pop()), ALL, "x"
    ),
    "initializer renamed": Corruption(
        lambda s: s.edit(DEPLOY, rename_initializer), PAYLOAD, "shift"
    ),
    "opset": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: setter(version=12)(m.opset_import[0])),
        PAYLOAD,
        "operator set",
    ),
    "opset too old in both": Corruption(
        both(lambda s, w: s.edit(w, lambda m: setter(version=5)(m.opset_import[0]))),
        STRUCTURAL,
        "operator set 5",
    ),
    "transA in both": Corruption(
        both(lambda s, w: s.node(w, "g", add_attribute("transA", 1))), STRUCTURAL, "transA"
    ),
    "float declared for integers": Corruption(
        declare("c.quant.output0", TensorProto.FLOAT, [2, 4, 6, 6]), STRUCTURAL, "c.quant.output0"
    ),
    "rank declared for integers": Corruption(
        declare("c.quant.output0", TensorProto.INT8, [2, 4]), STRUCTURAL, "c.quant.output0"
    ),
    "no opset": Corruption(
        lambda s: s.edit(DEPLOY, lambda m: m.ClearField("opset_import")), ALL, "operator set"
    ),
    "mark left over": Corruption(
        lambda s: s.node(
            DEPLOY,
            "r",
            lambda n: n.attribute.append(helper.make_attribute("op_data_type", "float32")),
        ),
        ALL,
        "op_data_type",
    ),
    "text that nobody computes with": Corruption(
        lambda s: s.edit(DEPLOY, setter(doc_string="changed")), {"manifest", "against"}, "byte"
    ),
    # files
    "model cut off": Corruption(
        lambda s: s.bytes(DEPLOY, lambda d: d.__delitem__(slice(len(d) // 2, None))),
        {"structure", "manifest"},
        DEPLOY,
    ),
    "model empty": Corruption(
        lambda s: s.bytes(DEPLOY, lambda d: d.clear()), {"structure", "manifest"}, DEPLOY
    ),
    "external files swapped": Corruption(
        swap_files, {"structure", "manifest"}, "external", "external"
    ),
    "external file cut off": Corruption(
        lambda s: s.bytes(first_external(s), lambda d: d.pop()),
        {"structure", "manifest"},
        "external",
        "external",
    ),
    "external file missing": Corruption(
        lambda s: (s.folder / first_external(s)).unlink(),
        {"structure", "manifest"},
        "external",
        "external",
    ),
    "external file longer": Corruption(
        lambda s: s.bytes(first_external(s), lambda d: d.append(0)),
        {"manifest"},
        "external",
        "external",
    ),
    "bit of an external file": Corruption(
        lambda s: s.flip_byte("g.weight_deploy.external"), PAYLOAD, "g.weight", "external"
    ),
    "bit of the single external file": Corruption(
        lambda s: s.bytes("m_deploy_model.external", lambda d: d.__setitem__(8, d[8] ^ 4)),
        PAYLOAD,
        "weight",
        "single",
    ),
    "padding between tensors": Corruption(pad_single, {"manifest"}, "between", "single"),
    "external location leaves the folder": Corruption(
        external_entry(DEPLOY, "location", "../x"), {"structure", "manifest"}, "folder", "external"
    ),
    "external offset": Corruption(
        external_entry(DEPLOY, "offset", "4"), {"structure", "manifest"}, "short", "external"
    ),
    "external length": Corruption(
        external_entry(FAKE, "length", "4"), {"structure", "manifest"}, "length", "external"
    ),
    # the compact form
    "bit of fake_quant's int8 weight": Corruption(
        lambda s: s.flip(FAKE, "c.weight"), PAYLOAD, "c.weight", "int8"
    ),
    "type of the weight's Cast": Corruption(
        lambda s: s.attribute(FAKE, "c.weight.cast", "to", i=10),
        STRUCTURAL,
        "c.weight.cast",
        "int8",
    ),
    # recurrent layers
    "bit of W": Corruption(lambda s: s.flip(DEPLOY, "W"), PAYLOAD, "W", "rnn"),
    "bit of float R": Corruption(lambda s: s.flip(FAKE, "R"), PAYLOAD, "R", "rnn"),
    "bit of R's integers in fake_quant": Corruption(
        lambda s: s.flip(FAKE, "R"), PAYLOAD, "R", "rnn_int8"
    ),
    "scale of R in fake_quant": Corruption(
        lambda s: s.values(
            FAKE, "lstm.recurrence_weight.scale", lambda f: f.__setitem__(3, f[3] * 2)
        ),
        PAYLOAD,
        "lstm.recurrence_weight",
        "rnn_int8",
    ),
    "bias of the LSTM": Corruption(
        lambda s: s.values(DEPLOY, "B", add_first(1)), PAYLOAD, "B", "rnn"
    ),
    "scale of the LSTM's state": Corruption(
        lambda s: s.attribute(DEPLOY, "lstm", "quant_scale_h", f=50.0), PAYLOAD, "lstm", "rnn"
    ),
    "offset of the LSTM's input": Corruption(
        lambda s: s.attribute(DEPLOY, "lstm", "quant_offset_x", f=200.0), ALL, "lstm", "rnn"
    ),
    "packed scale of the LSTM": Corruption(
        lambda s: s.values(DEPLOY, "lstm.dequant.param", lambda f: f.__setitem__(5, f[5] + 9)),
        PAYLOAD,
        "R",
        "rnn",
    ),
    "hidden_size": Corruption(
        lambda s: s.attribute(DEPLOY, "lstm", "hidden_size", i=4), STRUCTURAL, "lstm", "rnn"
    ),
    "states of the LSTM swapped": Corruption(
        lambda s: s.node(DEPLOY, "lstm", lambda n: n.input.__setitem__(slice(3, 5), ["c", "h"])),
        PAYLOAD,
        "lstm",
        "rnn",
    ),
    # the manifest itself
    "hash in the manifest": Corruption(lambda s: s.manifest(wrong_hash), {"manifest"}, "hash"),
    "file missing in the manifest": Corruption(
        lambda s: s.manifest(forget_file), {"manifest"}, "not in the manifest"
    ),
    "size in the manifest": Corruption(
        lambda s: s.manifest(lambda m: m["files"][0].__setitem__("bytes", 1)), {"manifest"}, "bytes"
    ),
    "path in the manifest": Corruption(lambda s: s.manifest(escape), {"manifest"}, "folder"),
    "manifest no JSON": Corruption(
        lambda s: s.bytes("m.manifest.json", lambda d: d.__delitem__(slice(50, None))),
        {"manifest"},
        "JSON",
    ),
    "kind of the hashes": Corruption(
        lambda s: s.manifest(lambda m: m.__setitem__("hash", "md5")), {"manifest"}, "md5"
    ),
}

TABLE: dict[str, set[str]] = {}


def spoil(output: Output, corruption: Corruption, seed: int, target: Path) -> Path:
    """A spoilt copy."""
    shutil.copytree(output.folder, target)
    corruption.spoil(Spoiler(target, random.Random(seed)))
    return target


@pytest.mark.parametrize("kind", KINDS)
def test_sound_outputs_are_sound(quantfold, outputs, kind):
    o = outputs[kind]
    found = verify(quantfold, o.folder / "m", "--against", o.model, "--record", o.record)
    assert found["ok"] and not found["findings"], found["findings"]
    assert {c for c, seen in found["checks"].items() if seen["done"]} == EVERY
    assert found["layers"] == found["agreeing"] == (1 if kind.startswith("rnn") else 4)
    assert found["recomputed"] > 500 and found["hashed"] > 1000


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruption_is_found(quantfold, outputs, name, seed, tmp_path):
    c = CORRUPTIONS[name]
    o = outputs[c.kind]
    folder = spoil(o, c, seed, tmp_path / "out")
    everything = verify(quantfold, folder / "m", "--against", o.model, "--record", o.record)
    by = {f["check"] for f in errors(everything)}
    TABLE.setdefault(name, set()).update(by)
    print(f"{name}, seed {seed}: {sorted(by)}")
    assert c.checks <= by, errors(everything)
    texts = [" ".join((f["file"], f["item"], f["message"])) for f in errors(everything)]
    assert any(c.names in t for t in texts), texts
    # the same without the manifest and the inputs, as a user may have it
    (folder / "m.manifest.json").unlink()
    alone = verify(quantfold, folder / "m")
    assert {f["check"] for f in errors(alone)} & OWN >= c.checks & OWN, errors(alone)
    assert alone["ok"] == (not by & OWN)


def test_table_of_what_found_what():
    """Printed with -s; the whole of it is in docs/verify.md."""
    order = ("structure", "agreement", "manifest", "against")
    print()
    for name, by in TABLE.items():
        print("| " + " | ".join([name, *("x" if c in by else "" for c in order)]) + " |")
    assert len(CORRUPTIONS) >= 30


# ---- what a source may bring along ---------------------------------------------------------------


@pytest.mark.parametrize(
    "node, name, value",
    [("c", "colour", 1), ("m", "transB", 0), ("g", "alpha", 2.0), ("g", "beta", 0.5)],
)
def test_attributes_of_the_source_are_warnings(quantfold, outputs, node, name, value, tmp_path):
    """The same in both models: an export takes them over, so the output may well be sound."""
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    (folder / "m.manifest.json").unlink()

    def change(n):
        kept = [a for a in n.attribute if a.name != name]
        n.ClearField("attribute")
        n.attribute.extend([*kept, helper.make_attribute(name, value)])

    for which in (DEPLOY, FAKE):
        Spoiler(folder, random.Random(0)).node(which, node, change)
    found = verify(quantfold, folder / "m")
    said = [f for f in found["findings"] if f["item"] == node and f"'{name}'" in f["message"]]
    assert found["ok"] and {Path(f["file"]).name for f in said} == {DEPLOY, FAKE}
    assert {f["severity"] for f in said} == {"warning"}


def test_float_declared_for_sums_is_a_warning(quantfold, outputs, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    (folder / "m.manifest.json").unlink()
    model = onnx.load(str(folder / DEPLOY))
    sums = next(n.input[0] for n in model.graph.node if n.name == "c.dequant")
    declare(sums, TensorProto.FLOAT, [2, 6, 4, 4])(Spoiler(folder, random.Random(0)))
    found = verify(quantfold, folder / "m")
    assert found["ok"] and any(f["item"] == sums for f in found["findings"])


# ---- one model, none, other folders --------------------------------------------------------------


def test_one_model_alone(quantfold, outputs, tmp_path):
    o = outputs["plain"]
    for gone in (DEPLOY, FAKE):
        folder = tmp_path / gone
        shutil.copytree(o.folder, folder)
        (folder / gone).unlink()
        (folder / "m.manifest.json").unlink()
        found = verify(quantfold, folder / "m", "--against", o.model, "--record", o.record)
        assert found["ok"], found["findings"]
        assert not found["checks"]["agreement"]["done"] and found["checks"]["against"]["done"]
        assert any("could not be compared" in f["message"] for f in found["findings"])
        assert any("no manifest" in f["message"] for f in found["findings"])


def test_nothing_there(quantfold, tmp_path):
    result = quantfold("verify", tmp_path / "m")
    assert result.code == 1 and "neither" in result.err
    assert "manifest" not in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", [DEPLOY, FAKE, "m.manifest.json"])
def test_a_file_of_the_output_stands_for_it(quantfold, outputs, name, tmp_path):
    o = outputs["plain"]
    assert verify(quantfold, o.folder / name)["checks"]["agreement"]["done"]
    quantfold.export(o.model, o.record, f"{tmp_path}/", "--manifest")
    bare = name.removeprefix("m_").removeprefix("m.")
    assert verify(quantfold, tmp_path / bare)["checks"]["manifest"]["done"]
    result = quantfold("verify", bare, "--json", cwd=tmp_path)
    assert result.code == 0 and json.loads(result.out)["checks"]["manifest"]["done"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_models_of_a_folder_are_suggested(quantfold, outputs, slash):
    folder = outputs["plain"].folder
    found = verify(quantfold, f"{folder}{slash}")
    assert f"--save-path, such as '{folder}/m'" in errors(found)[0]["message"]


def test_one_of_a_thing_is_no_plural(quantfold, outputs, tmp_path):
    o = outputs["rnn"]
    quantfold.export(o.model, o.record, tmp_path / "m", "--emit", "deploy")
    said = quantfold("verify", tmp_path / "m").out
    assert " 1 model, 1 quantized layer, " in said and ": 0 errors" in said
    assert " 1 layer in both models" in quantfold("verify", o.folder / "m").out
    assert (
        " 2 models, 4 quantized layers, " in quantfold("verify", outputs["plain"].folder / "m").out
    )


def test_usage(quantfold, tmp_path):
    assert quantfold("verify").code == 2
    assert quantfold("verify", "a", "b").code == 2
    for option, value in (
        ("--record", "r"),
        ("--config", "c"),
        ("--weight-only", "w8a16"),
        ("--include", "x"),
        ("--exclude", "x"),
        ("--from", "qdq"),
        ("--on-unsupported", "float"),
        ("--free-qdq", "drop"),
        ("--input-names", "x"),
        ("--output-names", "y"),
        ("--dynamic-axes", "{}"),
        ("--external-threshold", 1),
    ):
        result = quantfold("verify", "a", option, value)
        assert result.code == 2 and f"{option} needs --against" in result.err, result
    for command in ("verify", "report"):
        assert quantfold(command, "").code == 2
    assert quantfold("verify", "a", "--from", "x").code == 2


def test_wrong_inputs_are_findings(quantfold, outputs, tmp_path):
    o, other = outputs["plain"], outputs["rnn"]
    found = verify(quantfold, o.folder / "m", "--against", other.model, "--record", o.record)
    assert {f["check"] for f in errors(found)} == {"against"}
    found = verify(quantfold, o.folder / "m", "--against", tmp_path / "none.onnx")
    assert {f["check"] for f in errors(found)} == {"against"}
    text = o.record.read_text().replace("0.05", "0.051")
    (tmp_path / "r.txt").write_text(text)
    found = verify(quantfold, o.folder / "m", "--against", o.model, "--record", tmp_path / "r.txt")
    assert {f["check"] for f in errors(found)} == {"against"}
    assert any("g.quant" in f["item"] or "g.bias" in f["item"] for f in errors(found))


def test_inputs_that_the_manifest_does_not_name(quantfold, outputs, tmp_path):
    """Said once, before what comes of it."""
    o = outputs["plain"]
    (tmp_path / "r.txt").write_text(o.record.read_text().replace("0.05", "0.051"))
    line = ("--against", o.model, "--record", tmp_path / "r.txt")
    found = verify(quantfold, o.folder / "m", *line)
    first, *others = [f for f in found["findings"] if f["check"] == "against"]
    assert first["severity"] == "warning" and first["file"] == str(tmp_path / "r.txt")
    assert "is not the one that the manifest names" in first["message"] and others
    assert all(f["severity"] == "error" for f in others)
    # of another text that says the same, nothing comes
    (tmp_path / "r.txt").write_text(o.record.read_text() + "\n")
    assert verify(quantfold, o.folder / "m", *line)["ok"]
    found = verify(quantfold, o.folder / "m", "--against", o.model)
    assert (
        "names a record" in [f for f in found["findings"] if f["check"] == "against"][0]["message"]
    )


def test_nothing_is_written(quantfold, outputs):
    o = outputs["external"]
    before = {p.name: p.stat().st_mtime_ns for p in o.folder.iterdir()}
    quantfold("verify", o.folder / "m", "--against", o.model, "--record", o.record)
    assert {p.name: p.stat().st_mtime_ns for p in o.folder.iterdir()} == before


def test_many_findings_in_one_run(quantfold, outputs, tmp_path):
    """Everything that is wrong is told at once."""
    o = outputs["plain"]
    folder = tmp_path / "out"
    shutil.copytree(o.folder, folder)
    s = Spoiler(folder, random.Random(0))
    s.flip(DEPLOY, "c.weight")
    s.flip(FAKE, "g.bias")
    s.attribute(DEPLOY, "m.quant", "scale", f=1.5)
    s.node(DEPLOY, "r", setter(op_type="Tanh"))
    found = verify(quantfold, folder / "m")
    said = " ".join(f["item"] for f in errors(found))
    for item in ("c.weight", "g.bias", "m.quant", "r"):
        assert item in said.split() or item in said, said


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("op", ["matmul", "gemm"])
@pytest.mark.parametrize("place", ["auto", "always"])
def test_memory_does_not_grow_with_the_weights(quantfold, tmp_path, op, place):
    """Weights of 256 MB; a process that stands between keeps our own peak out."""
    if "asan" in quantfold.binary or "emulated" in quantfold.binary:
        pytest.skip("a sanitizer or an emulator takes memory of its own")
    make_large.write(tmp_path / "in", make_large.Spec(op=op, size=4096, count=4))
    model, record = tmp_path / "in" / "model.onnx", tmp_path / "in" / "record.txt"
    prefix = tmp_path / "out" / "m"
    quantfold.export(model, record, prefix, "--manifest", "--external", place)
    command = [sys.executable, "-c", MEASURE, quantfold.binary, "verify", "-q", prefix]
    for against, most in (([], 24e6), (["--against", model, "--record", record], 200e6)):
        run = subprocess.run(
            [str(c) for c in (*command, *against, "--threads", 2)],
            capture_output=True,
            text=True,
            check=True,
        )
        code, kib = map(int, run.stdout.split())
        assert code == 0, run.stderr
        assert kib * 1024 < most, f"{kib / 1000:.0f} MB resident, {against}"


# ---- names of sources ----------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 511, 2000])
def test_long_names(quantfold, tmp_path, length):
    """Of a QuantizeLinear and DequantizeLinear that no layer reads, behind a Conv that has its own."""
    net, name = Net(), "n" * length
    scale, zero = net.weight("scale", np.float32(0.03)), net.weight("zero", np.int8(0))
    y = net.op("QuantizeLinear", [net.input("x", normal(2, 4, 6, 6)), scale, zero], "q")
    y = net.op("DequantizeLinear", [y, scale, zero], "dq")
    w = net.weight("w", np.arange(216, dtype=np.int8).reshape(6, 4, 3, 3))
    y = net.op("Conv", [y, net.op("DequantizeLinear", [w, scale, zero], "wdq")], "conv")
    y = net.op("QuantizeLinear", [y, scale, zero], name)
    net.output(net.op("Relu", [net.op("DequantizeLinear", [y, scale, zero], "free")], "r"))
    onnx.save(net.model(), str(tmp_path / "model.onnx"))
    line = ["export", "--model", tmp_path / "model.onnx", "--save-path", tmp_path / "m"]
    assert quantfold(*line, "--from", "qdq").code == 0
    deploy = onnx.load(str(tmp_path / DEPLOY))
    assert any(n.op_type == "AscendAntiQuant" and name in n.name for n in deploy.graph.node)
    found = verify(quantfold, tmp_path / "m", "--against", tmp_path / "model.onnx", "--from", "qdq")
    assert found["ok"], errors(found)


def test_a_dequantize_of_the_source(quantfold, tmp_path):
    """A DequantizeLinear that has the name of ours, of a table of uint8; and one of ours."""
    net = Net()
    table = net.weight("table", np.arange(64, dtype=np.uint8).reshape(8, 8))
    scale, zero = net.weight("s", np.float32(0.1)), net.weight("z", np.uint8(7))
    y = net.op("DequantizeLinear", [table, scale, zero], "emb.dequantize")
    y = net.op("MatMul", [net.input("x", normal(2, 8)), y], "first")
    net.output(net.op("MatMul", [y, net.weight("w", normal(8, 64))], "m"))
    onnx.save(net.model(), str(tmp_path / "model.onnx"))
    line = ["export", "--model", tmp_path / "model.onnx", "--save-path", tmp_path / "m"]
    assert quantfold(*line, "--weight-only", "w8a16").code == 0
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and found["layers"] == 1, errors(found)
    s = Spoiler(tmp_path, random.Random(0))
    s.values(DEPLOY, "w.scale", set_first(-1))
    assert [f["check"] for f in errors(verify(quantfold, tmp_path / "m"))][0] == "structure"


# ---- runnable models ------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_runnable_beside_models_of_a_folder(quantfold, outputs, slash, tmp_path):
    """A folder is meant as one with and without a slash behind it."""
    o, folder = outputs["plain"], tmp_path / "out"
    quantfold.export(o.model, o.record, f"{folder}/")
    found = verify(quantfold, f"{folder}{slash}", "--runnable")
    assert found["ok"] and Path(found["runnable"]) == folder / "runnable_model.onnx"
    assert (folder / "runnable_model.onnx").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_runnable_is_named(quantfold, outputs, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    result = quantfold("verify", folder / "m", "--runnable")
    assert result.code == 0 and str(folder / "m_runnable_model.onnx") in result.out
    assert (folder / "m_runnable_model.onnx").is_file()
    assert "runnable" not in verify(quantfold, folder / "m")


def test_a_runnable_model_alone(quantfold, outputs, tmp_path):
    """Its structure is looked at; a manifest says whether its bytes are those that were written."""
    o = outputs["plain"]
    for options in (["--manifest"], []):
        quantfold.export(o.model, o.record, tmp_path / "m", "--emit", "runnable", *options)
        found = verify(quantfold, tmp_path / "m")
        assert found["ok"], found["findings"]
        assert any("no deploy model beside" in f["message"] for f in found["findings"])
        assert found["checks"]["manifest"]["done"] == bool(options)
        assert found["checks"]["structure"]["done"] and not found["checks"]["runnable"]["done"]
        if options:
            Spoiler(tmp_path, random.Random(0)).flip_byte("m_runnable_model.onnx")
            assert "manifest" in {f["check"] for f in errors(verify(quantfold, tmp_path / "m"))}
            (tmp_path / "m.manifest.json").unlink()


def test_runnable_without_a_deploy_model(quantfold, outputs, tmp_path):
    o = outputs["plain"]
    quantfold.export(o.model, o.record, tmp_path / "out" / "m", "--emit", "fake-quant")
    checkpoint = make_checkpoint(quantfold, tmp_path)
    for prefix in (tmp_path / "out" / "m", checkpoint):
        found = verify(quantfold, prefix, "--runnable")
        assert not found["ok"] and found["runnable"] is None
        assert [f["message"] for f in errors(found)][0].endswith(
            "there is no deploy model to make runnable"
        )


def test_why_there_is_no_runnable_model_has_its_place(quantfold, outputs, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    (folder / ".m.quantfold-partial").write_text("in the way")
    found = verify(quantfold, folder / "m", "--runnable", code=3)
    last = errors(found)[-1]
    assert not found["ok"] and found["runnable"] is None
    assert ".m.quantfold-partial" in last["file"] + last["message"], last


# ---- exports that were not finished --------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["m", "", "m" * 220])
def test_unfinished_export_is_told(quantfold, outputs, prefix, tmp_path):
    """Whatever the staging folder is called."""
    o, path = outputs["plain"], f"{tmp_path}/{prefix}"
    quantfold.export(o.model, o.record, path)
    line = ["export", "--model", o.model, "--record", o.record, "--save-path", path]
    assert quantfold(*line, "--shard", "0/2").code == 0
    said = [f["message"] for f in verify(quantfold, path)["findings"]]
    assert any("was not finished" in m for m in said), said


# ---- checkpoints ---------------------------------------------------------------------------------


def make_checkpoint(quantfold, folder: Path) -> Path:
    """A small folder of safetensors, quantized."""
    source, out = folder / "source", folder / "quantized"
    source.mkdir()
    rng = np.random.default_rng(1)
    arrays = {
        f"model.layers.{i}.mlp.{n}_proj.weight": rng.standard_normal((32, 64)).astype(np.float32)
        for i in range(2)
        for n in ("up", "gate")
    }
    header, at = {}, 0
    for name, array in arrays.items():
        size = array.nbytes
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(a.tobytes() for a in arrays.values())
    )
    (source / "config.json").write_text('{"model_type": "llama"}')
    result = quantfold(
        *("checkpoint", "--model", source, "--out", out, "--scheme", "w8a16", "--manifest")
    )
    assert result.code == 0, result.err
    return out


def test_checkpoint(quantfold, tmp_path):
    out = make_checkpoint(quantfold, tmp_path)
    for prefix in (str(out), f"{out}/"):
        found = verify(quantfold, prefix)
        assert found["ok"] and found["checks"]["manifest"]["done"], found["findings"]
    shard = next(out.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-7] ^= 16
    shard.write_bytes(data)
    found = verify(quantfold, out)
    assert {f["check"] for f in errors(found)} == {"manifest"}
    data[8] = ord("x")
    shard.write_bytes(data)
    found = verify(quantfold, out)
    assert {f["check"] for f in errors(found)} == {"structure", "manifest"}


# ---- hostile files -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{}", "./{}", ".//{}"])
def test_a_manifest_that_names_a_file_again_and_again(quantfold, outputs, name, tmp_path):
    """It is hashed once."""
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)

    def work(document):
        file = document["files"][0]
        document["files"] += [file | {"name": name.format(file["name"])}] * 1000

    whole = verify(quantfold, folder / "m")["hashed"]
    Spoiler(folder, random.Random(0)).manifest(work)
    found = verify(quantfold, folder / "m")
    assert found["hashed"] == whole and found["checks"]["manifest"]["errors"] == 1000
    said = {f["message"] for f in errors(found)}
    assert any("twice" in m or "no path below" in m for m in said)


@pytest.mark.parametrize("name", ["a{}", "same"])
def test_any_number_of_attributes(quantfold, outputs, name, tmp_path):
    """Looking each of them up among the others took minutes."""
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    (folder / "m.manifest.json").unlink()
    many = [helper.make_attribute(name.format(i), i) for i in range(60_000)]
    many.append(helper.make_attribute(name.format("b"), list(range(100_000))))
    s = Spoiler(folder, random.Random(0))
    s.node(DEPLOY, "r", lambda n: n.attribute.extend(many))
    s.node(FAKE, "r", lambda n: n.attribute.extend(many[::-1]))
    start = time.monotonic()
    result = quantfold("verify", folder / "m", "--json")
    assert time.monotonic() - start < 20
    twice = [f for f in json.loads(result.out)["findings"] if "twice" in f["message"]]
    assert bool(twice) == (name == "same") and result.code == (1 if twice else 0)


@pytest.mark.parametrize("seed", range(40))
def test_mutated_models_do_not_crash(quantfold, outputs, seed, tmp_path):
    """Random bytes, runs removed, doubled and exchanged: verify ends with 0 or 1, and with a
    sanitizer build without a report. More of the same: tests/fault/mutate_verify.py."""
    rng = random.Random(seed)
    kind = rng.choice(list(KINDS))
    o = outputs[kind]
    folder = tmp_path / "out"
    shutil.copytree(o.folder, folder)
    mutate_verify.mutate(folder, rng)
    args = ("--against", o.model, "--record", o.record) if rng.random() < 0.3 else ()
    assert quantfold("verify", folder / "m", *args).code in (0, 1)
