#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Whole exports of synthetic models against a plain copier that moves the same bytes.

    python bench/export_bench.py [--quick] [--sets main,linear,...] [--rounds 5] [--list]

A set is a group of models and of cases: what to export, durable (every byte on disk at the end) or
into the page cache, on how many threads. Within a round all cases of a set run once, quantfold and
each way of copying alternating; before each run the outputs of the last are deleted and synced, the
source is read into the page cache (or, with --cold, dropped from it) and memory is prewarmed, all off
the clock. The copier gets the sizes of the files quantfold wrote, the same number of threads, and
the best of its modes by its median over the same rounds; modes that are far behind after a round or
more run no further. Ratios are taken within a round.

Cases that need an option the program does not have yet are skipped, with a note.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))

import make_large
from export_tables import export_table, inspect_table
from make_large import Spec
from measuring import (
    DROP_CACHES,
    GIB,
    MIB,
    REPO,
    Stage,
    about,
    copier_command,
    note,
    save,
    wait_until_quiet,
    written,
)

SMALL_TENSORS = 100_000
# Name, spec without its count, and GiB of weights (None: a count of small tensors).
MODELS: dict[str, tuple[Spec, float | None]] = {
    "f32-4g": (Spec(), 4),
    "f32-4g-external": (Spec(layout="external"), 4),
    "f32-1g-8m": (Spec(size=1448), 1),  # the same tensors of 8 MiB in both
    "f32-8g-8m": (Spec(size=1448), 8),
    "f16-2g": (Spec(dtype="float16"), 2),
    "small-tensors": (Spec(size=16), None),
    "one-tensor-4g": (Spec(size=32768), 4),
    "constants-4g": (Spec(layout="constant"), 4),
    "columns-4g": (Spec(per_channel=True), 4),
    "gemm-rows-4g": (Spec(op="gemm", per_channel=True), 4),
    "conv-rows-4g": (Spec(op="conv", size=1024, per_channel=True), 4),
    "int4-4g": (Spec(bits=4), 4),
}
# Options of an export, and the one of them that the program may not know yet.
VARIANTS: dict[str, tuple[list[str], str]] = {
    "both": ([], ""),
    "deploy": (["--emit", "deploy"], ""),
    "int8": (["--fake-quant-weights", "int8"], "--fake-quant-weights"),
    "shared": (["--fake-quant-weights", "shared"], "--fake-quant-weights"),
    "io-mmap": (["--io", "mmap"], "--io"),
    "io-pwrite": (["--io", "pwrite"], "--io"),
    "io-direct": (["--io", "direct"], "--io"),
    "limit-128m": (["--memory-limit", str(128 * MIB)], "--memory-limit"),
    "limit-1g": (["--memory-limit", str(GIB)], "--memory-limit"),
    "inspect": ([], ""),
}
COPIER_MODES: dict[str, list[str]] = {
    "pwrite": ["--io", "pwrite"],
    "pwrite-sweep": ["--io", "pwrite", "--order", "sweep"],
    "pread-sweep": ["--io", "pwrite", "--order", "sweep", "--input", "pread", "--block", "262144"],
    "mmap-sweep": ["--io", "mmap", "--order", "sweep"],
    "direct": ["--io", "direct"],
    "direct-deep": ["--io", "direct", "--threads", "4"],  # more requests in flight than cores
}
FAR_BEHIND = {1: 1.4}  # of the best mode's seconds, after so many rounds
FAR_BEHIND_LATER = 1.2
ALONE = {"linear", "threads"}  # sets that compare quantfold with itself: no copier


@dataclass(frozen=True)
class Case:
    """One thing to measure, in one set."""

    model: str
    variant: str
    durable: bool = True
    threads: int = 0  # 0: all cores


def cases(models: list[str], variants: list[str], threads: tuple[int, ...] = (0,)) -> list[Case]:
    """Durable and not, all combinations."""
    return [
        Case(m, v, durable, t)
        for m in models
        for v in variants
        for durable in (True, False)
        for t in threads
    ]


