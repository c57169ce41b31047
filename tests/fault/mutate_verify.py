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


def mutate(folder: Path, rng: random.Random) -> None:
    """One to six changes of one or two files; small files, and with them the graphs, are hit as
    often as large ones."""
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
