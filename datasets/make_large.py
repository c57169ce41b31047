#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic model of any size, with its record and config.

    python make_large.py OUT [--gib 4 | --count N] [--size 4096] [--op matmul|gemm|conv]
        [--layout inline|external|constant] [--dtype float32|float16] [--per-channel]
        [--bits 8|4]

OUT gets model.onnx, record.txt, config.json and, external, weights.bin. The model is a chain of
equal layers x0 -> m0 -> x1 -> m1 ...; the weight of layer m<i> is w<i>. Models worth measuring:

    --gib 1 | 4 | 8                  many gigabytes of float32 (add --layout external)
    --gib 2 --dtype float16          float16 source
    --count 100000 --size 16         very many small tensors
    --count 1 --size 32768           one tensor of 4 GiB
    --gib 4 --layout constant        weights in Constant nodes, no initializers
    --gib 4 --op gemm --per-channel  transposed kernels, one scale a row
    --gib 4 --op conv --per-channel  what most real models have

protobuf's own writers refuse messages over 2 GiB, and real exporters have written such files all
the same, so the wire format is written here by hand, piece by piece, in bounded memory. The same
options give the same bytes on every machine with the same numpy.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

ELEM = {"float32": 1, "float16": 10}  # TensorProto.DataType
POOL = 4194301  # values in the pool of weights: a prime, so that rows of a layer differ
TENSOR_ATTRIBUTE = 4  # AttributeProto.TENSOR
KERNEL = 3  # of a Conv
EXTENT = 4  # spatial extent of a Conv's input
SCALE = 0.0009  # of the first channel; the weights' standard deviation is 0.02


@dataclass(frozen=True)
class Spec:
    """What a model looks like; `size` is K and N of a MatMul or Gemm, or the channels of a Conv."""

    count: int = 1
    size: int = 4096
    op: str = "matmul"
    layout: str = "inline"
    dtype: str = "float32"
    per_channel: bool = False
    bits: int = 8

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of each weight: [K, N], [N, K] or [Cout, Cin, 3, 3]."""
        return (self.size, self.size) + ((KERNEL, KERNEL) if self.op == "conv" else ())

    @property
    def layer_bytes(self) -> int:
        """Bytes of each weight."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        return self.count * self.layer_bytes

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels."""
        return 1 if self.op == "matmul" else 0

    def holding(self, gib: float) -> Spec:
        """The same with as many layers as come closest to so many GiB."""
        count = max(1, round(gib * 2**30 / self.layer_bytes))
        return Spec(**{**self.__dict__, "count": count})


@functools.cache
def pool(dtype: str) -> np.ndarray:
    """The values that every weight is cut from; fresh randomness would be slow."""
    values = np.random.default_rng(7).standard_normal(POOL, dtype=np.float32)
    return (values * np.float32(0.02)).astype(dtype)


def start_of(index: int) -> int:
    """Where in the pool weight `index` begins."""
    return index * 1000003 % POOL


def weight_blocks(spec: Spec, index: int) -> Iterator[np.ndarray]:
    """The values of weight `index`, flat, in blocks no larger than the pool."""
    values, at, left = pool(spec.dtype), start_of(index), int(np.prod(spec.shape))
    while left:
        block = values[at : at + left]
        yield block
        at, left = 0, left - block.size


def weight(spec: Spec, index: int) -> np.ndarray:
    """Weight `index` as an array: what the file holds."""
    return np.concatenate(list(weight_blocks(spec, index))).reshape(spec.shape)


def scales(spec: Spec) -> list[float]:
    """Weight scales of every layer: one, or one an output channel."""
    channels = spec.size if spec.per_channel else 1
    step = 2 ** (8 - spec.bits)
    return [round(SCALE * step * (1 + c % 97 / 128), 9) for c in range(channels)]


# ---- wire format -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Stands for the bytes of a weight in a list of pieces."""

    index: int
    size: int

    def __len__(self) -> int:
        return self.size


Pieces = list[bytes | Data]


def varint(n: int) -> bytes:
    """Base-128, low groups first."""
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def number(tag: int, value: int) -> bytes:
    """A varint field."""
    return varint(tag << 3) + varint(value)


