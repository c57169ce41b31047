# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on what stands beside the two models, and on what it says of what it did.

A runnable model of another export, files that nothing uses, checkpoints, and that every finding names
its file and its node.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import Net, conv
from nets import random as normal
from onnx import TensorProto, helper
from test_verify import (  # noqa: F401 (outputs is a fixture)
    MEASURE,
    Spoiler,
    errors,
    make_checkpoint,
    outputs,
    plain_record,
    verify,
)

import make_large
import make_record
import shim
from support import DEPLOY, FAKE

RUNNABLE = "m_runnable_model.onnx"


def warnings(found: dict) -> list[dict]:
    return [f for f in found["findings"] if f["severity"] == "warning"]


@pytest.fixture
def spoiler(quantfold, outputs, tmp_path):  # noqa: F811
    """A copy of an output with its runnable model, by kind."""

    def make(kind: str, *options) -> Spoiler:
        folder = tmp_path / kind
        shutil.copytree(outputs[kind].folder, folder)
        line = ["export", "--model", folder / DEPLOY, "--save-path", folder / "m"]
        assert quantfold(*line, "--emit", "runnable", *options).code == 0
        return Spoiler(folder, random.Random(0))

    return make


def runnable_error(quantfold, folder: Path) -> str:
    """The one finding about a runnable model that is not the deploy model's; nothing else is."""
    found = verify(quantfold, folder / "m")
    (error,) = errors(found)
    assert error["check"] == "runnable" and error["file"] == str(folder / RUNNABLE), error
    assert found["checks"]["runnable"] == {"done": True, "errors": 1}
    assert "is not the runnable model of the deploy model" in error["message"]
    assert f"quantfold verify {folder}/m --runnable" in error["message"]
    return error["message"]


# ---- a runnable model beside its deploy model ----------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "external", "single", "int8", "rnn"])
@pytest.mark.parametrize(
    "options",
    [(), ("--external", "always"), ("--external", "always", "--external-layout", "single")],
)
def test_it_is_that_of_the_deploy_model(quantfold, spoiler, kind, options):
    folder = spoiler(kind, *options).folder
    found = verify(quantfold, folder / "m")
    assert found["ok"] and found["models"] == 3, found["findings"]
    assert found["checks"]["runnable"] == {"done": True, "errors": 0}
    said = quantfold("verify", folder / "m").out
    assert "runnable   as made of the deploy model: 0 errors" in said


@pytest.mark.parametrize("kind", ["plain", "rnn"])
def test_it_may_come_of_the_float_model(quantfold, outputs, kind, tmp_path):  # noqa: F811
    """Which leaves the same nodes and numbers."""
    o = outputs[kind]
    quantfold.export(o.model, o.record, tmp_path / "m")
    quantfold.export(o.model, o.record, tmp_path / "m", "--emit", "runnable")
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and found["checks"]["runnable"]["done"], found["findings"]


@pytest.mark.parametrize("quantizes", [True, False])
def test_of_weights_alone(quantfold, quantizes, tmp_path):
    """A deploy model of weights alone keeps its source's Q and DQ, and is none of QDQ for that."""
    net = Net(opset=21, ir_version=10)
    scale = net.weight("s", np.array(0.1, np.float32))
    zero = net.weight("z", np.array(0, np.int8))
    x = net.input("x", normal(2, 16) if quantizes else np.zeros((2, 16), np.int8))
    x = net.op("QuantizeLinear", [x, scale, zero], "q") if quantizes else x
    x = net.op("DequantizeLinear", [x, scale, zero], "dq")
    net.output(net.op("MatMul", [x, net.weight("w", normal(16, 16))], "m"))
    onnx.save(net.model(), tmp_path / "source.onnx")
    args = ["export", "--model", tmp_path / "source.onnx", "--save-path", tmp_path / "m"]
    args += ["--weight-only", "w8a16", "--from", "float"]
    assert quantfold(*args).code == 0 and quantfold(*args, "--emit", "runnable").code == 0
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and found["checks"]["runnable"]["done"], found["findings"]
    made = (tmp_path / RUNNABLE).read_bytes()
    assert quantfold("verify", tmp_path / "m", "--runnable").code == 0
    assert (tmp_path / RUNNABLE).read_bytes() == made


