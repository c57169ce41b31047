# SPDX-License-Identifier: Apache-2.0
"""The export written a second time, in numpy, from the facts alone.

`expected(model, folder, records)` returns the deploy and the fake_quant model that the rules of the
reference tool give. It shares no code with the engine, so a rule that the engine gets wrong shows
as a difference. test_golden.py proves this file itself: it must reproduce every golden file.

Weights may also sit in Constant nodes or behind Identity nodes, and Gemm and MatMul may have one
scale per output column; there the reference tool fails and what is written here is what ours does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32 = np.float32
BITS = {"INT4": 4, "INT6": 6, "INT7": 7, "INT8": 8, "INT16": 16}
RNN = ("LSTM", "GRU")
MARKER_DOMAIN = "custom_op_domain"
MODULE_OPS = {
    "Conv1d": ("Conv",),
    "Conv2d": ("Conv",),
    "Conv3d": ("Conv",),
    "ConvTranspose1d": ("ConvTranspose",),
    "ConvTranspose2d": ("ConvTranspose",),
    "ConvTranspose3d": ("ConvTranspose",),
    "Linear": ("Gemm", "MatMul"),
    "LSTM": ("LSTM",),
    "GRU": ("GRU",),
}


# ---- numbers -----------------------------------------------------------------------------------


def quantize(values: np.ndarray, scale, bits: int = 8) -> np.ndarray:
    """clamp(round_half_even(w / scale)) in float32, as int8. Divides: no reciprocal."""
    with np.errstate(over="ignore"):
        q = np.rint(values.astype(F32) / np.asarray(scale, F32))
    return np.clip(q, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)


def conv_scale(scales, ndim: int) -> np.ndarray:
    """Conv scales, shaped to divide a [Cout, Cin/g, ...] weight."""
    return np.asarray(scales, F32).reshape([-1] + [1] * (ndim - 1))


def deconv_scale(scales, shape, group: int) -> np.ndarray:
    """ConvTranspose scales (index group * Cout/g + co), shaped for a [Cin, Cout/g, ...] weight."""
    s = np.asarray(scales, F32)
    if s.size == 1:
        return s.reshape([1] * len(shape))
    rows = np.repeat(s.reshape(group, shape[1]), shape[0] // group, axis=0)
    return rows.reshape(list(rows.shape) + [1] * (len(shape) - 2))


def rnn_scale(scales, rows: int) -> np.ndarray:
    """RNN scales for a [1, rows, n] weight: one for each gate's block of rows, or for each row."""
    s = np.asarray(scales, F32)
    return np.repeat(s, rows // s.size).reshape(1, rows, 1)


def pack_pairs(q: np.ndarray, axis: int) -> np.ndarray:
    """Two 4-bit values in a byte along an axis: even index low, odd index high."""
    q = np.moveaxis(q.view(np.uint8) & 0xF, axis, -1)
    assert q.shape[-1] % 2 == 0, "odd axis cannot be packed"
    return np.moveaxis(q[..., 0::2] | (q[..., 1::2] << 4), -1, axis).view(np.int8)


def pack_flat(q: np.ndarray) -> bytes:
    """Native INT4 payload: low nibble first, zero padded to a whole byte."""
    flat = q.reshape(-1).view(np.uint8) & 0xF
    flat = np.concatenate([flat, np.zeros(flat.size % 2, np.uint8)])
    return (flat[0::2] | (flat[1::2] << 4)).tobytes()


def dequant_scales(scale_w, scale_d) -> np.ndarray:
    """One float32 product per channel."""
    return np.asarray(scale_w, F32) * F32(scale_d)


def to_s19(scales: np.ndarray) -> np.ndarray:
    """FORCE_FP16_QUANT: the low 13 bits are cut off, without rounding."""
    return (scales.view(np.uint32) & np.uint32(0xFFFFE000)).view(F32)


def pack_param(scales: np.ndarray) -> np.ndarray:
    """Dequant parameters: the bits of the float32 scale in the low half of a uint64."""
    return np.ascontiguousarray(scales, F32).view(np.uint32).astype(np.uint64)


def quantize_bias(bias: np.ndarray, deq: np.ndarray) -> np.ndarray:
    """round_half_even(bias / deq) as int32; float32 unless the bias is double."""
    wide = bias.astype(np.float64) if bias.dtype == np.float64 else bias.astype(F32)
    q = np.rint(wide / deq.astype(wide.dtype))
    assert np.all((q >= -(2**31)) & (q < 2**31)), "bias leaves int32"
    return q.astype(np.int64).astype(np.int32)


def fold_bn(weight, bias, gamma, beta, mean, var, eps):
    """Conv + BatchNormalization in float32, in the order torch does it."""
    r = F32(1) / np.sqrt(var.astype(F32) + F32(eps))
    b = np.zeros_like(mean) if bias is None else bias
    w = weight * (gamma * r).reshape([-1] + [1] * (weight.ndim - 1))
    return w.astype(F32), ((b - mean) * r * gamma + beta).astype(F32)


# ---- record file -------------------------------------------------------------------------------

TOKEN = re.compile(r'\s*(?:(\w+)\s*:\s*(?:"([^"]*)"|([^\s{}]+))|(\w+)\s*:?\s*\{|(\}))')
REPEATED = ("scale_w", "offset_w", "scale_r", "offset_r", "tensor_balance_factor")


def parse_record(text: str) -> dict[str, dict]:
    """Records by key; reads the form that writers produce, not all of protobuf's text format."""
    out: dict[str, dict] = {}
    key, values = None, {}
    depth, at = 0, 0
    while match := TOKEN.match(text, at):
        at = match.end()
        name, string, plain, opened, closed = match.groups()
        if opened:
            depth += 1
        elif closed:
            depth -= 1
            if depth == 0:
                out[key], key, values = values, None, {}
        elif name == "key":
            key = string
        elif name in REPEATED:
            values.setdefault(name, []).append(F32(plain) if "offset" not in name else int(plain))
        else:
            values[name] = string if string is not None else number(name, plain)
    assert not text[at:].strip(), f"record not understood at {text[at:at + 40]!r}"
    return out


def number(name: str, text: str):
    """A scalar field: scales are float32, the rest are integers or booleans."""
    if name.startswith("scale"):
        return F32(text)
    return text == "true" if text in ("true", "false") else int(text)


def act_bits(record: dict) -> int:
    """Activation bits: dst_type overrides act_type."""
    return BITS[record.get("dst_type") or record.get("act_type") or "INT8"]


def weight_bits(record: dict) -> int:
    """Weight bits: dst_type overrides wts_type."""
    return BITS[record.get("dst_type") or record.get("wts_type") or "INT8"]


# ---- graph -------------------------------------------------------------------------------------


def attr(node, name: str, default=None):
    """An attribute's value or the default."""
    for a in node.attribute:
        if a.name == name:
            return helper.get_attribute_value(a)
    return default


def set_attr(node, name: str, value) -> None:
    """Replace or add an attribute."""
    drop_attr(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def drop_attr(node, name: str) -> None:
    """Remove an attribute if it is there."""
    for a in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(a)


@dataclass
class Graph:
    """A model taken apart: nodes, tensors by name (TensorProto), and the rest of the model."""

    model: onnx.ModelProto
    folder: str
    nodes: list = field(default_factory=list)
    tensors: dict = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto, folder: str) -> Graph:
        own = onnx.ModelProto()
        own.CopyFrom(model)
        g = cls(own, folder, list(own.graph.node), {t.name: t for t in own.graph.initializer})
        for i, node in enumerate(g.nodes):
            node.name = node.name or f"node_{i}"
            drop_attr(node, "op_data_type")
        keep = [v for v in own.graph.input if v.name not in g.tensors]
        del own.graph.input[:]
        own.graph.input.extend(keep)
        return g

    def copy(self) -> Graph:
        return Graph.of(self.to_model(), self.folder)

    def node(self, name: str):
        return next(n for n in self.nodes if n.name == name)

    def producer(self, tensor: str):
        return next((n for n in self.nodes if tensor in n.output), None)

    def consumers(self, tensor: str) -> list:
        return [n for n in self.nodes if tensor in n.input]

    def is_output(self, tensor: str) -> bool:
        return any(v.name == tensor for v in self.model.graph.output)

    def reroute(self, old: str, new: str) -> None:
        """Make every consumer of a tensor read another one, in the bodies of If and Loop too."""
        for n in self.nodes:
            reroute_node(n, old, new)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name], self.folder)

    def constant(self, name: str) -> str | None:
        """The tensor behind a name, as an initializer: through Identity, or out of a Constant."""
        if name in self.tensors:
            return name
        node = self.producer(name)
        if node is not None and node.op_type == "Identity":
            return self.constant(node.input[0])
        if node is not None and node.op_type == "Constant" and attr(node, "value") is not None:
            tensor = TensorProto()
            tensor.CopyFrom(attr(node, "value"))
            tensor.name = name
            self.tensors[name] = tensor
            self.nodes = [n for n in self.nodes if n is not node]
            return name
        return None

    def put(self, name: str, array: np.ndarray, data_type=None, raw: bytes | None = None) -> None:
        """Set an initializer from an array, or from packed bytes with a type of its own."""
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        if raw is not None:
            tensor.data_type = data_type
            tensor.raw_data = raw
        self.tensors[name] = tensor

    def add_constant(self, name: str, array: np.ndarray) -> str:
        """A Constant node in front of everything; returns its output."""
        out = f"{name}.output0"
        value = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape))
        self.nodes.insert(0, helper.make_node("Constant", [], [out], name, value=value))
        return out

    def rename_tensor(self, old: str, new: str) -> None:
        """Rename a tensor where it is made; consumers are the caller's business."""
        node = self.producer(old)
        node.output[list(node.output).index(old)] = new

    def insert_after(self, tensor: str, node) -> None:
        """Put a one-output node behind a tensor; a graph output keeps its name."""
        made_by = self.producer(tensor)
        if self.is_output(tensor):
            inner = f"{made_by.name}_output0"
            self.rename_tensor(tensor, inner)
            node.input[0], node.output[0] = inner, tensor
        else:
            node.input[0] = tensor
            self.reroute(tensor, node.output[0])
        self.nodes.append(node)

    def sort(self) -> None:
        """Order nodes so that everything is made before it is used."""
        made = {v.name for v in self.model.graph.input} | set(self.tensors) | {""}
        left, order = list(self.nodes), []
        while left:
            ready = [n for n in left if all(i in made for i in needs(n))]
            assert ready, f"cycle or missing tensor at {left[0].name}"
            order += ready
            made.update(o for n in ready for o in n.output)
            left = [n for n in left if not any(n is r for r in ready)]
        self.nodes = order

    def drop_unused(self, name: str) -> None:
        """Remove an initializer that nothing reads any more."""
        if name in self.tensors and not any(name in needs(n) for n in self.nodes):
            if not self.is_output(name):
                del self.tensors[name]

    def to_model(self) -> onnx.ModelProto:
        self.sort()
        out = onnx.ModelProto()
        out.CopyFrom(self.model)
        del out.graph.node[:]
        del out.graph.initializer[:]
        del out.graph.value_info[:]
        out.graph.node.extend(self.nodes)
        out.graph.initializer.extend(inline(t, self.folder) for t in self.tensors.values())
        return out


