# SPDX-License-Identifier: Apache-2.0
"""Small models for the tests, and the checks that every export of one must pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import deploy_rules
import numpy as np
import onnx
import reference
from onnx import TensorProto, helper, numpy_helper

import make_record
from support import (
    DEPLOY,
    FAKE,
    assert_same_model,
    check_model,
    payload,
    run_model,
    same_bits,
    sqnr_db,
)

F32 = np.float32


def random(*shape, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Seeded normal values."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * scale).astype(F32)


@dataclass
class Net:
    """A model under construction; every method returns the name of the tensor it makes."""

    opset: int = 17
    ir_version: int = 8
    nodes: list = field(default_factory=list)
    tensors: list = field(default_factory=list)
    inputs: list = field(default_factory=list)
    outputs: list = field(default_factory=list)
    feeds: dict = field(default_factory=dict)
    listed: bool = False

    def input(self, name: str, value: np.ndarray) -> str:
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        self.inputs.append(helper.make_tensor_value_info(name, kind, value.shape))
        self.feeds[name] = value
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def tensor(self, tensor: TensorProto) -> str:
        self.tensors.append(tensor)
        return tensor.name

    def constant(self, name: str, value: np.ndarray) -> str:
        return self.op("Constant", [], f"{name}_node", name, value=numpy_helper.from_array(value))

    def op(self, op: str, inputs: list, name: str, outputs=None, **attributes):
        outputs = outputs or f"{name}:out"
        made = outputs if isinstance(outputs, list) else [outputs]
        self.nodes.append(helper.make_node(op, inputs, made, name, **attributes))
        return outputs

    def output(self, name: str, kind: int = TensorProto.FLOAT) -> str:
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))
        return name

    def model(self) -> onnx.ModelProto:
        inputs = list(self.inputs)
        if self.listed:
            inputs += [
                helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.tensors
            ]
        graph = helper.make_graph(self.nodes, "net", inputs, self.outputs, self.tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        shaped = onnx.shape_inference.infer_shapes(model)
        for value, known in zip(model.graph.output, shaped.graph.output):
            value.CopyFrom(known)
        return model


def conv(net: Net, x: str, w: np.ndarray, b=None, name="c", group=1, op="Conv", **attributes):
    """A Conv or ConvTranspose with every attribute an exporter writes."""
    rank = w.ndim - 2
    inputs = [x, net.weight(f"{name}.weight", w)]
    if b is not None:
        inputs.append(net.weight(f"{name}.bias", b))
    given = {
        "kernel_shape": list(w.shape[2:]),
        "pads": [1] * 2 * rank,
        "strides": [1] * rank,
        "dilations": [1] * rank,
        "group": group,
    }
    return net.op(op, inputs, name, **given | attributes)


def gemm(net: Net, x: str, w: np.ndarray, b=None, name="g", **attributes):
    """A Gemm as given."""
    inputs = [x, net.weight(f"{name}.weight", w)]
    if b is not None:
        inputs.append(net.weight(f"{name}.bias", b))
    return net.op("Gemm", inputs, name, **attributes)


@dataclass
class Options:
    """How records are made for a net, and how strictly its export is compared."""

    act: str | None = "INT8"
    wts: str | None = "INT8"
    per_channel: bool | None = None  # None: as the reference allows for the kind of layer
    extra: dict = field(default_factory=dict)  # key -> more lines for its record
    scales: dict = field(default_factory=dict)  # key -> weight scales
    ranges: dict = field(default_factory=dict)  # key -> (scale_d, offset_d)
    only: list | None = None  # keys to record; None is all
    strict: bool = True  # names and structure, not just values
    snr: float | None = 18.0  # smallest ratio to the float model, None: not comparable
    config: bool = True
    args: tuple = ()


DEFAULT = Options()


def layer_scales(layer: make_record.Layer, options: Options) -> list[float]:
    """Weight scales of one layer."""
    if layer.key in options.scales:
        return [float(s) for s in options.scales[layer.key]]
    bits = reference.BITS[options.wts or "INT8"]
    per_channel = options.per_channel
    if per_channel is None:
        per_channel = make_record.channel_wise(layer.op)
    if make_record.channel_wise(layer.op):
        scales = make_record.weight_scales(layer.op, layer.weight, layer.group, bits)
        return scales if per_channel else [max(scales)]
    if not per_channel:
        return make_record.weight_scales(layer.op, layer.weight, 1, bits)
    transposed = bool(make_record.attribute(layer.node, "transB", 0))
    columns = layer.weight.T if transposed else layer.weight
    return make_record.symmetric_scales(np.abs(columns.astype(F32)).max(axis=0), bits)


def records_for(path: Path, net: Net, options: Options) -> list[make_record.Record]:
    """Records of every layer make_record finds, with ranges seen in a float run."""
    folder = str(path.parent)
    model = onnx.load(str(path), load_external_data=False)
    layers, _ = make_record.find_layers(model, folder)
    layers = [x for x in layers if options.only is None or x.key in options.only]
    ranges = make_record.observe(
        model, folder, sorted({x.node.input[0] for x in layers}), [net.feeds]
    )
    bits = reference.BITS[options.act or "INT8"]
    records = []
    for layer in layers:
        low, high = ranges[layer.node.input[0]]
        scale, offset = make_record.activation_range(low, high, bits)
        if bits == 16:  # the reference trains 16-bit activations symmetric
            scale, offset = max(-low, high) / 32767, 0
        scale, offset = options.ranges.get(layer.key, (scale, offset))
        extra = options.extra.get(layer.key, [])
        scales = layer_scales(layer, options)
        records.append(
            make_record.Record(layer.key, scale, offset, scales, options.act, options.wts, extra)
        )
    return records


def config_for(records: list[make_record.Record], path: Path, options: Options) -> str | None:
    """A config for the records, where the reference's rules let there be one."""
    allowed = {("INT8", "INT8"), ("INT16", "INT8"), ("INT8", "INT4"), ("INT4", "INT4")}
    if not options.config or (options.act, options.wts) not in allowed:
        return None
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    kinds = {n.name or f"node_{i}": n.op_type for i, n in enumerate(nodes)}
    return make_record.config_text(
        {
            r.key: make_record.layer_config(
                make_record.channel_wise(kinds[r.key]), options.act, options.wts
            )
            for r in records
        }
    )