def hidden_channels_net() -> Net:
    """A layer whose number of input channels no one can tell from the graph."""
    net = Net()
    shape = net.input("shape", np.array([1, 4, 8, 8], np.int64))
    y = net.op("Reshape", [net.input("x", normal(1, 4, 8, 8)), shape], "reshape")
    net.output(conv(net, y, normal(6, 4, 3, 3, seed=1), normal(6, seed=2), name="c"))
    return net


@pytest.mark.parametrize("bits", ["INT8", "INT4"])
def test_packed_or_not_is_known_of_the_float_model_alone(quantfold, bits, tmp_path):
    """Of the deploy model, the runnable one chooses when it runs; either is sound. A layer that is
    fed the other form is not."""
    onnx.save(hidden_channels_net().model(), str(tmp_path / "f.onnx"))
    record = make_record.record_text([make_record.Record("c", 0.03, -5, [0.01], "INT8", bits)])
    (tmp_path / "r.txt").write_text(record)
    quantfold.export(tmp_path / "f.onnx", tmp_path / "r.txt", tmp_path / "m")
    assert verify(quantfold, tmp_path / "m", "--runnable")["ok"]
    chosen = onnx.load(str(tmp_path / RUNNABLE))
    assert any(n.op_type == "ChooseChannels" for n in chosen.graph.node)
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and found["checks"]["runnable"]["done"], found["findings"]
    quantfold.export(tmp_path / "f.onnx", tmp_path / "r.txt", tmp_path / "m", "--emit", "runnable")
    plain = onnx.load(str(tmp_path / RUNNABLE))
    assert not any(n.op_type == "ChooseChannels" for n in plain.graph.node)
    assert verify(quantfold, tmp_path / "m")["ok"]
    layer = next(n for n in plain.graph.node if n.name == "c")
    layer.input[2] = layer.input[1]
    onnx.save(plain, str(tmp_path / RUNNABLE))
    assert "c.weight" in runnable_error(quantfold, tmp_path)


def test_of_another_export(quantfold, outputs, spoiler):  # noqa: F811
    """A new export to the same path left the old one's."""
    s, o = spoiler("plain"), outputs["plain"]
    record = s.folder / "other.txt"
    record.write_text(plain_record().replace("0.03", "0.031"))
    quantfold.export(o.model, record, s.folder / "m", "--manifest")
    message = runnable_error(quantfold, s.folder)
    assert "c.quant" in message and "scale" in message
    assert verify(quantfold, s.folder / "m", "--runnable")["ok"]
    assert verify(quantfold, s.folder / "m")["ok"]


def test_no_model_at_all(quantfold, spoiler):
    """What is there is no obstacle to writing it anew."""
    s = spoiler("plain")
    (s.folder / RUNNABLE).write_text("<!doctype html><title>404</title>")
    assert "not a readable ONNX model" in runnable_error(quantfold, s.folder)
    run = quantfold("verify", s.folder / "m", "-v")
    assert run.code == 1 and RUNNABLE in run.err and "not sound" in run.out
    assert quantfold("verify", s.folder / "m", "-q").code == 1
    assert verify(quantfold, s.folder / "m", "--runnable")["ok"]
    assert verify(quantfold, s.folder / "m")["ok"]


def change_functions(model: onnx.ModelProto) -> None:
    """One operator of one function."""
    for function in model.functions:
        for node in function.node:
            if node.op_type == "Round":
                node.op_type = "Floor"
                return
    raise AssertionError("no Round")


