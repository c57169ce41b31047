# SPDX-License-Identifier: Apache-2.0
"""--resume and shards: what is killed and taken up again is byte for byte what one run writes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xxhash

import make_large
from support import assert_no_sanitizer_report, decode, snapshot

PARTIAL = ".m.quantfold-partial"
OPTIONS = ("--external", "always", "--no-fsync", "--manifest", "--progress", "never")


@dataclass
class Rig:
    """A model, and what an export that nobody disturbs writes: hash by file name."""

    quantfold: object
    source: Path
    wanted: dict
    seconds: float

    def arguments(self, out: Path, *extra) -> list[str]:
        args = ["export", "--model", self.source / "model.onnx", "--save-path", out / "m", *OPTIONS]
        return [*map(str, args), "--record", str(self.source / "record.txt"), *map(str, extra)]

    def run(self, out: Path, *extra, expect: int = 0) -> dict:
        """A run to its end; what it said as JSON."""
        result = self.quantfold(*self.arguments(out, "--json", *extra))
        assert result.code == expect, result.err
        return json.loads(result.out)

    def commit(self, out: Path, expect: int = 0):
        result = self.quantfold("commit", "--save-path", out / "m", "--no-fsync", "--json")
        assert result.code == expect, result.err
        return result

    def start(self, out: Path, *extra) -> subprocess.Popen:
        return subprocess.Popen(
            [self.quantfold.binary, *self.arguments(out, *extra)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def check(self, out: Path) -> None:
        """Fail unless the output is there, right, and all there is."""
        found = hashes(out)
        assert sorted(found) == sorted(self.wanted)
        assert found == self.wanted


def hashes(folder: Path) -> dict[str, str]:
    """A hash of each file below a folder."""
    found = {}
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top, name)
            found[os.path.relpath(path, folder)] = xxhash.xxh3_128_hexdigest(path.read_bytes())
    return found


def make_rig(quantfold, folder: Path, spec: make_large.Spec) -> Rig:
    make_large.write(folder / "in", spec)
    rig = Rig(quantfold, folder / "in", {}, 0)
    rig.run(folder / "one")  # the second run finds the source in memory
    start = time.monotonic()
    rig.run(folder / "one")
    rig.seconds = time.monotonic() - start
    rig.wanted = hashes(folder / "one")
    return rig


@pytest.fixture(scope="module")
def large(quantfold, tmp_path_factory) -> Rig:
    """200 MB of weights in 48 tensors."""
    spec = make_large.Spec(layout="external", size=1024, count=48)
    return make_rig(quantfold, tmp_path_factory.mktemp("large"), spec)


@pytest.fixture(scope="module")
def small(quantfold, tmp_path_factory) -> Rig:
    """2.4 MB in 9 tensors."""
    spec = make_large.Spec(layout="external", size=256, count=9)
    return make_rig(quantfold, tmp_path_factory.mktemp("small"), spec)


# ---- kills ---------------------------------------------------------------------------------------


def journal_size(out: Path) -> int:
    try:
        return sum(p.stat().st_size for p in (out / PARTIAL / "run").glob("journal.*"))
    except OSError:
        return 0


def is_midway(out: Path) -> bool:
    """Whether a killed run was still writing: one that had begun to put files in place is done."""
    complete = out / PARTIAL / "run" / "complete"
    return not complete.exists() and [p.name for p in out.iterdir()] == [PARTIAL]


def kill_at(process: subprocess.Popen, out: Path, seconds: float, entries: bool) -> bool:
    """Kills a run at a time after its start, or after its first journal entry; False: it was done."""
    if entries:
        while process.poll() is None and not journal_size(out):
            time.sleep(0.0005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert_no_sanitizer_report(decode(err))
    return process.returncode == -signal.SIGKILL


def test_killed_at_ten_points(large, tmp_path):
    """Each kill at a random time, in some way of writing; then resumed, in some other."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kept, killed, ios = [], 0, ("pwrite", "mmap", "direct")
    for i in range(10):
        out = tmp_path / f"o{i}"
        # half of them after what comes before the first write, where most of a slow build's time goes
        how = ("--threads", rng.choice([1, 2, 4]), "--io", rng.choice(ios))
        process = large.start(out, "--resume", *how)
        entries = i % 2 == 0
        at = rng.uniform(0, large.seconds * (0.3 if entries else 0.9))
        if kill_at(process, out, at, entries):
            killed += 1
            left = [p.name for p in out.iterdir()] if out.exists() else []
            found = hashes(out)
            for name in left:  # all was written, and some of it in place
                assert (
                    name == PARTIAL or found[name] == large.wanted[name]
                ), f"seed {seed}, kill {i}"
        how = ("--threads", rng.choice([1, 2, 4]), "--io", rng.choice(ios))
        report = large.run(out, "--resume", *how)
        kept.append(report["bytes_kept"])
        large.check(out)
        for path in out.iterdir():
            path.unlink()
    print(f"{killed} killed, kept {kept}")
    assert killed >= 5, f"seed {seed}: {killed} of 10 runs were killed before they ended"
    assert any(kept), f"seed {seed}: nothing was ever kept"


