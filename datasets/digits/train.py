#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the small digit classifier that ships with the project, and write everything beside it.

The point is a real input for the exporter: weights, BatchNormalizations and activation ranges that
came out of training, not out of a random generator. The network is trained in float, then for a
few epochs with fake quantization in the loop (straight-through gradients), as quantization-aware
training does it. Written: model.onnx (float weights, BatchNormalization not folded, so that the
exporter's own folding is used), config.json, record.txt, test_inputs.npy and test_labels.npy (the
held-out fifth of the data).

    python train.py [--out FOLDER]          needs torch, scikit-learn, onnx
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from make_record import Record, config_text, layer_config, record_text  # noqa: E402

SEED = 20240607
EPSILON = 1.192092896e-7
LOW, HIGH = -128, 127
FLOAT_EPOCHS, QAT_EPOCHS = 30, 10


class DigitNet(nn.Module):
    """Plain, depthwise and strided convolutions with BatchNorm, average pooling, two Linears."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.bn2 = nn.BatchNorm2d(16, eps=1e-3)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(32 * 2 * 2, 48)
        self.fc2 = nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = torch.flatten(self.pool(x), 1)
        return self.fc2(F.relu(self.fc1(x)))


class Round(torch.autograd.Function):
    """Round half to even; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


class FakeActivation(nn.Module):
    """Asymmetric int8 with the offset in the signed domain; range by moving average."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(False))

    def observe(self, x):
        low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
        keep = 1.0 - self.momentum if self.seen else 0.0
        self.low.mul_(keep).add_((1.0 - keep) * low)
        self.high.mul_(keep).add_((1.0 - keep) * high)
        self.seen.fill_(True)

    def params(self):
        scale = (self.high - self.low) / (HIGH - LOW)
        if scale < EPSILON:
            return torch.tensor(1.0), torch.tensor(float(LOW))
        return scale, torch.round(LOW - self.low / scale).clamp(LOW, HIGH)

    def forward(self, x):
        if self.training:
            self.observe(x.detach())
        scale, offset = self.params()
        q = torch.clamp(Round.apply(x * (1.0 / scale)) + offset, LOW, HIGH)
        return (q - offset) * scale


def weight_scale(weight, per_channel):
    """Symmetric int8 scale: of each output channel, or of the whole tensor."""
    rows = weight.detach().reshape(weight.shape[0] if per_channel else 1, -1)
    scale = rows.abs().amax(dim=1) / HIGH
    return torch.where(scale < EPSILON, torch.ones_like(scale), scale)


def fake_weight(weight, per_channel):
    """Weight as the int8 engine will see it, times its scale."""
    scale = weight_scale(weight, per_channel).reshape(-1, *[1] * (weight.dim() - 1))
    return torch.clamp(Round.apply(weight / scale), LOW, HIGH) * scale


class QatNet(nn.Module):
    """The same network with fake quantization before and inside every weighted layer."""

    LAYERS = ("conv1", "conv2", "conv3", "fc1", "fc2")

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.acts = nn.ModuleDict({name: FakeActivation() for name in self.LAYERS})

    def conv(self, name, bn, x):
        layer = getattr(self.net, name)
        y = layer._conv_forward(self.acts[name](x), fake_weight(layer.weight, True), layer.bias)
        return F.relu(getattr(self.net, bn)(y))

    def linear(self, name, x):
        layer = getattr(self.net, name)
        return F.linear(self.acts[name](x), fake_weight(layer.weight, False), layer.bias)

    def forward(self, x):
        x = self.conv("conv1", "bn1", x)
        x = self.conv("conv2", "bn2", x)
        x = self.conv("conv3", "bn3", x)
        x = torch.flatten(self.net.pool(x), 1)
        return self.linear("fc2", F.relu(self.linear("fc1", x)))


def load_data():
    """Digits scaled to about [-1, 1], split into a training and a held-out part."""
    digits = load_digits()
    x = ((digits.images[:, None] - 8.0) / 8.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    return train_test_split(x, y, test_size=0.2, random_state=SEED, stratify=y)


def train(model, x, y, epochs, rate):
    """Adam with a cosine schedule on seeded batches."""
    generator = torch.Generator().manual_seed(SEED)
    batches = 1 + (len(x) - 1) // 64
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model, x, y):
    """Share of right answers."""
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def records(qat):
    """Records of the trained network; Conv scales are those of the BN-folded weights."""
    out = []
    for name in QatNet.LAYERS:
        layer = getattr(qat.net, name)
        scale = weight_scale(layer.weight, isinstance(layer, nn.Conv2d))
        if isinstance(layer, nn.Conv2d):
            bn = getattr(qat.net, "bn" + name[-1])
            scale = scale * (bn.weight * torch.rsqrt(bn.running_var + bn.eps)).detach().abs()
        scale_d, offset_d = qat.acts[name].params()
        out.append(Record(name, scale_d.item(), int(offset_d), scale.tolist()))
    return out


def export(net, path):
    """Float ONNX with BatchNormalization left in the graph (training=PRESERVE does not fuse)."""
    torch.onnx.export(
        net,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    out = parser.parse_args().out
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    x_train, x_test, y_train, y_test = load_data()
    x, y = torch.from_numpy(x_train), torch.from_numpy(y_train)
    xt, yt = torch.from_numpy(x_test), torch.from_numpy(y_test)
    net = DigitNet()
    train(net, x, y, FLOAT_EPOCHS, 3e-3)
    print(f"float accuracy of the float-trained net:  {accuracy(net, xt, yt):.4f}")
    qat = QatNet(copy.deepcopy(net))
    train(qat, x, y, QAT_EPOCHS, 5e-4)
    print(f"float accuracy of the QAT-trained net:    {accuracy(qat.net, xt, yt):.4f}")
    print(f"fake-quant accuracy of the QAT net:       {accuracy(qat, xt, yt):.4f}")

    out.mkdir(parents=True, exist_ok=True)
    export(qat.net, out / "model.onnx")
    (out / "record.txt").write_text(record_text(records(qat)))
    config = {name: layer_config(name.startswith("conv")) for name in QatNet.LAYERS}
    (out / "config.json").write_text(config_text(config))
    np.save(out / "test_inputs.npy", x_test)
    np.save(out / "test_labels.npy", y_test.astype(np.int32))


if __name__ == "__main__":
    main()
