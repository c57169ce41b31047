#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a record and a config for a float ONNX model that was never trained for quantization.

An export needs a scale and an offset for every layer. A model from quantization-aware training
brings them along; any other model has none, so it could not be used to try the exporter. This
script derives them: weight scales from the largest magnitude of each output channel, with
BatchNormalization folded in as the exporter folds it (one scale per tensor for Gemm and MatMul, as
the reference tool demands); activation ranges from a run in ONNX Runtime on the given inputs or on
seeded random ones.

    make_record.py MODEL.onnx --record record.txt --config config.json
                   [--inputs a.npy b.npy ...] [--shape x=1,3,64,64] [--seed 0] [--samples 2]
                   [--branch then|else] [--quantfold build/quantfold]

Inputs given as .npy files go to the graph inputs in order. Without them every input gets random
values, with unknown dimensions taken as 1 unless --shape names them. Layers inside If and Loop
bodies are reported and left out: their activations are not visible to the outer graph. With
--branch then (or else), that branch of every If of the main graph is taken as always chosen, and
its layers are recorded; the inputs must be such that it can run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLT_EPSILON = 1.192092896e-7


@dataclass
class Layer:
    """One layer that gets a record: its key, its node and the weight behind its input 1."""

    key: str
    op: str
    node: object
    weight: np.ndarray  # with a BatchNormalization behind a Conv folded in, as the exporter does
    group: int = 1


@dataclass
class Record:
    """The values of one `record { ... }` entry, in the order the reference writes them."""

    key: str
    scale_d: float
    offset_d: int
    scale_w: list[float]
    act_type: str | None = "INT8"
    wts_type: str | None = "INT8"
    extra: list[str] = field(default_factory=list)


def float_text(value: float) -> str:
    """The shortest text that reads back as the same float32, as the protobuf writer prints it."""
    return repr(float(str(np.float32(value))))


def record_entry(record: Record) -> str:
    """One entry in the writer's form: two-space indent, one line for each repeated value."""
    lines = [
        "record {",
        f'  key: "{record.key}"',
        "  value {",
        f"    scale_d: {float_text(record.scale_d)}",
        f"    offset_d: {int(record.offset_d)}",
    ]
    lines += [f"    scale_w: {float_text(s)}" for s in record.scale_w]
    lines += ["    offset_w: 0" for _ in record.scale_w]
    if record.act_type is not None:
        lines.append(f'    act_type: "{record.act_type}"')
    if record.wts_type is not None:
        lines.append(f'    wts_type: "{record.wts_type}"')
    lines += [f"    {text}" for text in record.extra]
    return "\n".join(lines + ["  }", "}", ""])


def record_text(records: list[Record]) -> str:
    """A whole record file."""
    return "".join(record_entry(r) for r in records)


def layer_config(channel_wise: bool, act: str = "INT8", wts: str = "INT8") -> dict:
    """The config of one layer, with the reference's keys in the reference's order."""
    return {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": act},
        "retrain_weight_config": {
            "algo": "arq_retrain",
            "channel_wise": channel_wise,
            "dst_type": wts,
        },
    }


def config_text(layers: dict[str, dict], batch_num: int = 1) -> str:
    """A whole config file as the reference's json.dump writes it."""
    return json.dumps(
        {"version": 1, "batch_num": batch_num, **layers}, indent=4, separators=(",", ":")
    )


def channel_wise(op: str) -> bool:
    """Whether the reference lets this kind of layer have one scale per output channel."""
    return op in ("Conv", "ConvTranspose")


def symmetric_scales(magnitudes: np.ndarray, bits: int = 8) -> list[float]:
    """Scales that map each magnitude onto the largest positive level; empty channels get 1."""
    scales = np.float32(magnitudes) / np.float32(2 ** (bits - 1) - 1)
    return [float(s) if s >= FLT_EPSILON else 1.0 for s in np.atleast_1d(scales)]


def weight_scales(op: str, weight: np.ndarray, group: int = 1, bits: int = 8) -> list[float]:
    """One scale per output channel for Conv and ConvTranspose, one for all for the others."""
    w = np.abs(weight.astype(np.float32))
    if op == "Conv":
        return symmetric_scales(w.reshape(w.shape[0], -1).max(axis=1), bits)
    if op == "ConvTranspose":
        w = w.reshape(group, w.shape[0] // group, w.shape[1], -1)
        return symmetric_scales(w.max(axis=(1, 3)).reshape(-1), bits)
    return symmetric_scales(w.max(), bits)


def activation_range(low: float, high: float, bits: int = 8) -> tuple[float, int]:
    """Scale and signed-domain offset for a range; zero is always inside it."""
    low, high = np.float32(min(low, 0.0)), np.float32(max(high, 0.0))
    scale = np.float32((high - low) / np.float32(2**bits - 1))
    if not np.isfinite(scale) or scale < FLT_EPSILON:
        return 1.0, -(2 ** (bits - 1))
    offset = int(np.rint(-(2 ** (bits - 1)) - low / scale))
    return float(scale), max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, offset))