def test_killed_again_and_again(large, tmp_path):
    """One output, killed until it is done: what is kept grows, and no part is written twice."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    out, sizes = tmp_path / "o", []
    for _ in range(10):
        process = large.start(out, "--resume", "--threads", "1")
        kill_at(process, out, rng.uniform(0, large.seconds / 8), True)
        if not is_midway(out):
            sizes.clear()
            break
        sizes.append(journal_size(out))
    assert sizes == sorted(sizes), "the journal grows"
    report = large.run(out, "--resume")
    large.check(out)
    if sizes and sizes[-1] > 1000:
        assert report["bytes_kept"] > 0, f"seed {seed}"


def stop_midway(rig: Rig, out: Path) -> None:
    """Leaves a run with some of its parts written."""
    for _ in range(20):
        process = rig.start(out, "--resume", "--threads", "1")
        while process.poll() is None and journal_size(out) < 1500:
            pass
        process.kill()
        _, err = process.communicate(timeout=60)
        assert_no_sanitizer_report(decode(err))
        if is_midway(out):
            return
        shutil.rmtree(out)
    pytest.fail("20 runs were done before they could be stopped")


def test_finished_parts_are_not_written_again(large, tmp_path):
    """The source changes under a run that cannot know: what was finished is of the old one.

    Nobody does that, but no other test tells bytes that were kept from bytes that were written again.
    """
    source, out = tmp_path / "in", tmp_path / "o"
    source.mkdir()
    for name in ("model.onnx", "weights.bin", "record.txt"):
        (source / name).write_bytes((large.source / name).read_bytes())
        times = (large.source / name).stat()
        os.utime(source / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    stop_midway(large, out)
    weights = source / "weights.bin"
    times = weights.stat()
    weights.write_bytes(bytes(times.st_size))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = Rig(large.quantfold, source, {}, 0).run(out, "--resume")
    kept = 0
    for path in out.glob("*.external"):
        data = path.read_bytes()
        old = xxhash.xxh3_128_hexdigest(data) == large.wanted[path.name]
        assert old or not any(data), f"{path.name} is of both sources"
        kept += len(data) if old else 0
    assert 0 < kept <= report["bytes_kept"] < kept + (1 << 20), "the models themselves are small"


def test_damaged_parts_are_written_again(large, tmp_path):
    out = tmp_path / "o"
    stop_midway(large, out)
    staged = [p for p in (out / PARTIAL).iterdir() if p.is_file() and p.stat().st_size > 1 << 20]
    assert staged
    for path in staged:
        with open(path, "r+b") as f:
            f.seek(12345)
            f.write(b"\xff\x00" * 50)
    report = large.run(out, "--resume")
    large.check(out)
    whole = sum(p.stat().st_size for p in out.iterdir())
    assert report["bytes_kept"] < whole / 10, "every large file had been damaged"


@pytest.mark.parametrize("what", ["record", "touched", "option", "journal"])
def test_other_inputs_start_anew(large, tmp_path, what):
    out = tmp_path / "o"
    stop_midway(large, out)
    source = tmp_path / "in"
    source.mkdir()
    for name in ("model.onnx", "weights.bin"):
        os.link(large.source / name, source / name)
    text = (large.source / "record.txt").read_text()
    (source / "record.txt").write_text(text)
    extra = []
    if what == "record":
        assert "0.0009" in text
        (source / "record.txt").write_text(text.replace("0.0009", "0.00091"))
    elif what == "touched":
        times = (large.source / "model.onnx").stat()
        (source / "model.onnx").unlink()
        (source / "model.onnx").write_bytes((large.source / "model.onnx").read_bytes())
        os.utime(source / "model.onnx", ns=(0, times.st_mtime_ns + 1))
    elif what == "option":
        extra = ["--emit", "deploy"]
    else:
        for journal in (out / PARTIAL / "run").glob("journal.*"):
            data = bytearray(journal.read_bytes())
            data[8] ^= 1  # the fingerprint
            journal.write_bytes(data)
    other = Rig(large.quantfold, source, {}, 0)
    other.run(tmp_path / "wanted", *extra)
    report = other.run(out, "--resume", *extra)
    assert report["bytes_kept"] == 0
    assert hashes(out) == hashes(tmp_path / "wanted")


def test_resume_with_nothing_to_resume(small, tmp_path):
    assert small.run(tmp_path / "o", "--resume")["bytes_kept"] == 0
    small.check(tmp_path / "o")
    assert small.run(tmp_path / "o", "--resume")["bytes_kept"] == 0, "what is in place is not kept"
    small.check(tmp_path / "o")


def test_a_run_that_does_not_resume_leaves_nothing(large, tmp_path):
    """What an earlier run left goes; an interrupted run without --resume leaves nothing itself."""
    out = tmp_path / "o"
    stop_midway(large, out)
    assert large.run(out)["bytes_kept"] == 0
    large.check(out)


# ---- shards --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 7])
def test_shards(small, tmp_path, count):
    out = tmp_path / "o"
    order = list(range(count))
    random.Random(count).shuffle(order)
    written = 0
    for shard in order:
        report = small.run(out, "--shard", f"{shard}/{count}")
        written += report["bytes_written"]
        assert [p.name for p in out.iterdir()] == [PARTIAL]
    report = json.loads(small.commit(out).out)
    assert report["bytes_written"] == written
    small.check(out)


def test_first_shard_has_the_graphs(small, tmp_path):
    """Whatever their size: without external data, all is in them."""
    out = tmp_path / "o"
    for shard in (3, 2, 1, 0):
        small.run(out, "--external", "never", "--shard", f"{shard}/4")
        names = sorted(p.name for p in (out / PARTIAL).iterdir() if p.is_file())
        assert names == ([] if shard else ["m_deploy_model.onnx", "m_fake_quant_model.onnx"])


def test_shards_at_once(large, tmp_path):
    out = tmp_path / "o"
    processes = [large.start(out, "--shard", f"{i}/4", "--threads", "1") for i in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, decode(err)
    large.commit(out)
    large.check(out)


def test_missing_shards_are_named(small, tmp_path):
    out = tmp_path / "o"
    for shard in (0, 2, 5):
        small.run(out, "--shard", f"{shard}/7")
    result = small.commit(out, expect=1)
    assert "shards are missing: 1, 3, 4, 6 of 7" in result.err
    assert [p.name for p in out.iterdir()] == [PARTIAL]
    for shard in (1, 3, 4, 6):
        small.run(out, "--shard", f"{shard}/7")
    small.commit(out)
    small.check(out)


def test_killed_shard_is_resumed(large, tmp_path):
    out = tmp_path / "o"
    large.run(out, "--shard", "0/2")
    process = large.start(out, "--shard", "1/2", "--threads", "1", "--resume")
    journal = out / PARTIAL / "run" / "journal.1-of-2"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 500):
        time.sleep(0.0005)
    process.kill()
    process.communicate(timeout=60)
    if process.returncode == -signal.SIGKILL:
        assert "shards are missing: 1 of 2" in large.commit(out, expect=1).err
    report = large.run(out, "--shard", "1/2", "--resume")
    if process.returncode == -signal.SIGKILL:
        assert report["bytes_kept"] > 0
    large.commit(out)
    large.check(out)


def test_shards_of_other_inputs_do_not_mix(small, tmp_path):
    """The last to come has the folder; what another output's shards wrote is gone."""
    out, other = tmp_path / "o", tmp_path / "in"
    make_large.write(other, make_large.Spec(layout="external", size=256, count=9, per_channel=True))
    small.run(out, "--shard", "0/2")
    Rig(small.quantfold, other, {}, 0).run(out, "--shard", "1/2")
    assert "shards are missing: 0 of 2" in small.commit(out, expect=1).err
    small.run(out, "--shard", "0/2")
    small.run(out, "--shard", "1/2")
    small.commit(out)
    small.check(out)


