#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mutates outputs and runs `quantfold verify` on them: mutate_verify.py BINARY FOLDER COUNT [SEED]

FOLDER holds sound outputs with prefix `m`, one in each subfolder. Any end but 0 or 1, and anything
a sanitizer says, is printed with the mutated folder kept, and makes the exit status 1."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx


def mutate_bytes(data: bytearray, rng: random.Random) -> None:
    """One change of one of five kinds."""
    if not data:
        return
    at, n = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 16, 200))
    kind = rng.randrange(5)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for i in range(at, min(at + n, len(data))):
            data[i] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 2:
        del data[at : at + n]
    elif kind == 3:
        data[at:at] = data[at : at + n]
    else:
        other = rng.randrange(len(data))
        data[at : at + n], data[other : other + n] = data[other : other + n], data[at : at + n]


def some_names(graph: onnx.GraphProto) -> list[str]:
    """Tensors of a graph, and one that is not there."""
    made = [o for n in graph.node for o in n.output] + [t.name for t in graph.initializer]
    return [*made, *(v.name for v in graph.input), "nowhere", ""]


def mutate_node(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node gets other inputs, outputs, attributes, another name or type, goes or comes twice."""
    node, names = rng.choice(graph.node), some_names(graph)
    kind = rng.randrange(9)
    if kind == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 1:
        del node.input[rng.randrange(len(node.input) + 1) :]
    elif kind == 2:
        node.input.append(rng.choice(names))
    elif kind == 3 and node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]
    elif kind == 4 and node.attribute:
        a = rng.choice(node.attribute)
        a.type = rng.randrange(12)
        a.i, a.f = rng.choice((0, -1, 1 << 62, 5)), rng.choice((0.0, float("nan"), 1e30))
        if a.ints:
            a.ints[rng.randrange(len(a.ints))] = rng.choice((0, -3, 1 << 40))
    elif kind == 5:
        node.op_type = rng.choice([n.op_type for n in graph.node] + [""])
    elif kind == 6:
        node.name = rng.choice([n.name for n in graph.node] + ["", "a.b"])
    elif kind == 7 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)
    elif len(graph.node) > 1:
        graph.node.remove(node)


def mutate_tensor(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A tensor gets another name, dtype, dims, length of its data, or goes."""
    constants = [n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute]
    tensors = [*graph.initializer, *constants]
    if not tensors:
        return
    t, kind = rng.choice(tensors), rng.randrange(7)
    if kind == 0:
        t.data_type = rng.randrange(25)
    elif kind == 1 and t.dims:
        at = rng.randrange(len(t.dims))
        t.dims[at] = rng.choice((0, 1, -1, t.dims[at] * 2, t.dims[at] // 2, 1 << 61))
    elif kind == 2:
        t.dims.append(rng.choice((0, 1, 2)))
    elif kind == 3 and t.dims:
        del t.dims[-1]
    elif kind == 4:
        t.raw_data = t.raw_data[: rng.randrange(len(t.raw_data) + 1)]
    elif kind == 5:
        t.name = rng.choice(some_names(graph))
    elif t in graph.initializer:
        graph.initializer.remove(t)


def mutate_model(path: Path, rng: random.Random) -> None:
    """Changes of a model that leave it a readable one."""
    model = onnx.load(str(path), load_external_data=False)
    for _ in range(rng.randint(1, 4)):
        rng.choice((mutate_node, mutate_tensor))(model.graph, rng)
    path.write_bytes(model.SerializeToString())


def mutate(folder: Path, rng: random.Random) -> None:
    """Changes of what the models mean, or one to six of the bytes of one or two files; small files,
    and with them the graphs, are hit as often as large ones."""
    models = sorted(folder.glob("m_*_model.onnx"))
    if rng.random() < 0.6:
        for path in rng.sample(models, rng.choice((1, 1, 2))):
            mutate_model(path, rng)
        return
    files = sorted(p for p in folder.iterdir() if p.is_file())
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 2)))):
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 6)):
            mutate_bytes(data, rng)
        path.write_bytes(bytes(data))


def main() -> int:
    binary, source, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    kinds = sorted(p for p in source.iterdir() if p.is_dir())
    codes: dict[int, int] = {}
    bad = 0
    for i in range(seed, seed + count):
        rng = random.Random(i)
        folder = Path(tempfile.mkdtemp()) / "out"
        shutil.copytree(rng.choice(kinds), folder)
        inputs = [folder / "model.onnx", folder / "record.txt"]
        given = all(p.is_file() for p in inputs) and rng.random() < 0.3
        args = ["--against", str(inputs[0]), "--record", str(inputs[1])] if given else []
        mutate(folder, rng)
        run = subprocess.run(
            [binary, "verify", str(folder / "m"), *args], capture_output=True, timeout=120
        )
        codes[run.returncode] = codes.get(run.returncode, 0) + 1
        said = b"Sanitizer" in run.stderr or b"runtime error" in run.stderr
        if run.returncode not in (0, 1) or said:
            bad += 1
            print(f"seed {i}: {folder}: exit {run.returncode}\n{run.stderr[-1500:].decode()}")
        else:
            shutil.rmtree(folder.parent)
    print(f"{count} mutations from seed {seed}: exit codes {codes}, {bad} bad")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
