#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The same weights quantized to int8, file to file, by quantfold and by its peers.

    python bench/peers.py [--quick] [--torch-python PATH] [--llama-quantize PATH] [--rounds 5]

In each round every program runs once, alternating, with outputs deleted and synced, the source in
the page cache and memory prewarmed before each. No peer calls fsync, so quantfold is measured
without it too where the program can (--no-fsync), and durable. Peers run in processes of their own;
bench/peer_worker.py says what each does. Ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))

import make_large
import numpy as np
from export_bench import known_options
from make_large import Spec
from measuring import (
    BENCH,
    MIB,
    REPO,
    Stage,
    about,
    note,
    ratio_text,
    save,
    spread,
    table,
    wait_until_quiet,
)

# Not run here: what the reference's own save stage was found to do, files in and files out.
QUOTED = {"name": "reference (AMCT PyTorch), quoted, not run here", "mb_per_s": [10, 13]}


@dataclass(frozen=True)
class Program:
    """One way to quantize: a command, and whether the worker clocks its own work."""

    name: str
    command: list[str]
    self_timed: bool = False
    source: str = "model"


# ---- sources -----------------------------------------------------------------------------------


def write_source(folder: Path, gib: float, size: int) -> Spec:
    """The model, and a note for the workers of what it holds."""
    spec = replace(Spec(size=size, layout="external", per_channel=True).holding(gib))
    make_large.write(folder, spec)
    peer = {"count": spec.count, "size": size, "scales": make_large.scales(spec)}
    (folder / "peer.json").write_text(json.dumps(peer))
    return spec


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_keys(width: int, vocabulary: int) -> list[bytes]:
    """The metadata that a llama-shaped model needs to be accepted."""
    numbers = {
        "general.file_type": 0,
        "llama.context_length": 2048,
        "llama.embedding_length": width,
        "llama.block_count": 1,
        "llama.feed_forward_length": width,
        "llama.attention.head_count": 16,
        "llama.rope.dimension_count": width // 16,
        "llama.vocab_size": vocabulary,
    }
    texts = {"general.architecture": "llama", "general.name": "synthetic"}
    keys = [gguf_text(k) + struct.pack("<I", 8) + gguf_text(v) for k, v in texts.items()]
    keys += [gguf_text(k) + struct.pack("<II", 4, v) for k, v in numbers.items()]
    epsilon = gguf_text("llama.attention.layer_norm_rms_epsilon")
    return keys + [epsilon + struct.pack("<If", 6, 1e-5)]


def write_gguf(path: Path, total_bytes: int, width: int = 2048) -> None:
    """A GGUF v3 file of float32 matrices, about as large as the model."""
    layer = {f"attn_{x}": width for x in ("q", "k", "v", "output")}
    layer |= {"ffn_gate": width, "ffn_up": width, "ffn_down": width}
    inner = sum(layer.values()) * width * 4
    vocabulary = max(32, (total_bytes - inner) // (2 * width * 4) // 32 * 32)
    tensors = [("token_embd", (width, vocabulary)), ("output_norm", (width,))]
    tensors += [("output", (width, vocabulary))]
    tensors += [("blk.0.attn_norm", (width,)), ("blk.0.ffn_norm", (width,))]
    tensors += [(f"blk.0.{name}", (width, rows)) for name, rows in layer.items()]
    info, offset = b"", 0
    for name, shape in tensors:
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        info += gguf_text(name + ".weight") + dims + struct.pack("<IQ", 0, offset)
        offset += int(np.prod(shape)) * 4
    keys = gguf_keys(width, vocabulary)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + info
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % 32))
        for i, (_, shape) in enumerate(tensors):
            spec = Spec(count=1, size=1)
            left = int(np.prod(shape))
            while left:
                block = make_large.pool(spec.dtype)[i : i + left]
                f.write(block.data)
                left -= block.size


# ---- programs ----------------------------------------------------------------------------------


