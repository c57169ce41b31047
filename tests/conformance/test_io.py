# SPDX-License-Identifier: Apache-2.0
"""However output is written, by however many threads, with whichever instruction set and however
little memory, the files are the same."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import make_large

MIB = 2**20
ISAS = ["scalar", "avx2", "avx512"] if platform.machine() == "x86_64" else ["scalar", "neon"]


def digest(folder: Path) -> dict[str, str]:
    """Name and hash of every file in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def forget(folder: Path) -> None:
    """Drops a folder's files from the page cache."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def write_mixed(folder: Path) -> None:
    """Quantized weights and large tensors that stay as they are, at odd offsets in one file."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((700, 1100), dtype=np.float32) * np.float32(0.02)
    kept = rng.standard_normal((1900, 700), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "layer"),
        helper.make_node("MatMul", ["y", "r"], ["z"], "float_layer"),
        helper.make_node("Add", ["z", "b"], ["o"], "bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "mixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1900, 700])],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [1900, 700])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ascontiguousarray(weight.T), "r"),
            numpy_helper.from_array(kept, "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "record.txt").write_text(
        'record { key: "layer" value { scale_d: 0.02 offset_d: 1 scale_w: 0.0009 offset_w: 0 } }'
    )


def write_varints(folder: Path) -> None:
    """A turned weight of 16-bit floats as varints, most of one byte, at the end of the file."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((700, 900)).astype(np.float16) * np.float16(0.02)
    weight[rng.random(weight.shape) < 0.9] = 0
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT16, dims=weight.shape)
    tensor.int32_data.extend(weight.view(np.uint16).astype(np.int32).ravel().tolist())
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "layer", transB=1)
    graph = helper.make_graph(
        [node],
        "varints",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 900])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 700])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    model.graph.initializer.append(tensor)
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    (folder / "record.txt").write_text(
        'record { key: "layer" value { scale_d: 0.02 offset_d: 1 scale_w: 0.0009 offset_w: 0 } }'
    )


SPECS = {
    "inline": make_large.Spec(size=1023, count=12),
    "external": make_large.Spec(size=1024, count=10, layout="external"),
    "columns": make_large.Spec(size=900, count=6, per_channel=True),
    "gemm": make_large.Spec(op="gemm", size=1100, count=8, per_channel=True),
    "half": make_large.Spec(size=1023, count=12, dtype="float16"),
    "int4": make_large.Spec(size=1024, count=8, bits=4),
    "small": make_large.Spec(size=16, count=700),
}


@pytest.fixture(scope="module", params=[*SPECS, "mixed", "varints"])
def source(request, tmp_path_factory) -> Path:
    """The folder of one model."""
    folder = tmp_path_factory.mktemp("io") / request.param
    if request.param == "mixed":
        write_mixed(folder)
    elif request.param == "varints":
        write_varints(folder)
    else:
        make_large.write(folder, SPECS[request.param])
    return folder


def export(quantfold, source: Path, out: Path, *extra, isa: str | None = None) -> dict[str, str]:
    """What an export writes."""
    env = dict(os.environ)
    if isa:
        env["QUANTFOLD_ISA"] = isa
    quantfold.export(source / "model.onnx", source / "record.txt", out / "m", *extra, env=env)
    return digest(out)


def runs_here(quantfold, isa: str) -> bool:
    """Whether this machine has an instruction set: the program's own word, which must be a usage
    error if not."""
    result = quantfold("--version", env={**os.environ, "QUANTFOLD_ISA": isa})
    return re.search(rf"instructions +{isa}\b", result.out) is not None


def test_all_ways_write_the_same(quantfold, source, tmp_path):
    want = export(
        quantfold, source, tmp_path / "first", "--io", "pwrite", "--threads", 1, isa="scalar"
    )
    ways = [
        ("--io", io, *sync) for io in ("pwrite", "mmap", "direct") for sync in ((), ("--no-fsync",))
    ]
    for i, way in enumerate(ways):
        got = export(quantfold, source, tmp_path / f"way{i}", *way, "--threads", 1 + i % 3)
        assert got == want, way
    for isa in ISAS:
        if runs_here(quantfold, isa):
            assert export(quantfold, source, tmp_path / isa, isa=isa) == want, isa
    assert export(quantfold, source, tmp_path / "little", "--memory-limit", "64M") == want


def test_a_source_that_is_not_cached(quantfold, source, tmp_path):
    want = export(quantfold, source, tmp_path / "cached", "--io", "pwrite")
    for io in ("direct", "pwrite", "mmap"):
        forget(source)
        assert export(quantfold, source, tmp_path / io, "--io", io) == want, io


def test_unknown_instruction_set(quantfold, tmp_path):
    make_large.write(tmp_path / "in", make_large.Spec(size=16, count=1))
    env = {**os.environ, "QUANTFOLD_ISA": "sse9"}
    result = quantfold.export(
        tmp_path / "in/model.onnx",
        tmp_path / "in/record.txt",
        tmp_path / "out/m",
        expect=2,
        env=env,
    )
    assert "QUANTFOLD_ISA=sse9" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "size",
    ["0", "", "12X", "-1", "1MM", "99999999999999999999", "1e6", "16777216T", "1GBB", "1iB", "GB"],
)
def test_sizes_that_are_none(quantfold, tmp_path, size):
    make_large.write(tmp_path / "in", make_large.Spec(size=16, count=1))
    result = quantfold.export(
        tmp_path / "in/model.onnx", tmp_path / "in/record.txt", tmp_path / "out/m",
        "--memory-limit", size, expect=2,
    )  # fmt: skip
    assert "--memory-limit takes a size" in result.err


def test_a_limit_that_leaves_no_room(quantfold, tmp_path):
    make_large.write(tmp_path / "in", make_large.Spec(size=1024, count=2))
    result = quantfold.export(
        tmp_path / "in/model.onnx", tmp_path / "in/record.txt", tmp_path / "out/m",
        "--memory-limit", "2M", expect=1,
    )  # fmt: skip
    assert (
        "memory limit of 2097152 bytes is too low" in result.err and "raise the limit" in result.err
    )
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.parametrize("io", ["pwrite", "direct", "mmap"])
@pytest.mark.parametrize("op", ["matmul", "gemm"])
def test_the_limit_is_kept(quantfold, tmp_path, io, op):
    if "asan" in quantfold.binary or "emulated" in quantfold.binary:
        pytest.skip("a sanitizer or an emulator takes memory of its own")
    make_large.write(tmp_path / "in", make_large.Spec(op=op, size=4096, count=4))
    command = [sys.executable, "-c", MEASURE, quantfold.binary, "export", "-q", "--io", io]
    command += ["--memory-limit", "128M", "--threads", "2", "--model", tmp_path / "in/model.onnx"]
    command += ["--record", tmp_path / "in/record.txt", "--save-path", tmp_path / "out/m"]

    def limit_data() -> None:
        """As ulimit -d does: what is not mapped from a file."""
        resource.setrlimit(resource.RLIMIT_DATA, (256 * MIB, 256 * MIB))

    run = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=True, preexec_fn=limit_data
    )
    code, kib = map(int, run.stdout.split())
    assert code == 0, run.stderr
    assert kib * 1024 <= 128 * MIB, f"{kib / 1024:.0f} MiB resident"
