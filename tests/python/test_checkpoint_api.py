# SPDX-License-Identifier: Apache-2.0
"""quantfold.checkpoint, quantfold.commit and the options of export for long runs: the same files as
the command line writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import quantfold as qf
from make_llama import Shape, make_pool, write_checkpoint

from support import DEPLOY, FAKE, snapshot


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A checkpoint of two layers in a few shards, with files that go with it and one that does not."""
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint(folder, Shape(64, 2, 128, False), "bf16", 100_000, make_pool("bf16", 0))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"same weights")
    return folder


def test_checkpoint_is_the_command_line(quantfold, llama, tmp_path):
    """Every option, once."""
    report = qf.checkpoint(
        *(llama, tmp_path / "a"),
        scheme="w4a16:group=32",
        include=r"_proj\.weight$",
        exclude="k_proj",
        max_shard_bytes=50_000,
        manifest=True,
        io="pwrite",
        fsync=False,
        threads=2,
        memory_limit=1 << 36,
    )
    command = ["checkpoint", "--model", llama, "--out", tmp_path / "b"]
    command += ["--scheme", "w4a16:group=32", "--include", r"_proj\.weight$"]
    command += ["--exclude", "k_proj", "--max-shard-size", 50_000, "--manifest"]
    assert quantfold(*command).code == 0
    ours, theirs = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    assert ours == theirs
    assert {Path(o.path).name for o in report.outputs} | {"quantfold.manifest.json"} == set(ours)
    assert report.bytes_written == sum(o.bytes for o in report.outputs) and not report.bytes_kept
    assert report.passed == ["pytorch_model.bin"]
    by_name = {t.name: t for t in report.tensors}
    chosen = by_name["model.layers.0.self_attn.q_proj.weight"]
    assert chosen == qf.CheckpointTensor(chosen.name, "BF16", "", 64, 64, 4, 32)
    assert by_name["model.layers.0.self_attn.k_proj.weight"].reason == "excluded"
    assert by_name["model.layers.0.input_layernorm.weight"].reason is None


def test_parts_and_commit(llama, tmp_path):
    qf.checkpoint(llama, tmp_path / "whole", scheme="w8a16")
    for part in (2, 0, 1):
        qf.checkpoint(llama, tmp_path / "parts", scheme="w8a16", shard=(part, 3))
    done = qf.commit(out=tmp_path / "parts", fsync=False)
    assert snapshot(tmp_path / "parts") == snapshot(tmp_path / "whole")
    assert done.bytes_written == sum(map(len, snapshot(tmp_path / "whole").values()))
    with pytest.raises(qf.InputError):
        qf.commit(f"{tmp_path}/parts/")
    with pytest.raises(TypeError, match="either save_path or out"):
        qf.commit()


def test_resume_keeps_what_is_done(llama, tmp_path):
    """A part that is done is not written again; a cancelled run is taken up."""
    qf.checkpoint(llama, tmp_path / "whole", scheme="w8a16")
    target = tmp_path / "out"
    first = qf.checkpoint(llama, target, scheme="w8a16", shard=(0, 2))
    again = qf.checkpoint(llama, target, scheme="w8a16", shard=(0, 2), resume=True)
    assert first.bytes_kept == 0 < again.bytes_kept == again.bytes_written
    qf.checkpoint(llama, target, scheme="w8a16", shard=(1, 2))
    qf.commit(f"{target}/")
    assert snapshot(target) == snapshot(tmp_path / "whole")
    other = tmp_path / "other"
    with pytest.raises(qf.Cancelled):
        qf.checkpoint(llama, other, scheme="w8a16", resume=True, progress=lambda *_: False)
    qf.checkpoint(llama, other, scheme="w8a16", resume=True)
    assert snapshot(other) == snapshot(tmp_path / "whole")


def test_dry_run_and_progress(llama, tmp_path):
    seen: list[tuple[int, int, str]] = []
    plan = qf.checkpoint(llama, tmp_path / "x", scheme="w8a8", dry_run=True)
    assert not (tmp_path / "x").exists() and plan.bytes_written == 0
    qf.checkpoint(llama, tmp_path / "x", scheme="w8a8", progress=lambda *a: seen.append(a))
    assert seen and all(done <= total for done, total, _ in seen)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["dynamic"]


def test_errors(llama, tmp_path):
    with pytest.raises(qf.UsageError, match="w4a16"):
        qf.checkpoint(llama, tmp_path / "x", scheme="w3a16")
    with pytest.raises(qf.InputError, match="cannot find"):
        qf.checkpoint(tmp_path / "none", tmp_path / "x", scheme="w8a16")
    with pytest.raises(qf.InputError, match="own folder"):
        qf.checkpoint(llama, llama, scheme="w8a16")
    with pytest.raises(qf.UsageError, match="shard"):
        qf.checkpoint(llama, tmp_path / "x", scheme="w8a16", shard=(3, 3))
    assert not (tmp_path / "x").exists()


def test_export_in_parts(repo, tmp_path):
    """manifest, resume and shard of an export."""
    digits = repo / "datasets" / "digits"
    files = {"config": digits / "config.json", "record": digits / "record.txt"}
    qf.export(digits / "model.onnx", tmp_path / "a" / "m", manifest=True, resume=True, **files)
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == sorted(["m.manifest.json", DEPLOY, FAKE])
    for part in range(2):
        qf.export(
            *(digits / "model.onnx", tmp_path / "b" / "m"), manifest=True, shard=(part, 2), **files
        )
    qf.commit(tmp_path / "b" / "m")
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
