# SPDX-License-Identifier: Apache-2.0
"""Shards under Slurm and MPI: the scripts of docs/hpc as they stand, on a cluster of tests/hpc/slurm.sh.

Outside the default run (needs root and tests/install-deps.sh hpc): meson test -C build --suite hpc. The
tests of MPI need a build with -Dmpi=enabled. What shards bring together is compared byte for byte with
what one process writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import make_large
from support import snapshot

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parent.parent / "docs" / "hpc"
OPTIONS = ("--external", "always", "--no-fsync")
PARTIAL = ".m.quantfold-partial"

# what every script for the cluster begins with: waiting for jobs
PRELUDE = """
set -eu
jobs() { for job; do scontrol --oneliner show job "$job"; done; }
until_none() { # until_none PATTERN JOB...: until no task of these jobs matches
  local pattern=$1
  shift
  for ((i = 0; i < 600; i++)); do
    jobs "$@" | grep -qE "$pattern" || return 0
    sleep 0.1
  done
  jobs "$@"
  return 1
}
finished() { until_none 'JobState=(PENDING|RUNNING|COMPLETING|CONFIGURING)' "$@"; }
state() { jobs "$1" | grep -o 'JobState=[A-Z]*' | sort | uniq -c; }
"""

# exec'd by a task or rank: dies of SIGKILL as soon as the named journal has something in it
KILLED = """#!/bin/bash
if [ "${{{variable}:-}}" = 1 ] && mkdir "{once}" 2>/dev/null; then
  (for ((i = 0; i < 200000; i++)); do [ -s "{journal}" ] && exec kill -KILL $$; done) &
