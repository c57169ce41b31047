# SPDX-License-Identifier: Apache-2.0
"""What the runs of bench/export_bench.py come to: medians, and ratios taken within a round."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from measuring import GIB, MIB, ratio_text, spread, table

Key = tuple[str, str, str, bool, int]  # set, model, variant, durable, threads


@dataclass
class Row:
    """One case: seconds by round of quantfold, and of the best copier."""

    key: Key
    seconds: dict[int, float]
    copier: dict[int, float]
    copier_mode: str
    peak_rss: int
    peak_anon: int
    cpu_seconds: float
    out_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds.values())

    def against(self, other: dict[int, float]) -> dict | None:
        """Spread of this case's seconds over others of the same rounds."""
        shared = sorted(self.seconds.keys() & other.keys())
        return spread([self.seconds[r] / other[r] for r in shared]) if shared else None


def key_of(run: dict) -> Key:
    return (run["set"], run["model"], run["variant"], run["durable"], run["threads"])


def by_round(runs: list[dict]) -> dict[int, float]:
    """Seconds of each round."""
    return {r["round"]: r["seconds"] for r in runs}


def best_copier(runs: list[dict]) -> tuple[str, dict[int, float]]:
    """The copier's mode with the least median, and its rounds; most rounds first."""
    modes: dict[str, list[dict]] = {}
    for r in runs:
        modes.setdefault(r["program"].removeprefix("copier "), []).append(r)
    if not modes:
        return "", {}
    most = max(len(v) for v in modes.values())
    whole = {m: v for m, v in modes.items() if len(v) == most}
    best = min(whole, key=lambda m: statistics.median(r["seconds"] for r in whole[m]))
    return best, by_round(whole[best])


def rows(result: dict) -> list[Row]:
    """One row a case, in the order of the runs."""
    found: dict[Key, list[dict]] = {}
    for run in result["runs"]:
        if not run["code"]:
            found.setdefault(key_of(run), []).append(run)
    out = []
    for key, runs in found.items():
        own = [r for r in runs if r["program"] == "quantfold"]
        if not own:
            continue
        mode, copier = best_copier([r for r in runs if r["program"] != "quantfold"])
        out.append(
            Row(
                key=key,
                seconds=by_round(own),
                copier=copier,
                copier_mode=mode,
                peak_rss=max(r["peak_rss"] for r in own),
                peak_anon=max(r["peak_anon"] for r in own),
                cpu_seconds=statistics.median(r["user"] + r["system"] for r in own),
                out_bytes=own[-1]["out_bytes"],
            )
        )
    return out


def row_cells(row: Row, result: dict) -> list[str]:
    """A line of the table."""
    group, model, variant, durable, threads = row.key
    in_bytes = result["models"][model]["in_bytes"]
    return [
        f"{group}: {model} {variant}",
        "durable" if durable else "cached",
        str(threads),
        f"{in_bytes / GIB:.2f} -> {row.out_bytes / GIB:.2f}",
        f"{row.median:.2f}",
        f"{in_bytes / row.median / 1e9:.2f}",
        ratio_text(row.against(row.copier)),
        row.copier_mode or "-",
        f"{row.peak_rss / MIB:.0f}",
        f"{row.peak_anon / MIB:.0f}",
    ]


HEAD = [
    "set: model, what is written",
    "to",
    "threads",
    "GiB in -> out",
    "s",
    "GB/s in",
    "x copier's time",
    "copier",
    "peak RSS MiB",
    "anon. MiB",
]


def export_table(result: dict) -> str:
    """All exports."""
    chosen = [r for r in rows(result) if r.key[2] != "inspect"]
    return table(HEAD, [row_cells(r, result) for r in chosen])


def inspect_table(result: dict) -> str:
    """Opening of models."""
    lines = []
    for r in rows(result):
        if r.key[2] == "inspect":
            m = result["models"][r.key[1]]
            size = f"{m['in_bytes'] / GIB:.2f}"
            peak = f"{r.peak_rss / MIB:.1f}"
            lines.append([r.key[1], size, str(m["tensors"]), f"{r.median * 1e3:.1f}", peak])
    return table(["`inspect` of", "GiB", "tensors", "ms", "peak RSS MiB"], lines)


