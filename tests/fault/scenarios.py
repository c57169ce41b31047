# SPDX-License-Identifier: Apache-2.0
"""Runs to be spoiled: what goes in, the commands, and which of them meets the fault."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from nets import Net, conv, gemm
from nets import random as normal

import make_record

SHARD_NAMES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def write_model(folder: Path, seed: int, width: int = 5, passed: int = 8) -> None:
    """A model with a Conv, a Gemm of `width` rows and an Add of `passed` floats that stays as it is."""
    net = Net()
    y = net.input("x", normal(2, 4, 6, 6))
    y = conv(net, y, normal(6, 4, 3, 3, seed=seed, scale=0.3), normal(6, seed=2), name="c")
    y = net.op("Flatten", [y], "flat")
    y = gemm(net, y, normal(width, 216, seed=seed, scale=0.1), normal(width, seed=4), transB=1)
    y = net.op("ReduceSum", [y], "sum", keepdims=0)
    net.output(net.op("Add", [y, net.weight("passed", normal(passed, seed=seed))], "add"))
    records = [
        make_record.Record("c", 0.03, -5, [0.007 + (i + seed) / 1000 for i in range(6)]),
        make_record.Record("g", 0.05, -128, [0.004 + seed / 10000]),
    ]
    layers = {"c": make_record.layer_config(True), "g": make_record.layer_config(False)}
    folder.mkdir(parents=True)
    onnx.save(net.model(), str(folder / "model.onnx"))
    (folder / "record.txt").write_text(make_record.record_text(records))
    (folder / "config.json").write_text(make_record.config_text(layers))
    ranges = {"c": {"min": -0.5 - seed, "max": 1.0}, "g": {"min": -1.0, "max": 2.0}}
    (folder / "axes.json").write_text(json.dumps({"x": {"0": "batch"}}))
    (folder / "ranges.json").write_text(json.dumps(ranges))


def write_external_model(folder: Path, seed: int) -> None:
    """The same with weights of a megabyte and more, in files of their own."""
    write_model(folder, seed, width=1300, passed=300_000)
    model = onnx.load(str(folder / "model.onnx"))
    (folder / "model.onnx").unlink()
    onnx.save(
        model,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=1024,
    )


def write_checkpoint(folder: Path, seed: int) -> None:
    """A checkpoint of two shards."""
    folder.mkdir(parents=True)
    weights = {}
    for number, name in enumerate(SHARD_NAMES):
        matrix, norm = f"model.layers.{number}.mlp.up_proj.weight", f"model.norm{number}.weight"
        values = {
            matrix: normal(64, 128, seed=seed + number, scale=0.1),
            norm: normal(128, seed=seed),
        }
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for key, value in values.items():
            ends = [len(data), len(data) + value.nbytes]
            header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": ends}
            data += value.tobytes()
            weights[key] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + data)
    index = {"metadata": {"total_size": 0}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"seed": seed}))


def drop_from_cache(folder: Path) -> None:
    """Lets the kernel forget what files hold, so that they are read again."""
    for path in folder.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


@dataclass
class Scenario:
    """`steps` are command lines for the inputs in a folder; step `at` meets the fault."""

    name: str
    write: Callable[[Path, int], None]
    steps: Callable[[Path, Path], list[list]]
    at: int = 0
    uncached: bool = False  # the source is read from the disk
    started: str = ""  # a fault that ends a run before, whose work is then taken up
    fresh: bool = False  # there is no older output, and no folder for it


def export(*extra) -> Callable[[Path, Path], list[list]]:
    """One export."""

    def steps(inputs: Path, out: Path) -> list[list]:
        line = ["export", "--model", inputs / "model.onnx", "--config", inputs / "config.json"]
        line += ["--record", inputs / "record.txt", "--save-path", out / "m", *extra]
        return [line]

    return steps


def inline_json(inputs: Path, out: Path) -> list[list]:
    """An export with all that can be asked for beside it."""
    extra = ["--json", "--manifest", "--dynamic-axes", f"@{inputs / 'axes.json'}"]
    return export("--threads", "1", *extra)(inputs, out)


def shards(inputs: Path, out: Path) -> list[list]:
    """Two shards and their commit."""
    whole = export("--external", "always", "--manifest", "--threads", "1")(inputs, out)[0]
    parts = [[*whole, "--shard", f"{i}/2"] for i in range(2)]
    return [*parts, ["commit", "--save-path", out / "m"]]


def checkpoint(inputs: Path, out: Path) -> list[list]:
    """A checkpoint, whose folder has a subfolder's worth of files."""
    line = ["checkpoint", "--model", inputs, "--out", out, "--scheme", "w4a16:group=32"]
    line += ["--include", "up_proj"]
    return [[*line, "--threads", "1"]]


def record(inputs: Path, out: Path) -> list[list]:
    """A record from weights and ranges."""
    line = ["record", "--model", inputs / "model.onnx", "--config", inputs / "config.json"]
    line += ["--activations", inputs / "ranges.json", "--output", out / "record.txt"]
    return [[*line, "--threads", "1"]]


def verify(inputs: Path, out: Path) -> list[list]:
    """A sound output against its source; the runnable model is what is written."""
    model, record = inputs / "model.onnx", inputs / "record.txt"
    line = ["verify", out / "m", "--against", model, "--record", record, "--threads", "1"]
    line += ["--config", inputs / "config.json", "--runnable"]
    return [*export("--threads", "1", "--manifest")(inputs, out), line]


def report(inputs: Path, out: Path) -> list[list]:
    """The page of an export."""
    whole = export("--emit", "deploy", "--stats", "--threads", "1")(inputs, out)[0]
    return [whole, ["report", out / "m"]]


ONE = ("--threads", "1")
SCENARIOS = [
    Scenario("inline", write_model, export(*ONE)),
    Scenario("inline, no folder yet", write_model, export(*ONE), fresh=True),
    Scenario("inline, JSON", write_model, inline_json),
    Scenario("external", write_external_model, export("--external", "always", "--threads", "2")),
    Scenario("mmap", write_external_model, export(*ONE, "--external", "always", "--io", "mmap")),
    Scenario(
        "direct",
        write_external_model,
        export(*ONE, "--external", "always", "--external-layout", "single", "--io", "direct"),
        uncached=True,
    ),
    Scenario("resume", write_model, export(*ONE, "--resume", "--manifest")),
    Scenario(
        "resume, taken up",
        write_external_model,
        export(*ONE, "--external", "always", "--resume", "--manifest"),
        started="pwrite:5:SIGKILL",
    ),
    Scenario("shard", write_model, shards, at=1),
    Scenario("commit", write_model, shards, at=2),
    Scenario("checkpoint", write_checkpoint, checkpoint),
    Scenario("record", write_model, record),
    Scenario("verify", write_model, verify, at=1),
    Scenario("report", write_model, report, at=1),
]
