#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws the main ratios as an SVG: `chart.py --results FOLDER --to benchmarks.svg`.

A bar is a median, the thin line across its end the least and greatest round. Bars of ratios start
at 1 on a logarithmic axis, so that twice as slow and twice as fast are equally long.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import export_tables
import kernel_tables
import peers

SIDE_SETS = ("io", "limits")  # in the page's tables only
WIDTH, LABELS, VALUES = 860, 300, 90  # of the picture, of the names, of the figures
ROW, BAR = 20, 12
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #57606a; }
  .title { font-size: 14px; font-weight: 600; }
  .grid { stroke: #8c959f; stroke-opacity: .35; }
  .one { stroke: #8c959f; stroke-width: 1.5; }
  .goal { stroke: #bf8700; stroke-width: 1.5; stroke-dasharray: 4 3; }
  .a { fill: #3f7fbf; } .b { fill: #7fb2e0; }
  .range { stroke: #6e7781; stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) { text { fill: #adbac7; } .range { stroke: #c9d1d9; } }
"""


@dataclass
class Bar:
    """One line of a panel."""

    label: str
    value: float
    low: float
    high: float
    style: str = "a"


@dataclass
class Panel:
    """Bars over one axis."""

    title: str
    axis: str
    bars: list[Bar]
    log: bool = True
    goals: list[float] = field(default_factory=list)


def bar(label: str, spread: dict, style: str = "a") -> Bar:
    return Bar(label, spread["median"], spread["min"], spread["max"], style)


# ---- what is shown -----------------------------------------------------------------------------


def export_panel(result: dict) -> Panel:
    """Exports against the copier."""
    bars = []
    for row in export_tables.rows(result):
        group, model, variant, durable, threads = row.key
        if group not in SIDE_SETS and row.copier and threads == result["about"]["cores"]:
            written = export_tables.written_as(durable)
            label = f"{model} {variant}, {written}"
            bars.append(bar(label, row.against(row.copier), "a" if durable else "b"))
    title = "Export: time, against a plain copier of the same bytes"
    return Panel(title, "times the copier's seconds (less is better)", bars, True, [1.15])


def peers_panel(result: dict) -> Panel:
    """Peers against quantfold."""
    runs = result["runs"]
    own = peers.baseline(runs)
    found = [n for n in peers.names(runs) if n != own]
    bars = [bar(n, peers.comparison(runs, n, own)) for n in found]
    low, high = peers.quoted_comparison(runs, own)
    quoted = Bar(result["quoted"]["name"].split(" (")[0] + ", quoted", low, low, high, "b")
    title = f"The same weights to int8, file to file: time, against {own}"
    return Panel(title, f"times the seconds of {own} (more: the peer is slower)", [*bars, quoted])


def kernels_panel(result: dict) -> Panel:
    """Kernels against the machine's limit."""
    ratio = kernel_tables.main_ratio(result)
    entries = [b for b in kernel_tables.measurements(result) if ratio and ratio in b]
    bars = [Bar(kernel_tables.name_of(b), b[ratio], b[ratio], b[ratio]) for b in entries]
    return Panel(f"Kernels: {ratio}", f"{ratio} (more is better)", bars, False, [0.9])


# ---- drawing -----------------------------------------------------------------------------------


def ticks(panel: Panel, low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... on a logarithmic axis, five or so on a plain one."""
    if panel.log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [m * 10.0**d for d in decades for m in (1, 2, 5)]
    else:
        step = 10 ** math.floor(math.log10(high))
        step = step if high / step >= 4 else step / 2 if high / step >= 2 else step / 5
        values = [i * step for i in range(int(high / step) + 1)]
    return [v for v in values if low * 0.999 <= v <= high * 1.001]


def bounds(panel: Panel) -> tuple[float, float]:
    """Ends of the axis."""
    marks = [b.low for b in panel.bars] + [b.high for b in panel.bars] + panel.goals
    if not panel.log:
        return 0, max([*marks, 1]) * 1.05
    return min([*marks, 0.5]) / 1.1, max([*marks, 2]) * 1.1


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def figure(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def draw(panel: Panel, top: float) -> tuple[list[str], float]:
    """A panel's elements, and where it ends."""
    low, high = bounds(panel)
    plot = WIDTH - LABELS - VALUES

    def x(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if panel.log else value / high
        return LABELS + plot * share

    first = top + 28
    last = first + ROW * len(panel.bars)
    out = [text(0, top + 14, panel.title, style="title")]
    for t in ticks(panel, low, high):
        out.append(line(x(t), first - 4, x(t), last, "one" if t == 1 else "grid"))
        out.append(text(x(t), last + 15, f"{t:g}", "middle"))
    for goal in panel.goals:
        out.append(line(x(goal), first - 4, x(goal), last, "goal"))
    for i, b in enumerate(panel.bars):
        y = first + ROW * i
        left, right = sorted((x(1) if panel.log else x(0), x(b.value)))
        out.append(text(LABELS - 8, y + 12, b.label, "end"))
        shape = f'x="{left:.1f}" y="{y + 2}" width="{right - left:.1f}" height="{BAR}"'
        out.append(f'<rect class="{b.style}" {shape}/>')
        out.append(line(x(b.low), y + 8, x(b.high), y + 8, "range"))
        out.append(text(WIDTH - VALUES + 8, y + 12, figure(b.value)))
    axis = panel.axis + ("; dashed: the goal" if panel.goals else "")
    out.append(text(LABELS + plot / 2, last + 32, axis, "middle"))
    return out, last + 52


def svg(panels: list[Panel]) -> str:
    """The whole picture; no background, so that it suits light and dark pages."""
    parts: list[str] = []
    y = 4.0
    for panel in panels:
        drawn, y = draw(panel, y)
        parts += drawn
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:.0f}" role="img">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def panels(results: Path) -> list[Panel]:
    """Panels of the results that are there."""
    makers = {"exports": export_panel, "peers": peers_panel, "kernels": kernels_panel}
    found = []
    for name, make in makers.items():
        path = results / f"{name}.json"
        if path.is_file():
            found.append(make(json.loads(path.read_text())))
    return [p for p in found if p.bars]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--results", type=Path, required=True, help="folder of the JSON files")
    p.add_argument("--to", type=Path, required=True)
    a = p.parse_args()
    a.to.parent.mkdir(parents=True, exist_ok=True)
    a.to.write_text(svg(panels(a.results)))


if __name__ == "__main__":
    main()
