# SPDX-License-Identifier: Apache-2.0
"""quantfold batch: what it writes is what 'export' and 'checkpoint' write, and it says so."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy

import make_large
from support import decode, snapshot


class Rig:
    """A folder of inputs with a jobs file beside them."""

    def __init__(self, quantfold, folder: Path, repo: Path):
        self.quantfold, self.folder = quantfold, folder
        for name in ("model.onnx", "config.json", "record.txt"):
            shutil.copy(repo / "datasets" / "digits" / name, folder / name)

    def job(self, name: str, **options) -> dict:
        """An export of the digits."""
        return {
            "name": name, "model": "model.onnx", "record": "record.txt", "save_path": f"out/{name}/m",
            **options,
        }  # fmt: skip

    def write(self, jobs: list, **others) -> Path:
        path = self.folder / "jobs.json"
        path.write_text(json.dumps({"jobs": jobs, **others}))
        return path

    def run(self, jobs: list, *extra, expect: int = 0, defaults: dict | None = None, **options):
        path = self.write(jobs, defaults={"no_fsync": True, **(defaults or {})})
        result = self.quantfold("batch", path, *extra, **options)
        assert result.code == expect, f"{result.code}: {result.err}"
        return result

    def out(self, name: str) -> dict[str, bytes]:
        return snapshot(self.folder / "out" / name)

    def wanted(self, *extra) -> dict[str, bytes]:
        """What the command of its own writes."""
        with_record = (
            "--model",
            self.folder / "model.onnx",
            "--record",
            self.folder / "record.txt",
        )
        target = self.folder / "wanted"
        shutil.rmtree(target, ignore_errors=True)
        result = self.quantfold("export", *with_record, "--save-path", target / "m", *extra)
        assert result.code == 0, result.err
        return snapshot(target)


@pytest.fixture
def rig(quantfold, tmp_path, repo) -> Rig:
    return Rig(quantfold, tmp_path, repo)


def checkpoint(folder: Path) -> None:
    """A tiny safetensors folder."""
    folder.mkdir()
    weight = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    safetensors.numpy.save_file(
        {"model.layers.0.mlp.up_proj.weight": weight}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')


def test_every_job_writes_what_its_command_writes(rig):
    """Options of all kinds, by their names with underscores."""
    jobs = {
        "plain": ({}, ()),
        "config": ({"config": "config.json"}, ("--config", rig.folder / "config.json")),
        "words": (
            {"external": "always", "external_layout": "single", "emit": "deploy"},
            ("--external", "always", "--external-layout", "single", "--emit", "deploy"),
        ),
        "numbers": ({"external_threshold": 5000}, ("--external-threshold", "5000")),
        "sizes": ({"memory_limit": "512M", "io": "pwrite"}, ("--memory-limit", "512M")),
        "names": (
            {"input_names": ["a"], "output_names": "b", "fake_quant_weights": "int8"},
            ("--input-names", "a", "--output-names", "b", "--fake-quant-weights", "int8"),
        ),
    }
    name = onnx.load(rig.folder / "model.onnx").graph.input[0].name
    axes = {name: {"0": "batch"}}
    (rig.folder / "axes.json").write_text(json.dumps(axes))
    jobs["axes"] = ({"dynamic_axes": axes}, ("--dynamic-axes", json.dumps(axes)))
    jobs["axes-file"] = ({"dynamic_axes": "@axes.json"}, ("--dynamic-axes", json.dumps(axes)))
    rig.run([rig.job(n, **options) for n, (options, _) in jobs.items()])
    for n, (_, extra) in jobs.items():
        assert rig.out(n) == rig.wanted(*extra), n


def test_checkpoint_jobs(rig):
    checkpoint(rig.folder / "llm")
    job = {
        "name": "llm",
        "command": "checkpoint",
        "model": "llm",
        "out": "out/llm",
        "scheme": "w8a16",
    }
    result = rig.run([rig.job("a"), job, rig.job("b")])
    assert [line.split()[:2] for line in result.out.splitlines()[:3]] == [
        ["done", "a"], ["done", "llm"], ["done", "b"],
    ]  # fmt: skip
    alone = rig.folder / "alone"
    done = rig.quantfold(
        "checkpoint", "--model", rig.folder / "llm", "--out", alone, "--scheme", "w8a16"
    )
    assert done.code == 0, done.err
    assert rig.out("llm") == snapshot(alone)


def test_a_line_for_each(rig):
    result = rig.run(
        [rig.job("first"), rig.job("second", model="none.onnx"), rig.job("x")], expect=1
    )
    lines = result.out.splitlines()
    size = sum(map(len, rig.out("first").values())) / 1000
    assert re.fullmatch(rf"done    first   [\d.]+ kB in, {size:.1f} kB out, \d+\.\d\d s", lines[0])
    assert lines[1].startswith("failed  second  ") and "none.onnx" in lines[1]
    assert lines[2].startswith("done    x       ")
    assert re.fullmatch(r"2 of 3 jobs are done, 1 failed, \d+\.\d\d s", lines[3])
    assert "quantfold: second: error: " in result.err and "none.onnx" in result.err
    quiet = rig.run([rig.job("first"), rig.job("second", model="none.onnx")], "-q", expect=1)
    assert quiet.out.startswith("failed  second") and len(quiet.out.splitlines()) == 1
    verbose = rig.run([rig.job("first")], "-v")
    assert "out/first/m_deploy_model.onnx" in verbose.out


def test_json(rig):
    jobs = [rig.job("a", manifest=True), rig.job("b", record="none.txt"), rig.job("c")]
    report = json.loads(rig.run(jobs, "--json", expect=1).out)
    assert not report["ok"] and (report["done"], report["failed"], report["not_run"]) == (2, 1, 0)
    a, b, c = report["jobs"]
    assert (a["name"], a["command"], a["ok"], a["status"]) == ("a", "export", True, "done")
    files = {Path(f["path"]).name: f["bytes"] for f in a["files"]}
    found = {name: len(data) for name, data in rig.out("a").items()}
    found.pop("m.manifest.json")
    assert files == found and a["bytes_written"] == sum(found.values())
    assert a["seconds"] > 0 and a["bytes_kept"] == 0 and "error" not in a
    assert (b["ok"], b["status"]) == (False, "failed") and "none.txt" in b["error"]
    assert any("none.txt" in f["message"] for f in b["findings"])
    assert c["ok"]


def test_fail_fast(rig):
    jobs = [rig.job("a"), rig.job("b", model="none.onnx"), rig.job("c"), rig.job("d")]
    report = json.loads(rig.run(jobs, "--fail-fast", "--json", expect=1).out)
    assert [j["status"] for j in report["jobs"]] == ["done", "failed", "not run", "not run"]
    assert not (rig.folder / "out" / "c").exists()
    result = rig.run(jobs, "--fail-fast", expect=1)
    assert "1 of 4 jobs are done, 1 failed, 2 not run" in result.out
    assert len(json.loads(rig.run(jobs, "--keep-going", "--json", expect=1).out)["jobs"]) == 4


def test_the_most_severe_code(rig):
    """A folder that cannot be made is the system's: 3 goes before 1."""
    (rig.folder / "file").write_text("")
    jobs = [rig.job("a"), rig.job("b", save_path="file/x/m"), rig.job("c", model="none.onnx")]
    rig.run(jobs, expect=3)
    rig.run([jobs[0], jobs[2]], expect=1)


