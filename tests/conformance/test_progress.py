# SPDX-License-Identifier: Apache-2.0
"""--progress: a bar on a terminal, lines elsewhere, nothing, or JSON."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

import make_large
from support import decode

BYTES = r"[\d.]+ (?:B|kB|MB|GB)"
FIELDS = re.compile(rf"(\d+) % ({BYTES})/({BYTES}) ({BYTES})/s (?:\d+ s|\d+:\d\d)")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """48 MB of weights in tensors with names."""
    folder = tmp_path_factory.mktemp("source")
    make_large.write(folder, make_large.Spec(layout="external", size=1024, count=12))
    return folder


def command(quantfold, source: Path, out: Path, *extra) -> list[str]:
    args = ["export", "--model", source / "model.onnx", "--record", source / "record.txt"]
    args += ["--save-path", out / "m", "--external", "always", "--no-fsync", "--threads", "1"]
    args += ["--manifest", "--resume"]  # whose journal tells how far it is
    return [quantfold.binary, *map(str, args), *extra]


def journaled(out: Path) -> int:
    """Bytes of the journal: some 120 a tensor."""
    try:
        return sum(p.stat().st_size for p in out.glob(".m.quantfold-partial/run/journal.*"))
    except OSError:
        return 0


def pause_and_go(process: subprocess.Popen, out: Path, seconds: float) -> None:
    """Stops a run twice on its way, so that it lasts at least that long."""
    for size in (400, 900):
        while process.poll() is None and journaled(out) < size:
            pass
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds / 2)
        process.send_signal(signal.SIGCONT)


def on_terminal(argv: list[str], columns: int, out: Path, seconds: float = 1.4) -> str:
    """What a run wrote to a terminal of so many columns; it lasts long enough for a bar."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    pause_and_go(process, out, seconds)
    said = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        said += data
    os.close(master)
    assert process.wait(timeout=60) == 0, decode(said)
    return decode(said)


def bars(said: str) -> list[str]:
    """What was drawn, one state of the line after another."""
    return [s.replace("\x1b[K", "") for s in said.split("\r") if s.strip("\x1b[K\n")]


@pytest.mark.parametrize("columns", [40, 59, 80, 132, 200])
def test_bar(quantfold, source, tmp_path, columns):
    """Bytes, rate, time left and tensor in as much room as there is; gone at the end."""
    out = tmp_path / "o"
    said = on_terminal(command(quantfold, source, out), columns, out)
    drawn = bars(said)
    assert drawn, repr(said)
    assert "\n" not in said.rstrip("\r\n")
    assert said.endswith("\r\x1b[K"), "the line is empty again"
    percents = []
    for state in drawn:
        assert len(state) < columns, "no line is broken"
        assert state.startswith("[") == (columns - 1 >= 60)
        match = FIELDS.search(state)
        assert match, repr(state)
        percents.append(int(match[1]))
        if columns >= 132:
            assert re.search(r" w\d+$", state), f"no tensor: {state!r}"
        if columns - 1 >= 60:
            filled = re.match(r"\[(#*)(\.*)\] ", state)
            assert filled and len(filled[1]) + len(filled[2]) == 24
            assert abs(len(filled[1]) / 24 - percents[-1] / 100) < 0.06
    assert percents == sorted(percents)


def test_short_runs_show_no_bar(quantfold, source, tmp_path, repo):
    digits = repo / "datasets" / "digits"
    argv = [
        quantfold.binary, "export", "--model", str(digits / "model.onnx"), "--record",
        str(digits / "record.txt"), "--save-path", str(tmp_path / "o" / "m"), "--no-fsync",
    ]  # fmt: skip
    assert "%" not in on_terminal(argv, 80, tmp_path / "o", 0)


@pytest.mark.parametrize("extra", [["--progress", "never"], ["-q"]])
def test_never(quantfold, source, tmp_path, extra):
    out = tmp_path / "o"
    assert on_terminal(command(quantfold, source, out, *extra), 80, out) == ""


def run_paused(argv: list[str], out: Path, seconds: float) -> str:
    """What a run wrote to a pipe on standard error."""
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    pause_and_go(process, out, seconds)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    return decode(err)


def test_lines(quantfold, source, tmp_path):
    """Where there is no terminal: whole lines, without control characters."""
    out = tmp_path / "o"
    said = run_paused(command(quantfold, source, out, "--progress", "always"), out, 2.4)
    lines = said.splitlines()
    assert len(lines) >= 2 and "\r" not in said and "\x1b" not in said
    wanted = rf"quantfold: \d+ % \({BYTES} of {BYTES}\), {BYTES}/s, (\d+ s|\d+:\d\d) left, \S+"
    assert all(re.fullmatch(wanted, line) for line in lines[:-1]), said
    assert re.fullmatch(rf"quantfold: 100 % \({BYTES}\), \d+ s", lines[-1]), said


def test_auto_is_silent_for_ten_seconds(quantfold, source, tmp_path):
    out = tmp_path / "o"
    assert run_paused(command(quantfold, source, out), out, 1.2) == ""


@pytest.mark.parametrize("quiet", [[], ["-q"]], ids=["", "quiet"])
def test_json(quantfold, source, tmp_path, quiet):
    """Every line is an object; sizes only grow, up to the total. What is asked for comes with -q."""
    out = tmp_path / "o"
    said = run_paused(command(quantfold, source, out, "--progress", "json", *quiet), out, 1.4)
    events = [json.loads(line) for line in said.splitlines()]
    assert events[0]["event"] == "start" and events[-1]["event"] == "end"
    steps = events[1:-1]
    assert steps and all(e["event"] == "progress" for e in steps)
    total = events[0]["bytes_total"]
    assert total > 0 and events[-1]["bytes_done"] == total and events[-1]["status"] == "done"
    done = [e["bytes_done"] for e in steps]
    assert done == sorted(done) and done[-1] < total
    for event in steps:
        assert event["bytes_total"] == total and event["bytes_per_second"] >= 0
        assert event["seconds_left"] >= 0 and isinstance(event["tensor"], str)
    assert any(re.fullmatch(r"w\d+", e["tensor"]) for e in steps)
    assert events[-1]["seconds"] >= 0.7


def test_json_of_a_run_that_is_stopped(quantfold, source, tmp_path):
    out = tmp_path / "o"
    process = subprocess.Popen(
        command(quantfold, source, out, "--progress", "json", "-v"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and journaled(out) < 400:
        pass
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    events = [json.loads(l) for l in decode(err).splitlines() if l.startswith("{")]
    if process.returncode == 130:
        assert events[-1]["event"] == "end" and events[-1]["status"] == "cancelled"
        assert all(
            p.name.startswith(".") for p in out.iterdir()
        ), "only what a resumed run takes up"
    else:
        assert process.returncode == 0, "it was done before it could be stopped"


def test_json_events_and_result_are_apart(quantfold, source, tmp_path):
    """Events on standard error, the result on standard output."""
    argv = command(quantfold, source, tmp_path / "o", "--progress", "json", "--json")
    run = subprocess.run(argv, capture_output=True, timeout=60)
    assert run.returncode == 0 and json.loads(run.stdout)["ok"]
    assert [json.loads(line)["event"] for line in run.stderr.splitlines()][-1] == "end"