@dataclass
class Export:
    """What an export of a net wrote, and what it should have written."""

    out: Path
    model: Path
    records: dict
    wanted: Path

    @property
    def deploy(self) -> onnx.ModelProto:
        return onnx.load(str(self.out / DEPLOY), load_external_data=False)

    @property
    def fake(self) -> onnx.ModelProto:
        return onnx.load(str(self.out / FAKE), load_external_data=False)


def save_net(net: Net, folder: Path) -> Path:
    """Write a net as model.onnx; a net that the checker refuses is a bug of the test."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    model = net.model()
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def export_text(quantfold, folder: Path, path: Path, text: str, *args, config=None) -> Export:
    """Export a model with the given record text, and build what is expected."""
    assert text, "the net has no layer to quantize"
    (folder / "record.txt").write_text(text)
    if config is not None:
        (folder / "config.json").write_text(config)
    wanted = folder / "wanted"
    wanted.mkdir()
    records = reference.parse_record(text)
    build_wanted(path, records, wanted)
    quantfold.export(
        path,
        folder / "record.txt",
        folder / "out" / "m",
        *args,
        config=None if config is None else folder / "config.json",
    )
    return Export(folder / "out", path, records, wanted)


def export_net(quantfold, folder: Path, net: Net, options=DEFAULT, path=None) -> Export:
    """Write a net with records and a config made for it, and export it."""
    path = path or save_net(net, folder)
    records = records_for(path, net, options)
    text, config = make_record.record_text(records), config_for(records, path, options)
    return export_text(quantfold, folder, path, text, *options.args, config=config)


def build_wanted(path: Path, records: dict, wanted: Path) -> None:
    """Write the models of the numpy reference."""
    model = onnx.load(str(path), load_external_data=False)
    deploy, fake, _ = reference.expected(model, str(path.parent), records)
    onnx.save(deploy, str(wanted / DEPLOY))
    onnx.save(fake, str(wanted / FAKE))


def resolve(model: onnx.ModelProto, name: str):
    """The constant tensor behind a name: through Identity, Transpose, Cast and Constant nodes."""
    tensors = {t.name: t for t in model.graph.initializer}
    producers = {o: n for n in model.graph.node for o in n.output}
    while name not in tensors:
        node = producers.get(name)
        if node is None or node.op_type not in ("Identity", "Transpose", "Cast", "Constant"):
            return None
        if node.op_type == "Constant":
            return node.attribute[0].t
        name = node.input[0]
    return tensors[name]


def layer_values(path: Path, layer: str) -> dict[str, tuple]:
    """Type, dims and bytes of a layer's constants and of its dequant parameter."""
    model = onnx.load(str(path), load_external_data=False)
    nodes = {n.name: n for n in model.graph.node}
    found = {}
    for i, name in enumerate(nodes[layer].input[1:], 1):
        found[f"input {i}"] = resolve(model, name) if name else None
    for suffix in ("dequant", "fakedequant.mul"):
        if f"{layer}.{suffix}" in nodes:
            found[suffix] = resolve(model, nodes[f"{layer}.{suffix}"].input[1])
    return {
        use: (t.data_type, tuple(t.dims), payload(t, path.parent))
        for use, t in found.items()
        if t is not None
    }


def check_export(export: Export, net: Net, options=DEFAULT) -> None:
    """Everything an export must hold, from single values to what ONNX Runtime computes."""
    deploy_rules.assert_deploy(export.out / DEPLOY)
    for name in (DEPLOY, FAKE):
        for layer in export.records:
            ours = layer_values(export.out / name, layer)
            assert ours and ours == layer_values(export.wanted / name, layer), f"{name}: {layer}"
        if options.strict:
            assert_same_model(export.out / name, export.wanted / name)
    check_model(export.out / FAKE)
    ours = run_model(export.out / FAKE, net.feeds)
    same_bits(ours, run_model(export.wanted / FAKE, net.feeds))
    if options.snr is not None:
        for exact, got in zip(run_model(export.model, net.feeds), ours):
            assert sqnr_db(exact, got) > options.snr, sqnr_db(exact, got)


def export_and_check(quantfold, folder: Path, net: Net, options=DEFAULT, path=None) -> Export:
    """Both steps."""
    export = export_net(quantfold, folder, net, options, path)
    check_export(export, net, options)
    return export
