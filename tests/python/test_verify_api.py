# SPDX-License-Identifier: Apache-2.0
"""quantfold.verify: what the binding adds to the command, whose tests are in tests/fault."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import quantfold
from onnx import helper, numpy_helper
import numpy as np

RECORD = """record { key: "c" value { scale_d: 0.03 offset_d: -5 act_type: "INT8" wts_type: "INT8"
  scale_w: 0.01 offset_w: 0 } }
"""


@pytest.fixture
def output(tmp_path):
    """A small export; returns model, record and prefix."""
    w = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", kernel_shape=[3, 3], group=1)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 6, 6])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "m.onnx"))
    (tmp_path / "r.txt").write_text(RECORD)
    quantfold.export(tmp_path / "m.onnx", tmp_path / "out" / "m", record=tmp_path / "r.txt")
    return tmp_path / "m.onnx", tmp_path / "r.txt", tmp_path / "out" / "m"


def test_sound(output):
    model, record, prefix = output
    seen = quantfold.verify(prefix, against=model, record=record)
    assert seen.sound and seen.models == 2 and seen.layers == seen.agreeing == 1
    done = {"structure": True, "agreement": True, "manifest": False, "against": True}
    assert seen.done == done | {"runnable": False} and seen.apart == 0
    (missing,) = seen.findings
    assert missing.severity == "warning" and missing.check == "manifest"


def test_findings_say_which_check_made_them(output):
    model, record, prefix = output
    path = f"{prefix}_deploy_model.onnx"
    deploy = onnx.load(path)
    quant = next(n for n in deploy.graph.node if n.op_type == "AscendQuant")
    quant.attribute[0].f = -1.0
    onnx.save(deploy, path)
    seen = quantfold.verify(prefix, against=model, record=record)
    errors = [f for f in seen.findings if f.severity == "error"]
    assert not seen.sound and {f.check for f in errors} == {"structure", "agreement", "against"}
    assert all(f.item.startswith("c.quant") for f in errors), errors


def test_nothing_there_is_a_finding(tmp_path):
    seen = quantfold.verify(tmp_path / "none")
    assert not seen.sound and "neither" in seen.findings[0].message


def test_a_runnable_model_is_looked_at(output):
    _, _, prefix = output
    deploy = f"{prefix}_deploy_model.onnx"
    quantfold.export(deploy, prefix, emit="runnable")
    seen = quantfold.verify(prefix)
    assert seen.sound and seen.models == 3 and seen.done["runnable"]
    Path(f"{prefix}_runnable_model.onnx").write_text("<html></html>")
    (error,) = [f for f in quantfold.verify(prefix).findings if f.severity == "error"]
    assert error.check == "runnable" and error.file == f"{prefix}_runnable_model.onnx"


def test_arguments():
    with pytest.raises(quantfold.UsageError):
        quantfold.verify("m", source="other")
    with pytest.raises(quantfold.UsageError):
        quantfold.verify("m", threads=-1)