def field(tag: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return varint(tag << 3 | 2) + varint(len(payload)) + payload


def message(tag: int, pieces: Pieces) -> Pieces:
    """A field whose payload may hold weights."""
    return [varint(tag << 3 | 2) + varint(sum(map(len, pieces))), *pieces]


def texts(*pairs: tuple[int, str]) -> bytes:
    """String fields."""
    return b"".join(field(tag, text.encode()) for tag, text in pairs)


def value_info(spec: Spec, name: str) -> bytes:
    """A graph input or output: [1, size], for a Conv [1, size, 4, 4]."""
    dims = [1, spec.size] + ([EXTENT, EXTENT] if spec.op == "conv" else [])
    shape = b"".join(field(1, number(1, d)) for d in dims)
    kind = field(1, number(1, ELEM[spec.dtype]) + field(2, shape))
    return field(1, name.encode()) + field(2, kind)


def ints(name: str, values: list[int]) -> bytes:
    """An INTS attribute."""
    body = b"".join(number(8, v) for v in values)
    return field(5, texts((1, name)) + body + number(20, 7))


def attributes(spec: Spec) -> bytes:
    """Attributes of a layer's node."""
    if spec.op == "conv":
        return ints("kernel_shape", [KERNEL] * 2) + ints("pads", [KERNEL // 2] * 4)
    if spec.op == "gemm":
        return field(5, texts((1, "transB")) + number(3, 1) + number(20, 2))
    return b""


OP_TYPE = {"matmul": "MatMul", "gemm": "Gemm", "conv": "Conv"}


def layer_node(spec: Spec, i: int) -> bytes:
    """Node m<i>."""
    names = texts((1, f"x{i}"), (1, f"w{i}"), (2, f"x{i + 1}"), (3, f"m{i}"))
    return field(1, names + texts((4, OP_TYPE[spec.op])) + attributes(spec))


def external(offset: int, length: int) -> bytes:
    """external_data and data_location."""
    entries = {"location": "weights.bin", "offset": str(offset), "length": str(length)}
    pairs = (texts((1, k), (2, v)) for k, v in entries.items())
    return b"".join(field(13, p) for p in pairs) + number(14, 1)


def tensor(spec: Spec, i: int) -> Pieces:
    """TensorProto w<i>."""
    dims = b"".join(number(1, d) for d in spec.shape)
    head = dims + number(2, ELEM[spec.dtype]) + texts((8, f"w{i}"))
    size = spec.layer_bytes
    if spec.layout == "external":
        return [head + external(i * size, size)]
    return [head, *message(9, [Data(i, size)])]


def constant_node(spec: Spec, i: int) -> Pieces:
    """A Constant node whose output is w<i>."""
    value = [texts((1, "value")), *message(5, tensor(spec, i)), number(20, TENSOR_ATTRIBUTE)]
    head = texts((2, f"w{i}"), (3, f"c{i}"), (4, "Constant"))
    return message(1, [head, *message(5, value)])


def model(spec: Spec) -> Pieces:
    """The whole file; weights are only referred to."""
    graph: Pieces = []
    for i in range(spec.count):
        if spec.layout == "constant":
            graph += constant_node(spec, i)
        graph.append(layer_node(spec, i))
    graph.append(texts((2, "large")))
    if spec.layout != "constant":
        for i in range(spec.count):
            graph += message(5, tensor(spec, i))
    graph.append(field(11, value_info(spec, "x0")))
    graph.append(field(12, value_info(spec, f"x{spec.count}")))
    return [number(1, 8) + field(8, number(2, 13)), *message(7, graph)]


# ---- files -------------------------------------------------------------------------------------


def write_weight(f: BinaryIO, spec: Spec, index: int) -> None:
    """One weight, from the pool to the file without a copy of it in between."""
    for block in weight_blocks(spec, index):
        f.write(memoryview(block).cast("B"))


def write_model(out: Path, spec: Spec) -> None:
    """model.onnx and, if the layout asks for it, weights.bin."""
    with open(out / "model.onnx", "wb") as f:
        for piece in model(spec):
            if isinstance(piece, Data):
                write_weight(f, spec, piece.index)
            else:
                f.write(piece)
    if spec.layout == "external":
        with open(out / "weights.bin", "wb") as f:
            for i in range(spec.count):
                write_weight(f, spec, i)


def config_text(spec: Spec) -> str:
    """One entry a layer; the reference's configs know channel_wise for convolutions only."""
    layer = {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": f"INT{spec.bits}"},
        "retrain_weight_config": {
            "algo": "arq_retrain",
            "channel_wise": spec.per_channel and spec.op == "conv",
            "dst_type": f"INT{spec.bits}",
        },
    }
    layers = {f"m{i}": layer for i in range(spec.count)}
    return json.dumps({"version": 1, "batch_num": 1, **layers}, indent=4)


def record_value(spec: Spec) -> str:
    """The value of every record: activation scale, weight scales, types."""
    kind = f"INT{spec.bits}"
    lines = ["    scale_d: 0.05", "    offset_d: 0"]
    lines += [f"    scale_w: {s!r}" for s in scales(spec)]
    lines += ["    offset_w: 0"] * len(scales(spec))
    lines += [f'    act_type: "{kind}"', f'    wts_type: "{kind}"']
    return "\n".join(lines)


def write_record(path: Path, spec: Spec) -> None:
    """One record a layer."""
    value = record_value(spec)
    with open(path, "w") as f:
        for i in range(spec.count):
            f.write(f'record {{\n  key: "m{i}"\n  value {{\n{value}\n  }}\n}}\n')


def write(out: Path, spec: Spec) -> None:
    """All files of a model."""
    out.mkdir(parents=True, exist_ok=True)
    write_model(out, spec)
    (out / "config.json").write_text(config_text(spec))
    write_record(out / "record.txt", spec)


def add_options(p: argparse.ArgumentParser) -> None:
    """The options that describe a model."""
    p.add_argument("--gib", type=float, default=1.0, help="GiB of weights, to the nearest layer")
    p.add_argument("--count", type=int, help="number of layers; overrides --gib")
    p.add_argument("--size", type=int, default=4096, help="K and N, or the channels of a Conv")
    p.add_argument(
        "--op",
        choices=list(OP_TYPE),
        default="matmul",
        help="matmul: weight [K, N], scales by column; gemm: transB=1, weight [N, K], scales by "
        "row; conv: weight [C, C, 3, 3], scales by outermost axis",
    )
    p.add_argument(
        "--layout",
        choices=["inline", "external", "constant"],
        default="inline",
        help="weights inside model.onnx, all in weights.bin, or in Constant nodes",
    )
    p.add_argument("--dtype", choices=list(ELEM), default="float32")
    p.add_argument("--per-channel", action="store_true", help="one weight scale an output channel")
    p.add_argument("--bits", type=int, choices=[8, 4], default=8, help="of weights and activations")


def main() -> None:
    """Reads the command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("out", type=Path)
    add_options(p)
    a = p.parse_args()
    spec = Spec(1, a.size, a.op, a.layout, a.dtype, a.per_channel, a.bits)
    spec = spec.holding(a.gib) if a.count is None else Spec(**{**spec.__dict__, "count": a.count})
    write(a.out, spec)


if __name__ == "__main__":
    main()
