# SPDX-License-Identifier: Apache-2.0
"""The package of the source tree on the library of the build; an installed wheel has a test of its
own."""

import os
import sys

from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

os.environ.setdefault("QUANTFOLD_LIBRARY", str(REPO / "build" / "src" / "libquantfold.so"))
sys.path.insert(0, str(REPO / "python"))
