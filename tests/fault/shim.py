# SPDX-License-Identifier: Apache-2.0
"""Running quantfold under shim.c."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def preload(binary: Path) -> str:
    """What to preload for a binary: the shim of its build, behind AddressSanitizer if it has that."""
    shim = binary.parent / "tests" / "qf_fault.so"
    if not shim.is_file():
        raise FileNotFoundError(f"{shim}: build with -Dtests=true first")
    libraries = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout
    asan = [words[2] for words in map(str.split, libraries.splitlines()) if "libasan" in words[0]]
    return ":".join([*asan, str(shim)])


def environment(preloaded: str, only: Path, fault: str, report: Path) -> dict[str, str]:
    """The environment for a fault among calls below a folder."""
    return os.environ | {
        "LD_PRELOAD": preloaded,
        "QF_FAULT_REPORT": str(report),
        "QF_FAULT_ONLY": str(only),
        "QF_FAULT": fault,
    }


def fired(report: Path) -> str | None:
    """The path of the call that was struck, "" for memory; None if none was."""
    lines = report.read_text().splitlines() if report.exists() else []
    return next((line[6:] for line in lines if line.startswith("fired")), None)
