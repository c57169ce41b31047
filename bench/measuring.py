# SPDX-License-Identifier: Apache-2.0
"""How every program here is measured: what happens before the clock, on it, and after."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BENCH = Path(__file__).resolve().parent
REPO = BENCH.parent
MIB, GIB = 2**20, 2**30
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def note(text: str) -> None:
    """A line of progress or a caveat, apart from the tables."""
    print(f"# {text}", file=sys.stderr, flush=True)


def meminfo(key: str) -> int:
    """Bytes of a line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def cpu_model() -> str:
    """What the kernel calls the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith(("model name", "cpu part")):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def file_system(folder: Path) -> str:
    """The type of the file system that holds a folder."""
    command = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(folder)]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def commit() -> str:
    """The source's commit, with a + if the tree has changes."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(REPO), *args]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def about(work: Path, rounds: int, scale: float) -> dict:
    """What a reader of the results must know of the machine and the run."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(meminfo("MemTotal") / GIB, 1),
        "kernel": platform.release(),
        "arch": platform.machine(),
        "file_system": file_system(work),
        "rounds": rounds,
        "scale": scale,
    }


# ---- before the clock --------------------------------------------------------------------------


def busy() -> float:
    """The share of processor time that was spent during the last half second."""

    def read() -> list[int]:
        return [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]

    before = read()
    time.sleep(0.5)
    spent = [b - a for a, b in zip(before, read())]
    return 1 - (spent[3] + spent[4]) / max(1, sum(spent))


def wait_until_quiet(seconds: float) -> None:
    """Waits, at most so long, until the machine is 90 % idle."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if busy() < 0.1:
            return
    if seconds:
        note("the machine is not quiet")


def sync() -> None:
    """Until nothing waits to be written."""
    os.sync()


def read_into_cache(files: list[Path]) -> None:
    """Reads files as cat to /dev/null does."""
    buffer = bytearray(8 * MIB)
    for path in files:
        with open(path, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def drop_caches() -> None:
    """Empties the page cache."""
    sync()
    DROP_CACHES.write_text("3")


def prewarm_mib(out_bytes: int) -> int:
    """How much memory to touch first: what the outputs take and some more, none of it cache."""
    wanted = out_bytes * 3 // 2 + 512 * MIB
    return max(0, min(wanted, meminfo("MemFree") - GIB)) // MIB


def empty(folder: Path) -> None:
    """Makes a folder, or empties it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


# ---- on the clock ------------------------------------------------------------------------------


@dataclass
class Stage:
    """Where programs are run, and in which state of the caches."""

    work: Path
    build: Path
    cold: bool = False

    @property
    def out(self) -> Path:
        """Where the measured program writes."""
        return self.work / "out"

    @property
    def copier(self) -> str:
        return str(self.build / "bench" / "copier")

    @property
    def quantfold(self) -> str:
        return str(self.build / "quantfold")

    def prepare(self, sources: list[Path], out_bytes: int) -> int:
        """Outputs gone, disk idle, sources cached or not; returns how much memory to prewarm."""
        empty(self.out)
        sync()
        if self.cold:
            drop_caches()
        else:
            read_into_cache(sources)
        return prewarm_mib(out_bytes)

    def run(self, command: list[str], sources: list[Path], out_bytes: int) -> dict:
        """Runs a program by bench/timed; its record has code, seconds and memory."""
        mib = self.prepare(sources, out_bytes)
        to, log = self.work / "timed.json", self.work / "log.txt"
        timed = [str(self.build / "bench" / "timed"), "--prewarm", str(mib), "--to", str(to)]
        with open(log, "w") as f:
            subprocess.run([*timed, "--", *command], stdout=f, stderr=f, stdin=subprocess.DEVNULL)
        result = json.loads(to.read_text())
        if result["code"]:
            result["message"] = log.read_text(errors="replace")[-600:]
        return result


def written(folder: Path) -> list[tuple[str, int]]:
    """Files in a folder and their sizes, largest first."""
    found = [(p.name, p.stat().st_size) for p in folder.iterdir() if p.is_file()]
    return sorted(found, key=lambda f: (-f[1], f[0]))


def copier_command(
    stage: Stage, sources: list[Path], outputs: list[tuple[str, int]], mode: list[str]
) -> list[str]:
    """Reads the sources and writes as many bytes to as many files."""
    largest_first = sorted(sources, key=lambda p: -p.stat().st_size)  # keeps it page-aligned
    reads = [x for p in largest_first for x in ("--read", str(p))]
    writes = [x for name, n in outputs for x in ("--write", f"{stage.out / name}={n}")]
    return [stage.copier, *reads, *writes, *mode]


# ---- after -------------------------------------------------------------------------------------


def spread(values: list[float]) -> dict:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio_text(s: dict | None) -> str:
    """`1.07 [0.98-1.20]`."""
    if not s:
        return "-"
    digits = 2 if s["median"] < 10 else 1 if s["median"] < 100 else 0
    return f"{s['median']:.{digits}f} [{s['min']:.{digits}f}-{s['max']:.{digits}f}]"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(path: Path, content: dict) -> None:
    """Writes results for the chart and the page, one run a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(content | {"runs": []}, indent=1)
    runs = ",\n".join("  " + json.dumps(r) for r in content["runs"])
    path.write_text(head.replace('"runs": []', f'"runs": [\n{runs}\n ]', 1) + "\n")