fi
exec "{binary}" "$@"
"""


class Rig:
    """A model, what one process makes of it, and where shards are to put theirs."""

    def __init__(self, quantfold, source: Path, wanted: dict[str, bytes], folder: Path):
        self.binary = quantfold.binary
        self.folder, self.wanted = folder, wanted
        self.out = folder / "out"
        self.model = source / "model.onnx"
        self.options = ["--record", str(source / "record.txt"), *OPTIONS]
        self.env = {
            **os.environ,
            "QUANTFOLD": self.binary,
            "MODEL": str(self.model),
            "OUT": str(self.out / "m"),
            "OPTIONS": " ".join(self.options),
            "SCRIPTS": str(SCRIPTS),
            "OMP_NUM_THREADS": "2",
        }

    def run(self, command: list[str], timeout: float = 120) -> subprocess.CompletedProcess:
        """A command in this test's folder; all it has started is gone when it returns."""
        process = subprocess.Popen(
            command, cwd=self.folder, env=self.env, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            out, err = process.communicate()
            pytest.fail(f"not done in {timeout} s: {command}\n{out[-4000:]}\n{err[-4000:]}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def cluster(self, script: str) -> str:
        """Runs a script on a cluster; what it printed."""
        result = self.run([str(HERE / "slurm.sh"), "bash", "-c", PRELUDE + script])
        logs = "".join(f"\n== {p.name}\n{p.read_text()}" for p in self.folder.glob("*.out"))
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{logs}"
        return result.stdout + result.stderr + logs

    def mpirun(self, ranks: int, *extra: str) -> subprocess.CompletedProcess:
        """An export by so many ranks."""
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        command += [self.env["QUANTFOLD"], "export", "--model", str(self.model), *self.options]
        return self.run([*command, "--save-path", self.env["OUT"], *extra])

    def journal(self, shards: int) -> Path:
        """That of shard 1."""
        return self.out / PARTIAL / "run" / f"journal.1-of-{shards}"

    def kill_once(self, variable: str, shards: int) -> None:
        """From now on, shard 1, which the variable tells, is killed in its first run."""
        wrapper = self.folder / "quantfold-killed"
        journal = self.journal(shards)
        once = self.folder / "killed"
        text = KILLED.format(variable=variable, once=once, journal=journal, binary=self.binary)
        wrapper.write_text(text)
        wrapper.chmod(0o755)
        self.env["QUANTFOLD"] = str(wrapper)

    def nothing_in_place(self) -> bool:
        """Whether the output folder holds no file but staged ones."""
        return [p.name for p in self.out.iterdir()] == [PARTIAL]

    def check(self) -> None:
        """Fail unless the output is there, is what one process writes, and nothing else is."""
        found = snapshot(self.out)
        assert sorted(found) == sorted(self.wanted)
        for name, data in self.wanted.items():
            assert found[name] == data, f"{name} differs"


@pytest.fixture(scope="module")
def made(quantfold, tmp_path_factory):
    """A model of 100 MB in 24 tensors with external data, and one process's export of it."""
    source, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("one")
    spec = make_large.Spec(layout="external", size=1024, count=24)
    make_large.write(source, spec)
    quantfold.export(source / "model.onnx", source / "record.txt", out / "m", *OPTIONS, "-q")
    return source, snapshot(out)


@pytest.fixture
def rig(quantfold, made, tmp_path):
    """A fresh place for shards of that model."""
    yield Rig(quantfold, *made, tmp_path)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


# ---- Slurm -------------------------------------------------------------------------------------


@pytest.fixture
def slurm():
    """Skips without a Slurm to start."""
    if os.geteuid() != 0 or not shutil.which("slurmctld") or not shutil.which("munged"):
        pytest.skip("needs root and tests/install-deps.sh hpc")


SUBMIT = """
array=$(sbatch --parsable --array=0-3 "$SCRIPTS/array.sbatch" $OPTIONS)
commit=$(sbatch --parsable --dependency=afterok:"$array" "$SCRIPTS/commit.sbatch")
"""


def test_cluster_has_nodes_and_ends(slurm, rig):
    said = rig.cluster("srun -N2 -n8 --overcommit printenv SLURMD_NODENAME")
    assert said.count("n0\n") == 4 and said.count("n1\n") == 4
    assert rig.run([str(HERE / "slurm.sh"), "bash", "-c", "sleep 1000 & exit 7"]).returncode == 7


def test_array_and_commit(slurm, rig):
    said = rig.cluster(SUBMIT + 'finished "$array" "$commit"\nstate "$array"; state "$commit"')
    assert "4 JobState=COMPLETED" in said and "1 JobState=COMPLETED" in said, said
    assert said.count("25.2 MB in, ") == 4, f"each reads a quarter of the weights: {said}"
    rig.check()


def test_killed_array_task_is_queued_again(slurm, rig):
    """The script queues its task again; Slurm would wait two minutes, which the test does not."""
    rig.kill_once("SLURM_ARRAY_TASK_ID", 4)
    said = rig.cluster(SUBMIT + """
    for ((i = 0; i < 600; i++)); do
      squeue --noheader --array --format='%K %r' | grep -q '^1 BeginTime' && break
      sleep 0.1
    done
    ls -A "${OUT%/*}"; echo
    scontrol update jobid="${array}_1" StartTime=now
    finished "$array" "$commit"
    state "$array"; state "$commit"
    """)
    assert f"{PARTIAL}\n\n" in said, said
    assert "shard 1 ended with 137: queued again" in said
    assert "4 JobState=COMPLETED" in said and "1 JobState=COMPLETED" in said, said
    rig.check()


def test_commit_names_missing_shards(slurm, rig):
    said = rig.cluster("""
    array=$(sbatch --parsable --array=0-3 "$SCRIPTS/array.sbatch" $OPTIONS)
    scontrol update jobid="${array}_2" StartTime=now+1hour || true
    scancel "${array}_2"
    finished "$array"
    commit=$(sbatch --parsable "$SCRIPTS/commit.sbatch")
    finished "$commit"
    state "$commit"
    """)
    assert "JobState=FAILED" in said and "shards are missing: 2 of 4" in said, said
    assert rig.nothing_in_place()


def test_one_task_is_run_again(slurm, rig):
    """In an array of its own, with the number of shards; without, it does not do the whole export."""
    said = rig.cluster("""
    array=$(SHARDS=4 sbatch --parsable --array=0,1,3 "$SCRIPTS/array.sbatch" $OPTIONS)
    finished "$array"
    wrong=$(sbatch --parsable --array=2 "$SCRIPTS/array.sbatch" $OPTIONS)
    finished "$wrong"
    again=$(SHARDS=4 sbatch --parsable --array=2 "$SCRIPTS/array.sbatch" $OPTIONS)
    commit=$(sbatch --parsable --dependency=afterok:"$again" "$SCRIPTS/commit.sbatch")
    finished "$again" "$commit"
    state "$commit"
    """)
    assert "SLURM_ARRAY_TASK_ID is 2, and shards are numbered from 0 to 0" in said, said
    assert "JobState=COMPLETED" in said, said
    rig.check()


def test_step(slurm, rig):
    said = rig.cluster("""
    job=$(sbatch --parsable --nodes=2 --ntasks=4 "$SCRIPTS/step.sbatch" $OPTIONS)
    finished "$job"
    state "$job"
    """)
    assert "JobState=COMPLETED" in said, said
    rig.check()


def test_killed_task_of_a_step(slurm, rig):
    """The job fails and puts nothing in place; queued again, it goes on."""
    rig.kill_once("SLURM_PROCID", 4)
    said = rig.cluster("""
    job=$(sbatch --parsable --nodes=2 --ntasks=4 "$SCRIPTS/step.sbatch" $OPTIONS)
    finished "$job"
    state "$job"
    ls -A "${OUT%/*}"; echo
    scontrol requeue "$job"
    until_none 'JobState=(FAILED|COMPLETING)' "$job"
    scontrol update jobid="$job" StartTime=now
    finished "$job"
    state "$job"
    """)
    assert "JobState=FAILED" in said and f"{PARTIAL}\n\n" in said, said
    assert "JobState=COMPLETED" in said, said
    rig.check()


# ---- MPI ---------------------------------------------------------------------------------------


@pytest.fixture
def mpi(quantfold):
    """Skips without a program that knows MPI, or mpirun."""
    if not shutil.which("mpirun") or b"MPI_Init" not in Path(quantfold.binary).read_bytes():
        pytest.skip("needs mpirun and a build with -Dmpi=enabled")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks(mpi, rig, ranks):
    result = rig.mpirun(ranks)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote") == 1, "rank 0 alone has something to say"
    rig.check()


def test_ranks_with_json(mpi, rig):
    result = rig.mpirun(4, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] and report["bytes_written"] == sum(map(len, rig.wanted.values()))


def test_without_mpirun_a_run_is_one_process(mpi, rig):
    command = [rig.binary, "export", "--model", str(rig.model), *rig.options]
    assert rig.run([*command, "--save-path", rig.env["OUT"]]).returncode == 0
    rig.check()


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_killed_rank(mpi, rig, ranks):
    """As many ranks as before take the run up again, or fewer."""
    rig.kill_once("OMPI_COMM_WORLD_RANK", 4)
    result = rig.mpirun(4, "--resume")
    assert result.returncode != 0
    assert "wrote" not in result.stdout
    assert rig.nothing_in_place()
    result = rig.mpirun(ranks, "--resume")
    assert result.returncode == 0, result.stderr
    rig.check()


def test_what_all_ranks_find_is_said_once(mpi, rig):
    (rig.folder / "record.txt").write_text("record {\n")
    rig.options[1] = str(rig.folder / "record.txt")
    result = rig.mpirun(4)
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("record.txt:") == 1, result.stderr
    assert not rig.out.exists()


def test_one_rank_that_fails_fails_all(mpi, rig):
    """Rank 2 cannot read the model: the others end too, and nothing is in place."""
    wrapper = rig.folder / "quantfold-blind"
    wrapper.write_text(f"""#!/bin/bash
if [ "$OMPI_COMM_WORLD_RANK" = 2 ]; then set -- "${{@/{rig.model.name}/none.onnx}}"; fi
exec "{rig.binary}" "$@"
""")
    wrapper.chmod(0o755)
    rig.env["QUANTFOLD"] = str(wrapper)
    result = rig.mpirun(4)
    assert result.returncode == 1, result.stderr
    assert "rank 2: error" in result.stderr and "none.onnx" in result.stderr
    assert "wrote" not in result.stdout
    assert not rig.out.exists()


def test_rank_that_cannot_write(mpi, rig):
    """Rank 1 may write no large file, as on a full disk: 3, nothing in place; resumed where it can."""
    wrapper = rig.folder / "quantfold-limited"
    wrapper.write_text(f"""#!/bin/bash
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then ulimit -f 64; fi
exec "{rig.binary}" "$@"
""")
    wrapper.chmod(0o755)
    rig.env["QUANTFOLD"] = str(wrapper)
    result = rig.mpirun(4, "--resume")
    assert result.returncode == 3, result.stderr
    assert "rank 1: error" in result.stderr and "wrote" not in result.stdout
    assert rig.nothing_in_place()
    rig.env["QUANTFOLD"] = rig.binary
    result = rig.mpirun(4, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bytes_kept"] > 0
    rig.check()


def test_a_rank_is_its_own_shard(mpi, rig):
    """--shard besides ranks is refused, once; QUANTFOLD_MPI=off makes each process one of its own."""
    result = rig.mpirun(2, "--shard", "0/2")
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("ranks of MPI are shards already") == 1
    assert not rig.out.exists()
    rig.env["QUANTFOLD_MPI"] = "off"
    result = rig.mpirun(1)
    assert result.returncode == 0 and result.stdout.count("wrote") == 1
    rig.check()


def test_dry_run_of_ranks(mpi, rig):
    result = rig.mpirun(4, "--dry-run")
    assert result.returncode == 0 and result.stdout.count("would write") == 1
    assert not rig.out.exists()


def test_resumed_ranks_keep_what_is_there(mpi, rig):
    """The bytes that were kept are those of all ranks."""
    rig.kill_once("OMPI_COMM_WORLD_RANK", 4)
    assert rig.mpirun(4, "--resume").returncode != 0
    result = rig.mpirun(4, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert 0 < report["bytes_kept"] < report["bytes_written"]
    rig.check()


# ---- checkpoints under MPI ---------------------------------------------------------------------


class CheckpointRig(Rig):
    """The same with a safetensors folder of eight files."""

    def __init__(self, quantfold, source: Path, wanted: dict[str, bytes], folder: Path):
        super().__init__(quantfold, source, wanted, folder)
        self.model = source

    def mpirun(self, ranks: int, *extra: str) -> subprocess.CompletedProcess:
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        command += [self.env["QUANTFOLD"], "checkpoint", "--model", str(self.model), *CHECKPOINT]
        return self.run([*command, "--out", str(self.out), *extra])

    def journal(self, shards: int) -> Path:
        return self.out / ".quantfold-partial" / "run" / f"journal.1-of-{shards}"

    def nothing_in_place(self) -> bool:
        return [p.name for p in self.out.iterdir()] == [".quantfold-partial"]


CHECKPOINT = ("--scheme", "w4a16:group=64", "--manifest", "--no-fsync")


@pytest.fixture(scope="module")
def made_checkpoint(quantfold, tmp_path_factory):
    """A checkpoint of 100 MB, and one process's export of it."""
    source, out = tmp_path_factory.mktemp("llama") / "in", tmp_path_factory.mktemp("llama-one")
    script = HERE.parent.parent / "datasets" / "make_llama.py"
    spec = ["--layers", "6", "--hidden", "768", "--vocab", "4000", "--shard-size", "12M"]
    subprocess.run([sys.executable, str(script), str(source), *spec], check=True)
    assert len(list(source.glob("*.safetensors"))) >= 4
    result = quantfold("checkpoint", "--model", source, "--out", out, *CHECKPOINT, "-q")
    assert result.code == 0, result.err
    return source, snapshot(out)


@pytest.fixture
def checkpoint_rig(quantfold, made_checkpoint, tmp_path):
    """A fresh place for that checkpoint."""
    yield CheckpointRig(quantfold, *made_checkpoint, tmp_path)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_of_a_checkpoint(mpi, checkpoint_rig, ranks):
    rig = checkpoint_rig
    result = rig.mpirun(ranks, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    manifest = len(rig.wanted["quantfold.manifest.json"])
    assert report["ok"] and report["bytes_written"] == sum(map(len, rig.wanted.values())) - manifest
    rig.check()


@pytest.mark.parametrize("ranks", [2, 4])
def test_killed_rank_of_a_checkpoint(mpi, checkpoint_rig, ranks):
    rig = checkpoint_rig
    rig.kill_once("OMPI_COMM_WORLD_RANK", 4)
    result = rig.mpirun(4, "--resume")
    assert result.returncode != 0 and "wrote" not in result.stdout
    assert rig.nothing_in_place()
    result = rig.mpirun(ranks, "--resume", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["bytes_kept"] > 0
    rig.check()


def test_what_all_ranks_find_in_a_checkpoint_is_said_once(mpi, checkpoint_rig):
    rig = checkpoint_rig
    result = rig.mpirun(4, "--exclude", "(")
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("--exclude") == 1
    assert not rig.out.exists()


# ---- Slurm and MPI -----------------------------------------------------------------------------


def test_mpi_script(slurm, mpi, rig):
    said = rig.cluster("""
    job=$(sbatch --parsable --nodes=2 --ntasks=4 "$SCRIPTS/mpi.sbatch" $OPTIONS)
    finished "$job"
    state "$job"
    """)
    assert "JobState=COMPLETED" in said, said
    rig.check()


def test_mpirun_in_an_allocation(slurm, mpi, rig):
    rig.cluster("""
    salloc --nodes=2 --ntasks=4 mpirun --allow-run-as-root \
      "$QUANTFOLD" export --model "$MODEL" --save-path "$OUT" $OPTIONS
    """)
    rig.check()
