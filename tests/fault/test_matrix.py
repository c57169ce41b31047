# SPDX-License-Identifier: Apache-2.0
"""A part of the fault matrix (matrix.py), small enough for every run of the tests."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import matrix  # noqa: E402
import shim  # noqa: E402

# every N-th call; allocations and kills are many
EVERY_CALL = {"malloc": 25, "any": 3}
SOME = dict.fromkeys(matrix.FUNCTIONS, 4) | {"malloc": 120, "any": 12}
LARGE = dict.fromkeys(matrix.FUNCTIONS, 12) | {"malloc": 400, "any": 60}
STRIDES = {
    "inline": EVERY_CALL,
    "inline, no folder yet": SOME,
    "inline, JSON": SOME,
    "external": LARGE,
    "mmap": LARGE,
    "direct": LARGE,
    "resume": SOME,
    "resume, taken up": LARGE,
    "shard": SOME,
    "commit": SOME,
    "checkpoint": SOME,
    "record": SOME,
    "verify": SOME,
    "report": SOME,
}


def test_every_scenario_has_its_strides():
    assert set(STRIDES) == {s.name for s in matrix.SCENARIOS}


@pytest.mark.parametrize("name", STRIDES)
def test_faults(quantfold, name):
    binary = Path(quantfold.binary)
    preload = shim.preload(binary)
    slow = 8 if "libasan" in preload else 1  # a sanitizer takes its time to start
    stride = {f: slow * STRIDES[name].get(f, 1) for f in matrix.FUNCTIONS}
    _, tally, wrong = matrix.run_scenario(
        name, binary, preload, matrix.fast_place(), matrix.FUNCTIONS, stride
    )
    assert not wrong, "\n".join(wrong)
    tried = sum(c["failed"] for c in tally.values())
    assert tried >= 20, "hardly any fault was met"


# ---- that the matrix itself would see what is wrong ----------------------------------------------


@pytest.fixture
def bench(quantfold):
    home = Path(tempfile.mkdtemp(dir=matrix.fast_place()))
    scenario = next(s for s in matrix.SCENARIOS if s.name == "inline")
    binary = Path(quantfold.binary)
    yield matrix.Bench(scenario, home, binary, shim.preload(binary))
    shutil.rmtree(home)


def test_spoiled_output_is_seen(bench):
    bench.reset()
    assert bench.wrong_files(matrix.SYSTEM_FAILED, "EIO") is None
    path = bench.out / "m_deploy_model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert "neither the old output nor the new" in bench.wrong_files(matrix.SYSTEM_FAILED, "EIO")


def test_litter_is_seen(bench):
    bench.reset()
    assert bench.wrong_rerun() is None
    (bench.out / ".litter").touch()
    assert ".litter should not be there" in bench.wrong_rerun()


def test_mixed_output_is_seen(bench):
    bench.reset()
    name = "m_deploy_model.onnx"
    (bench.out / name).write_bytes(bench.new[name])
    assert "neither the old output nor the new" in bench.wrong_files(-9, "SIGKILL")


def test_wrong_exit_codes_and_messages_are_seen(bench):
    assert bench.wrong_code("EIO", 1, "") and bench.wrong_code("EIO", -11, "")
    assert bench.wrong_code("EINTR", 3, "") and bench.wrong_code("SIGTERM", 1, "")
    assert not bench.wrong_code("EIO", 3, "")
    assert not bench.wrong_code("SIGINT", -2, "") and bench.wrong_code("SIGINT", -2, "", 20)
    assert not bench.wrong_code("SIGINT", 130, "", 20) and bench.wrong_code("SIGINT", -15, "")
    assert bench.wrong_message("pwrite", "/a/b/weights.bin", "error: it failed")
    assert not bench.wrong_message("pwrite", "/a/b/weights.bin", "error: cannot write weights.bin")
    inside = f"{bench.out}/.m.quantfold-partial"
    for path, message, named in (
        (f"{bench.out}", "cannot write the output file", False),  # which has its name in it
        (f"{bench.out}", f"{bench.inputs}/model.onnx: cannot read", False),  # another file
        (f"{bench.out}/m_deploy_model.onnx", "'deploy_model.onnx' is wrong", False),
        (f"{bench.out}/m_deploy_model.onnx", "m_deploy_model.onnx.bak: is wrong", False),
        (f"{bench.out}/m_deploy_model.onnx", "cannot write m_deploy_model.onnx", True),
        (f"{bench.out}", f"{bench.out}: cannot open the folder", True),
        (f"{bench.out}", "there is no folder 'out'", True),
        (f"{inside}/run/complete", f"{inside}: cannot complete the output", True),
        (f"{inside}/w.external", f"{inside}: cannot write", False),
    ):
        assert matrix.names(message, path) == named, (path, message)
    assert bench.wrong_message("malloc", "", "error: no") and bench.wrong_message("malloc", "", "")
    warned = f"warning: {bench.out}/m_deploy_model.onnx exists"
    assert bench.wrong_message("pwrite", f"{bench.out}/x", f"{warned}\nerror: it failed")
