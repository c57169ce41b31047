# SPDX-License-Identifier: Apache-2.0
"""`quantfold verify` on sound outputs: our exports of every golden case in every form, and the
reference tool's own files, which know nothing of us."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_golden import CASES, GOLDEN, THRESHOLDS, export_case, model_of

from support import DEPLOY, FAKE

pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden files at {GOLDEN}")

FORMS = {
    "default": [],
    "manifest": ["--manifest"],
    "external": ["--external", "always", "--manifest"],
    "single": ["--external", "always", "--external-layout", "single", "--manifest"],
    "inside": ["--external", "never"],
    "int8": ["--fake-quant-weights", "int8", "--external", "always"],
    "shared": ["--fake-quant-weights", "shared", "--dedup", "--manifest"],
    "deploy": ["--emit", "deploy"],
    "fake_quant": ["--emit", "fake-quant"],
}


def verify(quantfold, prefix: Path, *args) -> dict:
    """A run that must find nothing."""
    result = quantfold("verify", prefix, "--json", *args)
    found = json.loads(result.out)
    errors = [f for f in found["findings"] if f["severity"] == "error"]
    assert result.code == 0 and found["ok"] and not errors, errors
    return found


def inputs(case: str) -> list:
    """Options that say what a case was exported from."""
    threshold = ["--external-threshold", THRESHOLDS[case]] if case in THRESHOLDS else []
    paths = ["--record", GOLDEN / case / "record.txt", "--config", GOLDEN / case / "config.json"]
    return ["--against", model_of(case), *paths, *threshold]


EVERYWHERE = ("default", "external", "single", "int8", "shared")  # others: some cases stand for all


@pytest.mark.parametrize(
    "case, form",
    [(c, f) for i, c in enumerate(CASES) for f in FORMS if f in EVERYWHERE or i % 4 == 0],
)
def test_our_output_is_sound(quantfold, case, form, tmp_path):
    export_case(quantfold, case, tmp_path, *FORMS[form])
    found = verify(quantfold, tmp_path / "m", *inputs(case))
    both = form not in ("deploy", "fake_quant")
    done = {name for name, check in found["checks"].items() if check["done"]}
    assert done == {"structure", "against"} | ({"agreement"} if both else set()) | (
        {"manifest"} if "--manifest" in FORMS[form] else set()
    )
    assert found["layers"] > 0 and found["recomputed"] > 0
    assert found["agreeing"] == (found["layers"] if both else 0)


@pytest.mark.parametrize("case", CASES)
def test_the_reference_s_output_is_sound(quantfold, case):
    """Structure and agreement; the reference writes no manifest."""
    found = verify(quantfold, GOLDEN / case / "m")
    assert found["checks"]["agreement"]["done"] and found["layers"] == found["agreeing"] > 0


@pytest.mark.parametrize("case", CASES)
def test_layers_are_counted_right(quantfold, case):
    """As many as the record has entries that quantize."""
    report = quantfold(
        *("export", "--model", model_of(case), "--record", GOLDEN / case / "record.txt"),
        *("--save-path", "unused/m", "--dry-run", "--json"),
    )
    wanted = len(json.loads(report.out)["layers"])
    assert verify(quantfold, GOLDEN / case / "m")["layers"] == wanted


def test_models_of_two_cases_do_not_agree(quantfold, tmp_path):
    """The deploy model of one with the fake_quant model of a case like it."""
    shutil.copy(GOLDEN / "g_cw_true" / DEPLOY, tmp_path)
    shutil.copy(GOLDEN / "g_cw_false" / FAKE, tmp_path)
    result = quantfold("verify", tmp_path / "m", "--json")
    found = json.loads(result.out)
    assert result.code == 1 and found["checks"]["structure"]["errors"] == 0
    assert found["checks"]["agreement"]["errors"] > 3


def test_a_record_of_another_case_is_told(quantfold):
    """The reference's deploy model against what the record of a case like it would give."""
    case = "g_cw_true"
    other = GOLDEN / "g_cw_false" / "record.txt"
    result = quantfold(
        *("verify", GOLDEN / case / "m", "--json", "--against", model_of(case), "--record", other)
    )
    found = json.loads(result.out)
    assert result.code == 1 and found["checks"]["against"]["errors"] > 3
    assert found["checks"]["agreement"]["errors"] == 0
