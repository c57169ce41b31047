# SPDX-License-Identifier: Apache-2.0
"""`quantfold record` against the records that the reference tool wrote while it trained.

The activation ranges of a case come from its own record; what is proved are the weight scales, their
number and order, and the form of the file, byte for byte.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from test_golden import CASES, GOLDEN, pytestmark  # noqa: F401 (the mark skips without files)

from support import assert_same_model

# weights that lie elsewhere, no model before batch norms are folded, or a field by hand
WITHOUT_SOURCE = {"g_fp16_record", "m_ext_input_convbn", "m_ext_input_int4", "m_ext_input_mlp"}
RECORDED = [c for c in CASES if c not in WITHOUT_SOURCE]


def activations(text: str) -> dict:
    """Scale and offset of each layer of a record."""
    found: dict = {}
    for name, value in re.findall(r"(key|scale_[dh]|offset_[dh]): (\S+)", text):
        if name == "key":
            layer = found.setdefault(json.loads(value), {})
        else:
            layer[name] = float(value) if name.startswith("scale") else int(value)
    return found


@pytest.mark.parametrize("case", RECORDED)
def test_weight_scales(quantfold, tmp_path, case):
    """From the trained float model, before batch norms are folded."""
    wanted = (GOLDEN / case / "record.txt").read_text()
    ranges = tmp_path / "ranges.json"
    ranges.write_text(json.dumps(activations(wanted)))
    result = quantfold(
        *("record", "--model", GOLDEN / case / "restored.onnx"),
        *("--config", GOLDEN / case / "config.json", "--activations", ranges),
    )
    assert result.code == 0, result.err
    ours = result.out
    if case == "g_fp16_mode":  # the reference means to write it: docs/differences.md
        ours = ours.replace('    fakequant_precision_mode: "FORCE_FP16_QUANT"\n', "")
    assert ours == wanted


@pytest.mark.parametrize("case", [c for c in CASES if c in ("g_sym_clip", "g_asym_convbn")])
def test_clips_of_the_config(quantfold, tmp_path, case):
    """clip_max and clip_min stand in for ranges. An untrained case keeps them: its activations are
    those of the record; training moves them, but not the formula."""
    wanted = (GOLDEN / case / "record.txt").read_text()
    config = json.loads((GOLDEN / case / "config.json").read_text())
    clipped = {k for k, v in config.items() if "clip_max" in str(v)}
    ranges = tmp_path / "ranges.json"
    others = {k: v for k, v in activations(wanted).items() if k not in clipped}
    ranges.write_text(json.dumps(others))
    result = quantfold(
        *("record", "--model", GOLDEN / case / "restored.onnx", "--activations", ranges),
        *("--config", GOLDEN / case / "config.json"),
    )
    assert result.code == 0, result.err
    assert clipped
    for layer in clipped:
        ours, data = activations(result.out)[layer], config[layer]["retrain_data_config"]
        low, high = np.float32(data["clip_min"]), np.float32(data["clip_max"])
        scale = (high - low) / np.float32(255)
        assert np.float32(ours["scale_d"]) == scale
        assert ours["offset_d"] == int(np.rint(np.float32(-128) - low / scale))
    if case == "g_sym_clip":
        assert result.out == wanted


@pytest.mark.parametrize("case", [c for c in CASES if c in ("a_convbn_default", "j_lstm_default")])
def test_export_through_it(quantfold, tmp_path, case):
    """From weights to the golden models, with nothing of the reference's but ranges."""
    ranges, record = tmp_path / "ranges.json", tmp_path / "new folder" / "r.txt"
    ranges.write_text(json.dumps(activations((GOLDEN / case / "record.txt").read_text())))
    source = ("--model", GOLDEN / case / "restored.onnx")
    config = ("--config", GOLDEN / case / "config.json")
    made = quantfold("record", *source, *config, "--activations", ranges, "--output", record)
    assert made.code == 0 and not made.out, made.err
    assert record.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in record.parent.iterdir()] == ["r.txt"]
    quantfold.export(source[1], record, tmp_path / "a" / "m", config=config[1])
    quantfold.export(
        source[1], GOLDEN / case / "record.txt", tmp_path / "b" / "m", config=config[1]
    )
    for name in ("m_deploy_model.onnx", "m_fake_quant_model.onnx"):
        assert_same_model(tmp_path / "a" / name, tmp_path / "b" / name)
