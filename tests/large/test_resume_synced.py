# SPDX-License-Identifier: Apache-2.0
"""Killed and resumed with what the default run leaves out: 1 GiB, waiting for the disk, every --io."""

from __future__ import annotations

import random
import shutil

import pytest
from test_resume import Rig, is_midway, journal_size, kill_at, make_rig

import make_large

ROUNDS = 10


@pytest.fixture(scope="module")
def gigabyte(quantfold, tmp_path_factory) -> Rig:
    """1 GiB of weights in 64 tensors."""
    spec = make_large.Spec(layout="external", size=2048, count=64)
    return make_rig(quantfold, tmp_path_factory.mktemp("gigabyte"), spec)


@pytest.mark.parametrize("io", ["pwrite", "mmap", "direct"])
def test_killed_and_resumed(gigabyte, tmp_path, io):
    """Ten kills of one output after another; the output is compared each time it is whole."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    options = ("--resume", "--fsync", "--io", io)
    out, sizes = tmp_path / "o", []
    for i in range(ROUNDS):
        process = gigabyte.start(out, *options)
        kill_at(process, out, rng.uniform(0, gigabyte.seconds / 4), True)
        if not is_midway(out):  # it was done
            gigabyte.run(out, *options)
            gigabyte.check(out)
            sizes.clear()
            shutil.rmtree(out)
            continue
        sizes.append(journal_size(out))
        assert sizes == sorted(sizes), f"seed {seed}, kill {i}: the journal shrank"
    report = gigabyte.run(out, *options)
    gigabyte.check(out)
    if sizes and sizes[-1] > 1000:
        assert report["bytes_kept"] > 0, f"seed {seed}"
