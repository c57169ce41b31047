#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Large language models through both doors, against a plain copier of the same bytes.

    python bench/llm_bench.py [--bytes 8G] [--rounds 3] [--cases w8a16,w4a16:group=128,onnx-w8a16]
        [--double] [--peer PYTHON] [--work DIR] [--build DIR] [--keep]

Makes a Llama-shaped checkpoint of bfloat16 (datasets/make_llama.py) and, for the cases that begin
with onnx-, the same matrices as an ONNX model with one external file. Within a round every case
and every way of copying runs once; the copier reads the same files and writes as many bytes to as
many files, and the best of its ways by its median counts. All runs are durable: every byte is on
the disk at the end. --double also runs the first case at twice the size, each run after one at the
size itself, and gives the ratio of the times;
--peer runs compressed-tensors in that Python on the same checkpoint (bench/llm_peer.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from llm_tables import llm_findings, llm_table
from measuring import REPO, Stage, about, copier_command, note, save, wait_until_quiet

WAYS = {
    "pwrite": ["--io", "pwrite"],
    "direct": ["--io", "direct"],
    "direct-deep": ["--io", "direct", "--threads", "4"],
}


def generate(folder: Path, form: str, size: str) -> None:
    """The model, unless an earlier run left it."""
    if (folder / "config.json").exists() or (folder / "model.onnx").exists():
        return
    command = [sys.executable, str(REPO / "datasets" / "make_llama.py"), str(folder)]
    subprocess.run([*command, "--bytes", size, "--form", form], check=True)


def weights(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *folder.glob("weights.bin")])


def written(folder: Path) -> list[tuple[str, int]]:
    """Files below a folder and their sizes, largest first, by names without subfolders."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return sorted(((p.name, p.stat().st_size) for p in files), key=lambda f: -f[1])


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.stage = Stage(args.work, args.build)
        self.runs: list[dict] = []

    def folder(self, case: str, size: str) -> Path:
        return self.args.work / f"{'onnx' if case.startswith('onnx-') else 'checkpoint'}-{size}"

    def command(self, case: str, folder: Path) -> list[str]:
        q, out = self.stage.quantfold, str(self.stage.out)
        if case.startswith("peer-"):
            peer = [self.args.peer, str(Path(__file__).with_name("llm_peer.py"))]
            return [*peer, str(folder), out, case.removeprefix("peer-")]
        if case.startswith("onnx-"):
            export = [q, "export", "-q", "--progress", "never", "--emit", "deploy"]
            export += ["--model", str(folder / "model.onnx"), "--save-path", f"{out}/m"]
            return [*export, "--weight-only", case.removeprefix("onnx-")]
        return [q, "checkpoint", "-q", "--progress", "never", *("--model", str(folder))] + [
            *("--out", out, "--scheme", case),
            *(["--manifest"] if self.args.manifest else []),
        ]

    def run(self, round: int, case: str, size: str, way: str = "quantfold") -> dict:
        folder = self.folder(case, size)
        sources = weights(folder)
        result = self.stage.run(
            self.command(case, folder), sources, sum(p.stat().st_size for p in sources)
        )
        if result["code"]:
            sys.exit(f"{case} failed: {result.get('message')}")
        moved = sum(p.stat().st_size for p in sources)
        moved += sum(n for _, n in written(self.stage.out))
        result |= {"round": round, "case": case, "size": size, "moved": moved, "way": way}
        self.runs.append(result)
        return result

    def copy(self, round: int, case: str, size: str) -> None:
        outputs = written(self.stage.out)
        sources = weights(self.folder(case, size))
        for way, options in WAYS.items():
            threads = [] if "--threads" in options else ["--threads", str(os.cpu_count())]
            command = copier_command(self.stage, sources, outputs, [*options, *threads, "--fsync"])
            result = self.stage.run(command, sources, sum(n for _, n in outputs))
            if result["code"]:
                note(f"copier {way} failed: {result.get('message')}")
                continue
            self.runs.append(result | {"round": round, "case": case, "size": size, "way": way})

    def race(self, cases: list[str], size: str, copies: bool) -> None:
        for number in range(self.args.rounds):
            wait_until_quiet(self.args.quiet_wait)
            for case in cases if number % 2 == 0 else cases[::-1]:
                note(f"round {number + 1}: {case} {size}")
                self.run(number, case, size)
                if copies and not case.startswith("peer-"):
                    self.copy(number, case, size)


def doubled(size: str) -> str:
    return f"{float(size[:-1]) * 2:g}{size[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bytes", default="8G")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default="w8a16,w4a16:group=128,onnx-w8a16")
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--manifest", action="store_true")
    parser.add_argument("--peer")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/bench-llm"))
    parser.add_argument("--build", type=Path, default=Path("build"))
    parser.add_argument("--quiet-wait", type=float, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.build = args.build.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    cases = args.cases.split(",")
    bench = Bench(args)
    for case in cases:
        form = "onnx-single" if case.startswith("onnx-") else "checkpoint"
        generate(bench.folder(case, args.bytes), form, args.bytes)
    if args.peer:
        cases += [f"peer-{c}" for c in cases if not c.startswith("onnx-")]
    bench.race(cases, args.bytes, copies=True)
    if args.double:
        twice = doubled(args.bytes)
        first = cases[0]
        generate(bench.folder(first, twice), "checkpoint", twice)
        for number in range(args.rounds):
            bench.run(number, first, args.bytes, "beside")
            bench.run(number, first, twice)
    result = {"about": about(args.work, args.rounds, 1.0), "runs": bench.runs}
    print(llm_table(result))
    print(llm_findings(result))
    if args.json:
        save(args.json, result)
    if not args.keep:
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
