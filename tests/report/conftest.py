# SPDX-License-Identifier: Apache-2.0
"""Two exports that several tests make pages of."""

from pathlib import Path

import pytest
from pages import DIGITS, chain, export


@pytest.fixture(scope="session")
def digits(quantfold, tmp_path_factory) -> Path:
    """A model of six layers."""
    folder = tmp_path_factory.mktemp("digits")
    return export(quantfold, DIGITS / "model.onnx", DIGITS / "record.txt", folder / "m")


@pytest.fixture(scope="session")
def many(quantfold, tmp_path_factory) -> Path:
    """A model of 300 layers, some of them bad."""
    folder = tmp_path_factory.mktemp("many")
    names = [f"/encoder/layers.{i // 6}/attention/proj{i % 6}/Gemm" for i in range(300)]
    scales = [0.0017 * (0.2 if i % 50 == 7 else 9 if i % 60 == 11 else 1) for i in range(300)]
    return export(quantfold, *chain(folder, names, scales), folder / "m")
