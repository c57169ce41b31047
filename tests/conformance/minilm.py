# SPDX-License-Identifier: Apache-2.0
"""MiniLM-L6 as an ONNX graph, built from the weights that a package ships as safetensors.

No package ships a float transformer as .onnx in a size fit for a test, so the graph is written
here: embeddings, six encoder layers, mean pooling. Names are those that an exporter gives.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, WIDTH, LAYERS, EPSILON = 12, 384, 6, 1e-12


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """All float32 tensors of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), memoryview(data)[8 + size :]
    return {
        name: np.frombuffer(body[slice(*t["data_offsets"])], np.float32).reshape(t["shape"])
        for name, t in header.items()
        if name != "__metadata__" and t["dtype"] == "F32"
    }


class Builder:
    """Adds nodes in order; every method returns a tensor name."""

    def __init__(self, weights: dict[str, np.ndarray]):
        self.weights, self.nodes, self.tensors = weights, [], []

    def op(self, op: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def tensor(self, name: str, value: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def linear(self, x: str, scope: str) -> str:
        w = self.tensor(f"{scope}.weight_t", self.weights[f"{scope}.weight"].T)
        b = self.tensor(f"{scope}.bias", self.weights[f"{scope}.bias"])
        path = "/" + scope.replace(".", "/")
        return self.op("Add", [self.op("MatMul", [x, w], f"{path}/MatMul"), b], f"{path}/Add")

    def norm(self, x: str, scope: str) -> str:
        both = [
            self.tensor(f"{scope}.{k}", self.weights[f"{scope}.{k}"]) for k in ("weight", "bias")
        ]
        path = "/" + scope.replace(".", "/")
        return self.op("LayerNormalization", [x, *both], path, axis=-1, epsilon=EPSILON)

    def embed(self, indices: str, scope: str) -> str:
        table = self.tensor(f"{scope}.weight", self.weights[f"{scope}.weight"])
        return self.op("Gather", [table, indices], "/" + scope.replace(".", "/"))

    def heads(self, x: str, name: str, perm: list[int]) -> str:
        y = self.op("Reshape", [x, "split"], f"{name}/Reshape")
        return self.op("Transpose", [y], f"{name}/Transpose", perm=perm)

    def attention(self, x: str, scope: str) -> str:
        path = "/" + scope.replace(".", "/")
        q = self.heads(self.linear(x, f"{scope}.self.query"), f"{path}/q", [0, 2, 1, 3])
        k = self.heads(self.linear(x, f"{scope}.self.key"), f"{path}/k", [0, 2, 3, 1])
        v = self.heads(self.linear(x, f"{scope}.self.value"), f"{path}/v", [0, 2, 1, 3])
        scores = self.op("Mul", [self.op("MatMul", [q, k], f"{path}/qk"), "scale"], f"{path}/scale")
        mix = self.op(
            "MatMul", [self.op("Softmax", [scores], f"{path}/soft", axis=-1), v], f"{path}/av"
        )
        mix = self.op("Transpose", [mix], f"{path}/back", perm=[0, 2, 1, 3])
        y = self.linear(self.op("Reshape", [mix, "join"], f"{path}/join"), f"{scope}.output.dense")
        return self.norm(self.op("Add", [y, x], f"{path}/residual"), f"{scope}.output.LayerNorm")

    def gelu(self, x: str, path: str) -> str:
        erf = self.op("Erf", [self.op("Mul", [x, "rsqrt2"], f"{path}/Div")], f"{path}/Erf")
        half = self.op("Mul", [x, "half"], f"{path}/half")
        return self.op("Mul", [half, self.op("Add", [erf, "one"], f"{path}/plus")], f"{path}/Mul")

    def layer(self, x: str, scope: str) -> str:
        x = self.attention(x, f"{scope}.attention")
        path = "/" + scope.replace(".", "/")
        y = self.gelu(self.linear(x, f"{scope}.intermediate.dense"), f"{path}/gelu")
        y = self.op("Add", [self.linear(y, f"{scope}.output.dense"), x], f"{path}/residual")
        return self.norm(y, f"{scope}.output.LayerNorm")


def build(archive: Path, target: Path) -> Path:
    """Write the model; inputs `ids` [batch, length] int64, output `embedding` [batch, 384]."""
    with zipfile.ZipFile(archive) as z:
        b = Builder(read_safetensors(z.read("model.safetensors")))
    b.tensor("split", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    b.tensor("join", np.array([0, 0, WIDTH], np.int64))
    b.tensor("axis1", np.array([1], np.int64))
    for name, value in (("scale", (WIDTH // HEADS) ** -0.5), ("rsqrt2", 0.5**0.5), ("half", 0.5)):
        b.tensor(name, np.array(value, np.float32))
    b.tensor("one", np.array(1, np.float32))
    words = b.embed("ids", "embeddings.word_embeddings")
    kinds = b.tensor("type0", b.weights["embeddings.token_type_embeddings.weight"][0])
    places = b.tensor("places", b.weights["embeddings.position_embeddings.weight"][:32])
    x = b.op("Add", [b.op("Add", [words, kinds], "/kinds"), places], "/places")
    x = b.norm(x, "embeddings.LayerNorm")
    for i in range(LAYERS):
        x = b.layer(x, f"encoder.layer.{i}")
    b.nodes.append(
        helper.make_node("ReduceMean", [x], ["embedding"], "/pool", axes=[1], keepdims=0)
    )
    graph = helper.make_graph(
        b.nodes,
        "minilm",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", WIDTH])],
        b.tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(target))
    return target
