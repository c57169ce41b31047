#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes every system call and allocation of whole runs fail in turn, and prints what came of it.

    matrix.py [--quantfold build/quantfold] [--dir FOLDER]
              [--scenario NAME ...] [--function NAME ...] [--stride N] [--jobs N]

Each scenario (scenarios.py) runs once without a fault, which tells how many calls of each function
there are, and then once for each of them and for each way in which it can go wrong: an errno, that
errno from there on, a short read or write, a SIGKILL, SIGINT or SIGTERM before or behind it. What
must hold each time:

- it ends, by itself, and does not crash;
- exit code 3 for what the system refuses, with a message that names a file or says that memory is
  out; 0 for what can be tried again (EINTR, short reads and writes); 130 or 0 when interrupted;
- the files that were there before have their bytes, or all of the new ones have theirs; when it was
  killed in between two renames, each file has the one or the other;
- the same command then succeeds and leaves the bytes of a run without faults and no other file.

Exit status 1 if anything did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
for folder in ("tests", "tests/golden", "tests/conformance", "datasets", "tests/fault"):
    sys.path.insert(0, str(REPO / folder))

import shim  # noqa: E402
from scenarios import SCENARIOS, Scenario, drop_from_cache  # noqa: E402

TIMEOUT = 60
DONE, SYSTEM_FAILED, INTERRUPTED = 0, 3, 130
# calls that a command may make before it catches signals; commands that never do, and those that do
# once they write
EARLY = 3
MORTAL = ("record", "commit")
READERS = ("verify",)

# What can happen at a call; with "+", also at all later ones.
WAYS = {
    "open": ["EIO", "EINTR", "EMFILE", "EMFILE+", "EACCES"],
    "fopen": ["EIO", "EMFILE"],
    "opendir": ["ENOMEM", "EIO"],
    "readdir": ["EIO", "EIO+"],
    "read": ["EIO", "EINTR", "short"],
    "pread": ["EIO", "EINTR", "short"],
    "write": ["ENOSPC", "EIO", "EDQUOT", "EINTR", "short", "ENOSPC+"],
    "pwrite": ["ENOSPC", "EIO", "EDQUOT", "EINTR", "short", "ENOSPC+"],
    "copy": ["ENOSPC", "EIO", "EINTR", "short"],
    "mmap": ["ENOMEM", "ENOMEM+"],
    "fallocate": ["ENOSPC", "EDQUOT", "EINTR", "EOPNOTSUPP", "EOPNOTSUPP+"],
    "ftruncate": ["EIO", "ENOSPC", "EINTR"],
    "fsync": ["EIO", "ENOSPC", "EDQUOT", "EINTR", "EIO+"],
    "close": ["EIO", "EDQUOT", "EINTR"],
    "rename": ["EIO", "ENOSPC", "EIO+"],
    "link": ["EPERM", "EPERM+", "EIO", "ENOSPC"],
    "unlink": ["EIO", "EIO+", "EROFS+"],
    "mkdir": ["ENOSPC", "EACCES", "EDQUOT"],
    "rmdir": ["EIO", "EIO+"],
    "stat": ["EIO", "ENOMEM"],
    "fchmod": ["EIO", "EPERM"],
    "flock": ["EINTR", "ENOLCK", "EIO"],
    "realpath": ["EIO", "ENOMEM"],
    "malloc": ["ENOMEM", "ENOMEM+"],
    "any": ["SIGKILL", "SIGINT", "SIGTERM", "after-SIGKILL"],
}
SURVIVED = {"EINTR", "short"}  # must not be noticed
FUNCTIONS = list(WAYS)


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but what is being written: path and content, None for folders."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes() if path.is_file() else None
    return found


def document(text: bytes) -> dict:
    """A JSON document without what differs from run to run."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        found.pop("seconds", None)
        return found
    return {}


def put_aside(files: dict) -> dict:
    """Without the staging folder, which is nobody's output."""
    return {n: b for n, b in files.items() if "quantfold-partial" not in n}


