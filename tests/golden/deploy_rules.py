# SPDX-License-Identifier: Apache-2.0
"""The rules of a deploy model, checked one by one.

onnx.checker and ONNX Runtime do not know the operators of a deploy model, so nothing but rules can
say whether one is well formed. They are written from the operator definitions, without looking at
the engine: `violations(model, folder)` gives a line for each broken one.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_equal
from onnx import AttributeProto as A
from onnx import TensorProto as T

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool")
QUANT_ATTRIBUTES = [("scale", A.FLOAT), ("offset", A.FLOAT), ("dst_type", A.STRING)]
OFFSETS = {b"INT4": (-128, 127), b"INT8": (-128, 127), b"INT16": (-32768, 32767)}
RNN_COMMON = {
    "hidden_size": A.INT,
    "activation_alpha": A.FLOATS,
    "activation_beta": A.FLOATS,
    "activations": A.STRINGS,
    "clip": A.FLOAT,
    "direction": A.STRING,
    "quant_sqrt_mode_x": A.INT,
    "quant_sqrt_mode_h": A.INT,
    "quant_scale_x": A.FLOAT,
    "quant_offset_x": A.FLOAT,
    "quant_scale_h": A.FLOAT,
    "quant_offset_h": A.FLOAT,
    "quant_dtype": A.INT,
}
RNN_OPS = {
    "BasicLSTMInplaceFillWindowCache": {
        "gates": 4,
        "inputs": {"x": 0, "w": 1, "r": 2, "h": 3, "c": 4, "b": 5, "lens": 6, "clean": 7, "deq": 8},
        "attributes": RNN_COMMON | {"input_forget": A.INT},
    },
    "BasicGRUInplaceFillWindowCache": {
        "gates": 3,
        "inputs": {"x": 0, "w": 1, "r": 2, "h": 3, "b": 4, "lens": 5, "clean": 6, "deq": 7},
        "attributes": RNN_COMMON | {"linear_before_reset": A.INT},
    },
}


class Checker:
    """One deploy model under examination."""

    def __init__(self, model: onnx.ModelProto, folder: str):
        self.model, self.folder = model, str(folder)
        self.bad: list[str] = []
        self.tensors = {t.name: t for t in model.graph.initializer}
        self.initializers = set(self.tensors)
        for n in model.graph.node:
            if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value":
                self.tensors[n.output[0]] = n.attribute[0].t
        self.producers = {o: n for n in model.graph.node for o in n.output if o}
        self.names = {n.name: n for n in model.graph.node}
        self.outputs = {v.name for v in model.graph.output}
        self.consumers: dict[str, list] = {}
        for n in model.graph.node:
            for i in n.input:
                self.consumers.setdefault(i, []).append(n)

    def want(self, truth: bool, text: str) -> bool:
        if not truth:
            self.bad.append(text)
        return bool(truth)

    def run(self) -> list[str]:
        self.graph()
        for node in self.model.graph.node:
            if node.op_type == "AscendQuant":
                self.quant(node)
            elif node.op_type == "AscendDequant":
                self.dequant(node)
            elif node.op_type in RNN_OPS:
                self.rnn(node)
        return self.bad

    # -- the graph as a whole

    def graph(self) -> None:
        g = self.model.graph
        self.want(len(self.names) == len(g.node), "node names are not unique, or one is empty")
        made = [o for n in g.node for o in n.output if o]
        self.want(len(set(made)) == len(made), "a tensor is made twice")
        known = {v.name for v in g.input} | self.initializers | {""}
        for n in g.node:
            for i in n.input:
                self.want(i in known, f"{n.name}: {i} is used before it is made")
            known |= set(n.output)
            attributes = [a.name for a in n.attribute]
            self.want("op_data_type" not in attributes, f"{n.name}: op_data_type was left behind")
        for name in self.outputs:
            self.want(name in known, f"graph output {name} has no producer")
        domains = [o.domain for o in self.model.opset_import]
        self.want("custom_op_domain" not in domains, "the marker domain is still imported")
        kinds = {n.op_type for n in g.node}
        self.want("QuantIdentity" not in kinds, "a QuantIdentity marker is still there")
        self.want("AscendAntiQuant" not in kinds, "AscendAntiQuant has no place in a deploy model")
        listed = {v.name for v in g.input} & self.initializers
        self.want(not listed, f"initializers listed as graph inputs: {sorted(listed)}")
        self.want(bool(kinds & ({"AscendDequant"} | set(RNN_OPS))), "nothing is quantized")

    # -- AscendQuant

    def quant(self, n) -> None:
        where = f"{n.name} (AscendQuant)"
        self.want(n.domain == "", f"{where}: domain {n.domain!r}")
        self.want(n.name.endswith(".quant"), f"{where}: name")
        self.want(
            len(n.input) == 1 and len(n.output) == 1, f"{where}: not one input and one output"
        )
        self.want(list(n.output) == [f"{n.name}.output0"], f"{where}: outputs {list(n.output)}")
        form = [(a.name, a.type) for a in n.attribute]
        if not self.want(form == QUANT_ATTRIBUTES, f"{where}: attributes {form}"):
            return
        scale, offset, kind = n.attribute[0].f, n.attribute[1].f, n.attribute[2].s
        self.want(np.isfinite(scale) and scale > 0, f"{where}: scale {scale}")
        if self.want(kind in OFFSETS, f"{where}: dst_type {kind!r}"):
            low, high = OFFSETS[kind]
            self.want(offset == int(offset) and low <= offset <= high, f"{where}: offset {offset}")
        users = self.consumers.get(n.output[0], [])
        self.want(bool(users), f"{where}: nobody reads it")
        for user in users:
            fine = user.op_type in LAYERS or user.op_type == "Pad"
            self.want(fine and user.input[0] == n.output[0], f"{where}: read by {user.name}")

    # -- AscendDequant, and the layer in front of it

    def dequant(self, n) -> None:
        where = f"{n.name} (AscendDequant)"
        self.want(n.domain == "", f"{where}: domain {n.domain!r}")
        if not self.want(n.name.endswith(".dequant"), f"{where}: name"):
            return
        layer = n.name.removesuffix(".dequant")
        out = list(n.output)
        named = out == [f"{n.name}.output0"] or (len(out) == 1 and out[0] in self.outputs)
        self.want(named, f"{where}: outputs {out}")
        form = [(a.name, a.type, a.i) for a in n.attribute]
        self.want(form == [("dtype", A.INT, 0)], f"{where}: attributes {form}")
        if not self.want(len(n.input) == 2, f"{where}: inputs {list(n.input)}"):
            return
        self.want(n.input[1] == f"{layer}.dequant.param", f"{where}: parameter {n.input[1]}")
        node = self.names.get(layer)
        if self.want(node is not None and node.op_type in LAYERS, f"{where}: no layer {layer}"):
            bias = self.between(node, n, where)
            self.param(n.input[1], self.channels(node), where)
            self.layer(node, bias)

    def between(self, node, dequant, where: str) -> str | None:
        """The layer's output goes into the dequant, or through one Add; returns the Add's bias."""
        source = self.producers.get(dequant.input[0])
        users = self.consumers.get(dequant.input[0], [])
        self.want(len(users) == 1, f"{where}: its input is also read by others")
        self.want(dequant.input[0] not in self.outputs, f"{where}: its input is a graph output")
        if source is node:
            return None
        fine = source is not None and source.op_type == "Add" and node.op_type == "MatMul"
        if self.want(fine and source.input[0] == node.output[0], f"{where}: not behind its layer"):
            return source.input[1]
        return None

    def param(self, name: str, counts: set[int], where: str) -> None:
        """UINT64 [n]: the bits of a positive float in the low half, nothing above."""
        t = self.tensors.get(name)
        if not self.want(t is not None, f"{where}: {name} is not an initializer"):
            return
        self.want(t.data_type == T.UINT64, f"{where}: parameter of type {t.data_type}")
        self.want(len(t.dims) == 1, f"{where}: parameter dims {list(t.dims)}")
        values = np.frombuffer(onnx_equal.payload(t, self.folder), "<u8")
        self.want(len(values) == (t.dims[0] if t.dims else -1), f"{where}: {len(values)} values")
        self.want(
            len(values) in counts, f"{where}: {len(values)} values, expected {sorted(counts)}"
        )
        self.want(not np.any(values >> np.uint64(32)), f"{where}: bits above the scale")
        scales = (values & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)
        self.want(np.all(np.isfinite(scales) & (scales > 0)), f"{where}: a scale is not positive")

    def channels(self, node) -> set[int]:
        """How many dequant values a layer may have."""
        if node.op_type == "AveragePool":
            return {1}
        t = self.weight(node)
        if t is None:
            return {1}
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv":
            return {1, t.dims[0]}
        if node.op_type == "ConvTranspose":
            return {1, t.dims[1] * group}
        return {1, t.dims[0] if self.transposed(node) else t.dims[-1]}

    def weight(self, node):
        """The weight, also behind a Transpose or an Identity, or in a Constant node."""
        name = node.input[1] if len(node.input) > 1 else ""
        while name not in self.tensors:
            above = self.producers.get(name)
            if above is None or above.op_type not in ("Transpose", "Identity"):
                return None
            name = above.input[0]
        return self.tensors[name]

    def transposed(self, node) -> bool:
        """Whether a MatMul's weight sits behind a Transpose."""
        above = self.producers.get(node.input[1])
        return above is not None and above.op_type == "Transpose"

    def layer(self, node, add_bias: str | None) -> None:
        """A quantized layer reads an AscendQuant, integer weights and an int32 bias."""
        where = f"{node.name} ({node.op_type})"
        source = self.producers.get(node.input[0])
        if source is not None and source.op_type == "Pad" and node.op_type == "AveragePool":
            source = self.producers.get(source.input[0])
        quantized = source is not None and source.op_type == "AscendQuant"
        self.want(quantized, f"{where}: input 0 is not quantized")
        if node.op_type == "AveragePool":
            return
        t = self.weight(node)
        if self.want(t is not None, f"{where}: weight {node.input[1]} is not a constant"):
            self.integer_weight(t, where)
        transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
        self.want(not transposed, f"{where}: transB is still 1")
        bias = add_bias
        if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2]:
            bias = node.input[2]
        if bias:
            self.bias(node.name, bias, where)

    def integer_weight(self, t, where: str) -> None:
        """INT8, or a native INT4 tensor of the right length; read by quantized layers alone."""
        self.want(t.data_type in (T.INT8, T.INT4), f"{where}: weight of type {t.data_type}")
        count = int(np.prod(t.dims, dtype=np.int64))
        length = len(onnx_equal.payload(t, self.folder))
        wanted = count if t.data_type == T.INT8 else (count + 1) // 2
        self.want(length == wanted, f"{where}: weight of {length} bytes, expected {wanted}")
        for user in self.consumers.get(t.name, []):
            fine = user.op_type in LAYERS + ("Transpose", "Identity")
            self.want(fine, f"{where}: weight is also read by {user.name} ({user.op_type})")

    def bias(self, layer: str, name: str, where: str) -> None:
        """INT32 initializer, behind a Cast to float when activations have 4 bits."""
        cast = self.producers.get(name)
        kind = self.activation(layer)
        if kind == b"INT4":
            fine = (
                cast is not None and cast.op_type == "Cast" and cast.name == f"{layer}.bias_quant"
            )
            if not self.want(fine, f"{where}: no Cast {layer}.bias_quant before the bias"):
                return
            form = [(a.name, a.type, a.i) for a in cast.attribute]
            self.want(form == [("to", A.INT, T.FLOAT)], f"{cast.name}: attributes {form}")
            self.want(list(cast.output) == [f"{cast.name}.output0"], f"{cast.name}: output")
            name = cast.input[0]
        t = self.tensors.get(name)
        if self.want(t is not None, f"{where}: bias {name} is not an initializer"):
            self.want(t.data_type == T.INT32, f"{where}: bias of type {t.data_type}")

    def activation(self, layer: str) -> bytes:
        """dst_type of the AscendQuant in front of a layer."""
        source = self.producers.get(self.names[layer].input[0])
        if source is None or source.op_type != "AscendQuant":
            return b""
        return next((a.s for a in source.attribute if a.name == "dst_type"), b"")

    # -- recurrent layers

    def rnn(self, n) -> None:
        where = f"{n.name} ({n.op_type})"
        rules = RNN_OPS[n.op_type]
        self.want(n.domain == "", f"{where}: domain {n.domain!r}")
        form = {a.name: a.type for a in n.attribute}
        self.want(form == rules["attributes"], f"{where}: attributes {form}")
        at = rules["inputs"]
        if not self.want(len(n.input) == len(at), f"{where}: {len(n.input)} inputs"):
            return
        got = {name: n.input[i] for name, i in at.items()}
        self.want(bool(got["x"] and got["h"]), f"{where}: x or the initial state is missing")
        self.want(got["clean"] == "", f"{where}: clean_cache is connected")
        hidden = next((a.i for a in n.attribute if a.name == "hidden_size"), 0)
        rows = rules["gates"] * hidden
        self.rnn_tensor(where, got["w"], T.INT8, (1, rows, None))
        self.rnn_tensor(where, got["r"], T.INT8, (1, rows, None))
        if got["b"]:
            self.rnn_tensor(where, got["b"], T.INT32, (1, 2 * rows))
        self.want(got["deq"] == f"{n.name}.dequant.param", f"{where}: parameter {got['deq']}")
        self.param(got["deq"], {2 * rules["gates"], 2 * rows}, where)
        self.rnn_values(n, where)

    def rnn_tensor(self, where: str, name: str, kind: int, dims: tuple) -> None:
        t = self.tensors.get(name)
        if self.want(t is not None, f"{where}: {name} is not an initializer"):
            self.want(t.data_type == kind, f"{where}: {name} has type {t.data_type}")
            same = len(t.dims) == len(dims) and all(w in (None, d) for d, w in zip(t.dims, dims))
            self.want(same, f"{where}: {name} has dims {list(t.dims)}, expected {dims}")

    def rnn_values(self, n, where: str) -> None:
        v = {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute}
        for name in ("quant_scale_x", "quant_scale_h"):
            self.want(np.isfinite(v.get(name, 0)) and v.get(name, 0) > 0, f"{where}: {name}")
        self.want(v.get("quant_dtype") in (2, 6), f"{where}: quant_dtype {v.get('quant_dtype')}")
        for name in ("quant_sqrt_mode_x", "quant_sqrt_mode_h"):
            self.want(v.get(name) == 0, f"{where}: {name} {v.get(name)}")
        self.want(v.get("direction") == b"forward", f"{where}: direction {v.get('direction')}")
        if n.op_type == "BasicGRUInplaceFillWindowCache":
            self.want(v.get("linear_before_reset") == 1, f"{where}: linear_before_reset is not 1")


def violations(model: onnx.ModelProto, folder: str) -> list[str]:
    """A line for each rule that a deploy model breaks."""
    return Checker(model, folder).run()


def assert_deploy(path) -> onnx.ModelProto:
    """Fail unless a deploy model keeps every rule; returns it."""
    model = onnx.load(str(path), load_external_data=False)
    found = violations(model, path.parent)
    assert not found, f"{len(found)} rules broken:\n" + "\n".join(found[:20])
    return model
