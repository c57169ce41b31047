# SPDX-License-Identifier: Apache-2.0
"""quantfold.torch against what the reference tool wrote for the same networks and parameters."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import golden_nets  # noqa: E402
import onnx  # noqa: E402
import quantfold.torch as amct  # noqa: E402
from onnx import numpy_helper  # noqa: E402
from quantfold.torch import modules, retrain  # noqa: E402

REPO = Path(__file__).resolve().parents[3]
GOLDEN = Path(os.environ.get("QUANTFOLD_GOLDEN", REPO.parent / "shared" / "golden"))
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()) if GOLDEN.is_dir() else []
BUILT = [c for c in CASES if golden_nets.build(GOLDEN, c) is not None]
# the record was changed by hand, or the parameters lie elsewhere, or the reference stops the engine
TRAINED = [c for c in BUILT if not c.startswith(("m_ext_input", "g_fp16_record"))]
pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden files at {GOLDEN}")


def activations(text: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, value in re.findall(r"(key|scale_[dh]|offset_[dh]): (\S+)", text):
        if name == "key":
            layer = found.setdefault(json.loads(value), {})
        else:
            layer[name] = float(value)
    return found


def set_clips(quantizer: modules.ActivationQuantizer, scale: float, offset: float) -> None:
    """The clips that give this scale and offset."""
    low = -(2 ** (quantizer.bits - 1))
    scale64 = np.float64(np.float32(scale))
    with torch.no_grad():
        quantizer.clip_min.fill_(float((low - offset) * scale64))
        quantizer.clip_max.fill_(float((low + 2**quantizer.bits - 1 - offset) * scale64))
        quantizer.batches.fill_(quantizer.batch_num)


@pytest.mark.parametrize("case", BUILT)
def test_config(tmp_path, case):
    """The same layers, keys, values and text."""
    net, definition = golden_nets.build(GOLDEN, case), GOLDEN / case / "config_def.cfg"
    assert net is not None
    with pytest.warns() if "int4" in case and "group" in case else NoWarning():
        amct.create_quant_retrain_config(
            str(tmp_path / "c.json"),
            net,
            golden_nets.inputs(GOLDEN, case),
            str(definition) if definition.exists() else None,
        )
    wanted = (GOLDEN / case / "config.json").read_text()
    assert json.loads((tmp_path / "c.json").read_text()) == json.loads(wanted)
    assert (tmp_path / "c.json").read_text() == wanted


class NoWarning:
    """A context that asks for nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


def restored(case: str, folder: Path):
    """The QAT model with the trained parameters and the clips that the record tells."""
    net = golden_nets.build(GOLDEN, case)
    assert net is not None
    golden_nets.load(net, GOLDEN, case)
    data = golden_nets.inputs(GOLDEN, case)
    config = str(GOLDEN / case / "config.json")
    model = amct.create_quant_retrain_model(config, net, str(folder / "r.txt"), data)
    known = activations((GOLDEN / case / "record.txt").read_text())
    for name, layer in retrain.quantized_layers(model).items():
        set_clips(layer.activation, known[name]["scale_d"], known[name]["offset_d"])
        if isinstance(layer, modules.QuantizedRnn):
            set_clips(layer.hidden, known[name]["scale_h"], known[name]["offset_h"])
    return model.eval(), data, config


def compare_records(ours: str, wanted: str) -> None:
    """Line by line; activation scales are made of clips here and may differ in the last bit."""
    assert len(ours.splitlines()) == len(wanted.splitlines())
    for a, b in zip(ours.splitlines(), wanted.splitlines()):
        if a != b:
            name, value = a.strip().split(": ")
            assert name.startswith("scale"), (a, b)
            near = abs(np.float32(value) / np.float32(b.split(": ")[1]) - 1)
            assert near < (3e-7 if name in ("scale_d", "scale_h") else 2e-7), (a, b)


@pytest.mark.parametrize("case", TRAINED)
def test_inference_and_record(tmp_path, case):
    """A pass gives the reference's QAT output and its record."""
    model, data, _ = restored(case, tmp_path)
    with torch.no_grad():
        output = model(*data)
    outputs = output if isinstance(output, tuple) else (output,)
    for i, ours in enumerate(outputs):
        wanted = np.load(GOLDEN / case / f"qat_out{i}.npy")
        error = np.abs(ours.numpy() - wanted).max()
        assert error <= 0.02 * np.abs(wanted).max(), error  # a value on a tie may go the other way
        assert np.median(np.abs(ours.numpy() - wanted)) <= 3e-3 * np.abs(wanted).max()
    compare_records((tmp_path / "r.txt").read_text(), (GOLDEN / case / "record.txt").read_text())
    assert (tmp_path / "r.txt").stat().st_mode & 0o777 == 0o640


def contents(path: Path) -> list:
    """Dtype, shape and bytes of every initializer, whatever its name."""
    model = onnx.load(path)
    arrays = [numpy_helper.to_array(t) for t in model.graph.initializer]
    return sorted((str(a.dtype), a.shape, a.tobytes()) for a in arrays if a.dtype != np.int64)


def kinds(path: Path) -> list[str]:
    nodes = [n.op_type for n in onnx.load(path).graph.node]
    return sorted(n for n in nodes if n.startswith(("Ascend", "Basic", "Conv", "Gemm", "MatMul")))


@pytest.mark.parametrize("case", [c for c in TRAINED if c not in ("g_fp16_mode",)])
def test_save(tmp_path, case):
    """The deploy model of the reference, by its contents: names of tensors are the exporter's."""
    model, data, config = restored(case, tmp_path)
    amct.save_quant_retrain_model(
        config, model, str(GOLDEN / case / "record.txt"), str(tmp_path / "out" / "m"), data
    )
    ours, wanted = tmp_path / "out" / "m_deploy_model.onnx", GOLDEN / case / "m_deploy_model.onnx"
    assert kinds(ours) == kinds(wanted)
    assert contents(ours) == contents(wanted)
    assert retrain.quantized_layers(model)  # it can be trained on
