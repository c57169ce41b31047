# SPDX-License-Identifier: Apache-2.0
"""Saving a torch model of 3 GiB takes no second copy of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="torch is not installed")

SAVE = """
import sys, threading, time
import torch, quantfold.torch as amct
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.fcs = nn.ModuleList(nn.Linear(*s, bias=False) for s in [(4096, 8192), (8192, 4096)] * 12)
    def forward(self, x):
        for fc in self.fcs:
            x = fc(x)
        return x

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

net, x = Wide(), torch.randn(1, 4096)
amct.create_quant_retrain_config("c.json", net, x)
model = amct.create_quant_retrain_model("c.json", net, "r.txt", x)
del net
model.eval()
with torch.no_grad():
    model(x)
peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
amct.save_quant_retrain_model("c.json", model, "r.txt", "out/m", x)
done = True
watcher.join()
print(sum(p.nbytes for p in model.parameters()), peak)
"""


def test_saving(repo, tmp_path):
    """Anonymous memory, that of Python and torch included, stays below 1.1 times the model's."""
    env = {
        **os.environ,
        "PYTHONPATH": str(repo / "python"),
        "QUANTFOLD_LIBRARY": str(repo / "build" / "src" / "libquantfold.so"),
    }
    run = subprocess.run(
        [sys.executable, "-c", SAVE], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    model, peak = map(int, run.stdout.split())
    print(f"model {model} bytes, peak {peak} of anonymous memory: {peak / model:.3f}")
    assert model >= 3 << 30 and peak <= 1.1 * model