def quantfold_programs(stage: Stage, folder: Path) -> list[Program]:
    """The deploy model, durable and, if possible, not."""
    command = [stage.quantfold, "export", "-q", "--progress", "never", "--emit", "deploy"]
    command += ["--model", str(folder / "model.onnx"), "--record", str(folder / "record.txt")]
    command += ["--config", str(folder / "config.json"), "--save-path", f"{stage.out}/m"]
    programs = [Program("quantfold, durable", command)]
    if "--no-fsync" in known_options(stage.quantfold):
        return [Program("quantfold", [*command, "--no-fsync"]), *programs]
    note("this quantfold has no --no-fsync: peers, which do not sync, meet the durable export only")
    return programs


def has_module(python: str, module: str) -> bool:
    """Whether an interpreter can import a module."""
    run = subprocess.run([python, "-c", f"import {module}"], capture_output=True)
    return run.returncode == 0


def worker_programs(stage: Stage, folder: Path, args: argparse.Namespace) -> list[Program]:
    """The Python peers that this machine has."""
    interpreters = {"numpy": sys.executable, "onnxruntime": sys.executable}
    interpreters["torch"] = args.torch_python
    names = ["numpy", "numpy-absmax", "torch", "torch-expression"]
    names += ["onnxruntime", "onnxruntime-per-tensor"]
    found = []
    for name in names:
        library = name.split("-")[0]
        python = interpreters[library]
        if not python or not Path(python).exists() or not has_module(python, library):
            note(f"skipping {name}: no Python with {library}")
            continue
        worker = [python, str(BENCH / "peer_worker.py"), name, str(folder), str(stage.out)]
        found.append(Program(name, [*worker, str(stage.work / "worker.json")], True))
    return found


def llama_programs(stage: Stage, args: argparse.Namespace) -> list[Program]:
    """llama.cpp's quantizer, if one was given: 8-bit blocks, and its plain copy."""
    if not args.llama_quantize:
        note("skipping llama.cpp: no --llama-quantize")
        return []
    source = str(stage.work / "peers" / "model.gguf")
    command = [args.llama_quantize, source, str(stage.out / "q.gguf")]
    return [
        Program(f"llama-quantize {kind}", [*command, kind, "2"], False, "gguf")
        for kind in ("Q8_0", "COPY")
    ]


# ---- rounds ------------------------------------------------------------------------------------


def run_program(stage: Stage, program: Program, sources: dict[str, list[Path]]) -> dict:
    """One run; a worker's own seconds replace those of its process."""
    files = sources[program.source]
    in_bytes = sum(p.stat().st_size for p in files)
    worker = stage.work / "worker.json"
    worker.unlink(missing_ok=True)
    # peers hold the model in memory, and more than once
    room = in_bytes * 2 if program.self_timed else in_bytes
    result = stage.run(program.command, files, room)
    result |= {"program": program.name, "in_bytes": in_bytes}
    if result["code"]:
        note(f"{program.name} failed: {result.get('message', '').strip()}")
    elif program.self_timed:
        result["process_seconds"] = result["seconds"]
        result["seconds"] = json.loads(worker.read_text())["work_seconds"]
    return result


def measure(stage: Stage, programs: list[Program], args: argparse.Namespace) -> list[dict]:
    """All rounds; odd ones go the other way."""
    folder = stage.work / "peers"
    sources = {"model": [folder / "model.onnx", folder / "weights.bin"]}
    sources["gguf"] = [folder / "model.gguf"]
    runs = []
    for number in range(args.rounds):
        note(f"peers: round {number + 1} of {args.rounds}")
        wait_until_quiet(args.quiet_wait)
        for program in programs if number % 2 == 0 else programs[::-1]:
            runs.append(run_program(stage, program, sources) | {"round": number})
    return runs


# ---- results -----------------------------------------------------------------------------------


def seconds_per_byte(runs: list[dict], program: str) -> dict[int, float]:
    """By round; programs may have sources of slightly different sizes."""
    return {
        r["round"]: r["seconds"] / r["in_bytes"]
        for r in runs
        if r["program"] == program and not r["code"]
    }


def names(runs: list[dict]) -> list[str]:
    """Programs that ran, in order."""
    return list(dict.fromkeys(r["program"] for r in runs if not r["code"]))