def test_only(rig):
    jobs = [rig.job(n) for n in ("a1", "a2", "b.1", "bx1")]

    def names(*only: str) -> list[str]:
        args = [w for o in only for w in ("--only", o)]
        return [
            j["name"] for j in json.loads(rig.run(jobs, "--json", "--dry-run", *args).out)["jobs"]
        ]

    assert names("a1") == ["a1"]
    assert names("a.") == ["a1", "a2"], "an expression matches the whole name"
    assert names("b.1") == ["b.1"], "a name goes before an expression"
    assert names("bx1", "a1") == ["a1", "bx1"], "in the order of the file"
    assert names("a[12]|bx.*") == ["a1", "a2", "bx1"]
    result = rig.run(jobs, "--only", "a", expect=2)
    assert "--only" in result.err and "'a'" in result.err


def test_dry_run_writes_nothing(rig):
    result = rig.run([rig.job("a"), rig.job("b", emit="deploy")], "--dry-run")
    assert re.search(r"^valid   a  2 files, [\d.]+ kB$", result.out, re.M)
    assert re.search(r"^valid   b  1 file, [\d.]+ kB$", result.out, re.M)
    assert "2 of 2 jobs are valid" in result.out
    assert not (rig.folder / "out").exists()
    rig.run([rig.job("a", record="none.txt")], "--dry-run", expect=1)


def test_defaults(rig):
    checkpoint(rig.folder / "llm")
    jobs = [
        {"name": "a", "save_path": "out/a/m"},
        {"name": "b", "save_path": "out/b/m", "emit": "both", "manifest": False},
        {"name": "c", "command": "checkpoint", "model": "llm", "out": "out/c"},
    ]
    defaults = {
        "model": "model.onnx", "emit": "deploy", "scheme": "w8a16", "manifest": True,
        "record": "record.txt",  # not for a checkpoint whose scales are not a record's
    }  # fmt: skip
    rig.run(jobs, defaults=defaults)
    assert set(rig.out("a")) == {"m_deploy_model.onnx", "m.manifest.json"}
    assert set(rig.out("b")) == {"m_deploy_model.onnx", "m_fake_quant_model.onnx"}
    assert "quantfold.manifest.json" in rig.out("c")
    rig.run(
        [{"model": "llm", "out": "out/d", "scheme": "w8a16"}], defaults={"command": "checkpoint"}
    )
    assert rig.out("d")


