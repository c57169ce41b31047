# SPDX-License-Identifier: Apache-2.0
"""The table of tests/coverage.sh, from gcovr's JSON summary."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

LOW = 80.0  # per cent of lines below which a file is named


def percent(part: int, whole: int) -> float:
    """Of nothing, all is covered."""
    return 100.0 * part / whole if whole else 100.0


def row(name: str, sums: list[int]) -> str:
    """A line of the table."""
    lines, lines_all, branches, branches_all = sums
    return (
        f"{name:32} {lines:6}/{lines_all:<6} {percent(lines, lines_all):5.1f} %"
        f" {branches:6}/{branches_all:<6} {percent(branches, branches_all):5.1f} %"
    )


def main() -> int:
    """Print rooms, low files and the total; fail below the wanted share of lines."""
    summary = json.loads(Path(sys.argv[1]).read_text())
    wanted = float(sys.argv[2])
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    low = []
    for file in summary["files"]:
        keys = ("line_covered", "line_total", "branch_covered", "branch_total")
        numbers = [file[key] for key in keys]
        for room in (str(Path(file["filename"]).parent), "total"):
            rooms[room] = [a + b for a, b in zip(rooms[room], numbers)]
        if percent(numbers[0], numbers[1]) < LOW:
            low.append(row(file["filename"], numbers))
    total = rooms.pop("total")
    print(f"{'':32} {'lines':>21} {'branches':>21}")
    for room in sorted(rooms):
        print(row(room, rooms[room]))
    print(row("total", total))
    if low:
        print(f"\nless than {LOW:.0f} % of lines:", *low, sep="\n")
    if percent(total[0], total[1]) < wanted:
        print(f"\n{wanted:.0f} % of lines are wanted")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