CHANGES = {
    "weight": (lambda s: s.flip(RUNNABLE, "c.weight"), "c.weight: element"),
    "packed weight": (lambda s: s.flip(RUNNABLE, "d.weight"), "d.weight: element"),
    "bias": (lambda s: s.flip(RUNNABLE, "c.bias"), "c.bias: element"),
    "parameter": (lambda s: s.flip(RUNNABLE, "c.dequant.param"), "c.dequant.param: element"),
    "scale": (lambda s: s.attribute(RUNNABLE, "c.quant", "scale", f=0.5), "c.quant"),
    "function": (lambda s: s.edit(RUNNABLE, change_functions), "node "),
    "no function": (lambda s: s.edit(RUNNABLE, lambda m: m.functions.pop()), "is missing"),
    "opset of a function": (
        lambda s: s.edit(
            RUNNABLE, lambda m: setattr(m.functions[0].opset_import[0], "version", 11)
        ),
        "function is not that",
    ),
    "node": (lambda s: s.edit(RUNNABLE, lambda m: m.graph.node.pop()), "produces output 'y'"),
    "operator": (lambda s: s.node(RUNNABLE, "r", lambda n: setattr(n, "op_type", "Tanh")), "Tanh"),
    "input": (
        lambda s: s.node(RUNNABLE, "last", lambda n: n.input.__setitem__(0, "flat")),
        "last",
    ),
    "output": (lambda s: s.edit(RUNNABLE, lambda m: m.graph.output.pop()), "output"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_found(quantfold, spoiler, name):
    change, message = CHANGES[name]
    s = spoiler("plain")
    change(s)
    assert message in runnable_error(quantfold, s.folder)


def test_a_step_of_a_recurrent_layer_is_looked_at(quantfold, spoiler):
    """Its graph is in an attribute of a node of a function."""
    s = spoiler("rnn")

    def work(model):
        body = next(
            a.g
            for f in model.functions
            for n in f.node
            if n.op_type == "Scan"
            for a in n.attribute
            if a.name == "body"
        )
        tanh = next(n for n in body.node if n.op_type == "Tanh")
        tanh.op_type = "Sigmoid"

    s.edit(RUNNABLE, work)
    assert "function" in runnable_error(quantfold, s.folder)


def test_external_data_of_it(quantfold, spoiler):
    s = spoiler("plain", "--external", "always")
    name = next(p.name for p in s.folder.glob("*_runnable.external"))
    data = (s.folder / name).read_bytes()
    s.flip_byte(name)
    assert f"of {s.folder}/{name}" in runnable_error(quantfold, s.folder)
    (s.folder / name).write_bytes(data[:-1])
    assert "short" in runnable_error(quantfold, s.folder)
    (s.folder / name).unlink()
    assert "does not exist" in runnable_error(quantfold, s.folder)


def test_a_deploy_model_that_is_wrong_is_not_the_measure(quantfold, spoiler):
    s = spoiler("plain")
    s.attribute(DEPLOY, "c.quant", "scale", f=-1.0)
    found = verify(quantfold, s.folder / "m")
    assert not found["checks"]["runnable"]["done"] and found["checks"]["runnable"]["errors"] == 0
    assert any("deploy model is not sound" in f["message"] for f in warnings(found))


def operators(path: Path) -> set[str]:
    """Of the layers of a runnable model."""
    return {n.op_type for n in onnx.load(str(path)).graph.node if n.name == "c"}


def export_hidden_transpose(quantfold, folder: Path, channels: int) -> None:
    """A ConvTranspose whose input does not tell its channels: deploy model, and the runnable one of
    the float model."""
    net = Net()
    shape = net.input("shape", np.ones(4, np.int64))
    y = net.op("Reshape", [net.input("x", normal(1, channels, 2, 2)), shape], "reshape")
    w = net.weight("w", normal(channels, 2, 3, 3, seed=1))
    net.output(net.op("ConvTranspose", [y, w], "c", kernel_shape=[3, 3]))
    onnx.save(net.model(), str(folder / "f.onnx"))
    record = make_record.record_text([make_record.Record("c", 0.03, -5, [0.01], "INT8", "INT8")])
    (folder / "r.txt").write_text(record)
    for emit in ("deploy", "runnable"):
        quantfold.export(folder / "f.onnx", folder / "r.txt", folder / "m", "--emit", emit)


def test_a_deploy_model_that_none_can_be_made_of(quantfold, tmp_path):
    """Of the float model one can: it tells that the weight is not packed, and so how long the sums
    are at most."""
    export_hidden_transpose(quantfold, tmp_path, 4000)
    found = verify(quantfold, tmp_path / "m")
    (told,) = [f for f in found["findings"] if f["check"] == "runnable"]
    assert found["ok"] and told["severity"] == "warning", found["findings"]
    assert told["file"] == str(tmp_path / RUNNABLE) and "terms" in told["message"]
    assert not found["checks"]["runnable"]["done"]


@pytest.mark.parametrize("channels", [40, 260])
def test_digits_of_another_number_of_channels(quantfold, channels, tmp_path):
    """A ConvTranspose is split by the channels of its weight, which only the float model tells."""
    export_hidden_transpose(quantfold, tmp_path, channels)
    ours = operators(tmp_path / RUNNABLE)
    assert verify(quantfold, tmp_path / "m")["ok"]
    assert verify(quantfold, tmp_path / "m", "--runnable")["ok"]
    assert ours != operators(tmp_path / RUNNABLE)  # else nothing is tried here
    export_hidden_transpose(quantfold, tmp_path, channels)
    Spoiler(tmp_path, random.Random(0)).flip(RUNNABLE, "w")
    assert "w: element" in runnable_error(quantfold, tmp_path)


@pytest.mark.parametrize("external", ["auto", "always"])
def test_memory_does_not_grow_with_it(quantfold, external, tmp_path):
    """Weights of 64 MB, as integers: neither the model nor what is made anew is held."""
    if "asan" in quantfold.binary or "emulated" in quantfold.binary:
        pytest.skip("a sanitizer or an emulator takes memory of its own")
    make_large.write(tmp_path / "in", make_large.Spec(op="gemm", size=4096, count=4))
    line = (tmp_path / "in" / "model.onnx", tmp_path / "in" / "record.txt", tmp_path / "m")
    quantfold.export(*line, "--emit", "deploy", "--external", external)
    deploy = ("export", "--model", tmp_path / DEPLOY, "--save-path", tmp_path / "m")
    assert quantfold(*deploy, "--emit", "runnable", "--external", external).code == 0
    command = [sys.executable, "-c", MEASURE, quantfold.binary, "verify", "-q", tmp_path / "m"]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
    code, kib = map(int, run.stdout.split())
    assert code == 0, run.stderr
    assert kib * 1024 < 24e6, f"{kib / 1000:.0f} MB resident"


# ---- a runnable model alone ----------------------------------------------------------------------


def test_alone_its_structure_is_looked_at(quantfold, outputs, tmp_path):  # noqa: F811
    o = outputs["plain"]
    quantfold.export(o.model, o.record, tmp_path / "m", "--emit", "runnable")
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and found["models"] == 1 and found["tensors"] > 10
    (told,) = [f for f in warnings(found) if f["check"] == "runnable"]
    assert told["file"] == str(tmp_path / RUNNABLE) and "could not be compared" in told["message"]
    s = Spoiler(tmp_path, random.Random(0))
    s.tensor(RUNNABLE, "c.weight", lambda t: t.dims.__setitem__(0, 7))
    (error,) = errors(verify(quantfold, tmp_path / "m"))
    assert (error["check"], error["item"]) == ("structure", "c.weight")
    (tmp_path / RUNNABLE).write_text("<html>")
    (error,) = errors(verify(quantfold, tmp_path / "m"))
    assert (error["check"], error["file"]) == ("structure", str(tmp_path / RUNNABLE))


# ---- layers that were not compared ---------------------------------------------------------------


def drop_initializer(name: str):
    def work(model):
        kept = [t for t in model.graph.initializer if t.name != name]
        assert len(kept) < len(model.graph.initializer)
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    return work


UNCOMPARED = {
    "weight empty": lambda s: s.tensor(DEPLOY, "c.weight", lambda t: t.ClearField("raw_data")),
    "weight missing": lambda s: s.edit(DEPLOY, drop_initializer("c.weight")),
    "weight missing in both": lambda s: [
        s.edit(m, drop_initializer("c.weight")) for m in (DEPLOY, FAKE)
    ],
    "weight of the other missing": lambda s: s.edit(FAKE, drop_initializer("c.weight")),
    "bias missing": lambda s: s.edit(DEPLOY, drop_initializer("c.bias")),
    "bias behind MatMul": lambda s: s.edit(DEPLOY, drop_initializer("m.bias")),
    "parameter missing": lambda s: s.edit(DEPLOY, drop_initializer("c.dequant.param")),
    "dims of the weight": lambda s: s.tensor(DEPLOY, "c.weight", lambda t: t.dims.append(1)),
    "no dequant": lambda s: s.edit(
        FAKE,
        lambda m: setattr(
            next(n for n in m.graph.node if n.name == "c.fakedequant.mul"), "name", "other"
        ),
    ),
}


@pytest.mark.parametrize("name", UNCOMPARED)
def test_layers_that_were_not_compared_do_not_agree(
    quantfold, outputs, name, tmp_path
):  # noqa: F811
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    UNCOMPARED[name](Spoiler(folder, random.Random(0)))
    found = verify(quantfold, folder / "m")
    assert not found["ok"]
    assert (found["layers"], found["agreeing"], found["apart"]) == (4, 3, 1), found["findings"]
    said = quantfold("verify", folder / "m").out
    assert "3 layers in both models, 1 could not be compared: " in said


def test_a_layer_that_differs_was_compared(quantfold, outputs, tmp_path):  # noqa: F811
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    Spoiler(folder, random.Random(0)).flip(DEPLOY, "c.weight")
    found = verify(quantfold, folder / "m")
    assert (found["agreeing"], found["apart"]) == (4, 0)


def test_the_bias_of_4_bit_activations_is_compared(quantfold, tmp_path):
    """It is behind a Cast, which fake_quant has not."""
    net = Net()
    y = conv(net, net.input("x", normal(1, 4, 8, 8)), normal(6, 4, 3, 3), normal(6), name="c")
    net.output(y)
    onnx.save(net.model(), str(tmp_path / "f.onnx"))
    record = make_record.record_text([make_record.Record("c", 0.03, -5, [0.01], "INT4", "INT4")])
    (tmp_path / "r.txt").write_text(record)
    quantfold.export(tmp_path / "f.onnx", tmp_path / "r.txt", tmp_path / "m")
    found = verify(quantfold, tmp_path / "m")
    assert found["ok"] and (found["agreeing"], found["apart"]) == (1, 0)
    assert any("bias_quant" in n.name for n in onnx.load(str(tmp_path / DEPLOY)).graph.node)
    Spoiler(tmp_path, random.Random(0)).flip(DEPLOY, "c.bias")
    (error,) = errors(verify(quantfold, tmp_path / "m"))
    assert error["check"] == "agreement" and error["item"] == "c.bias"


@pytest.mark.parametrize("tensor", ["W", "R", "B"])
def test_recurrent_layers_that_were_not_compared(
    quantfold, outputs, tensor, tmp_path
):  # noqa: F811
    folder = tmp_path / "out"
    shutil.copytree(outputs["rnn"].folder, folder)
    Spoiler(folder, random.Random(0)).edit(DEPLOY, drop_initializer(tensor))
    found = verify(quantfold, folder / "m")
    assert (found["agreeing"], found["apart"]) == (0, 1), found["findings"]


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(quantfold, tmp_path):
    return make_checkpoint(quantfold, tmp_path)


@pytest.mark.parametrize("more", [(), ("--record", "nope2"), ("--json",), ("-q",)])
def test_payloads_of_a_checkpoint_cannot_be_asked_for(quantfold, checkpoint, more):
    run = quantfold("verify", checkpoint, "--against", "nope", *more)
    assert run.code == 2
    assert "checkpoint" in run.err and "not recomputed" in run.err


@pytest.mark.parametrize("name", ["quantfold.manifest.json", "model.safetensors"])
def test_a_file_of_a_checkpoint_stands_for_its_folder(quantfold, checkpoint, name):
    found = verify(quantfold, checkpoint / name)
    assert found["ok"] and found["shards"] == 1, found["findings"]
    run = quantfold("verify", name, "-q", cwd=checkpoint)
    assert run.code == 0, run.err


def test_an_index_stands_for_its_folder(quantfold, checkpoint, tmp_path):
    """A checkpoint of several files."""
    line = ("checkpoint", "--model", tmp_path / "source", "--out", tmp_path / "many")
    run = quantfold(*line, "--scheme", "w8a16", "--max-shard-size", "4000")
    assert run.code == 0, run.err
    count = len(list((tmp_path / "many").glob("*.safetensors")))
    whole, index = verify(quantfold, checkpoint), "model.safetensors.index.json"
    found = verify(quantfold, tmp_path / "many" / index)
    assert found["ok"] and found["shards"] == count > 1, found["findings"]
    assert all(found[key] == whole[key] for key in ("tensors", "layers"))


def test_a_prefix_that_is_called_as_the_manifest(quantfold, outputs, tmp_path):  # noqa: F811
    """Models go before a checkpoint."""
    o = outputs["plain"]
    quantfold.export(o.model, o.record, tmp_path / "quantfold", "--manifest")
    found = verify(quantfold, tmp_path / "quantfold.manifest.json")
    assert found["ok"] and found["models"] == 2 and found["shards"] == 0


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8"])
def test_what_was_looked_at_of_a_checkpoint(quantfold, checkpoint, scheme, tmp_path):
    """2 of 4 matrices are chosen: routers stay float."""
    out = tmp_path / scheme
    line = ("checkpoint", "--model", tmp_path / "source", "--out", out, "--scheme", scheme)
    planned = quantfold(*line, "--json")
    assert planned.code == 0
    found = verify(quantfold, out)
    tensors = read_header(out / "model.safetensors")
    quantized = [t for t in tensors if t.endswith("weight_scale")]
    assert (found["tensors"], found["layers"]) == (len(tensors), len(quantized))
    assert found["shards"] == 1 and len(quantized) > 0
    said = quantfold("verify", out).out
    counts = f"1 file of tensors, {len(tensors)} tensors, {len(quantized)} quantized weight"
    assert f"  structure  {counts}" in said and "model" not in said.split("structure", 1)[1]


def read_header(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return [name for name in header if name != "__metadata__"]


# ---- files of an earlier export ------------------------------------------------------------------


def leftovers(found: dict) -> list[str]:
    return [f["file"] for f in warnings(found) if "left over" in f["message"]]


@pytest.mark.parametrize("prefix", ["m", ""])
def test_files_that_no_model_uses(quantfold, outputs, prefix, tmp_path):  # noqa: F811
    """One finding for each kind of them."""
    o, path = outputs["plain"], f"{tmp_path}/out/{prefix}"
    quantfold.export(o.model, o.record, path, "--external", "always")
    assert leftovers(verify(quantfold, path)) == []
    quantfold.export(o.model, o.record, path)
    found = verify(quantfold, path)
    kinds = [
        sorted((tmp_path / "out").glob(f"*_{end}.external")) for end in ("deploy", "fakequant")
    ]
    assert found["ok"] and leftovers(found) == [str(files[0]) for files in kinds]
    first, _ = [f for f in warnings(found) if "left over" in f["message"]]
    assert first["check"] == "structure" and "can be removed" in first["message"]
    (tmp_path / "out" / "z_deploy.external").touch()
    (tmp_path / "out" / "z2_deploy.external").touch()
    first, _ = [f for f in warnings(verify(quantfold, path)) if "left over" in f["message"]]
    assert f"nor {len(kinds[0]) + 1} others whose names end in '_deploy" in first["message"]


def test_whose_they_are_is_not_known_beside_other_models(
    quantfold, outputs, tmp_path
):  # noqa: F811
    """Names of one file for a tensor do not carry the prefix."""
    o = outputs["plain"]
    quantfold.export(o.model, o.record, tmp_path / "m", "--external", "always")
    quantfold.export(o.model, o.record, tmp_path / "m")
    assert len(leftovers(verify(quantfold, tmp_path / "m"))) == 2
    (tmp_path / "another.onnx").write_bytes(o.model.read_bytes())
    assert leftovers(verify(quantfold, tmp_path / "m")) == []


def test_one_file_for_a_model_carries_its_prefix(quantfold, outputs, tmp_path):  # noqa: F811
    o = outputs["plain"]
    single = ("--external", "always", "--external-layout", "single")
    quantfold.export(o.model, o.record, tmp_path / "m", *single)
    quantfold.export(o.model, o.record, tmp_path / "other", *single)
    assert leftovers(verify(quantfold, tmp_path / "m")) == []
    quantfold.export(o.model, o.record, tmp_path / "m")
    assert leftovers(verify(quantfold, tmp_path / "m")) == [
        str(tmp_path / "m_deploy_model.external"),
        str(tmp_path / "m_fake_quant_model.external"),
    ]
    assert leftovers(verify(quantfold, tmp_path / "other")) == []


def test_files_of_a_runnable_model_are_used(quantfold, spoiler):
    s = spoiler("plain", "--external", "always")
    assert leftovers(verify(quantfold, s.folder / "m")) == []
    (s.folder / RUNNABLE).unlink()
    names = sorted(s.folder.glob("*_runnable.external"))
    assert leftovers(verify(quantfold, s.folder / "m")) == [str(names[0])]


def test_nothing_is_known_of_files_beside_a_model_that_cannot_be_read(
    quantfold, outputs, tmp_path  # noqa: F811
):
    shutil.copytree(outputs["external"].folder, tmp_path / "out")
    (tmp_path / "out" / FAKE).write_text("<html>")
    assert leftovers(verify(quantfold, tmp_path / "out" / "m")) == []


# ---- what findings say ---------------------------------------------------------------------------


def test_a_tensor_without_a_name_is_called_by_its_node(quantfold, outputs, tmp_path):  # noqa: F811
    """The scale of a dequantization is a Constant's, and has none."""
    o, folder = outputs["plain"], tmp_path / "out"
    shutil.copytree(o.folder, folder)
    fake = onnx.load(str(folder / FAKE))
    node = next(n for n in fake.graph.node if n.op_type == "Constant" and "fakedequant" in n.name)
    assert not node.attribute[0].t.name
    s = Spoiler(folder, random.Random(0))
    s.flip(FAKE, node.name)
    found = verify(quantfold, folder / "m", "--against", o.model, "--record", o.record)
    assert node.name in {f["item"] for f in errors(found) if f["check"] == "against"}
    s.tensor(FAKE, node.name, lambda t: t.dims.append(3))
    found = verify(quantfold, folder / "m", "--against", o.model, "--record", o.record)
    assert node.name in {f["item"] for f in errors(found) if f["check"] == "structure"}
    assert "(unnamed tensor)" not in json.dumps(found)


def test_tensors_in_other_attributes_are_called_by_their_node(quantfold, tmp_path):
    """Of ConstantOfShape, of an If's branch, and of a function."""
    value = helper.make_tensor("", TensorProto.FLOAT, [1], [1.0])
    broken = helper.make_tensor("", TensorProto.FLOAT, [2], np.float32([1, 2]).tobytes(), raw=True)
    broken.dims[0] = 3
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], "inner", value=broken)],
        "branch",
        [],
        [helper.make_tensor_value_info("b", 1, [2])],
    )
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["fill"], "filler", value=broken),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch, else_branch=branch),
        helper.make_node("Call", [], ["z"], "call", domain="own"),
    ]
    function = helper.make_function(
        "own",
        "Call",
        [],
        ["z"],
        [helper.make_node("Constant", [], ["z"], "deep", value=broken)],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("n", 7, [1]), helper.make_tensor_value_info("c", 9, [])],
        [helper.make_tensor_value_info("fill", 1, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    assert value.dims[0] == 1
    (tmp_path / DEPLOY).write_bytes(model.SerializeToString())
    items = {f["item"] for f in errors(verify(quantfold, tmp_path / "m"))}
    assert {"filler", "inner", "Call"} <= items and "(unnamed tensor)" not in items


@pytest.mark.parametrize("size", [0, 100, 2000, 4000])
def test_a_model_that_is_cut(quantfold, outputs, size, tmp_path, monkeypatch):  # noqa: F811
    """Its name is in the field for it, as it was given; how much is missing is told."""
    shutil.copytree(outputs["plain"].folder, tmp_path / "out")
    path = tmp_path / "out" / DEPLOY
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    monkeypatch.chdir(tmp_path)
    (error,) = [f for f in errors(verify(quantfold, "out/m")) if f["check"] == "structure"]
    assert error["file"] == "out/" + DEPLOY and error["file"] not in error["message"]
    if size:
        graph = next(n for n in range(30, 0, -1) if f"byte {n}: " in error["message"])
        room = size - graph - 1 - 3  # tag, and a length of two or three bytes
        assert f"({size} in all)" in error["message"] and len(whole) > 4000
        assert f"of which the file has {room}" in error["message"] or (
            f"of which the file has {room + 1}" in error["message"]
        )


def test_external_data_that_is_wrong(quantfold, outputs, tmp_path, monkeypatch):  # noqa: F811
    shutil.copytree(outputs["external"].folder, tmp_path / "out")
    name = min(p.name for p in (tmp_path / "out").glob("*_deploy.external"))
    data = (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / name).write_bytes(data[:-1])
    monkeypatch.chdir(tmp_path)
    tensor = name.removesuffix("_deploy.external")
    first = errors(verify(quantfold, "out/m"))[0]
    assert (first["file"], first["item"]) == (f"out/{name}", tensor), first
    assert first["message"].startswith("the external data is short"), first
    (tmp_path / "out" / name).unlink()
    first = errors(verify(quantfold, "out/m"))[0]
    assert (first["file"], first["item"]) == (f"out/{DEPLOY}", tensor), first


def test_a_failure_of_the_system_has_its_fields(quantfold, outputs, tmp_path):  # noqa: F811
    """No check made it."""
    folder = tmp_path / "out"
    shutil.copytree(outputs["plain"].folder, folder)
    preloaded = shim.preload(Path(quantfold.binary))
    struck = shim.environment(preloaded, folder, "open:1:EIO", tmp_path / "report")
    run = quantfold("verify", folder / "m", "--json", env=struck)
    (error,) = json.loads(run.out)["findings"]
    assert run.code == 3 and error["check"] is None
    assert error["file"] == str(folder / DEPLOY)
    assert error["file"] not in error["message"] and "error" in error["message"]
    (folder / ".m.quantfold-partial").write_text("in the way")
    last = verify(quantfold, folder / "m", "--runnable", code=3)["findings"][-1]
    assert last["check"] is None and last["severity"] == "error"


def test_another_model_is_told_first(quantfold, outputs, tmp_path):  # noqa: F811
    """And of what follows, lines that can be read."""
    net = Net()
    y = net.input("x", normal(2, 4, 6, 6))
    for i in range(80):
        y = net.op("Relu", [y], f"other{i}")
    y = conv(net, y, normal(6, 4, 3, 3, seed=1), normal(6, seed=2), name="c")
    net.output(y)
    onnx.save(net.model(), str(tmp_path / "other.onnx"))
    record = make_record.record_text([make_record.Record("c", 0.03, -5, [0.01], "INT8", "INT8")])
    (tmp_path / "other.txt").write_text(record)
    line = ("--against", tmp_path / "other.onnx", "--record", tmp_path / "other.txt")
    prefix = outputs["plain"].folder / "m"
    found = verify(quantfold, prefix, *line)
    told = [f for f in errors(found) if f["check"] == "against"]
    assert "this looks like another model" in told[0]["message"] and len(told) > 100
    run = quantfold("verify", prefix, *line)
    lines = [n for n in run.err.splitlines() if "error: " in n]
    assert (
        len(lines) == 51
        and f"and {len(told) - 50} more errors (--json has all {len(told)})" in lines[-1]
    )
    assert "this looks like another model" in lines[0]


def test_a_changed_node_makes_no_other_model(quantfold, outputs, tmp_path):  # noqa: F811
    o = outputs["plain"]
    shutil.copytree(o.folder, tmp_path / "out")
    Spoiler(tmp_path / "out", random.Random(0)).edit(DEPLOY, lambda m: m.graph.node.pop())
    prefix = tmp_path / "out" / "m"
    found = verify(quantfold, prefix, "--against", o.model, "--record", o.record)
    assert not found["ok"] and "another model" not in json.dumps(found)