def test_paths_are_those_of_the_jobs_file(rig, tmp_path):
    """Wherever it is run from; absolute ones stay."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    jobs = [rig.job("a"), rig.job("b", model=str(rig.folder / "model.onnx"))]
    rig.run(jobs, cwd=elsewhere)
    assert rig.out("a") == rig.out("b") == rig.wanted()
    assert not list(elsewhere.iterdir())
    result = rig.quantfold("batch", "jobs.json", cwd=rig.folder)
    assert result.code == 0 and rig.out("a") == rig.wanted()


def test_a_job_may_read_what_one_before_it_wrote(rig):
    """Inputs are opened when their job's turn comes."""
    first = {
        "name": "a", "model": "model.onnx", "weight_only": "w8a16", "include": "fc1",
        "save_path": "out/a/m",
    }  # fmt: skip
    second = {
        "name": "b", "model": "out/a/m_fake_quant_model.onnx", "weight_only": "w8a16",
        "include": "fc2", "save_path": "out/b/m",
    }  # fmt: skip
    result = rig.run([first, second])
    assert "2 of 2 jobs are done" in result.out
    assert "m_deploy_model.onnx" in rig.out("b")


def test_threads_do_not_show(rig):
    found = []
    for threads in (1, 2, 5):
        rig.run([rig.job("a"), rig.job("b", external="always")], "--threads", threads)
        found.append(rig.out("a") | rig.out("b"))
        shutil.rmtree(rig.folder / "out")
    assert found[0] == found[1] == found[2]


# ---- interrupts and resuming ---------------------------------------------------------------------


@pytest.fixture
def slow(rig):
    """Jobs of 32 MB each."""
    make_large.write(rig.folder / "large", make_large.Spec(layout="external", size=1024, count=8))
    return [
        {
            "name": f"j{i}", "model": "large/model.onnx", "record": "large/record.txt",
            "save_path": f"out/j{i}/m", "external": "always", "no_fsync": True,
        }
        for i in range(40)
    ]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt(rig, slow, number):
    """The job that is running leaves nothing; those that are done are whole."""
    path = rig.write(slow)
    process = subprocess.Popen(
        [rig.quantfold.binary, "batch", str(path), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.poll() is None and not (rig.folder / "out" / "j1").exists():
        time.sleep(0.001)
    process.send_signal(number)
    out, err = map(decode, process.communicate(timeout=60))
    assert process.returncode == 130, err
    report = json.loads(out)
    done = [j["name"] for j in report["jobs"] if j["ok"]]
    assert f"interrupted: {len(done)} of 40 jobs are done" in err
    assert 1 <= len(done) < 40 and report["done"] == len(done)
    assert len(report["jobs"]) == 40
    for job in report["jobs"]:
        files = rig.out(job["name"]) if (rig.folder / "out" / job["name"]).exists() else {}
        assert len(files) == (18 if job["ok"] else 0), job
    for name in done:
        assert rig.out(name) == rig.out("j0")


def test_killed_and_resumed(rig, slow):
    path = rig.write(slow[:4])
    process = subprocess.Popen(
        [rig.quantfold.binary, "batch", str(path), "--resume", "--threads", "1", "-q"]
    )
    journal = rig.folder / "out/j1/.m.quantfold-partial/run/journal.0-of-1"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > 400):
        pass
    process.kill()
    process.wait()
    report = json.loads(rig.quantfold("batch", path, "--resume", "--json").out)
    assert report["ok"]
    kept = {j["name"]: j["bytes_kept"] for j in report["jobs"]}
    if process.returncode == -signal.SIGKILL:
        assert kept["j1"] > 0
    assert kept["j3"] == 0
    for i in range(4):
        assert rig.out(f"j{i}") == rig.out("j0") and len(rig.out(f"j{i}")) == 18


def test_progress_names_the_job(rig, slow):
    path = rig.write(slow[:2])
    result = rig.quantfold("batch", path, "--progress", "json")
    events = [json.loads(line) for line in result.err.splitlines()]
    ends = [(e["job"], e["job_number"], e["job_count"]) for e in events if e["event"] == "end"]
    assert ends == [("j0", 1, 2), ("j1", 2, 2)]


def test_help(quantfold):
    result = quantfold("batch", "--help")
    assert result.code == 0 and "--fail-fast" in result.out and not result.err
