# SPDX-License-Identifier: Apache-2.0
"""Models to be reported on, and their pages."""

from __future__ import annotations

import json
from pathlib import Path

from nets import F32, Net, random, save_net

import make_record

DIGITS = Path(__file__).resolve().parents[2] / "datasets" / "digits"
HOSTILE = "</script></title><img src=x onerror=alert(1)>\"'&\u202e"


def export(quantfold, model: Path, record: Path, prefix: Path, *args) -> Path:
    """Exports with statistics, or with other options, and returns the prefix."""
    quantfold.export(model, record, prefix, "--no-fsync", *(args or ("--stats",)))
    return prefix


def chain(folder: Path, names: list[str], scales: list[float], bias: float = 1.0):
    """A chain of Gemm nodes, their weights and their record."""
    net = Net()
    x = net.input("x", random(1, 24))
    records = []
    for i, (name, scale) in enumerate(zip(names, scales)):
        w = random(24, 24, seed=i, scale=0.05)
        y = f"y{i}"
        inputs = [x, net.weight(f"w{i}", w), net.weight(f"b{i}", random(24, seed=i) * F32(bias))]
        x = net.op("Gemm", inputs, name, y)
        text = make_record.float_text(scale)
        records.append(make_record.Record(name, 0.1, 0, [float(text)], "INT8", "INT8", []))
    net.output(x)
    path = save_net(net, folder)
    (folder / "r.txt").write_text(make_record.record_text(records))
    return path, folder / "r.txt"


def page(quantfold, prefix: Path) -> Path:
    """Makes the page of an export."""
    run = quantfold("report", prefix)
    assert run.code == 0, run.err
    path = Path(f"{prefix}.report.html")
    assert run.out == f"wrote {path}\n"
    return path


def spoil(manifest: Path) -> None:
    """Puts a name that is markup wherever a manifest has one."""
    made = json.loads(manifest.read_text())
    made["inputs"][0]["name"] = made["files"][0]["name"] = made["quantfold"] = HOSTILE
    made["scheme"] = HOSTILE
    layer, weight = made["layers"][0], made["weights"][0]
    layer["name"] = layer["op_type"] = weight["layer"] = weight["tensor"] = HOSTILE
    layer["weights"] = [{"tensor": HOSTILE, "layer": HOSTILE}]
    made["skipped"] = [{"name": HOSTILE, "op_type": HOSTILE, "reason": HOSTILE}]
    manifest.write_text(json.dumps(made))