def names(message: str, path: str) -> bool:
    """Whether a message names a file: its whole path, or its name, at the end of a path or quoted or,
    with a suffix, alone. For what a run keeps in `run` of the staging folder, that folder is named.
    """
    folder = re.sub(r"(quantfold-partial)/run(/.*)?$", r"\1", path)
    for place in {path, folder}:
        name = Path(place).name
        before = r"(^|[/'\s])" if Path(place).suffix else r"[/']"
        whole = f"{before}{re.escape(name)}(?![\\w-])(?!\\.\\w)"
        if place in message or re.search(whole, message):
            return True
    return False


@dataclass
class Outcome:
    """How one run went: `kind` is failed, survived, unreached or violation."""

    kind: str
    why: str = ""


@dataclass
class Bench:
    """A scenario, set up in a folder of its own."""

    scenario: Scenario
    folder: Path
    quantfold: Path
    preload: str
    old: dict = field(default_factory=dict)
    new: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs, self.out, self.spare = (self.folder / n for n in ("in", "out", "spare"))
        self.report = self.folder / "report"
        s = self.scenario
        s.write(self.inputs, 1)
        s.write(self.folder / "older", 0)
        if not s.fresh:
            for step in s.steps(self.folder / "older", self.out):
                self.must(step)
        self.old = files_in(self.out)
        for step in s.steps(self.inputs, self.out)[: s.at]:
            self.must(step)
        if s.started:
            self.run(s.steps(self.inputs, self.out)[s.at], s.started)
        if self.out.exists():
            shutil.copytree(self.out, self.spare)
        self.start = files_in(self.spare)
        for step in s.steps(self.inputs, self.out)[s.at :]:
            said = self.must(step)
        self.said = document(said) if "--json" in self.step else None
        self.new = files_in(self.out)
        self.before = files_in(self.inputs)
        kept = self.new.keys() >= self.old.keys()
        assert self.old != self.new and kept, "the new output must replace the old one"

    def run(self, step: list, fault: str = "") -> subprocess.CompletedProcess:
        """Runs one command line under the shim."""
        self.report.unlink(missing_ok=True)
        env = shim.environment(self.preload, self.folder, fault, self.report)
        env["TMPDIR"] = str(self.folder)
        return subprocess.run(
            [str(self.quantfold), *map(str, step)],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
        )

    def must(self, step: list) -> bytes:
        """A run without a fault, which must succeed; what it printed."""
        done = self.run(step)
        if done.returncode != 0:
            raise RuntimeError(f"{step}: exit {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    @property
    def step(self) -> list:
        """The command that meets the fault."""
        return self.scenario.steps(self.inputs, self.out)[self.scenario.at]

    def reset(self) -> None:
        """Puts the older output back."""
        shutil.rmtree(self.out, ignore_errors=True)
        if self.spare.exists():
            shutil.copytree(self.spare, self.out)
        if self.scenario.uncached:
            drop_from_cache(self.inputs)

    def counts(self) -> dict[str, int]:
        """Calls of each function in a run without faults."""
        self.reset()
        self.must(self.step)
        lines = [line.split() for line in self.report.read_text().splitlines()]
        return {words[1]: int(words[2]) for words in lines if words[0] == "count"}

    # ---- judging ----

    def wrong_code(self, way: str, code: int, message: str, n: int = 1) -> str | None:
        """What is wrong with the exit code of a run that met its fault at the n-th call."""
        name = way.removesuffix("+").removeprefix("after-")
        if name == "SIGKILL":
            return None if code in (-signal.SIGKILL, DONE) else f"exit {code}"
        if name in ("SIGINT", "SIGTERM"):
            # before a command has set itself up, the signal does what it does to any program
            mortal = n <= EARLY or self.step[0] in MORTAL
            mortal |= self.step[0] in READERS and files_in(self.out) == self.start
            fine = (INTERRUPTED, DONE, *([-getattr(signal, name)] if mortal else []))
            return None if code in fine else f"exit {code}"
        if name in SURVIVED:
            return None if code == DONE else f"exit {code}: {message}"
        return None if code in (DONE, SYSTEM_FAILED) else f"exit {code}: {message}"

    def wrong_message(
        self, function: str, path: str, message: str, also: Iterable[str] = ()
    ) -> str | None:
        """What is wrong with what was said; warnings do not count. `also` are other files that it may
        be about."""
        message = "\n".join(line for line in message.splitlines() if "error: " in line)
        if function == "malloc" or (function == "mmap" and "memory" in message):
            return None if "memory" in message.lower() else f"no word of memory: {message!r}"
        if any(names(message, p) for p in (path, *also)):
            return None
        return f"the message does not name {path}: {message!r}"

    def wrong_files(self, code: int, way: str) -> str | None:
        """What is wrong with the files, right behind the run."""
        if files_in(self.inputs) != self.before:
            return "an input was changed"
        now, begun = put_aside(files_in(self.out)), put_aside(self.start)
        if code == DONE and self.is_last:
            return None if now == self.new else f"exit 0, but {different(now, self.new)}"
        if now in (begun, self.new):
            return None
        if code == SYSTEM_FAILED and self.scenario.fresh and now == {}:
            return None
        staging = [p for p in self.out.glob(".*quantfold-partial/run/*") if p.name in PENDING]
        if not staging:
            return f"neither the old output nor the new: {different(now, begun)}"
        for name, content in now.items():
            if content is not None and content not in (begun.get(name), self.new.get(name)):
                return f"{name} is of neither run"
        return None

    @property
    def is_last(self) -> bool:
        return self.scenario.at == len(self.scenario.steps(self.inputs, self.out)) - 1

    def wrong_rerun(self) -> str | None:
        """What is wrong with the next run, which meets no fault."""
        for step in self.scenario.steps(self.inputs, self.out)[self.scenario.at :]:
            done = self.run(step)
            if done.returncode != 0:
                if step[0] == "commit" and self.is_committed():
                    continue
                return f"rerun: exit {done.returncode}: {done.stderr.decode()}"
        now = files_in(self.out)
        return None if now == self.new else f"after a rerun {different(now, self.new)}"

    def is_committed(self) -> bool:
        """Whether an earlier commit did all of it, so that there is nothing left to be put in place."""
        return files_in(self.out) == self.new

    def attempt(self, function: str, n: int, way: str) -> Outcome:
        """One run with a fault, and one without."""
        self.reset()
        sign = "+" if way.endswith("+") else ""
        try:
            done = self.run(self.step, f"{function}:{n}{sign}:{way.removesuffix('+')}")
        except subprocess.TimeoutExpired:
            return Outcome("violation", "it hangs")
        path = shim.fired(self.report)
        message = done.stderr.decode("utf-8", "replace").strip()
        if path is None:
            return Outcome("unreached")
        wrong = self.wrong_code(way, done.returncode, message, n)
        if not wrong and done.returncode == SYSTEM_FAILED:
            # a fault that stays can meet other threads, and tidying up, as well
            staged = (self.out / name for name in (".m.quantfold-partial", ".quantfold-partial"))
            others = [str(p) for p in (*(self.out / n for n in self.new), *staged) if sign]
            wrong = self.wrong_message(function, path, message, others)
        if not wrong and self.said and done.returncode == DONE:
            wrong = None if document(done.stdout) == self.said else "JSON of other content"
        wrong = wrong or self.wrong_files(done.returncode, way) or self.wrong_rerun()
        if wrong:
            return Outcome("violation", f"{path or 'memory'}: {wrong}")
        return Outcome("survived" if done.returncode == DONE else "failed")


# in the staging folder, these say that the next run has renames to finish or to take back
PENDING = ("complete", "old")


def different(now: dict, wanted: dict) -> str:
    """The first difference between two folders."""
    for name in sorted({*now, *wanted}):
        if name not in now:
            return f"{name} is missing"
        if name not in wanted:
            return f"{name} should not be there"
        if now[name] != wanted[name]:
            return f"{name} has other bytes"
    return "nothing differs"


def points(count: int, stride: int) -> list[int]:
    """Which of the calls are made to fail: all, or every stride-th, the last always."""
    chosen = list(range(1, count + 1, stride))
    return chosen if not count or chosen[-1] == count else [*chosen, count]


def run_scenario(
    name: str,
    quantfold: Path,
    preload: str,
    place: Path,
    functions: list[str],
    stride: dict[str, int],
) -> tuple[str, dict, list[str]]:
    """All of one scenario: outcomes by function, and what did not hold."""
    scenario = next(s for s in SCENARIOS if s.name == name)
    tally: dict[str, Counter] = defaultdict(Counter)
    wrong: list[str] = []
    # a shell's background job ignores SIGINT, which commands would take over
    signal.signal(signal.SIGINT, signal.default_int_handler)
    home = Path(tempfile.mkdtemp(prefix="qf-fault-", dir=None if scenario.uncached else place))
    try:
        bench = (
            Bench(scenario, home / "w", quantfold, preload)
            if (home / "w").mkdir() is None
            else None
        )
        calls = bench.counts()
        for function in functions:
            tally[function]["calls"] = calls.get(function, 0)
            for n in points(calls.get(function, 0), stride.get(function, 1)):
                tally[function]["points"] += 1
                for way in WAYS[function]:
                    outcome = bench.attempt(function, n, way)
                    tally[function][outcome.kind] += 1
                    if outcome.kind == "violation":
                        wrong.append(f"{name}: {function} {n}, {way}: {outcome.why}")
                        print(wrong[-1], file=sys.stderr, flush=True)
            if tally[function]["points"]:
                print(row_of(name, function, tally[function]), file=sys.stderr, flush=True)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(home)
    return name, tally, wrong


def fast_place() -> Path:
    """Where waiting for the disk costs nothing."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


LINE = "{:<24} {:<10} {:>7} {:>7} {:>7} {:>9} {:>9} {:>10}"
HEADS = ("scenario", "call", "calls", "points", "runs", "failed", "survived", "violations")


def row_of(name: str, function: str, c: Counter) -> str:
    """What came of one function's calls."""
    runs = c["failed"] + c["survived"] + c["violation"]
    row = (c["calls"], c["points"], runs, c["failed"], c["survived"], c["violation"])
    return LINE.format(name, function, *row)


def print_table(results: list[tuple[str, dict, list[str]]]) -> None:
    """One line for each scenario and function."""
    print(LINE.format(*HEADS))
    total: Counter = Counter()
    for name, tally, _ in results:
        for function, c in tally.items():
            if not c["points"]:
                continue
            print(row_of(name, function, c))
            total.update(c)
    print(row_of("all", "", total))


def run_all(args: argparse.Namespace, quantfold: Path) -> list:
    """Every scenario, several at a time."""
    with ProcessPoolExecutor(args.jobs) as pool:
        running = [
            pool.submit(
                run_scenario,
                name,
                quantfold,
                shim.preload(quantfold),
                args.dir,
                args.function,
                {"malloc": args.stride},
            )
            for name in args.scenario
        ]
        return [r.result() for r in running]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantfold", type=Path, default=REPO / "build" / "quantfold")
    parser.add_argument("--dir", type=Path, default=fast_place())
    parser.add_argument("--scenario", nargs="*", default=[s.name for s in SCENARIOS])
    parser.add_argument("--function", nargs="*", default=FUNCTIONS, choices=FUNCTIONS)
    parser.add_argument("--stride", type=int, default=1, help="of allocations, every N-th fails")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as kept:  # a build in the meantime would mix two programs
        binary = Path(shutil.copy(args.quantfold, kept))
        Path(kept, "tests").mkdir()
        shutil.copy(args.quantfold.parent / "tests" / "qf_fault.so", Path(kept, "tests"))
        results = run_all(args, binary)
    print_table(results)
    wrong = [w for _, _, found in results for w in found]
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
