# SPDX-License-Identifier: Apache-2.0
"""quantfold.report and report_data, on an export with stats=True."""

from __future__ import annotations

import json
import locale
from pathlib import Path

import pytest
import quantfold as package

DIGITS = Path(__file__).resolve().parents[2] / "datasets" / "digits"


@pytest.fixture()
def prefix(tmp_path) -> Path:
    record = DIGITS / "record.txt"
    package.export(DIGITS / "model.onnx", tmp_path / "m", record=record, stats=True, fsync=False)
    return tmp_path / "m"


def test_same_as_the_command(quantfold, prefix, tmp_path):
    saved = package.report(prefix, tmp_path / "p.html")
    assert saved == str(tmp_path / "p.html")
    assert package.report(prefix) == f"{prefix}.report.html"
    page = quantfold("report", prefix, "-o", "-").out
    assert Path(saved).read_text() == Path(f"{prefix}.report.html").read_text() == page
    assert package.report_data(prefix) == json.loads(quantfold("report", prefix, "--json").out)


def test_no_manifest(tmp_path):
    with pytest.raises(package.InputError, match="--stats"):
        package.report(tmp_path / "none")
    with pytest.raises(package.InputError, match="--stats"):
        package.report_data(tmp_path / "none")


def test_host_with_commas_in_its_numbers(prefix):
    """Numbers of the page are those of the C locale."""
    before = Path(package.report(prefix)).read_bytes()
    for name in ("de_DE.UTF-8", "fr_FR.UTF-8", "ru_RU.UTF-8"):
        try:
            locale.setlocale(locale.LC_NUMERIC, name)
        except locale.Error:
            continue
        try:
            assert Path(package.report(prefix)).read_bytes() == before
            break
        finally:
            locale.setlocale(locale.LC_NUMERIC, "C")
    else:
        pytest.skip("no locale with commas is installed")