def set_of(model: str) -> list[Case]:
    """A set of the usual two variants of one model."""
    return cases([model], ["both", "deploy"])


SETS: dict[str, list[Case]] = {
    "main": cases(["f32-4g"], ["both", "deploy", "shared"]),
    "threads": cases(["f32-4g"], ["deploy", "shared"], (1, 2)),
    "int8": cases(["f32-4g"], ["both", "int8", "shared"]),
    "linear": cases(["f32-1g-8m", "f32-8g-8m"], ["both", "deploy"])
    + [Case("f32-8g-8m", "inspect")],
    "small": cases(["small-tensors"], ["both", "deploy"]) + [Case("small-tensors", "inspect")],
    "single": set_of("one-tensor-4g"),
    "f16": set_of("f16-2g"),
    "constant": set_of("constants-4g"),
    "external": set_of("f32-4g-external"),
    "columns": set_of("columns-4g"),
    "gemm": set_of("gemm-rows-4g"),
    "conv": set_of("conv-rows-4g"),
    "int4": set_of("int4-4g"),
    "io": cases(["f32-4g"], ["both", "io-mmap", "io-pwrite", "io-direct"]),
    "limits": cases(["f32-4g"], ["both", "limit-128m", "limit-1g"]),
}


def spec_of(name: str, scale: float) -> Spec:
    """A model of the given share of its full size."""
    spec, gib = MODELS[name]
    if gib is None:
        return replace(spec, count=max(1, round(SMALL_TENSORS * scale)))
    if name.startswith("one-tensor"):
        return replace(spec, size=round(spec.size * scale**0.5))
    return spec.holding(gib * scale)


# ---- what the program can do -------------------------------------------------------------------


def known_options(quantfold: str) -> set[str]:
    """Options named in the help of export."""
    run = subprocess.run([quantfold, "export", "--help"], capture_output=True, text=True)
    return set(re.findall(r"--[a-z][a-z0-9-]*", run.stdout + run.stderr))


def lacking(case: Case, known: set[str]) -> str:
    """The option that a case needs and the program lacks, or nothing."""
    needs = [VARIANTS[case.variant][1]] + ([] if case.durable else ["--no-fsync"])
    return next((n for n in needs if n and n not in known), "")


def runnable(wanted: list[Case], known: set[str]) -> list[Case]:
    """Cases that the program can do; a note for each option that it lacks."""
    missing: dict[str, int] = {}
    for case in wanted:
        if option := lacking(case, known):
            missing[option] = missing.get(option, 0) + 1
    for option, count in missing.items():
        note(f"skipping {count} cases: this quantfold has no {option}")
    return [c for c in wanted if not lacking(c, known)]


# ---- one set -----------------------------------------------------------------------------------