# ---- what follows from several cases -----------------------------------------------------------


@dataclass
class Finding:
    """One derived figure: what, its spread, and the bound it is meant to keep."""

    name: str
    value: dict
    bound: str


def written_as(durable: bool) -> str:
    return "durable" if durable else "cached"


def scaling(all_rows: dict[Key, Row]) -> list[Finding]:
    """One thread against all."""
    out = []
    for (group, model, variant, durable, threads), row in all_rows.items():
        one = all_rows.get((group, model, variant, durable, 1))
        if threads > 1 and one:
            name = f"{model} {variant}, {written_as(durable)}: 1 thread / {threads}"
            out.append(Finding(name, one.against(row.seconds), ""))
    return out


def compact(all_rows: dict[Key, Row]) -> list[Finding]:
    """Float fake_quant weights against compact ones."""
    out = []
    for (group, model, variant, durable, threads), row in all_rows.items():
        both = all_rows.get((group, model, "both", durable, threads))
        if variant in ("int8", "shared") and both:
            name = f"{model}, {written_as(durable)}: float / {variant}"
            bound = "" if variant == "int8" else ">= 3" if durable else ">= 2"
            out.append(Finding(name, both.against(row.seconds), bound))
    return out


def linearity(all_rows: dict[Key, Row], models: dict[str, dict]) -> list[Finding]:
    """Seconds per GiB of the large model over those of the small one."""
    out = []
    for (group, model, variant, durable, threads), row in all_rows.items():
        if group != "linear" or variant == "inspect" or not model.startswith("f32-8g"):
            continue
        small = all_rows.get((group, "f32-1g-8m", variant, durable, threads))
        if not small:
            continue
        growth = models[model]["weight_bytes"] / models["f32-1g-8m"]["weight_bytes"]
        value = {k: v / growth for k, v in row.against(small.seconds).items()}
        name = f"{variant}, {written_as(durable)}: s per GiB at 8x the size / at 1x"
        out.append(Finding(name, value, "0.9 to 1.1"))
    return out


def tensor_rate(all_rows: dict[Key, Row], models: dict[str, dict]) -> list[Finding]:
    """Small tensors a second."""
    out = []
    for (_, model, variant, durable, _), row in all_rows.items():
        if model != "small-tensors" or variant == "inspect":
            continue
        count = models[model]["tensors"]
        value = spread([count / s for s in row.seconds.values()])
        name = f"{variant}, {written_as(durable)}: small tensors a second"
        out.append(Finding(name, value, ">= 20000"))
    return out


def opening(all_rows: dict[Key, Row]) -> list[Finding]:
    """Opening the model of many gigabytes."""
    out = []
    for (_, model, variant, _, _), row in all_rows.items():
        if variant == "inspect" and model.startswith("f32-8g"):
            value = spread([s * 1e3 for s in row.seconds.values()])
            out.append(Finding(f"opening {model}: milliseconds", value, "< 50"))
            peak = spread([row.peak_rss / MIB])
            out.append(Finding(f"opening {model}: MiB resident", peak, "< 32"))
    return out


def memory(all_rows: dict[Key, Row]) -> list[Finding]:
    """The most anonymous memory that any export took."""
    exports = [r.peak_anon / MIB for k, r in all_rows.items() if k[2] != "inspect"]
    if not exports:
        return []
    worst = spread(exports)
    return [Finding("anonymous MiB of all exports", worst, "<= 64 and a little a thread")]


def findings(result: dict) -> list[Finding]:
    """Everything that is derived from more than one case."""
    all_rows = {r.key: r for r in rows(result)}
    models = result["models"]
    parts: list[Callable[[], list[Finding]]] = [
        lambda: compact(all_rows),
        lambda: linearity(all_rows, models),
        lambda: tensor_rate(all_rows, models),
        lambda: opening(all_rows),
        lambda: memory(all_rows),
        lambda: scaling(all_rows),
    ]
    return [f for part in parts for f in part()]


def findings_table(result: dict) -> str:
    """The same as a table."""
    lines = [[f.name, ratio_text(f.value), f.bound or "-"] for f in findings(result)]
    return table(["", "median [min-max]", "wanted"], lines)