def fail_midway(rig: Rig, out: Path, *extra) -> None:
    """A run that takes the folder for itself, makes its files, and then has no memory to fill them."""
    result = rig.quantfold(*rig.arguments(out, *extra, "--memory-limit", "1K"))
    assert result.code == 1 and "memory limit" in result.err


@pytest.mark.parametrize("extra", [(), ("--resume",)])
def test_other_number_of_shards_takes_back_what_was_done(small, tmp_path, extra):
    """Files that a shard of another number has made anew are zeros, whatever was done before."""
    out = tmp_path / "o"
    for shard in range(2):
        small.run(out, "--shard", f"{shard}/2")
    fail_midway(small, out, "--shard", "1/3", *extra)
    assert "shards are missing: 0, 1, 2 of 3" in small.commit(out, expect=1).err
    small.run(out, "--shard", "0/2", "--resume")
    assert "shards are missing: 1 of 2" in small.commit(out, expect=1).err, "nor is it again"
    small.run(out, "--shard", "1/2", "--resume")
    small.commit(out)
    small.check(out)


def test_shard_that_is_begun_again_is_not_done(small, tmp_path):
    """A lost file is made anew by its shard, as zeros; the shard fails before they are filled."""
    out = tmp_path / "o"
    for shard in range(2):
        small.run(out, "--shard", f"{shard}/2")
    for path in (out / PARTIAL).glob("w*"):
        path.unlink()
    assert "run its shard again" in small.commit(out, expect=1).err
    fail_midway(small, out, "--shard", "0/2", "--resume")
    assert "shards are missing: 0 of 2" in small.commit(out, expect=1).err
    small.run(out, "--shard", "0/2", "--resume")
    small.run(out, "--shard", "1/2", "--resume")
    small.commit(out)
    small.check(out)


