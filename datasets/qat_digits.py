#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From a float network to the NPU's model, end to end: trains a small CNN on scikit-learn's digits,
goes on training it quantized, saves it, runs the fake_quant model in ONNX Runtime, and prints how
often each is right. Takes some twenty seconds on two cores.

    python datasets/qat_digits.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import quantfold.torch as amct
import torch
from sklearn.datasets import load_digits
from torch import nn


class Net(nn.Module):
    """8 x 8 grey images to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.fc1, self.fc2 = nn.Linear(32 * 4, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images and labels to train with, and others to test with."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, test = order[:1297], order[1297:]
    return images[train], labels[train], images[test], labels[test]


def train(
    net: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float
) -> None:
    optimizer = torch.optim.Adam(net.parameters(), rate)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    net.eval()
    with torch.no_grad():
        return float((net(images).argmax(1) == labels).float().mean())


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/qat_digits")
    folder.mkdir(parents=True, exist_ok=True)
    config, record = str(folder / "config.json"), str(folder / "record.txt")
    torch.manual_seed(0)
    images, labels, test_images, test_labels = data()
    sample = images[:8]

    net = Net()
    train(net, images, labels, epochs=20, rate=2e-3)
    right = {"float": accuracy(net, test_images, test_labels)}

    amct.create_quant_retrain_config(config, net, sample)
    qat = amct.create_quant_retrain_model(config, net, record, sample)
    train(qat, images, labels, epochs=4, rate=5e-4)
    right["QAT"] = accuracy(qat, test_images, test_labels)  # this pass writes the record

    axes = {"image": {0: "n"}, "scores": {0: "n"}}
    amct.save_quant_retrain_model(
        config, qat, record, str(folder / "digits"), sample, ["image"], ["scores"], axes
    )
    session = ort.InferenceSession(folder / "digits_fake_quant_model.onnx")
    (scores,) = session.run(None, {"image": test_images.numpy()})
    right["fake_quant"] = float((scores.argmax(1) == test_labels.numpy()).mean())

    for name, value in right.items():
        print(f"{name:10}  {100 * value:.2f} %")
    (folder / "accuracy.json").write_text(json.dumps(right))


if __name__ == "__main__":
    main()