def reroute_node(node, old: str, new: str) -> None:
    """Rename what a node and its bodies read; a body's own tensor of that name is another one."""
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new
    for body in bodies(node):
        if old not in made_inside(body):
            for inner in body.node:
                reroute_node(inner, old, new)


def bodies(node) -> list:
    """The graphs in a node's attributes."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def made_inside(body) -> set[str]:
    """Tensors that a body makes or declares itself."""
    inside = {t.name for t in body.initializer} | {v.name for v in body.input}
    return inside | {o for n in body.node for o in n.output}


def needs(node) -> list[str]:
    """Tensors a node reads, those that its bodies take from outside included."""
    names = list(node.input)
    for body in bodies(node):
        inner = made_inside(body)
        names += [i for n in body.node for i in needs(n) if i not in inner]
        names += [v.name for v in body.output if v.name not in inner]
    return names


def inline(tensor: TensorProto, folder: str) -> TensorProto:
    """A tensor with its payload inside, wherever it was."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor, folder), tensor.name)


def remove_markers(g: Graph) -> None:
    """QuantIdentity nodes name the layer behind them and disappear."""
    taken = {n.name for n in g.nodes}
    for mark in [n for n in g.nodes if n.op_type == "QuantIdentity"]:
        layer, module = attr(mark, "op_name").decode(), attr(mark, "module_type").decode()
        name_target(g, mark, layer, MODULE_OPS.get(module), taken)
        g.nodes = [n for n in g.nodes if n is not mark]
        g.reroute(mark.output[0], mark.input[0])
    kept = [o for o in g.model.opset_import if o.domain != MARKER_DOMAIN]
    del g.model.opset_import[:]
    g.model.opset_import.extend(kept)


