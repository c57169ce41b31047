# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room shares: the binary under test and where the golden files are."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
REPO = TESTS.parent
for folder in (TESTS, TESTS / "golden", TESTS / "conformance", REPO / "datasets"):
    sys.path.insert(0, str(folder))

# a shell's background ignores it, and so would the programs that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

from support import Pair, Quantfold, Verifying  # noqa: E402


def binary_from(variable: str) -> Path:
    """The binary that an environment variable names, or what the build put into build/."""
    binary = Path(os.environ.get(variable, REPO / "build" / "quantfold")).resolve()
    if not binary.is_file():
        pytest.fail(f"no binary at {binary}: build first, or set {variable}")
    return binary


@pytest.fixture(scope="session")
def quantfold() -> Quantfold:
    """The program under test, $QUANTFOLD_BIN; with $QUANTFOLD_BIN_OTHER, compared with that one;
    with $QUANTFOLD_VERIFY, every export is verified."""
    binary = binary_from("QUANTFOLD_BIN")
    if "QUANTFOLD_BIN_OTHER" in os.environ:
        return Pair(binary, binary_from("QUANTFOLD_BIN_OTHER"))
    return (Verifying if "QUANTFOLD_VERIFY" in os.environ else Quantfold)(binary)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the source tree."""
    return REPO
