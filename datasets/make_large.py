# SPDX-License-Identifier: Apache-2.0
"""Writes a synthetic model of any size: a chain of MatMuls, weights inline or external.

protobuf's own writers refuse messages over 2 GiB, and real exporters have written such files all
the same, so the wire format is written here by hand, tensor by tensor, in bounded memory.

    python make_large.py OUT --gib 3 [--layout inline|external] [--size 4096]

OUT gets model.onnx, record.txt and config.json (and weights.bin).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

FLOAT = 1


def varint(n: int) -> bytes:
    """Base-128, low groups first."""
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number: int, payload: bytes | int) -> bytes:
    """A varint field for an int, a length-delimited one for bytes."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def value_info(name: str, width: int) -> bytes:
    """A float32 [1, width] graph input or output."""
    shape = field(1, field(1, 1)) + field(1, field(1, width))
    return field(1, name.encode()) + field(2, field(1, field(1, FLOAT) + field(2, shape)))


def node(i: int) -> bytes:
    """MatMul i."""
    text = [(1, f"x{i}"), (1, f"w{i}"), (2, f"x{i + 1}"), (3, f"m{i}"), (4, "MatMul")]
    return b"".join(field(n, t.encode()) for n, t in text)


def tensor_head(i: int, size: int) -> bytes:
    """A TensorProto without its data."""
    return field(1, size) + field(1, size) + field(2, FLOAT) + field(8, f"w{i}".encode())


def external(offset: int, length: int) -> bytes:
    """external_data and data_location."""
    entries = {"location": "weights.bin", "offset": str(offset), "length": str(length)}
    pairs = (field(1, k.encode()) + field(2, v.encode()) for k, v in entries.items())
    return b"".join(field(13, p) for p in pairs) + field(14, 1)


def weights(rng: np.random.Generator, size: int, pool: np.ndarray) -> bytes:
    """One layer's weights: a random start in a pool, because fresh randomness is slow."""
    start = int(rng.integers(0, pool.size - size * size))
    return pool[start : start + size * size].tobytes()


def write(out: Path, gib: float, layout: str, size: int) -> None:
    """The three files."""
    out.mkdir(parents=True, exist_ok=True)
    per_layer = size * size * 4
    count = max(1, round(gib * 2**30 / per_layer))
    rng = np.random.default_rng(7)
    pool = rng.standard_normal(size * size + 65536, dtype=np.float32) * np.float32(0.02)

    rest = b"".join(field(1, node(i)) for i in range(count)) + field(2, b"large")
    tail = field(11, value_info("x0", size)) + field(12, value_info(f"x{count}", size))
    data_head = varint(9 << 3 | 2) + varint(per_layer)
    if layout == "inline":
        bodies = [len(tensor_head(i, size)) + len(data_head) + per_layer for i in range(count)]
    else:
        bodies = [
            len(tensor_head(i, size)) + len(external(i * per_layer, per_layer))
            for i in range(count)
        ]
    tensors = sum(len(varint(5 << 3 | 2)) + len(varint(b)) + b for b in bodies)
    opset = field(8, field(2, 13))
    with open(out / "model.onnx", "wb") as f, open(out / "weights.bin", "wb") as w:
        f.write(field(1, 8) + opset)
        f.write(varint(7 << 3 | 2) + varint(len(rest) + tensors + len(tail)) + rest)
        for i, body in enumerate(bodies):
            f.write(varint(5 << 3 | 2) + varint(body) + tensor_head(i, size))
            data = weights(rng, size, pool)
            if layout == "inline":
                f.write(data_head + data)
            else:
                f.write(external(i * per_layer, per_layer))
                w.write(data)
        f.write(tail)
    if layout == "inline":
        (out / "weights.bin").unlink()

    layer = {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "retrain_weight_config": {"algo": "arq_retrain", "channel_wise": False, "dst_type": "INT8"},
    }
    config = {"version": 1, "batch_num": 1} | {f"m{i}": layer for i in range(count)}
    (out / "config.json").write_text(json.dumps(config, indent=4))
    record = (
        'record {{\n  key: "m{}"\n  value {{\n    scale_d: 0.05\n    offset_d: 0\n'
        "    scale_w: 0.0009\n    offset_w: 0\n  }}\n}}\n"
    )
    (out / "record.txt").write_text("".join(record.format(i) for i in range(count)))


def main() -> None:
    """Reads the command line."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("out", type=Path)
    p.add_argument("--gib", type=float, default=1.0)
    p.add_argument("--layout", choices=["inline", "external"], default="inline")
    p.add_argument("--size", type=int, default=4096, help="width of a layer")
    a = p.parse_args()
    write(a.out, a.gib, a.layout, a.size)


if __name__ == "__main__":
    main()