def name_target(g: Graph, mark, layer: str, ops, taken: set[str]) -> None:
    """Walk forward from a marker to the node it is about, naming Pad and Transpose on the way."""
    queue, seen = list(g.consumers(mark.output[0])), []
    if ops is None:
        node = queue[0]
        while node.op_type in ("Pad", "Transpose"):
            rename(node, f"{layer}_{node.op_type.lower()}", taken)
            node = g.consumers(node.output[0])[0]
        rename(node, layer, taken)
        return
    while queue:
        node = queue.pop(0)
        if node.op_type in ops:
            rename(node, layer, taken)
            return
        if any(node is s for s in seen):
            continue
        seen.append(node)
        if node.op_type in ("Pad", "Transpose") and ops[0] not in RNN:
            rename(node, f"{layer}_{node.op_type.lower()}", taken)
        queue += [c for o in node.output for c in g.consumers(o)]
    raise AssertionError(f"marker {layer} leads nowhere")


def rename(node, name: str, taken: set[str]) -> None:
    """Give a node a name, with a number behind it if the name is taken."""
    suffix = 0
    while name + (str(suffix) if suffix else "") in taken:
        suffix += 1
    node.name = name + (str(suffix) if suffix else "")
    taken.add(node.name)


def fold_batch_norms(g: Graph, skip=()) -> None:
    """Fold each BatchNormalization into the Conv whose only consumer it is."""
    for bn in [n for n in g.nodes if n.op_type == "BatchNormalization"]:
        conv = g.producer(bn.input[0])
        if conv is None or conv.op_type != "Conv" or conv.name in skip:
            continue
        if len(g.consumers(conv.output[0])) != 1 or g.is_output(conv.output[0]):
            continue
        weight = g.constant(conv.input[1])
        bias = g.constant(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else None
        gamma, beta, mean, var = (g.array(g.constant(i)) for i in bn.input[1:5])
        w, b = fold_bn(
            g.array(weight),
            None if bias is None else g.array(bias),
            gamma,
            beta,
            mean,
            var,
            attr(bn, "epsilon", 1e-5),
        )
        if bias is None:
            bias = f"{conv.name}.bias"
            del conv.input[2:]
            conv.input.append(bias)
        g.put(weight, w)
        g.put(bias, b)
        g.nodes = [n for n in g.nodes if n is not bn]
        if g.is_output(bn.output[0]):
            conv.output[0] = bn.output[0]
        else:
            g.reroute(bn.output[0], conv.output[0])
        for name in bn.input[1:5]:
            g.drop_unused(name)


# ---- layers ------------------------------------------------------------------------------------


def match_keys(g: Graph, records: dict[str, dict]) -> dict[str, dict]:
    """Records by node name: exact name, else by the name of the weight."""
    out = {}
    for key, record in records.items():
        node = next((n for n in g.nodes if n.name == key), None)
        if node is None:
            wanted = (f"{key}.weight", f"{key}.sub_module.weight")
            found = [n for n in g.nodes if len(n.input) > 1 and n.input[1] in wanted]
            assert len(found) == 1, f"key {key} matches {[n.name for n in found]}"
            node = found[0]
        out[node.name] = record
    return out


def weight_name(g: Graph, node) -> str:
    """The initializer behind input 1, also through a Transpose; Identity nodes are bypassed."""
    name = g.constant(node.input[1])
    if name is not None:
        node.input[1] = name
        return name
    transpose = g.producer(node.input[1])
    assert transpose.op_type == "Transpose", f"{node.name}: no weight"
    return g.constant(transpose.input[0])


def own_copy(g: Graph, node) -> None:
    """Give a layer its own weight and bias if another node reads them too."""
    for i in (1, 2):
        if i >= len(node.input) or node.input[i] not in g.tensors:
            continue
        others = [c for c in g.consumers(node.input[i]) if c is not node]
        if others or g.is_output(node.input[i]):
            fresh = f"{node.input[i]}@{node.name}"
            g.tensors[fresh] = TensorProto()
            g.tensors[fresh].CopyFrom(g.tensors[node.input[i]])
            g.tensors[fresh].name = fresh
            node.input[i] = fresh


def add_behind(g: Graph, node) -> tuple[object, str] | None:
    """The Add that holds a MatMul's bias on input 1, and the bias."""
    out = node.output[0]
    users = g.consumers(out)
    if node.op_type != "MatMul" or len(users) != 1 or g.is_output(out):
        return None
    add = users[0]
    if add.op_type != "Add" or add.input[0] != out:
        return None
    # the length is that of the stored tensor's last axis, also when a Transpose stands behind it
    columns = g.array(weight_name(g, node)).shape[-1]
    bias = g.constant(add.input[1])
    if bias is None or list(g.tensors[bias].dims) != [columns]:
        return None
    add.input[1] = bias
    return add, bias


def quantize_weight(op: str, w: np.ndarray, record: dict, group: int, scales) -> np.ndarray:
    """Weight of any layer kind in its own layout, as int8 values."""
    bits = weight_bits(record)
    if op == "Conv":
        return quantize(w, conv_scale(scales, w.ndim), bits)
    if op == "ConvTranspose":
        return quantize(w, deconv_scale(scales, w.shape, group), bits)
    if op in RNN:
        return quantize(w, rnn_scale(scales, w.shape[1]), bits)
    return quantize(w, np.asarray(scales, F32), bits)


@dataclass
class Work:
    """What the two outputs need to know of one quantized layer."""

    node: str
    op: str
    record: dict
    weights: dict = field(default_factory=dict)  # tensor -> int8 values
    scales: dict = field(default_factory=dict)  # tensor -> divisor shape, RNN only
    bias: str | None = None
    bias_q: np.ndarray | None = None
    bias_scale: np.ndarray | None = None
    deq: np.ndarray | None = None
    rank: int = 2
    half: int | None = None
    bias_user: str | None = None


def common(g: Graph, records: dict[str, dict]) -> list[Work]:
    """The passes that both outputs share, on floats: layout, balance, and all the integers."""
    works = []
    order = [n for n in g.nodes if n.name in records]
    for node in order:
        record = records[node.name]
        if not record.get("scale_d"):
            continue
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            for i in range(1, len(node.input)):
                node.input[i] = g.constant(node.input[i]) or node.input[i]
            own_copy(g, node)
        works.append(work_of(g, node, record))
    return works


def work_of(g: Graph, node, record: dict) -> Work:
    """Quantize one layer's tensors."""
    work = Work(node.name, node.op_type, record)
    if node.op_type in RNN:
        return rnn_work(g, node, work)
    deq = dequant_scales(record["scale_w"], record["scale_d"])
    if node.op_type != "AveragePool":
        name = weight_name(g, node)
        w = g.array(name)
        if w.dtype.name in ("float16", "bfloat16", "float64"):
            work.half = g.tensors[name].data_type
        if node.op_type == "Gemm" and attr(node, "transB", 0):
            w = np.ascontiguousarray(w.T)
            set_attr(node, "transB", 0)
        work.rank = w.ndim
        group = attr(node, "group", 1)
        scales = record["scale_w"]
        if node.op_type == "MatMul" and node.input[1] not in g.tensors and len(scales) > 1:
            scales = np.asarray(scales, F32).reshape(-1, 1)
        work.weights[name] = quantize_weight(node.op_type, w, record, group, scales)
        add = add_behind(g, node)
        if add is not None:
            work.bias, work.bias_user = add[1], add[0].name
        elif node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
            work.bias, work.bias_user = node.input[2], node.name
        if work.bias:
            work.bias_q = quantize_bias(g.array(work.bias), deq)
    fp16 = record.get("fakequant_precision_mode") == "FORCE_FP16_QUANT"
    work.deq = to_s19(deq) if fp16 else deq
    return work


def rnn_work(g: Graph, node, work: Work) -> Work:
    """W, R and B of an LSTM or a GRU."""
    record = work.record
    both = ((1, "scale_w", "scale_d"), (2, "scale_r", "scale_h"))
    deqs, halves = [], []
    for index, wide, narrow in both:
        name = g.constant(node.input[index])
        w = g.array(name)
        work.weights[name] = quantize_weight(node.op_type, w, record, 1, record[wide])
        work.scales[name] = rnn_scale(record[wide], w.shape[1])
        deqs.append(dequant_scales(record[wide], record[narrow]))
        halves.append(np.repeat(deqs[-1], w.shape[1] // deqs[-1].size))
    if len(node.input) > 3 and node.input[3]:
        work.bias = g.constant(node.input[3])
        work.bias_scale = np.concatenate(halves)
        work.bias_q = quantize_bias(g.array(work.bias), work.bias_scale.reshape(1, -1))
    work.deq = np.concatenate(deqs)
    if record.get("fakequant_precision_mode") == "FORCE_FP16_QUANT":
        work.deq = to_s19(work.deq)
    return work


def balance(g: Graph, work: Work) -> None:
    """Mul with the reciprocal of the balance factors in front of a layer."""
    factors = work.record.get("tensor_balance_factor")
    if not factors:
        return
    node = g.node(work.node)
    shape = [1, -1] + [1] * (work.rank - 2)
    value = (F32(1) / np.asarray(factors, F32)).reshape(shape)
    if work.half == TensorProto.FLOAT16:
        value = value.astype(np.float16)
    out = g.add_constant(f"{work.node}.tensor_balance_factor", value)
    mul = f"{work.node}.mul"
    g.nodes.append(helper.make_node("Mul", [node.input[0], out], [f"{mul}.output0"], mul))
    node.input[0] = f"{mul}.output0"


def quant_point(g: Graph, node):
    """The node whose input 0 is quantized: the layer, or the Pad in front of a pooling."""
    pad = g.producer(node.input[0])
    if node.op_type == "AveragePool" and pad is not None and pad.op_type == "Pad":
        if pad.name == f"{node.name}_pad" and len(g.consumers(pad.output[0])) == 1:
            return pad
    return node


def quant_sources(g: Graph, works: list[Work]) -> list[tuple[str, str, dict, list, Work]]:
    """One entry for each AscendQuant left after fusion: name, tensor, record, users, work."""
    found: dict[tuple, list] = {}
    for work in [w for w in works if w.op not in RNN]:
        user = quant_point(g, g.node(work.node))
        r = work.record
        key = (user.input[0], F32(r["scale_d"]).tobytes(), r["offset_d"], act_bits(r))
        found.setdefault(key, []).append((user, work))
    return [
        (
            f"{users[0][1].node}.quant",
            key[0],
            users[0][1].record,
            [u for u, _ in users],
            users[0][1],
        )
        for key, users in found.items()
    ]


# ---- deploy ------------------------------------------------------------------------------------


def build_deploy(g: Graph, works: list[Work]) -> onnx.ModelProto:
    """Integer tensors, AscendQuant, AscendDequant and the fused recurrent operators."""
    for name, source, record, users, _ in quant_sources(g, works):
        out = f"{name}.output0"
        quant = helper.make_node("AscendQuant", [source], [out], name)
        set_attr(quant, "scale", float(F32(1) / F32(record["scale_d"])))
        set_attr(quant, "offset", float(record["offset_d"]))
        set_attr(quant, "dst_type", f"INT{act_bits(record)}")
        g.nodes.append(quant)
        for user in users:
            user.input[0] = out
    for work in works:
        put_deploy_weights(g, work)
        if work.op in RNN:
            deploy_rnn(g, work)
        else:
            deploy_dequant(g, work)
    return g.to_model()


def put_deploy_weights(g: Graph, work: Work) -> None:
    """int8, nibbles packed along Cin (wts_type INT4), or a native INT4 tensor (dst_type INT4)."""
    axis = {"Conv": 1, "ConvTranspose": 0, "Gemm": 0, "MatMul": 0, "LSTM": 2, "GRU": 2}
    for name, q in work.weights.items():
        if weight_bits(work.record) != 4:
            g.put(name, q)
        elif work.record.get("dst_type") == "INT4":
            g.put(name, q, TensorProto.INT4, pack_flat(q))
        else:
            g.put(name, pack_pairs(q, axis[work.op]))
    if work.bias:
        g.put(work.bias, work.bias_q)


def deploy_dequant(g: Graph, work: Work) -> None:
    """AscendDequant behind the layer, or behind the Add that carries its bias."""
    node = g.node(work.node)
    if work.bias and act_bits(work.record) == 4:
        out = f"{work.node}.bias_quant.output0"
        cast = helper.make_node("Cast", [work.bias], [out], f"{work.node}.bias_quant", to=1)
        user = g.node(work.bias_user)
        user.input[list(user.input).index(work.bias)] = out
        g.nodes.append(cast)
    param = f"{work.node}.dequant.param"
    g.put(param, pack_param(work.deq))
    dequant = helper.make_node(
        "AscendDequant",
        ["", param],
        [f"{work.node}.dequant.output0"],
        f"{work.node}.dequant",
        dtype=0,
    )
    g.insert_after(dequant_tensor(g, node, work), dequant)


def dequant_tensor(g: Graph, node, work: Work) -> str:
    """The tensor that gets dequantized."""
    if work.bias_user and work.bias_user != work.node:
        return g.node(work.bias_user).output[0]
    return node.output[0]


def deploy_rnn(g: Graph, work: Work) -> None:
    """The recurrent operator of the deploy model, with its own input order."""
    node, record = g.node(work.node), work.record
    param = f"{work.node}.dequant.param"
    g.put(param, pack_param(work.deq))
    inputs = list(node.input) + [""] * (8 - len(node.input))
    x, w, r, b, lens, h, c = inputs[:7]
    states = [h, c] if work.op == "LSTM" else [h]
    del node.input[:]
    node.input.extend([x, w, r, *states, b, lens, "", param])
    node.op_type = f"Basic{work.op}InplaceFillWindowCache"
    kept = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    attributes = {
        "hidden_size": kept["hidden_size"],
        "clip": kept.get("clip", -1.0),
        "direction": kept.get("direction", b"forward"),
    }
    if work.op == "LSTM":
        attributes["input_forget"] = kept.get("input_forget", 0)
    else:
        attributes["linear_before_reset"] = 1
    attributes |= {
        "quant_sqrt_mode_x": 0,
        "quant_sqrt_mode_h": 0,
        "quant_scale_x": float(F32(1) / F32(record["scale_d"])),
        "quant_offset_x": float(record["offset_d"]),
        "quant_scale_h": float(F32(1) / F32(record["scale_h"])),
        "quant_offset_h": float(record["offset_h"]),
        "quant_dtype": {"INT8": 2, "INT16": 6}[record["act_type"]],
    }
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
    for empty, kind in (("activation_alpha", 6), ("activation_beta", 6), ("activations", 8)):
        node.attribute.append(onnx.AttributeProto(name=empty, type=kind))


# ---- fake_quant --------------------------------------------------------------------------------


def build_fake(g: Graph, works: list[Work]) -> onnx.ModelProto:
    """The same numbers in plain ONNX operators."""
    for name, source, record, users, work in quant_sources(g, works):
        out = fake_quantize(g, f"{name}.fakequant", source, record, act_bits(record), work.half)
        for user in users:
            user.input[0] = out
    for work in works:
        if work.op in RNN:
            fake_rnn(g, work)
        else:
            fake_layer(g, work)
    return g.to_model()


def fake_quantize(g, prefix, source, record, bits, half=None, scale="scale_d", offset="offset_d"):
    """Mul, Round, Add, Clip, Sub; returns the last output."""
    scalar = {
        "scale": F32(1) / F32(record[scale]),
        "offset": F32(record[offset]),
        "min_val": F32(-(2 ** (bits - 1))),
        "max_val": F32(2 ** (bits - 1) - 1),
    }
    c = {k: g.add_constant(f"{prefix}.{k}", np.array(v, F32)) for k, v in scalar.items()}
    if half:
        source = add_node(g, "Cast", f"{prefix}.cast", [source], to=1)
    y = add_node(g, "Mul", f"{prefix}.mul", [source, c["scale"]])
    y = add_node(g, "Round", f"{prefix}.round", [y])
    y = add_node(g, "Add", f"{prefix}.add", [y, c["offset"]])
    y = add_node(g, "Clip", f"{prefix}.clip", [y, c["min_val"], c["max_val"]])
    return add_node(g, "Sub", f"{prefix}.sub", [y, c["offset"]])


def add_node(g: Graph, op: str, name: str, inputs: list[str], **attributes) -> str:
    """A node with one output named after it."""
    g.nodes.append(helper.make_node(op, inputs, [f"{name}.output0"], name, **attributes))
    return f"{name}.output0"


def fake_layer(g: Graph, work: Work) -> None:
    """Integer values as floats, and a Mul by the dequant scale behind."""
    for name, q in work.weights.items():
        g.put(name, q.astype(F32))
    if work.bias:
        g.put(work.bias, work.bias_q.astype(F32))
    node = g.node(work.node)
    shape = [1, -1] + [1] * (work.rank - 2 if work.op in ("Conv", "ConvTranspose") else 0)
    scale = g.add_constant(f"{work.node}.fakedequant.dqscale", work.deq.reshape(shape))
    last = "cast" if work.half else "mul"
    name = f"{work.node}.fakedequant.mul"
    mul = helper.make_node("Mul", ["", scale], [f"{name}.output0"], name)
    g.insert_after(dequant_tensor(g, node, work), mul)
    if last == "cast":
        cast = f"{work.node}.fakedequant.cast"
        out = f"{cast}.output0"
        end = helper.make_node("Cast", [""], [out], cast, to=work.half)
        if g.is_output(mul.output[0]):
            end.output[0], mul.output[0] = mul.output[0], f"{name}.output0"
            end.input[0] = mul.output[0]
            g.reroute(end.output[0], end.output[0])
            g.nodes.append(end)
        else:
            g.insert_after(mul.output[0], end)


def fake_rnn(g: Graph, work: Work) -> None:
    """Dequantized weights; quantize and dequantize around the input and the initial state."""
    node, record = g.node(work.node), work.record
    for name, q in work.weights.items():
        g.put(name, q.astype(F32) * work.scales[name])
    if work.bias:
        g.put(work.bias, work.bias_q.astype(F32) * work.bias_scale.reshape(1, -1))
    bits = BITS[record["act_type"]]
    for index, tag, scale, offset in (
        (0, "", "scale_d", "offset_d"),
        (5, "1", "scale_h", "offset_h"),
    ):
        prefix = f"{work.node}.quant{tag}.fakequant"
        y = fake_quantize(g, prefix, node.input[index], record, bits, None, scale, offset)
        anti = f"{work.node}.anti_quant{tag}.fake_antiquant"
        s = g.add_constant(f"{anti}.scale", np.array(F32(record[scale]), F32))
        node.input[index] = add_node(g, "Mul", f"{anti}.mul", [y, s])


# ---- both --------------------------------------------------------------------------------------


def prepare(model: onnx.ModelProto, folder: str, records: dict[str, dict]) -> tuple[Graph, dict]:
    """The graph after markers, folding and key lookup."""
    g = Graph.of(model, folder)
    remove_markers(g)
    fold_batch_norms(g, {k for k, r in records.items() if r.get("skip_fusion")})
    return g, match_keys(g, records)


def expected(model: onnx.ModelProto, folder: str, records: dict[str, dict]):
    """Deploy and fake_quant models that an export has to give, and the work list."""
    g, matched = prepare(model, folder, records)
    works = common(g, matched)
    for work in works:
        balance(g, work)
    names = {w.node: w for w in works}
    fake = g.copy()
    assert all(any(n.name == name for n in fake.nodes) for name in names)
    return build_deploy(g, works), build_fake(fake, works), works
