# SPDX-License-Identifier: Apache-2.0
"""Models of very many small layers: anonymous memory has a bound, time is linear, and what is
written node by node is what the graph would have held."""

from __future__ import annotations

import re
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import make_large
from support import DEPLOY, FAKE

MIB = 2**20
SIZE = 16
THREADS = 2
# 64 MiB, and for each of the three threads a core that direct I/O takes, two buffers and some room.
BOUND = (64 + 3 * THREADS * 20) * MIB


def write_chain(folder: Path, layers: int) -> Path:
    """A chain of MatMuls with record and config."""
    make_large.write(folder, make_large.Spec(size=SIZE, count=layers))
    return folder


def command(quantfold, source: Path, out: Path) -> list[str]:
    """The whole export, both models."""
    words = [
        quantfold.binary,
        "export",
        "--quiet",
        "--threads",
        THREADS,
        "--model",
        source / "model.onnx",
    ]
    words += ["--record", source / "record.txt", "--config", source / "config.json"]
    return [str(word) for word in [*words, "--save-path", out / "m"]]


def anonymous(pid: int) -> int:
    """Anonymous resident bytes of a process; 0 when it is over."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def on_disk(folder: str) -> bool:
    """Whether a folder is on a file system that is not in memory."""
    run = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True)
    return run.returncode == 0 and run.stdout.strip() not in ("tmpfs", "ramfs")


@pytest.mark.skipif(not on_disk("/var/tmp"), reason="no disk to spill to")
def test_anonymous_memory_is_bounded(quantfold, tmp_path):
    if "asan" in quantfold.binary:
        pytest.skip("under AddressSanitizer each object has memory of its own")
    source = write_chain(tmp_path / "in", 20_000)
    run = subprocess.Popen(command(quantfold, source, tmp_path / "out"))
    peak = 0
    while run.poll() is None:
        peak = max(peak, anonymous(run.pid))
        time.sleep(0.002)
    assert run.returncode == 0
    assert peak > 0
    assert peak < BOUND, f"{peak / MIB:.0f} MiB anonymous"
    for name in (DEPLOY, FAKE):
        model = onnx.load(tmp_path / "out" / name)
        assert len(model.graph.initializer) == 20_000 * (2 if name == DEPLOY else 1)


def seconds(quantfold, source: Path, out: Path) -> float:
    """The better of two runs: processor time, because the machine may be busy."""
    best = float("inf")
    for _ in range(2):
        before = children_seconds()
        subprocess.run(command(quantfold, source, out), check=True)
        best = min(best, children_seconds() - before)
    return best


def children_seconds() -> float:
    """Processor time of finished child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_time_is_linear(quantfold, tmp_path):
    """Eight times the layers may take twenty times as long, because caches end somewhere; a
    quadratic step would make it sixty."""
    few = seconds(quantfold, write_chain(tmp_path / "few", 2_500), tmp_path / "out")
    many = seconds(quantfold, write_chain(tmp_path / "many", 20_000), tmp_path / "out")
    assert many < 20 * few, f"2,500 layers {few:.2f} s, 20,000 layers {many:.2f} s"


def write_pair(folder: Path, opset: int, spoiler: str) -> Path:
    """Two layers with a Relu between them that is called `spoiler`."""
    folder.mkdir()
    weights = [np.random.default_rng(i).standard_normal((4, 4)).astype(np.float32) for i in (1, 2)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="m0"),
        helper.make_node("Relu", ["a"], ["b"], name=spoiler),
        helper.make_node("MatMul", ["b", "w1"], ["y"], name="m1"),
    ]
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", 1, [2, 4])],
        [helper.make_tensor_value_info("y", 1, [2, 4])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")
    entry = (
        'record {{ key: "m{}" value {{ scale_d: 0.05 offset_d: 3 scale_w: 0.01 offset_w: 0 }} }}\n'
    )
    (folder / "record.txt").write_text("".join(entry.format(i) for i in range(2)))
    return folder


@pytest.mark.parametrize("opset", [9, 13])
def test_macros_write_what_the_graph_would_hold(quantfold, tmp_path, opset):
    """A node whose name looks like one of a macro's makes them go into the graph one by one."""
    models = []
    for spoiler in ("relu", "z.fakequant.relu"):
        source = write_pair(tmp_path / f"in-{spoiler}", opset, spoiler)
        out = tmp_path / f"out-{spoiler}"
        quantfold.export(source / "model.onnx", source / "record.txt", out / "m")
        model = onnx.load(out / FAKE)
        relu = next(n for n in model.graph.node if n.op_type == "Relu")
        relu.name = "relu"
        models.append(model)
    assert len(models[0].graph.node) > 20
    assert models[0].SerializeToString(deterministic=True) == models[1].SerializeToString(
        deterministic=True
    )
