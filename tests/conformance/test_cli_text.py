# SPDX-License-Identifier: Apache-2.0
"""What commands print for people where --json is not asked for, and paths that lead nowhere."""

from __future__ import annotations

import json
import os

import onnx
import pytest
from checkpoints import model, write
from nets import Net, conv, gemm, random
from test_odd_models import record, scales


def net() -> Net:
    made = Net()
    y = conv(made, made.input("x", random(1, 4, 6, 6)), random(6, 4, 3, 3))
    y = made.op("Flatten", [y], "flat")
    y = gemm(made, y, random(216, 5), transA=0)
    made.output(made.op("Gemm", [y, made.weight("w", random(5, 1))], "one", transA=1))
    return made


def test_inspect(quantfold, tmp_path):
    """A line a layer, with what a record of it takes, or why it takes none."""
    onnx.save(net().model(), tmp_path / "m.onnx")
    said = quantfold("inspect", tmp_path / "m.onnx").out
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "Conv c float32[6,4,3,3] c.weight scales: 1 or 6" in lines, said
    assert "Gemm g float32[216,5] g.weight scales: 1 or 5" in lines, said
    assert any(
        line.startswith("Gemm one float32[5,1] w NOT quantizable: transA = 1") for line in lines
    )


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16:group=16"])
def test_checkpoint_dry_run(quantfold, tmp_path, scheme):
    """What would be quantized, each with -v, and the files, of which a dozen are named."""
    source = tmp_path / "source"
    write(source, model(layers=4))
    for i in range(20):
        (source / f"more{i}.txt").write_text("kept")
    line = ("checkpoint", "--model", source, "--out", tmp_path / "out", "--scheme", scheme)
    plain, all_of = quantfold(*line, "--dry-run"), quantfold(*line, "--dry-run", "-v")
    assert plain.code == all_of.code == 0, plain.err
    told = json.loads(quantfold(*line, "--dry-run", "--json").out)
    files = len(told["files"])
    assert f"would quantize {sum(t['bits'] > 0 for t in told['tensors'])} of" in plain.out
    assert "would write" in plain.out and f"and {files - 12} more files" in plain.out
    assert (", a scale for 16 elements" in all_of.out) == ("group" in scheme)
    assert not (tmp_path / "out").exists()


def test_checkpoint_errors_are_in_the_json(quantfold, tmp_path):
    line = ("checkpoint", "--model", tmp_path / "none", "--out", tmp_path / "o", "--json")
    result = quantfold(*line, "--scheme", "w8a16")
    told = json.loads(result.out)
    assert result.code == 1 and not told["ok"] and not told["written"] and "none" in told["error"]


USAGE = {
    "activations": (
        ("record", "--model", "m", "--from-qdq", "--activations", "a", "--output", "r"),
        "--activations goes with --config",
    ),
    "record without scales": (
        ("checkpoint", "--model", "m", "--out", "o", "--scheme", "w8a16", "--record", "r"),
        "--scales record and --record FILE go together",
    ),
    "scales without a record": (
        ("checkpoint", "--model", "m", "--out", "o", "--scheme", "w8a16", "--scales", "record"),
        "--scales record and --record FILE go together",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_options_that_go_together(quantfold, tmp_path, name):
    words, told = USAGE[name]
    result = quantfold(*words, cwd=tmp_path)
    assert result.code == 2 and told in result.err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [{}, {"SLURM_ARRAY_TASK_ID": "3"}])
def test_slurm_without_slurm(quantfold, tmp_path, given):
    """Or with a number and no count."""
    line = ("export", "--model", "m", "--record", "r", "--save-path", tmp_path / "m")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    result = quantfold(*line, "--shard", "slurm", env=kept | given)
    assert result.code == 2 and "are not set" in result.err


def test_a_save_path_of_no_folder(quantfold, tmp_path):
    """'..' names the folder above one that is not there."""
    onnx.save(net().model(), tmp_path / "m.onnx")
    (tmp_path / "r.txt").write_text(record({"c": scales(6)}))
    line = ("export", "--model", tmp_path / "m.onnx", "--record", tmp_path / "r.txt")
    result = quantfold(*line, "--save-path", tmp_path / "none" / "..")
    assert result.code == 1 and "names a folder that does not exist" in result.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "r.txt"]


@pytest.mark.parametrize("location", ["n" * 300, "/".join(["folder"] * 700)])
def test_locations_that_are_too_long(quantfold, tmp_path, location):
    """No file can have such a name: the model is wrong, not the system."""
    made = net().model()
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="data",
              size_threshold=0)  # fmt: skip
    loaded = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    for entry in loaded.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    (tmp_path / "m.onnx").write_bytes(loaded.SerializeToString())
    (tmp_path / "r.txt").write_text(record({"c": scales(6)}))
    line = ("export", "--model", tmp_path / "m.onnx", "--record", tmp_path / "r.txt")
    result = quantfold(*line, "--save-path", tmp_path / "out" / "m")
    assert result.code == 1 and location[:100] in result.err
    assert not (tmp_path / "out").exists()
