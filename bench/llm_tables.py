# SPDX-License-Identifier: Apache-2.0
"""Tables of what bench/llm_bench.py measured."""

from __future__ import annotations

import statistics

from measuring import MIB, ratio_text, spread, table


def _seconds(runs: list[dict], case: str, size: str, way: str) -> list[float]:
    return [r["seconds"] for r in runs if (r["case"], r["size"], r["way"]) == (case, size, way)]


def _best_way(runs: list[dict], case: str, size: str) -> str | None:
    """The copier's way with the least median."""
    ways = {r["way"] for r in runs} - {"quantfold", "beside"}
    medians = {w: statistics.median(s) for w in ways if (s := _seconds(runs, case, size, w))}
    return min(medians, key=lambda w: medians[w]) if medians else None


def _row(runs: list[dict], case: str, size: str) -> list[str]:
    ours = [r for r in runs if (r["case"], r["size"], r["way"]) == (case, size, "quantfold")]
    way = _best_way(runs, case, size)
    speed = None
    if way:  # against the copier's speed, in the same round
        other = _seconds(runs, case, size, way)
        speed = spread([c / r["seconds"] for c, r in zip(other, ours)])
    median = statistics.median(r["seconds"] for r in ours)
    return [
        f"{case} {size}",
        f"{ours[0]['moved'] / 1e9:.1f}",
        f"{median:.2f}",
        f"{ours[0]['moved'] / 1e9 / median:.2f}",
        ratio_text(speed) + (f" ({way})" if way else ""),
        f"{max(r['peak_anon'] for r in ours) / MIB:.0f}",
        f"{max(r['peak_rss'] for r in ours) / MIB:.0f}",
    ]


def llm_table(result: dict) -> str:
    """A row for each case and size."""
    runs = result["runs"]
    keys = dict.fromkeys((r["case"], r["size"]) for r in runs)
    head = ["case", "GB moved", "s", "GB/s", "x copier's speed", "anon. MiB", "peak RSS MiB"]
    return table(head, [_row(runs, *key) for key in keys])


def llm_findings(result: dict) -> str:
    """What two runs of a round tell: twice the size, and compared with peers."""
    runs, lines = result["runs"], []
    beside = {(r["round"], r["case"]): r for r in runs if r["way"] == "beside"}
    doubled = [
        (r["seconds"] / r["moved"]) / (b["seconds"] / b["moved"])
        for r in runs
        if r["way"] == "quantfold"
        and (b := beside.get((r["round"], r["case"]))) is not None
        and b["size"] != r["size"]
    ]
    if doubled:
        lines.append(f"- seconds a byte at twice the size: {ratio_text(spread(doubled))}")
    for case in dict.fromkeys(r["case"] for r in runs if r["case"].startswith("peer-")):
        pairs = [
            (p, q)
            for p in runs
            for q in runs
            if p["case"] == case
            and q["case"] == case.removeprefix("peer-")
            and q["way"] == "quantfold"
            and (p["round"], p["size"]) == (q["round"], q["size"])
        ]
        wall = ratio_text(spread([p["seconds"] / q["seconds"] for p, q in pairs]))
        memory = ratio_text(spread([p["peak_rss"] / q["peak_rss"] for p, q in pairs]))
        anonymous = ratio_text(spread([p["peak_anon"] / q["peak_anon"] for p, q in pairs]))
        lines.append(
            f"- {case.removeprefix('peer-')} by compressed-tensors on the same folder: {wall} times "
            f"the time, {memory} times the peak resident memory, {anonymous} times the anonymous one"
        )
    return "\n".join(lines)
