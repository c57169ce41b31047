# SPDX-License-Identifier: Apache-2.0
"""What Google Benchmark wrote about the kernels: names, bytes a second, and counters if any."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measuring import table

# What the library itself puts beside a benchmark's own counters.
STANDARD = {
    "family_index", "per_family_instance_index", "repetitions", "repetition_index", "threads",
    "iterations", "real_time", "cpu_time", "bytes_per_second", "items_per_second", "big_o", "rms",
}  # fmt: skip


def measurements(result: dict) -> list[dict]:
    """One entry a benchmark: its median if it was repeated, else its only run."""
    entries = [b for b in result.get("benchmarks", []) if not b.get("error_occurred")]
    medians = [b for b in entries if b.get("aggregate_name") == "median"]
    repeated = {b["run_name"] for b in medians}
    single = [b for b in entries if b.get("run_type") != "aggregate"]
    single = [b for b in single if b.get("run_name", b["name"]) not in repeated]
    order = {b.get("run_name", b["name"]): i for i, b in reversed(list(enumerate(entries)))}
    return sorted(medians + single, key=lambda b: order[b.get("run_name", b["name"])])


def name_of(entry: dict) -> str:
    return entry.get("run_name", entry["name"])


def counters(entries: list[dict]) -> list[str]:
    """Names of the benchmarks' own counters, ratios (x_...) first."""
    found = {
        k: None
        for b in entries
        for k, v in b.items()
        if k not in STANDARD and isinstance(v, (int, float)) and not isinstance(v, bool)
    }
    return sorted(found, key=lambda k: not k.startswith("x_"))


def kernels_table(result: dict) -> str:
    """All benchmarks."""
    entries = measurements(result)
    own = counters(entries)
    lines = []
    for b in entries:
        rate = b.get("bytes_per_second")
        cells = [name_of(b), f"{rate / 1e9:.2f}" if rate else "-"]
        cells += [f"{b[k]:.3g}" if k in b else "-" for k in own]
        lines.append(cells)
    return table(["kernel", "GB/s", *own], lines)


def main_ratio(result: dict) -> str:
    """The counter that the chart shows: x_limit if there is one, else another ratio, else none."""
    ratios = [k for k in counters(measurements(result)) if k.startswith("x_")]
    return "x_limit" if "x_limit" in ratios else next(iter(ratios), "")


def trim(path: Path) -> None:
    """Leaves one entry a benchmark, and nothing that names the machine or its folders."""
    result = json.loads(path.read_text())
    context = {k: v for k, v in result["context"].items() if k not in ("host_name", "executable")}
    kept = {"context": context, "benchmarks": measurements(result)}
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    trim(Path(sys.argv[1]))
