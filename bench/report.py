#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the page of benchmarks from the JSON results: `report.py --results FOLDER --to PAGE.md`.

No figure on the page is typed by hand. The chart is expected beside the page.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import peers
from export_tables import export_table, findings, findings_table, inspect_table, rows
from kernel_tables import kernels_table
from llm_tables import llm_findings, llm_table

INTRO = """\
# Benchmarks

<!-- Written by bench/report.py from {results}; do not edit. -->

    bench/run.sh{options}

measures all of this, draws the chart and writes this page.
"""

HOW = """\
## How

Within a round every variant runs once, one after the other, and ratios are taken within the round;
a figure is the median of {rounds}, brackets hold the least and the greatest. Before each run, off the
clock: earlier outputs deleted and synced, the source {cache}, as much memory as the outputs take
touched and freed (a virtual machine may have given it back to its host). Times are of whole
processes. *durable*: every file is synced, which is the default; *cached*: `--no-fsync`. GB are 10^9
bytes, GiB 2^30.

| | |
|---|---|
{machine}
"""

EXPORTS = """\
## Exports against a plain copier

The copier (`bench/copier.c`) reads every byte of the same source and writes as many bytes to as many
files as quantfold did, on as many threads, without arithmetic; with fsync where quantfold syncs. Its
best way of writing counts, by its median over the same rounds. 1 means as fast as copying. Peak RSS
counts the pages of mapped files, *anon.* does not.

Two things to know when reading: past some gigabytes of unwritten output the kernel makes writers wait
for the disk, so *cached* figures of the largest models are the disk's, the copier's too; and with
100,000 tiny tensors planning takes the time, not bytes, so that the copier is no yardstick there.

{table}

{findings}

{inspect}
"""

PEERS = """\
## Peers

{count} float32 matrices, {mib} MiB in all, to int8, from files to files. Python peers are not charged
for starting and importing; quantfold is timed as a whole process. numpy and torch read raw matrices and
write raw bytes, with scales given (numpy-absmax and onnxruntime find their own); quantfold and
onnxruntime read and write ONNX models. None of the peers syncs its output.

{table}
"""

LLM = """\
## Large language models

    python bench/llm_bench.py --json bench/results/llm.json [--double] [--peer PYTHON]

A Llama-shaped checkpoint of bfloat16 (`datasets/make_llama.py`), and the same matrices as an ONNX model
with one external file: `checkpoint --scheme`, and for `onnx-` cases `export --weight-only --emit deploy`.
All durable; the copier is the one above, and more than 1 is faster than copying. `peer-` is
compressed-tensors on PyTorch (`bench/llm_peer.py`) as a whole process, synced too.
"""

LLM_RUN = """\
{rounds}, commit {commit}, {date}:

{table}

{findings}
"""

KERNELS = """\
## Kernels

From Google Benchmark: *L1* is one thread on data in the first-level cache, *memory* is all threads on
data larger than the last-level cache; GB/s are of source bytes. Each pass of a kernel is followed at
once by a pass of what it is compared with, and `x_` columns are medians of those ratios: `x_limit` the
same bytes read and written without arithmetic, with the widest loads and with stores past the cache;
`x_memcpy` a memcpy of the source; `x_divide` the division alone; `x_plain` a plain loop that the
compiler vectorises for this processor.

{table}
"""


def machine(about: dict) -> str:
    """Rows about the machine."""
    facts = {
        "processor": f"{about['cpu']}, {about['cores']} cores, {about['arch']}",
        "memory": f"{about['memory_gib']} GiB",
        "kernel": about["kernel"],
        "file system": about["file_system"],
        "commit": about["commit"],
        "date": about["date"],
    }
    return "\n".join(f"| {k} | {v} |" for k, v in facts.items())


def how(result: dict) -> str:
    """The method and the machine."""
    about = result["about"]
    rounds = "1 round" if about["rounds"] == 1 else f"{about['rounds']} rounds"
    cache = "dropped from the page cache" if result.get("cold") else "read into the page cache"
    return HOW.format(rounds=rounds, cache=cache, machine=machine(about))


def exports(result: dict) -> str:
    """The section on exports."""
    derived = findings_table(result) if findings(result) else ""
    opened = any(r.key[2] == "inspect" for r in rows(result))
    inspect = "Opening a model:\n\n" + inspect_table(result) if opened else ""
    return EXPORTS.format(table=export_table(result), findings=derived, inspect=inspect)


def peers_section(result: dict) -> str:
    """The section on peers."""
    model = result["model"]
    mib = f"{model['weight_bytes'] / 2**20:.0f}"
    return PEERS.format(count=model["tensors"], mib=mib, table=peers.peers_table(result))


def page(results: Path, chart: str, quick: bool) -> str:
    """The whole page; parts without results are left out."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("*.json"))}
    parts = [INTRO.format(results="JSON", options=" --quick" if quick else "")]
    if quick:
        parts.append("**A smoke run: small models, few rounds. Its figures mean nothing.**\n")
    parts.append(f"![main ratios]({chart})\n")
    if "exports" in found:
        parts += [how(found["exports"]), exports(found["exports"])]
    if "peers" in found:
        parts.append(peers_section(found["peers"]))
    models = [found[n] for n in found if n.startswith("llm")]
    parts += [LLM] if models else []
    for result in models:
        about = result["about"]
        parts.append(
            LLM_RUN.format(
                rounds="1 round" if about["rounds"] == 1 else f"{about['rounds']} rounds",
                commit=about["commit"],
                date=about["date"],
                table=llm_table(result),
                findings=llm_findings(result),
            )
        )
    if "kernels" in found:
        parts.append(KERNELS.format(table=kernels_table(found["kernels"])))
    text = "\n".join(parts)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip("\n") + "\n"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, required=True, help="folder of the JSON files")
    p.add_argument("--to", type=Path, required=True, help="the page")
    p.add_argument("--chart", default="benchmarks.svg", help="the chart's name beside it")
    p.add_argument("--quick", action="store_true", help="say that it was a smoke run")
    a = p.parse_args()
    a.to.parent.mkdir(parents=True, exist_ok=True)
    a.to.write_text(page(a.results, a.chart, a.quick))


if __name__ == "__main__":
    main()