def test_single_run_over_shards_takes_back_what_was_done(small, tmp_path):
    out = tmp_path / "o"
    for shard in range(2):
        small.run(out, "--shard", f"{shard}/2")
    for path in (out / PARTIAL).glob("w*"):
        path.unlink()
    fail_midway(small, out, "--resume")
    assert "shards are missing: 0 of 1" in small.commit(out, expect=1).err
    small.run(out, "--resume")
    small.check(out)


@pytest.mark.parametrize("prefix", ["v1..2", "..v", "p" * 237])
def test_commit_of_unusual_names(small, tmp_path, prefix):
    """Dots lead nowhere; `<237 bytes>_deploy_model.onnx` has 255."""
    args = ("--model", small.source / "model.onnx", "--record", small.source / "record.txt")
    args += ("--emit", "deploy", "--save-path", tmp_path / "o" / prefix, "--no-fsync")
    result = small.quantfold("export", *args, "--shard", "0/1")
    assert result.code == 0, result.err
    result = small.quantfold("commit", "--save-path", tmp_path / "o" / prefix)
    assert result.code == 0, result.err
    assert (tmp_path / "o" / f"{prefix}_deploy_model.onnx").is_file()


@pytest.mark.parametrize("name", ["../escaped", "a/../../b", "/tmp/x", "a//b", "n" * 256])
def test_commit_refuses_names_outside(small, tmp_path, name):
    out = tmp_path / "o"
    small.run(out, "--shard", "0/1")
    path = out / PARTIAL / "run" / "plan.json"
    plan = json.loads(path.read_text())
    plan["files"][0]["name"] = name
    path.write_text(json.dumps(plan))
    assert "not inside the target folder" in small.commit(out, expect=1).err


