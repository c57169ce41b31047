# SPDX-License-Identifier: Apache-2.0
"""Makes the .onnx files beside it: what torch.ao writes for a small network after a few steps of
quantization-aware training, by its TorchScript exporter. Run with torch 2.13; the files are committed,
so that tests need no torch. (The exporter by torch.export does not know FakeQuantize modules, and
torch.ao has no PT2E any more.)

    python tests/conformance/qdq/make.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn
from torch.ao import quantization as ao

HERE = Path(__file__).parent


class Net(nn.Module):
    """Conv with BatchNorm and Relu, a residual Add, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.add = torch.ao.nn.quantized.FloatFunctional()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(self.quant(x))))
        x = self.add.add(x, self.conv2(x))
        return self.dequant(self.fc(self.pool(x).flatten(1)))


def fake(observer, low: int, high: int, dtype, scheme):
    return ao.FakeQuantize.with_args(
        observer=observer, quant_min=low, quant_max=high, dtype=dtype, qscheme=scheme
    )


def qconfig(unsigned: bool, per_channel: bool) -> ao.QConfig:
    mean, channel = ao.MovingAverageMinMaxObserver, ao.MovingAveragePerChannelMinMaxObserver
    low, high, dtype = (0, 255, torch.quint8) if unsigned else (-128, 127, torch.qint8)
    return ao.QConfig(
        activation=fake(mean, low, high, dtype, torch.per_tensor_affine),
        weight=(
            fake(channel, -128, 127, torch.qint8, torch.per_channel_symmetric)
            if per_channel
            else fake(mean, -128, 127, torch.qint8, torch.per_tensor_symmetric)
        ),
    )


def trained(config: ao.QConfig, fuse: bool) -> nn.Module:
    torch.manual_seed(1)
    net = Net().train()
    net.qconfig = config
    if fuse:
        net = ao.fuse_modules_qat(net, [["conv1", "bn1", "relu"]])
    net = ao.prepare_qat(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        net(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    net.apply(ao.disable_observer)
    return net.eval()


def save(net: nn.Module, name: str, opset: int) -> None:
    torch.onnx.export(
        net, (torch.randn(2, 3, 8, 8),), HERE / f"{name}.onnx", dynamo=False, opset_version=opset
    )


def main() -> None:
    warnings.simplefilter("ignore")
    save(trained(qconfig(True, False), False), "eager_qat_uint8_tensor", 13)
    save(trained(qconfig(False, True), False), "eager_qat_int8_channel", 17)
    save(trained(qconfig(True, True), True), "eager_qat_fused_batch_norm", 17)
    save(ao.convert(trained(ao.get_default_qat_qconfig("x86"), True)), "eager_converted", 17)


if __name__ == "__main__":
    main()