def attribute(node, name: str, default=None):
    """The value of a node's attribute, or the default."""
    from onnx import helper

    for a in node.attribute:
        if a.name == name:
            return helper.get_attribute_value(a)
    return default


class Weights:
    """Finds the constant behind a tensor name: initializer, Constant node, Identity, Transpose."""

    def __init__(self, model, folder: str):
        self.folder = folder
        self.tensors = {t.name: t for t in model.graph.initializer}
        self.producers = {o: n for n in model.graph.node for o in n.output}

    def find(self, name: str) -> np.ndarray | None:
        from onnx import numpy_helper

        if name in self.tensors:
            return numpy_helper.to_array(self.tensors[name], self.folder)
        node = self.producers.get(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            value = attribute(node, "value")
            return None if value is None else numpy_helper.to_array(value, self.folder)
        if node.op_type == "Identity":
            return self.find(node.input[0])
        if node.op_type == "Transpose":
            under = self.find(node.input[0])
            return None if under is None else under.transpose(attribute(node, "perm"))
        return None


def batch_norm_factor(model, weights: Weights, node) -> np.ndarray | None:
    """What the BatchNormalization that alone reads a Conv multiplies its output channels by."""
    readers = [n for n in model.graph.node if node.output[0] in n.input]
    outputs = [v.name for v in model.graph.output]
    if node.op_type != "Conv" or len(readers) != 1 or node.output[0] in outputs:
        return None
    if readers[0].op_type != "BatchNormalization":
        return None
    gamma, var = weights.find(readers[0].input[1]), weights.find(readers[0].input[4])
    if gamma is None or var is None:
        return None
    return gamma / np.sqrt(var + np.float32(attribute(readers[0], "epsilon", 1e-5)))


def why_not(node, weight: np.ndarray | None) -> str | None:
    """Why a node of a quantizable type cannot be quantized, or None if it can."""
    if weight is None:
        return "its weight is not a constant"
    if weight.dtype.kind != "f" and weight.dtype.name != "bfloat16":
        return f"its weight is {weight.dtype}, not a float"
    if node.op_type in ("Conv", "ConvTranspose"):
        if not 3 <= weight.ndim <= 5:
            return f"its weight has {weight.ndim} dimensions, not 3 to 5"
    elif weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions, not 2"
    if node.op_type == "Gemm" and attribute(node, "transA", 0):
        return "transA is 1"
    return None


def subgraph_layers(nodes) -> int:
    """How many quantizable nodes sit in the bodies of the given nodes."""
    count = 0
    for node in nodes:
        for a in node.attribute:
            for body in [a.g] if a.HasField("g") else list(a.graphs):
                count += sum(n.op_type in QUANTIZABLE for n in body.node)
                count += subgraph_layers(body.node)
    return count


def take_branch(model, branch: str):
    """The model with each If of its main graph replaced by the nodes of one of its branches."""
    import onnx

    flat = onnx.ModelProto()
    flat.CopyFrom(model)
    del flat.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "If":
            flat.graph.node.append(node)
            continue
        body = attribute(node, f"{branch}_branch")
        flat.graph.initializer.extend(body.initializer)
        flat.graph.node.extend(body.node)
        for inner, outer in zip(body.output, node.output):
            flat.graph.node.append(onnx.helper.make_node("Identity", [inner.name], [outer]))
    return flat


def find_layers(model, folder: str) -> tuple[list[Layer], list[str]]:
    """The layers of the main graph that can be quantized, and a line for each that cannot."""
    weights = Weights(model, folder)
    layers, skipped = [], []
    for index, node in enumerate(model.graph.node):
        if node.op_type not in QUANTIZABLE or node.domain not in ("", "ai.onnx"):
            continue
        key = node.name or f"node_{index}"
        weight = weights.find(node.input[1])
        reason = why_not(node, weight)
        if reason:
            skipped.append(f"{key} ({node.op_type}): {reason}")
            continue
        factor = batch_norm_factor(model, weights, node)
        if factor is not None:
            weight = weight * factor.reshape([-1] + [1] * (weight.ndim - 1))
        layers.append(Layer(key, node.op_type, node, weight, attribute(node, "group", 1)))
    inside = subgraph_layers(model.graph.node)
    if inside:
        skipped.append(f"{inside} layers inside If/Loop bodies: activations are not visible")
    return layers, skipped


def inspect_keys(binary: str, model_path: Path) -> set[str]:
    """Keys of the layers that quantfold itself says it can quantize."""
    run = subprocess.run(
        [binary, "inspect", str(model_path), "--json"], capture_output=True, text=True, check=True
    )
    layers = json.loads(run.stdout)["layers"]
    return {layer["name"] for layer in layers if layer["quantizable"]}


def random_input(value, rng, shapes: dict[str, list[int]]) -> np.ndarray:
    """A seeded array for a graph input: small normal floats, zeros and ones for integers."""
    from onnx import helper

    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = shapes.get(value.name) or [max(int(d.dim_value), 1) for d in tensor.shape.dim]
    if np.dtype(dtype).kind == "f":
        return rng.standard_normal(dims).astype(dtype)
    return rng.integers(0, 2, dims).astype(dtype)


def graph_inputs(model) -> list:
    """Graph inputs without the initializers that old models list among them."""
    held = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in held]