def baseline(runs: list[dict]) -> str:
    """What peers are compared with: the export without sync if there is one."""
    own = [n for n in names(runs) if n.startswith("quantfold")]
    return "quantfold" if "quantfold" in own else own[0]


def comparison(runs: list[dict], program: str, own: str) -> dict:
    """How many times the baseline's time a program takes for a byte."""
    ours, theirs = seconds_per_byte(runs, own), seconds_per_byte(runs, program)
    return spread([theirs[r] / ours[r] for r in sorted(ours.keys() & theirs.keys())])


def quoted_comparison(runs: list[dict], own: str) -> tuple[float, float]:
    """How many times the quoted throughput ours is: at its best, and at its worst."""
    ours = spread(list(seconds_per_byte(runs, own).values()))["median"]
    low, high = QUOTED["mb_per_s"]
    return 1 / ours / (high * 1e6), 1 / ours / (low * 1e6)


def peers_table(result: dict) -> str:
    """All programs and the quoted reference."""
    runs = result["runs"]
    if not runs:
        return ""
    own = baseline(runs)
    lines = []
    for program in names(runs):
        rate = 1 / spread(list(seconds_per_byte(runs, program).values()))["median"]
        peak = max(r["peak_rss"] for r in runs if r["program"] == program)
        times = "1" if program == own else ratio_text(comparison(runs, program, own))
        lines.append([program, f"{rate / 1e9:.3f}", f"{peak / MIB:.0f}", times])
    low, high = quoted_comparison(runs, own)
    rates = "-".join(f"{x / 1e3:.3f}" for x in QUOTED["mb_per_s"])
    lines.append([QUOTED["name"], rates, "-", f"{low:.0f} to {high:.0f}"])
    return table(["program", "GB/s in", "peak RSS MiB", f"x the time of {own}"], lines)


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--gib", type=float, help="size of the model (default 1; quick: 1/16)")
    p.add_argument("--size", type=int, default=2048, help="width of its matrices")
    p.add_argument("--rounds", type=int, help="default: 5, quick: 1")
    p.add_argument("--quick", action="store_true", help="a smoke run")
    p.add_argument("--torch-python", default="", help="a Python that has torch")
    p.add_argument("--llama-quantize", default="", help="llama.cpp's llama-quantize")
    p.add_argument("--quiet-wait", type=float, help="wait at most so many seconds for idle cores")
    p.add_argument("--build", type=Path, default=REPO / "build")
    p.add_argument("--work", type=Path, help="scratch folder (default: BUILD/bench-data)")
    p.add_argument("--to", type=Path, help="results (default: BUILD-results/peers.json)")
    p.add_argument("--keep", action="store_true", help="leave the model there")
    a = p.parse_args()
    a.gib = a.gib or (1 / 16 if a.quick else 1)
    a.rounds = a.rounds or (1 if a.quick else 5)
    a.quiet_wait = a.quiet_wait if a.quiet_wait is not None else (0 if a.quick else 60)
    a.work = (a.work or a.build / "bench-data").resolve()
    a.to = a.to or Path(f"{a.build}-results") / "peers.json"
    return a


def main() -> int:
    args = parse()
    stage = Stage(args.work, args.build.resolve())
    folder = args.work / "peers"
    spec = write_source(folder, args.gib, args.size)
    programs = quantfold_programs(stage, folder) + worker_programs(stage, folder, args)
    programs += llama_programs(stage, args)
    if args.llama_quantize:
        write_gguf(folder / "model.gguf", spec.total_bytes)
    runs = measure(stage, programs, args)
    result = {"about": about(args.work, args.rounds, args.gib), "runs": runs, "quoted": QUOTED}
    result["model"] = {"weight_bytes": spec.total_bytes, "tensors": spec.count}
    save(args.to, result)
    print(peers_table(result))
    if not args.keep:
        shutil.rmtree(folder)
        shutil.rmtree(stage.out, ignore_errors=True)
    return 1 if any(r["code"] for r in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
