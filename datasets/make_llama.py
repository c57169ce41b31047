#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic checkpoint with the shapes of a Llama, of any size.

    python make_llama.py OUT [--bytes 8G | --layers N] [--hidden 4096] [--vocab 32000]
        [--dtype bf16|fp16|fp32] [--form checkpoint|onnx-single|onnx-many] [--tied]
        [--shard-size 2G] [--seed 0]

checkpoint: a Hugging Face folder (config.json, safetensors shards, index). onnx-single, onnx-many:
model.onnx with its weights in one external file, or one a tensor; its graph has the matrices of a
Llama and simpler operators between them. Weights are normal with a few outliers, from a pool whose
length is a prime, so that no two rows are the same; the same options give the same bytes. Memory
is bounded, and 8 GiB take about as long as the disk needs.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

POOL = 4194301  # a prime
CHUNK = 1 << 24  # bytes written at once
WIDTH = {"bf16": 2, "fp16": 2, "fp32": 4}
SAFETENSORS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
TORCH = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass
class Shape:
    hidden: int
    layers: int
    vocab: int
    tied: bool

    @property
    def inner(self) -> int:
        return max(64, self.hidden * 7 // 2 // 64 * 64)

    @property
    def kv(self) -> int:
        return max(32, self.hidden // 4)

    def layer(self, i: int) -> list[tuple[str, tuple[int, ...]]]:
        h, p = self.hidden, f"model.layers.{i}."
        return [
            (p + "input_layernorm.weight", (h,)),
            (p + "self_attn.q_proj.weight", (h, h)),
            (p + "self_attn.k_proj.weight", (self.kv, h)),
            (p + "self_attn.v_proj.weight", (self.kv, h)),
            (p + "self_attn.o_proj.weight", (h, h)),
            (p + "post_attention_layernorm.weight", (h,)),
            (p + "mlp.gate_proj.weight", (self.inner, h)),
            (p + "mlp.up_proj.weight", (self.inner, h)),
            (p + "mlp.down_proj.weight", (h, self.inner)),
        ]

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        out: list[tuple[str, tuple[int, ...]]] = [
            ("model.embed_tokens.weight", (self.vocab, self.hidden))
        ]
        for i in range(self.layers):
            out += self.layer(i)
        out.append(("model.norm.weight", (self.hidden,)))
        if not self.tied:
            out.append(("lm_head.weight", (self.vocab, self.hidden)))
        return out


def count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def parse_bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    return int(float(text[:-1]) * (1 << units[text[-1]])) if text[-1] in units else int(text)


def make_pool(dtype: str, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.02, POOL).astype(np.float32)
    values[rng.integers(0, POOL, POOL // 5000)] *= 8
    if dtype == "fp32":
        return values.tobytes()
    if dtype == "fp16":
        return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()


def payload(pool: bytes, index: int, length: int) -> Iterator[bytes]:
    """`length` bytes of a tensor: the pool again and again, from a place of the tensor's own."""
    view = memoryview(pool)
    at = index * 1000003 % POOL * (len(pool) // POOL)
    while length:
        n = min(length, len(pool) - at, CHUNK)
        yield view[at : at + n]
        at = (at + n) % len(pool)
        length -= n


def write_tensor(f: BinaryIO, pool: bytes, index: int, length: int) -> None:
    for part in payload(pool, index, length):
        f.write(part)


# ---- Hugging Face folder


def config(shape: Shape, dtype: str) -> dict[str, object]:
    heads = max(1, shape.hidden // 64)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": TORCH[dtype],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, shape.kv // 64),
        "head_dim": 64,
        "vocab_size": shape.vocab,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": shape.tied,
    }


def write_checkpoint(out: Path, shape: Shape, dtype: str, shard_size: int, pool: bytes) -> None:
    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for i, (name, dims) in enumerate(shape.tensors()):
        n = count(dims) * WIDTH[dtype]
        if shards[-1] and filled + n > shard_size:
            shards.append([])
            filled = 0
        shards[-1].append((i, name, dims))
        filled += n
    names = [f"model-{k + 1:05d}-of-{len(shards):05d}.safetensors" for k in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    weight_map, total = {}, 0
    for file, tensors in zip(names, shards):
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for _, name, dims in tensors:
            n = count(dims) * WIDTH[dtype]
            header[name] = {
                "dtype": SAFETENSORS[dtype],
                "shape": list(dims),
                "data_offsets": [at, at + n],
            }
            weight_map[name] = file
            at += n
        total += at
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with open(out / file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for i, _, dims in tensors:
                write_tensor(f, pool, i, count(dims) * WIDTH[dtype])
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config(shape, dtype), indent=2) + "\n")


# ---- ONNX


def write_onnx(out: Path, shape: Shape, dtype: str, many: bool, pool: bytes) -> None:
    from onnx import TensorProto, helper, save

    elem = {"bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "fp32": TensorProto.FLOAT}
    nodes, weights = [], []
    place = 0
    single = None if many else open(out / "weights.bin", "wb")

    def weight(name: str, dims: tuple[int, ...]) -> str:
        nonlocal place
        length = count(dims) * WIDTH[dtype]
        t = TensorProto(name=name, data_type=elem[dtype], dims=dims)
        t.data_location = TensorProto.EXTERNAL
        file = f"{name}.bin" if many else "weights.bin"
        offset = 0 if many else place + -place % 4096
        for key, value in [("location", file), ("offset", offset), ("length", length)]:
            t.external_data.add(key=key, value=str(value))
        if single:
            single.write(b"\0" * (offset - place))
            write_tensor(single, pool, len(weights), length)
            place = offset + length
        else:
            with open(out / file, "wb") as f:
                write_tensor(f, pool, len(weights), length)
        weights.append(t)
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output + "_node", **attributes))
        return output

    def linear(x: str, name: str, rows: int, cols: int) -> str:
        return node("MatMul", [x, weight(name, (rows, cols))], name + ".out")

    h, kv, inner = shape.hidden, shape.kv, shape.inner
    embed = weight("model.embed_tokens.weight", (shape.vocab, h))
    x = node("Gather", [embed, "input_ids"], "embedded", axis=0)
    for i in range(shape.layers):
        p = f"model.layers.{i}."
        n = node("Mul", [x, weight(p + "input_layernorm.weight", (h,))], p + "normed")
        q = linear(n, p + "self_attn.q_proj.weight", h, h)
        k = linear(n, p + "self_attn.k_proj.weight", h, kv)
        v = linear(n, p + "self_attn.v_proj.weight", h, kv)
        s = node("Mul", [node("Tanh", [k], p + "tanh"), v], p + "kv")
        wide = node("Concat", [s] * (h // kv), p + "wide", axis=-1)
        a = linear(node("Mul", [q, wide], p + "mixed"), p + "self_attn.o_proj.weight", h, h)
        x = node("Add", [x, a], p + "attended")
        n = node("Mul", [x, weight(p + "post_attention_layernorm.weight", (h,))], p + "normed2")
        g = node("Sigmoid", [linear(n, p + "mlp.gate_proj.weight", h, inner)], p + "gate")
        u = node("Mul", [g, linear(n, p + "mlp.up_proj.weight", h, inner)], p + "gated")
        x = node("Add", [x, linear(u, p + "mlp.down_proj.weight", inner, h)], p + "done")
    x = node("Mul", [x, weight("model.norm.weight", (h,))], "normed")
    if shape.tied:
        head = node("Transpose", [embed], "head", perm=[1, 0])
    else:
        head = weight("lm_head.weight", (h, shape.vocab))
    node("MatMul", [x, head], "logits")
    graph = helper.make_graph(
        nodes,
        "llama",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", elem[dtype], ["batch", "length", shape.vocab])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save(model, out / "model.onnx")
    if single:
        single.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--bytes", type=parse_bytes, help="about that many, by number of layers")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--dtype", choices=list(WIDTH), default="bf16")
    parser.add_argument(
        "--form", choices=["checkpoint", "onnx-single", "onnx-many"], default="checkpoint"
    )
    parser.add_argument("--tied", action="store_true")
    parser.add_argument("--shard-size", type=parse_bytes, default=2 << 30)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    shape = Shape(a.hidden, a.layers, a.vocab, a.tied)
    if a.bytes:
        layer = sum(count(dims) for _, dims in shape.layer(0)) * WIDTH[a.dtype]
        ends = (1 if a.tied else 2) * a.vocab * a.hidden * WIDTH[a.dtype]
        shape.layers = max(1, -(-(a.bytes - ends) // layer))
    a.out.mkdir(parents=True, exist_ok=True)
    pool = make_pool(a.dtype, a.seed)
    if a.form == "checkpoint":
        write_checkpoint(a.out, shape, a.dtype, a.shard_size, pool)
    else:
        write_onnx(a.out, shape, a.dtype, a.form == "onnx-many", pool)
    total = sum(count(dims) for _, dims in shape.tensors()) * WIDTH[a.dtype]
    print(f"{shape.layers} layers, {total / 1e9:.2f} GB of {a.dtype} in {a.out}")


if __name__ == "__main__":
    main()