class Bench:
    """Runs sets and keeps what came out."""

    def __init__(self, stage: Stage, args: argparse.Namespace):
        self.stage, self.args = stage, args
        self.known = known_options(stage.quantfold)
        self.models: dict[str, dict] = {}
        self.runs: list[dict] = []
        self.outputs: dict[tuple[str, str], list[tuple[str, int]]] = {}

    def folder(self, model: str) -> Path:
        return self.stage.work / "models" / model

    def sources(self, model: str) -> list[Path]:
        """The files of a model that hold bytes worth counting."""
        names = ("model.onnx", "weights.bin", "record.txt")
        return [self.folder(model) / n for n in names if (self.folder(model) / n).is_file()]

    def generate(self, model: str) -> None:
        """Writes a model unless an earlier set left it."""
        spec = spec_of(model, self.args.scale)
        if not (self.folder(model) / "record.txt").is_file():
            note(f"writing {model}: {spec.total_bytes / GIB:.2f} GiB in {spec.count} tensors")
            make_large.write(self.folder(model), spec)
        self.models[model] = {"weight_bytes": spec.total_bytes, "tensors": spec.count}
        self.models[model]["in_bytes"] = sum(p.stat().st_size for p in self.sources(model))

    def quantfold_command(self, case: Case) -> list[str]:
        """The command line of a case."""
        folder = self.folder(case.model)
        if case.variant == "inspect":
            return [self.stage.quantfold, "inspect", str(folder / "model.onnx")]
        command = [self.stage.quantfold, "export", "-q", "--progress", "never"]
        command += ["--model", str(folder / "model.onnx"), "--config", str(folder / "config.json")]
        command += ["--record", str(folder / "record.txt"), "--save-path", f"{self.stage.out}/m"]
        command += VARIANTS[case.variant][0]
        command += ["--threads", str(case.threads or os.cpu_count())]
        return command + ([] if case.durable else ["--no-fsync"])

    def expected_bytes(self, case: Case) -> int:
        """Bytes a case will write; a guess at first."""
        known = self.outputs.get((case.model, case.variant))
        return sum(n for _, n in known) if known else self.models[case.model]["in_bytes"] * 5 // 4

    def quantfold_run(self, case: Case) -> dict:
        """One run of quantfold, and what it wrote."""
        result = self.stage.run(
            self.quantfold_command(case), self.sources(case.model), self.expected_bytes(case)
        )
        if not result["code"]:
            self.outputs[case.model, case.variant] = written(self.stage.out)
        return result

    def copier_run(self, case: Case, mode: str) -> dict:
        """One run of the copier for the bytes of a case."""
        options = ["--threads", str(case.threads or os.cpu_count()), *COPIER_MODES[mode]]
        options += ["--fsync"] if case.durable else []
        outputs = self.outputs[case.model, case.variant]
        sources = self.sources(case.model)
        command = copier_command(self.stage, sources, outputs, options)
        return self.stage.run(command, sources, self.expected_bytes(case))

    def keep(self, group: str, number: int, case: Case, program: str, result: dict) -> None:
        """Adds one measurement."""
        if result["code"]:
            note(f"{case}: {program} failed: {result.get('message', '').strip()}")
        where = {"set": group, "round": number, "program": program, **case.__dict__}
        where["threads"] = case.threads or os.cpu_count()
        where["out_bytes"] = self.expected_bytes(case)
        self.runs.append(where | result)

    def modes(self, group: str, number: int, case: Case) -> list[str]:
        """Ways of copying that are still in the race."""
        threads = case.threads or os.cpu_count()
        all_modes = [m for m in COPIER_MODES if case.threads == 0 or m != "direct-deep"]
        if self.args.quick:
            return ["pwrite", "mmap-sweep", "direct"]
        medians = {}
        for mode in all_modes:
            seconds = [
                r["seconds"]
                for r in self.runs
                if (r["set"], r["model"], r["variant"]) == (group, case.model, case.variant)
                and (r["durable"], r["threads"]) == (case.durable, threads)
                and r["program"] == f"copier {mode}"
                and not r["code"]
            ]
            if seconds:
                medians[mode] = statistics.median(seconds)
        if not medians:
            return all_modes
        limit = FAR_BEHIND.get(number, FAR_BEHIND_LATER) * min(medians.values())
        return [m for m in all_modes if medians.get(m, limit * 2) <= limit]

    def race(self, group: str, number: int, case: Case, done: dict) -> None:
        """The copier for the bytes of a case; once a round for cases of the same bytes."""
        files = tuple(n for _, n in self.outputs[case.model, case.variant])
        key = (case.model, files, case.durable, case.threads)
        if key not in done:
            modes = self.modes(group, number, case)
            done[key] = {mode: self.copier_run(case, mode) for mode in modes}
        for mode, result in done[key].items():
            self.keep(group, number, case, f"copier {mode}", result)

    def round(self, group: str, number: int, wanted: list[Case]) -> None:
        """Every case once; odd rounds go the other way, so that nobody always follows the same."""
        wait_until_quiet(self.args.quiet_wait)
        done: dict = {}
        for case in wanted if number % 2 == 0 else wanted[::-1]:
            self.keep(group, number, case, "quantfold", self.quantfold_run(case))
            known = (case.model, case.variant) in self.outputs
            if case.variant != "inspect" and known and group not in ALONE:
                self.race(group, number, case, done)

    def run_set(self, group: str, keep_models: set[str]) -> None:
        """All rounds of a set; models that no later set needs are deleted."""
        wanted = runnable(SETS[group], self.known)
        models = sorted({c.model for c in wanted})
        for model in models:
            self.generate(model)
        for number in range(self.args.rounds):
            note(f"{group}: round {number + 1} of {self.args.rounds}")
            self.round(group, number, wanted)
        for model in models:
            if not self.args.keep and model not in keep_models:
                shutil.rmtree(self.folder(model))
        shutil.rmtree(self.stage.out, ignore_errors=True)


