# SPDX-License-Identifier: Apache-2.0
"""The networks that the golden files were made of, as far as their exports show them, with the trained
parameters of a case."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn


class ConvBn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2, self.conv3 = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv3(torch.relu(self.bn2(self.conv2(x)))))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Mlp(nn.Module):
    def __init__(self, bias: bool = True, widths: tuple[int, int] = (32, 32)) -> None:
        super().__init__()
        sizes = [(16, widths[0]), widths, (widths[1], 10)]
        self.fcs = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in sizes)

    def forward(self, x):
        x = torch.relu(self.fcs[0](x))
        return self.fcs[2](torch.relu(self.fcs[1](x)))


class Deconv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.up2 = nn.ConvTranspose2d(
            6, 4, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False
        )
        self.up3 = nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4)

    def forward(self, x):
        x = torch.relu(self.bn(self.up1(torch.relu(self.conv(x)))))
        return self.up3(torch.sigmoid(self.up2(x)))


class Conv1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn = nn.Conv1d(4, 8, 5, padding=2), nn.BatchNorm1d(8)
        self.c2 = nn.Conv1d(8, 8, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1)

    def forward(self, x):
        return self.up(torch.relu(self.c2(torch.relu(self.bn(self.c1(x))))))


class Conv3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.c2 = nn.Conv3d(6, 4, (1, 3, 3), stride=(1, 2, 2), bias=False)

    def forward(self, x):
        return self.c2(torch.relu(self.bn(self.c1(x))))


class Rnn(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc0, self.rnn = nn.Linear(6, 8), getattr(nn, kind)(8, 12, batch_first=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, x, *state):
        y, _ = self.rnn(torch.relu(self.fc0(x)), state if len(state) > 1 else state[0])
        return self.fc(y[:, -1])


NETS = {
    "ConvBn": ConvBn,
    "Mlp": Mlp,
    "Deconv": Deconv,
    "Conv1": Conv1,
    "Conv3": Conv3,
}


def build(golden: Path, case: str) -> nn.Module | None:
    """The network of a case, not trained; None if its structure is not here."""
    meta = golden / case / "meta.json"
    if not meta.exists():
        return None
    name = json.loads(meta.read_text())["model"]
    if name == "Rnn":
        return Rnn("LSTM" if "lstm" in case else "GRU")
    if name == "Mlp":
        widths = (64, 48) if case == "m_external_partial" else (32, 32)
        return Mlp("nobias" not in case, widths)
    return NETS[name]() if name in NETS else None


def inputs(golden: Path, case: str) -> tuple[torch.Tensor, ...]:
    paths = sorted((golden / case).glob("in*.npy"), key=lambda p: int(p.stem[2:]))
    return tuple(torch.from_numpy(np.load(p)) for p in paths)


def load(net: nn.Module, golden: Path, case: str) -> None:
    """Trained parameters. The exporter folds what a linear layer of 3 axes and an RNN have into
    tensors of its own; those are turned back."""
    model = onnx.load(golden / case / "restored.onnx")
    values = {
        t.name.replace(".sub_module", ""): torch.from_numpy(numpy_helper.to_array(t).copy())
        for t in model.graph.initializer
    }
    state = net.state_dict()
    for node in model.graph.node:
        scope = re.sub(r"/sub_module.*", "", node.name).strip("/").replace("/", ".")
        if node.op_type == "MatMul" and node.input[1] in values:
            state[f"{scope}.weight"] = values[node.input[1]].T
        if node.op_type in ("LSTM", "GRU"):
            order = [0, 2, 3, 1] if node.op_type == "LSTM" else [1, 0, 2]  # torch's of ONNX's
            w, r, b = (values[i][0] for i in node.input[1:4])

            def turned(rows):
                parts = rows.chunk(len(order))
                return torch.cat([parts[i] for i in order])

            first, second = b.chunk(2)
            state |= {
                f"{scope}.weight_ih_l0": turned(w),
                f"{scope}.weight_hh_l0": turned(r),
                f"{scope}.bias_ih_l0": turned(first),
                f"{scope}.bias_hh_l0": turned(second),
            }
    state |= {k: v for k, v in values.items() if k in state}
    net.load_state_dict(state)
    net.eval()
