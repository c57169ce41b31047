# SPDX-License-Identifier: Apache-2.0
"""Jobs files that are wrong: what is wrong is said with job and key, and no job is begun."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

GOOD = {"name": "good", "model": "model.onnx", "record": "record.txt", "save_path": "out/good/m"}


@pytest.fixture
def batch(quantfold, tmp_path, repo):
    """Runs a jobs file that must be refused; what was said."""
    for name in ("model.onnx", "record.txt"):
        shutil.copy(repo / "datasets" / "digits" / name, tmp_path / name)

    def run(content, *extra, expect: int = 1) -> str:
        path = tmp_path / "jobs.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content))
        result = quantfold("batch", path, *extra)
        assert result.code == expect, f"{result.code}: {result.err}"
        assert not result.out, "no line of a result"
        assert not (tmp_path / "out").exists(), "no job was begun"
        return result.err

    return run


BAD_JOBS = {
    "unknown key": ({"recrod": 1}, "recrod", "is not known to export"),
    "hyphen": ({"no-fsync": True}, "no-fsync", "is not known"),
    "another command's": ({"scheme": "w8a16"}, "scheme", "is not known to export"),
    "of the command": ({"threads": 2}, "threads", "of the command, not of a job"),
    "shard": ({"shard": "0/2"}, "shard", "of the command"),
    "json": ({"json": True}, "json", "of the command"),
    "flag": ({"manifest": 1}, "manifest", "takes true or false"),
    "null": ({"manifest": None}, "manifest", "takes true or false"),
    "word": ({"emit": "all"}, "emit", "takes both, deploy, fake-quant"),
    "word's type": ({"emit": 1}, "emit", "takes a text"),
    "external": ({"external": "json"}, "external", "takes auto, always, never, not 'json'"),
    "number": ({"external_threshold": -1}, "external_threshold", "takes a whole number"),
    "fraction": ({"external_threshold": 1.5}, "external_threshold", "takes a whole number"),
    "huge": ({"external_threshold": 1e300}, "external_threshold", "takes a whole number"),
    "number as text": ({"external_threshold": "5"}, "external_threshold", "takes a whole number"),
    "size": ({"memory_limit": "5X"}, "memory_limit", "takes a size"),
    "zero size": ({"memory_limit": 0}, "memory_limit", "takes a size"),
    "path": ({"record": ["r.txt"]}, "record", "takes a text"),
    "empty path": ({"record": ""}, "record", "is empty"),
    "names": ({"input_names": [1]}, "input_names", "takes names"),
    "comma": ({"input_names": ["a,b"]}, "input_names", "no commas"),
    "axes": ({"dynamic_axes": [0]}, "dynamic_axes", "takes an object or a text"),
    "command": ({"command": "check"}, "command", "takes export or checkpoint"),
    "command's type": ({"command": 1}, "command", "takes export or checkpoint"),
}


@pytest.mark.parametrize("what", BAD_JOBS)
def test_bad_option(batch, what):
    change, key, message = BAD_JOBS[what]
    said = batch({"jobs": [GOOD, {**GOOD, "name": "bad", "save_path": "out/bad/m", **change}]})
    assert f"jobs.json: job 'bad': {key}: " in said and message in said, said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("what", BAD_JOBS)
def test_bad_default(batch, what):
    change, key, message = BAD_JOBS[what]
    if what == "another command's":
        pytest.skip("a default of the other command is none of this one's")
    said = batch({"jobs": [GOOD], "defaults": change})
    assert f"jobs.json: defaults: {key}: " in said, said
    assert message.removesuffix(" to export") in said, said


@pytest.mark.parametrize("key", ["model", "save_path"])
def test_needed(batch, key):
    said = batch({"jobs": [{k: v for k, v in GOOD.items() if k != key}]})
    assert f"job 'good': {key}: is needed" in said


@pytest.mark.parametrize("key", ["model", "out", "scheme"])
def test_needed_of_a_checkpoint(batch, key):
    job = {"name": "c", "command": "checkpoint", "model": "m", "out": "out/c", "scheme": "w8a16"}
    del job[key]
    assert f"job 'c': {key}: is needed" in batch({"jobs": [job]})


def test_scales_and_record_of_a_checkpoint(batch):
    job = {"name": "c", "command": "checkpoint", "model": "m", "out": "out/c", "scheme": "w8a16"}
    assert "go together" in batch({"jobs": [{**job, "scales": "record"}]})
    assert "go together" in batch({"jobs": [{**job, "record": "r.txt"}]})


PLACES = {
    "same": ("out/a/m", "out/a/m"),
    "dots": ("out/a/m", "./out//a/./m"),
    "absolute": ("out/a/m", "{folder}/out/a/m"),
    "link": ("real/m", "link/m"),
    "link to what is not there": ("real/x/y/m", "link/x/y/m"),
    "up from what is not there": ("bb/m", "bb/x/../m"),
    "up and down again": ("bb/m", "bb/../bb/m"),
    "two dots in a name": ("out/v1..2/m", "out/./v1..2/m"),
    "up to a link": ("real/m", "bb/../link/m"),
    "above": ("{folder}/bb/m", "cc/../real/../../{name}/bb/m"),
}


@pytest.mark.parametrize("what", PLACES)
def test_two_jobs_of_one_place(batch, tmp_path, what):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    a, b = (p.format(folder=tmp_path, name=tmp_path.name) for p in PLACES[what])
    jobs = [{**GOOD, "name": "a", "save_path": a}, {**GOOD, "name": "b", "save_path": b}]
    said = batch({"jobs": jobs})
    assert "job 'b': save_path: job 'a' writes to the same place" in said
    assert not list((tmp_path / "real").iterdir())


def test_two_checkpoints_of_one_place(batch):
    job = {"command": "checkpoint", "model": "m", "scheme": "w8a16"}
    jobs = [{**job, "name": "a", "out": "out/c"}, {**job, "name": "b", "out": "out/c/"}]
    assert "job 'b': out: job 'a' writes to the same place" in batch({"jobs": jobs})


def test_two_jobs_of_one_name(batch):
    said = batch({"jobs": [GOOD, {**GOOD, "save_path": "out/other/m"}]})
    assert "job 'good': name: another job has that name" in said


def test_files_of_one_name(quantfold, tmp_path, repo):
    """Found as late as the second job is planned: its .external files have no prefix."""
    for name in ("model.onnx", "record.txt"):
        shutil.copy(repo / "datasets" / "digits" / name, tmp_path / name)
    jobs = [
        {**GOOD, "name": n, "save_path": f"out/{n}", "external": "always", "no_fsync": True}
        for n in ("a", "b")
    ]
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    result = quantfold("batch", tmp_path / "jobs.json")
    assert result.code == 1
    assert "job 'a' of this batch has written that file" in result.err and ".external" in result.err
    names = [p.name for p in (tmp_path / "out").iterdir()]
    assert "a_deploy_model.onnx" in names and not any(n.startswith("b_") for n in names)
    second = [{**jobs[0]}, {**jobs[1], "save_path": "out/b/b"}]
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": second}))
    assert quantfold("batch", tmp_path / "jobs.json").code == 0


FILES = {
    "empty": (b"", "line 1, column 1"),
    "cut short": (b'{"jobs": [\n{"name": "a"', "line 2"),
    "trailing": (b'{"jobs": []} x', "not JSON"),
    "NUL": (b'{"jobs": []}\0{}', "not JSON"),
    "deep": (b"[" * 100000, "not JSON"),
    "list": (b"[]", "must be an object"),
    "no jobs": (b"{}", "jobs: must be a list of at least one job"),
    "empty list": (b'{"jobs": []}', "jobs: must be a list of at least one job"),
    "jobs of another type": (b'{"jobs": {}}', "jobs: must be a list"),
    "job of another type": (b'{"jobs": [1]}', "job 1: must be an object"),
    "defaults of another type": (b'{"jobs": [{}], "defaults": 1}', "defaults: must be an object"),
    "unknown": (b'{"jobs": [{}], "job": []}', "job: is not known"),
    "twice": (b'{"jobs": [{}], "jobs": [{}]}', "jobs: is given twice"),
    "key twice": (b'{"jobs": [{"model": "a", "model": "b"}]}', "model: is given twice"),
    "name": (b'{"jobs": [{"name": 1}]}', "job 1: name: takes a text"),
    "control characters": (b'{"jobs": [{"name": "a", "\\u001b[31m": 1}]}', "\\x1b[31m"),
}


@pytest.mark.parametrize("what", FILES)
def test_bad_file(batch, what):
    content, message = FILES[what]
    said = batch(content)
    assert message in said, said
    assert "\x1b" not in said


def test_all_errors_at_once_but_not_thousands(batch):
    jobs = [{"name": f"j{i}", "save_path": f"out/{i}/m", "x": 1} for i in range(5)]
    said = batch({"jobs": jobs})
    assert all(f"job 'j{i}': x: is not known" in said for i in range(5))
    said = batch({"jobs": [{"name": f"j{i}", "x": 1, "y": 2} for i in range(500)]})
    assert len(said.splitlines()) == 21 and "and 980 more errors" in said


def test_file_that_cannot_be_read(quantfold, tmp_path):
    result = quantfold("batch", tmp_path / "none.json")
    assert result.code == 1 and "none.json" in result.err and "cannot read the jobs" in result.err
    assert quantfold("batch", tmp_path).code == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "a jobs file is needed"),
        (["{jobs}", "x"], "unexpected word 'x'"),
        (["{jobs}", "--fail-fast", "--keep-going"], "exclude each other"),
        (["{jobs}", "--only", "none"], "no job has the name 'none'"),
        (["{jobs}", "--only", "("], "no job has the name '('"),
        (["{jobs}", "--threads", "x"], "--threads takes a whole number"),
        (["{jobs}", "--progress", "x"], "--progress takes auto, always, never, json"),
        (["{jobs}", "--bogus"], "unknown option '--bogus'"),
    ],
)
def test_wrong_usage(quantfold, tmp_path, arguments, message):
    path: Path = tmp_path / "jobs.json"
    path.write_text(json.dumps({"jobs": [GOOD]}))
    result = quantfold("batch", *[a.format(jobs=path) for a in arguments])
    assert result.code == 2 and message in result.err, result.err
    assert not (tmp_path / "out").exists()


def test_bad_model_fails_its_job_alone(quantfold, tmp_path, repo):
    """Garbage in one job, and a closed standard output, are no end of the others."""
    for name in ("model.onnx", "record.txt"):
        shutil.copy(repo / "datasets" / "digits" / name, tmp_path / name)
    (tmp_path / "bad.onnx").write_bytes(bytes(range(256)))
    bad = {**GOOD, "name": "bad", "model": "bad.onnx", "save_path": "out/bad/m"}
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": [bad, GOOD]}))
    result = quantfold("batch", tmp_path / "jobs.json", "--json")
    assert result.code == 1
    report = json.loads(result.out)
    assert [j["ok"] for j in report["jobs"]] == [False, True]
    assert "bad.onnx" in report["jobs"][0]["error"]
    assert (tmp_path / "out/good/m_deploy_model.onnx").exists() and not (
        tmp_path / "out/bad"
    ).exists()


def test_an_error_is_told_once_on_a_terminal(quantfold, tmp_path):
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": [GOOD]}))
    argv = [quantfold.binary, "batch", str(tmp_path / "jobs.json")]
    apart = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "model.onnx" in apart.stdout and "model.onnx" in apart.stderr
    master, slave = pty.openpty()
    run = subprocess.run(argv, stdout=slave, stderr=slave, stdin=subprocess.DEVNULL, check=False)
    os.close(slave)
    said = os.read(master, 65536).decode()
    os.close(master)
    assert run.returncode == 1 and "failed  good\r\n" in said and said.count("model.onnx") == 1
