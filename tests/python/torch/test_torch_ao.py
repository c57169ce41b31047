# SPDX-License-Identifier: Apache-2.0
"""Models that torch.ao quantized, with its own default settings."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import quantfold.torch as amct  # noqa: E402
from torch.ao import quantization as ao  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "conformance" / "qdq"))
import make  # noqa: E402

from support import run_model, sqnr_db  # noqa: E402

CONFIGS = {
    "x86": lambda: ao.get_default_qat_qconfig("x86"),
    "qnnpack": lambda: ao.get_default_qat_qconfig("qnnpack"),
    "per tensor": lambda: make.qconfig(True, False),
    "int8": lambda: make.qconfig(False, True),
}


# torch has quint8 activations alone when it has converted, and no ONNX form of its batch norm
STATES = [
    (name, converted, fuse)
    for name in CONFIGS
    for converted, fuse in ((False, False), (False, True), (True, True))
    if not (converted and name == "int8")
]


@pytest.mark.parametrize("name, converted, fuse", STATES)
def test_eager(tmp_path, name, converted, fuse):
    """The fake_quant model gives what the torch model gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make.trained(CONFIGS[name](), fuse)
        if converted:
            model = ao.convert(model)
    kinds = [type(m) for m in model.modules()]
    torch.manual_seed(7)
    data = torch.randn(64, 3, 8, 8)
    report = amct.save_quantized_model(
        model, str(tmp_path / "m"), data[:2], ["x"], ["y"], {"x": {0: "n"}, "y": {0: "n"}}
    )
    assert len(report.layers) == 3 and [type(m) for m in model.modules()] == kinds
    with torch.no_grad():
        wanted = model(data).numpy()
    (ours,) = run_model(tmp_path / "m_fake_quant_model.onnx", [data.numpy()])
    # torch's kernels multiply by a reciprocal too, but round sums of their own
    assert sqnr_db(wanted, ours) >= 35 and np.abs(wanted - ours).max() <= 0.1 * np.abs(wanted).max()


def test_pt2e(tmp_path):
    """A graph that torchao's PT2E trained and converted, by the exporter of torch.export."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model = make.pt2e()
    torch.manual_seed(8)
    data = torch.randn(2, 3, 8, 8)
    report = amct.save_quantized_model(model, str(tmp_path / "m"), data, ["x"], ["y"])
    assert len(report.layers) == 3
    with torch.no_grad():
        wanted = model(data).numpy()
    (ours,) = run_model(tmp_path / "m_fake_quant_model.onnx", {"x": data.numpy()})
    assert sqnr_db(wanted, ours) >= 40


def test_float_model(tmp_path):
    """Nothing is quantized: it says so."""
    with pytest.raises(ValueError, match="no QuantizeLinear"):
        amct.save_quantized_model(torch.nn.Linear(4, 4), str(tmp_path / "m"), torch.randn(1, 4))