def run_sets(bench: Bench, sets: list[str]) -> dict:
    """All sets; the document for the chart and the page, saved after each set."""
    result = {}
    if bench.args.add and bench.args.to.is_file():
        earlier = json.loads(bench.args.to.read_text())
        bench.models = earlier["models"]
        bench.runs = [r for r in earlier["runs"] if r["set"] not in sets]
    for i, group in enumerate(sets):
        later = {c.model for s in sets[i + 1 :] for c in SETS[s]}
        bench.run_set(group, later)
        result = {
            "about": about(bench.stage.work, bench.args.rounds, bench.args.scale),
            "cold": bench.args.cold,
            "models": bench.models,
            "runs": bench.runs,
        }
        save(bench.args.to, result)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--sets", default="all", help="comma-separated, or all (see --list)")
    p.add_argument("--list", action="store_true", help="name the sets and their cases, and end")
    p.add_argument("--rounds", type=int, help="default: 5, quick: 1")
    p.add_argument("--scale", type=float, help="share of the models' full sizes (quick: 1/16)")
    p.add_argument("--quick", action="store_true", help="a smoke run: small models, one round")
    p.add_argument("--cold", action="store_true", help="drop the page cache first (needs root)")
    p.add_argument("--quiet-wait", type=float, help="wait at most so many seconds for idle cores")
    p.add_argument("--build", type=Path, default=REPO / "build")
    p.add_argument("--work", type=Path, help="scratch folder (default: BUILD/bench-data)")
    p.add_argument("--to", type=Path, help="results (default: BUILD-results/exports.json)")
    p.add_argument("--add", action="store_true", help="to the other sets of an earlier run")
    p.add_argument("--keep", action="store_true", help="leave the models there")
    a = p.parse_args()
    a.rounds = a.rounds or (1 if a.quick else 5)
    a.scale = a.scale or (1 / 16 if a.quick else 1)
    a.quiet_wait = a.quiet_wait if a.quiet_wait is not None else (0 if a.quick else 60)
    a.work = (a.work or a.build / "bench-data").resolve()
    a.to = a.to or Path(f"{a.build}-results") / "exports.json"
    quick_sets = ["main", "linear", "small", "f16"]
    a.sets = a.sets.split(",") if a.sets != "all" else quick_sets if a.quick else list(SETS)
    return a


def main() -> int:
    args = parse()
    if args.list:
        for name, wanted in SETS.items():
            print(f"{name}: {', '.join(sorted({f'{c.model} {c.variant}' for c in wanted}))}")
        return 0
    if unknown := [s for s in args.sets if s not in SETS]:
        sys.exit(f"no such set: {', '.join(unknown)}; there are {', '.join(SETS)}")
    if args.cold and not os.access(DROP_CACHES, os.W_OK):
        sys.exit("--cold needs root")
    stage = Stage(args.work, args.build.resolve(), args.cold)
    for program in (stage.copier, stage.quantfold):
        if not Path(program).is_file():
            sys.exit(f"no {program}: build with -Dbench=true first")
    args.work.mkdir(parents=True, exist_ok=True)
    result = run_sets(Bench(stage, args), args.sets)
    print(export_table(result))
    print()
    print(inspect_table(result))
    return 1 if any(r["code"] for r in result["runs"] if r["program"] == "quantfold") else 0


if __name__ == "__main__":
    sys.exit(main())
