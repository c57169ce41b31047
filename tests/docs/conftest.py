# SPDX-License-Identifier: Apache-2.0
"""The program's own list of commands, read once."""

from __future__ import annotations

import pytest
from usage import Command, read_commands


@pytest.fixture(scope="session")
def commands(quantfold) -> dict[str, Command]:
    """Every command that --help lists."""
    found = read_commands(quantfold)
    assert "export" in found and "--model" in found["export"].options
    assert found["export"].words["--io"] == ["auto", "pwrite", "mmap", "direct"]
    return found