def random_feeds(model, seed: int, samples: int, shapes: dict[str, list[int]]) -> list[dict]:
    """Several sets of seeded random inputs."""
    rng = np.random.default_rng(seed)
    inputs = graph_inputs(model)
    return [{v.name: random_input(v, rng, shapes) for v in inputs} for _ in range(samples)]


def observe(model, folder: str, names: list[str], feeds: list[dict]) -> dict[str, tuple]:
    """Smallest and largest value that each named tensor takes over the feeds."""
    import onnx
    import onnxruntime as ort

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    known = {o.name for o in probe.graph.output} | {v.name for v in probe.graph.input}
    for name in names:
        if name not in known:
            probe.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # beside the model only if its tensors lie there: its folder may not be ours to write to
    beside = folder if any(t.external_data for t in model.graph.initializer) else None
    with tempfile.NamedTemporaryFile(suffix=".onnx", dir=beside) as scratch:
        onnx.save(probe, scratch.name)
        session = ort.InferenceSession(scratch.name, options, providers=["CPUExecutionProvider"])
    ranges = {n: (np.inf, -np.inf) for n in names}
    fetch = [n for n in names if n not in feeds[0]]
    for feed in feeds:
        values = dict(zip(fetch, session.run(fetch, feed))) | {n: feed[n] for n in feed}
        for n in names:
            low, high = ranges[n]
            ranges[n] = (min(low, float(values[n].min())), max(high, float(values[n].max())))
    return ranges


def make(
    model_path: Path,
    feeds: list[dict] | None = None,
    seed: int = 0,
    samples: int = 2,
    shapes: dict[str, list[int]] | None = None,
    quantfold: str | None = None,
    branch: str | None = None,
) -> tuple[str, str, list[str], list[str]]:
    """Record text, config text, keys of the recorded layers, and why others were left out."""
    import onnx

    folder = str(model_path.resolve().parent)
    model = onnx.load(str(model_path), load_external_data=False)
    if branch:
        model = take_branch(model, branch)
    layers, skipped = find_layers(model, folder)
    if quantfold:
        allowed = inspect_keys(quantfold, model_path)
        skipped += [f"{x.key}: quantfold does not take it" for x in layers if x.key not in allowed]
        layers = [x for x in layers if x.key in allowed]
    if not layers:
        return "", config_text({}), [], skipped
    feeds = feeds or random_feeds(model, seed, samples, shapes or {})
    ranges = observe(model, folder, sorted({x.node.input[0] for x in layers}), feeds)
    records, config = [], {}
    for layer in layers:
        scale, offset = activation_range(*ranges[layer.node.input[0]])
        scales = weight_scales(layer.op, layer.weight, layer.group)
        records.append(Record(layer.key, scale, offset, scales))
        config[layer.key] = layer_config(channel_wise(layer.op))
    return record_text(records), config_text(config), list(config), skipped


def parse_shapes(texts: list[str]) -> dict[str, list[int]]:
    """`name=1,3,64,64` options as a dictionary."""
    pairs = (t.split("=", 1) for t in texts)
    return {name: [int(x) for x in dims.split(",")] for name, dims in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--inputs", nargs="*", default=[], help=".npy files, in input order")
    parser.add_argument("--shape", action="append", default=[], help="name=1,3,64,64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--branch", choices=["then", "else"], help="branch of If nodes to enter")
    parser.add_argument("--quantfold", help="binary whose `inspect` decides which layers count")
    args = parser.parse_args()
    feeds = None
    if args.inputs:
        import onnx

        names = [v.name for v in graph_inputs(onnx.load(str(args.model), load_external_data=False))]
        feeds = [dict(zip(names, (np.load(p) for p in args.inputs)))]
    record, config, keys, skipped = make(
        args.model,
        feeds,
        args.seed,
        args.samples,
        parse_shapes(args.shape),
        args.quantfold,
        args.branch,
    )
    for line in skipped:
        print(f"skipped {line}", file=sys.stderr)
    if not keys:
        print(f"{args.model}: no layer to quantize in the main graph", file=sys.stderr)
        return 1
    args.record.write_text(record)
    args.config.write_text(config)
    print(f"{len(keys)} layers recorded, {len(skipped)} skipped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
