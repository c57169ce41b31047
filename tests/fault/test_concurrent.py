# SPDX-License-Identifier: Apache-2.0
"""Runs that write to one place at the same time: one of them has it for itself, or both do in turn.

Whoever is refused says so with exit code 1; the output is that of one run, whole.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import scenarios  # noqa: E402
from support import assert_no_sanitizer_report, decode, snapshot  # noqa: E402

ROUNDS = 25
REFUSED = "another export to the same save path is running"
EXPORT = ("--threads", "1", "--external", "always", "--no-fsync")


class Arena:
    """Two sets of inputs for one output, and what each makes of it."""

    def __init__(self, quantfold, folder: Path):
        self.quantfold = quantfold
        self.folder = folder
        self.out = folder / "out"
        for seed in (0, 1):
            scenarios.write_model(self.inputs(seed), seed)
        self.whole = [self.result_of(self.export(seed)) for seed in (0, 1)]
        assert self.whole[0].keys() == self.whole[1].keys()
        assert self.whole[0] != self.whole[1]

    def inputs(self, seed: int) -> Path:
        return self.folder / f"in{seed}"

    def export(self, seed: int, *extra) -> list:
        """An export of one of the models."""
        return scenarios.export(*EXPORT, *extra)(self.inputs(seed), self.out)[0]

    def result_of(self, *steps: list) -> dict:
        """What commands leave that have the place for themselves."""
        self.clear()
        for step in steps:
            assert self.quantfold(*step).code == 0
        return snapshot(self.out)

    def clear(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)

    def race(self, steps: dict[str, list]) -> dict[str, tuple[int, str]]:
        """Starts all at once; how each ended, and what it said."""
        running = {
            name: subprocess.Popen(
                [self.quantfold.binary, *map(str, step)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for name, step in steps.items()
        }
        ended = {}
        for name, process in running.items():
            err = decode(process.communicate(timeout=60)[1])
            assert_no_sanitizer_report(err)
            ended[name] = (process.returncode, err)
        return ended


@pytest.fixture
def arena(quantfold, tmp_path) -> Arena:
    return Arena(quantfold, tmp_path)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("extra", [(), ("--resume",), ("--manifest",)], ids=str)
def test_two_exports(arena, extra, older):
    whole = [arena.result_of(arena.export(seed, *extra)) for seed in (0, 1)]
    for i in range(ROUNDS):
        arena.clear()
        if older:
            arena.quantfold(*arena.export(i % 2, *extra))
        ended = arena.race({str(seed): arena.export(seed, *extra) for seed in (0, 1)})
        winners = [seed for seed in (0, 1) if ended[str(seed)][0] == 0]
        assert winners, ended
        for code, err in ended.values():
            assert code == 0 or (code == 1 and REFUSED in err), (code, err)
        assert snapshot(arena.out) in [whole[seed] for seed in winners]


def test_many_exports(arena):
    for _ in range(ROUNDS):
        arena.clear()
        ended = arena.race({f"{seed}{i}": arena.export(seed) for seed in (0, 1) for i in range(3)})
        winners = [int(name[0]) for name, (code, _) in ended.items() if code == 0]
        assert winners, ended
        for code, err in ended.values():
            assert code == 0 or (code == 1 and REFUSED in err), (code, err)
        assert snapshot(arena.out) in [arena.whole[seed] for seed in winners]


def test_export_against_an_export_that_is_taken_up(arena):
    whole = [arena.result_of(arena.export(0)), arena.result_of(arena.export(1, "--resume"))]
    assert whole == arena.whole
    for _ in range(ROUNDS):
        arena.clear()
        ended = arena.race({"0": arena.export(0), "1": arena.export(1, "--resume")})
        for code, err in ended.values():
            assert code == 0 or (code == 1 and REFUSED in err), (code, err)
        winners = [seed for seed in (0, 1) if ended[str(seed)][0] == 0]
        assert snapshot(arena.out) in [whole[seed] for seed in winners]


def test_export_against_commit(arena):
    """An export that comes first throws away what the shards have written, and commit says so."""
    shards = [arena.export(1, "--shard", f"{i}/2") for i in range(2)]
    commit = ["commit", "--save-path", arena.out / "m", "--no-fsync"]
    for _ in range(ROUNDS):
        arena.clear()
        for shard in shards:
            assert arena.quantfold(*shard).code == 0
        ended = arena.race({"export": arena.export(0), "commit": commit})
        (exported, said), (committed, why) = ended["export"], ended["commit"]
        assert exported == 0 or (exported == 1 and REFUSED in said), said
        assert committed == 0 or (
            committed == 1 and (REFUSED in why or "no shards of this output" in why)
        ), why
        assert exported == 0 or committed == 0
        allowed = [arena.whole[0]] * (exported == 0) + [arena.whole[1]] * (committed == 0)
        assert snapshot(arena.out) in allowed


def test_export_against_shard(arena):
    """Shards and an export do not mix: the output is the export's, or there is none yet."""
    shards = [arena.export(1, "--shard", f"{i}/2") for i in range(2)]
    commit = ["commit", "--save-path", arena.out / "m", "--no-fsync"]
    for _ in range(ROUNDS):
        arena.clear()
        ended = arena.race({"export": arena.export(0), "0": shards[0], "1": shards[1]})
        for code, err in ended.values():
            assert code in (0, 1), (code, err)
        visible = {n: b for n, b in snapshot(arena.out).items() if "partial" not in n}
        assert visible in ({}, arena.whole[0])
        for shard in shards:  # whatever happened, the shards can be run again
            result = arena.quantfold(*shard)
            assert result.code == 0, result.err
        assert arena.quantfold(*commit).code == 0
        assert snapshot(arena.out) == arena.whole[1]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_two_commits(arena, threads):
    shards = [arena.export(1, "--shard", f"{i}/2") for i in range(2)]
    commit = ["commit", "--save-path", arena.out / "m", "--no-fsync"]
    for _ in range(ROUNDS):
        arena.clear()
        for shard in shards:
            assert arena.quantfold(*shard, "--threads", threads).code == 0
        ended = arena.race({"0": commit, "1": commit})
        codes = sorted(code for code, _ in ended.values())
        assert codes == [0, 1], ended
        assert snapshot(arena.out) == arena.whole[1]