def test_commit_of_nothing(small, tmp_path):
    (tmp_path / "o").mkdir()
    result = small.commit(tmp_path / "o", expect=1)
    assert "no shards of this output have been written" in result.err
    assert not list((tmp_path / "o").iterdir())


def test_commit_finds_a_file_cut_short(small, tmp_path):
    out = tmp_path / "o"
    for shard in range(2):
        small.run(out, "--shard", f"{shard}/2")
    staged = next(p for p in (out / PARTIAL).iterdir() if p.is_file() and p.stat().st_size > 1000)
    os.truncate(staged, 100)
    result = small.commit(out, expect=1)
    assert "run its shard again" in result.err
    assert [p.name for p in out.iterdir()] == [PARTIAL]


@pytest.mark.parametrize(
    "text", ["2/2", "1", "a/b", "-1/2", "0/0", "0/100001", "slurm", "slurm/3", "slurm/", "slurm/0"]
)
def test_bad_shards(small, tmp_path, text):
    result = small.quantfold(*small.arguments(tmp_path / "o", "--shard", text))
    assert result.code == 2 and "--shard" in result.err
    assert not (tmp_path / "o").exists()


def test_slurm_names_the_shard(small, tmp_path):
    out = tmp_path / "o"
    for i in range(3):
        variables = {"SLURM_PROCID": str(i), "SLURM_NTASKS": "3"}
        if i == 1:
            variables = {
                "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "3",
            }  # fmt: skip
        result = small.quantfold(
            *small.arguments(out, "--shard", "slurm"), env={**os.environ, **variables}
        )
        assert result.code == 0, result.err
    small.commit(out)
    small.check(out)


def array(task: int, *ids: int, step: int = 1) -> dict[str, str]:
    """What Slurm sets for a task of an array."""
    names = {"ID": task, "MIN": min(ids), "MAX": max(ids), "COUNT": len(ids), "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def slurm(rig: Rig, out: Path, text: str, variables: dict):
    """A run with --shard TEXT that only plans."""
    return rig.quantfold(
        *rig.arguments(out, "--shard", text, "--dry-run"), env={**os.environ, **variables}
    )


@pytest.mark.parametrize(
    "variables, numbers",
    [
        (array(3, 3), ("task 3 ", "array of 1 tasks")),
        (array(5, 3, 5), ("task 5 ", "from 3 to 5")),
        (array(6, 0, 2, 4, 6, step=2), ("array of 4 tasks", "steps of 2")),
        ({"SLURM_PROCID": "4", "SLURM_NTASKS": "4"}, ("no task 4 ", "of 4 ")),
    ],
)
def test_slurm_numbers_that_tell_no_shard(small, tmp_path, variables, numbers):
    result = slurm(small, tmp_path / "o", "slurm", variables)
    assert result.code == 2
    for number in numbers:
        assert number in result.err
    assert "not 'slurm'" not in result.err


def test_one_slurm_task_is_run_again(small, tmp_path):
    """`SHARDS=3 sbatch --array=1`: the number of shards is given."""
    out = tmp_path / "o"
    for i in range(3):
        result = small.quantfold(
            *small.arguments(out, "--shard", "slurm/3"), env={**os.environ, **array(i, i)}
        )
        assert result.code == 0, result.err
    small.commit(out)
    small.check(out)
    result = slurm(small, out, "slurm/3", array(3, 3))
    assert result.code == 2 and "SLURM_ARRAY_TASK_ID is 3" in result.err and "0 to 2" in result.err


def test_weights_are_those_of_numpy(small, tmp_path):
    """A check of the checker: what all the above is compared with is right."""
    spec = make_large.Spec(layout="external", size=256, count=9)
    small.run(tmp_path / "o")
    data = snapshot(tmp_path / "o")["w4_deploy.external"]
    wanted = np.clip(np.rint(make_large.weight(spec, 4) / np.float32(0.0009)), -128, 127)
    assert np.array_equal(np.frombuffer(data, np.int8).reshape(spec.shape), wanted)
