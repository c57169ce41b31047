# SPDX-License-Identifier: Apache-2.0
"""Models over 2 GiB, which protobuf refuses, in memory that does not grow with them.

Outside the default run (needs some 12 GB of disk): meson test -C build --suite large.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest

import make_large

SCALE = np.float32(0.0009)
GIB = 2.2


MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_memory(quantfold, *args) -> tuple[int, int]:
    """Exit code and peak resident bytes of a run, file pages included.

    A process starts with its parent's peak, and this one's may be large: a small one stands between.
    """
    command = [sys.executable, "-c", MEASURE, quantfold.binary, *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    code, kib = run.stdout.split()
    return int(code), int(kib) * 1024


@pytest.mark.parametrize("layout", ["inline", "external"])
def test_more_than_protobuf_takes(quantfold, tmp_path, layout):
    source = tmp_path / "in"
    spec = make_large.Spec(layout=layout).holding(GIB)
    make_large.write(source, spec)
    if layout == "inline":
        assert (source / "model.onnx").stat().st_size > 2**31
    out = tmp_path / "out"
    code, peak = peak_memory(
        quantfold, "export", "--model", source / "model.onnx", "--record", source / "record.txt",
        "--config", source / "config.json", "--save-path", out / "m", "-q",
    )  # fmt: skip
    assert code == 0
    assert peak < 400e6, f"{peak / 1e6:.0f} MB resident"

    deploy = onnx.load(out / "m_deploy_model.onnx")
    found = {t.name: t for t in deploy.graph.initializer}
    fake = onnx.load(out / "m_fake_quant_model.onnx", load_external_data=False)
    assert (out / "m_fake_quant_model.onnx").stat().st_size < 2_000_000_000
    for index in (0, spec.count // 2, spec.count - 1):
        wanted = np.clip(np.rint(make_large.weight(spec, index) / SCALE), -128, 127)
        stored = onnx.numpy_helper.to_array(found[f"w{index}"])
        assert stored.dtype == np.int8 and np.array_equal(stored, wanted)
        tensor = next(t for t in fake.graph.initializer if t.name == f"w{index}")
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(out))
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), wanted)
