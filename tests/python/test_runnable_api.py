# SPDX-License-Identifier: Apache-2.0
"""Runnable models from Python: what the command line writes."""

from __future__ import annotations

import numpy as np
import quantfold as qf

from runnable import make_runnable, relative
from support import DEPLOY, FAKE, run_model, snapshot


def test_runnable(quantfold, repo, tmp_path):
    data = repo / "datasets" / "digits"
    qf.export(data / "model.onnx", tmp_path / "m", record=data / "record.txt")
    report = qf.export(tmp_path / DEPLOY, tmp_path / "a" / "m", emit="runnable")
    (written,) = report.outputs
    assert written.path == str(tmp_path / "a" / "m_runnable_model.onnx")
    make_runnable(quantfold, tmp_path / "b", tmp_path / DEPLOY)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    images = np.load(data / "test_inputs.npy")
    ours, fake = (run_model(p, [images]) for p in (written.path, tmp_path / FAKE))
    assert relative(ours, fake) <= 1e-5
