# SPDX-License-Identifier: Apache-2.0
"""Makes the .onnx files beside it: what torch.ao writes for a small network after a few steps of
quantization-aware training, by its TorchScript exporter, what torchao's PT2E does, by the exporter of
torch.export, and what Brevitas exports. Run with torch 2.13, torchao 0.18 and Brevitas 0.13; the files
are committed, so that tests need none of them.

    python tests/conformance/qdq/make.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
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


class Plain(nn.Module):
    """Without stubs: PT2E finds its own places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.conv2(x)) + x
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))


def pt2e() -> nn.Module:
    """Trained quantized by torchao, and converted."""
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    torch.manual_seed(1)
    graph = torch.export.export(Plain().train(), (torch.randn(2, 3, 8, 8),)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    graph = prepare_qat_pt2e(graph, quantizer)
    for _ in range(3):
        graph(torch.randn(2, 3, 8, 8))
    move_exported_model_to_eval(graph)
    return convert_pt2e(graph)


def brevitas(path: Path) -> None:
    """int8 weights per channel and clipped, int8 and uint8 activations, int32 biases."""
    from brevitas import nn as qnn
    from brevitas import quant
    from brevitas.export import export_onnx_qcdq

    torch.manual_seed(1)
    layer = {"weight_quant": quant.Int8WeightPerChannelFloat, "bias_quant": quant.Int32Bias}
    unsigned = {"act_quant": quant.Uint8ActPerTensorFloat, "return_quant_tensor": True}
    net = nn.Sequential(
        qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, padding=1, return_quant_tensor=True, **layer),
        qnn.QuantReLU(**unsigned),
        qnn.QuantConv2d(8, 8, 3, padding=1, stride=2, return_quant_tensor=True, **layer),
        qnn.QuantReLU(**unsigned),
        nn.Flatten(),
        qnn.QuantLinear(8 * 16, 10, bias=True, **layer),
    ).train()
    for _ in range(3):
        net(torch.randn(8, 3, 8, 8))
    export_onnx_qcdq(
        net.eval(), args=torch.randn(2, 3, 8, 8), export_path=path, opset_version=17, dynamo=False
    )


def without_traces(path: Path) -> None:
    """The exporter notes the stack of every node, with where this file was."""
    model = onnx.load(path)
    for holder in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del holder.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.save(model, path)


def main() -> None:
    warnings.simplefilter("ignore")
    data, out = (torch.randn(2, 3, 8, 8),), HERE / "pt2e_qat.onnx"
    torch.onnx.export(pt2e(), data, out, dynamo=True, external_data=False, opset_version=18)
    without_traces(out)
    brevitas(HERE / "brevitas_int8_channel.onnx")
    save(trained(qconfig(True, False), False), "eager_qat_uint8_tensor", 13)
    save(trained(qconfig(False, True), False), "eager_qat_int8_channel", 17)
    save(trained(qconfig(True, True), True), "eager_qat_fused_batch_norm", 17)
    save(ao.convert(trained(ao.get_default_qat_qconfig("x86"), True)), "eager_converted", 17)


if __name__ == "__main__":
    main()
