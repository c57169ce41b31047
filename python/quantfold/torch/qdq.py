# SPDX-License-Identifier: Apache-2.0
"""Models that another tool quantizes in PyTorch: torch.ao's eager mode, under quantization-aware
training or converted. They go through an ONNX file with QuantizeLinear and DequantizeLinear nodes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import ExportReport, export
from .export import graph_to_onnx, to_onnx
from .layers import evaluating
from .params import (
    check_dynamic_axes,
    check_input_data,
    check_save_path,
    check_tensor_names,
    typed,
)


@contextmanager
def _exportable(model: nn.Module) -> Iterator[None]:
    """torch.ao's default modules observe and quantize in one operator, which has no ONNX form; their
    base class does the same in two. The observer is off meanwhile."""
    from torch.ao.quantization import FakeQuantize, FusedMovingAvgObsFakeQuantize

    fused: list[Any] = [m for m in model.modules() if type(m) is FusedMovingAvgObsFakeQuantize]
    fake: list[Any] = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    observing = [m.observer_enabled.clone() for m in fake]
    try:
        for module in fused:
            module.__class__ = FakeQuantize
        for module in fake:
            module.disable_observer()
        yield
    finally:
        for module in fused:
            module.__class__ = FusedMovingAvgObsFakeQuantize
        for module, enabled in zip(fake, observing):
            module.observer_enabled.copy_(enabled)


@typed(
    model=nn.Module,
    save_path=str,
    input_names=list | None,
    output_names=list | None,
    dynamic_axes=dict | None,
    on_unsupported=str,
)
def save_quantized_model(
    model: nn.Module,
    save_path: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: dict[str, Any] | None = None,
    on_unsupported: str = "error",
) -> ExportReport:
    """Writes <save_path>_deploy_model.onnx and <save_path>_fake_quant_model.onnx of a model that torch.ao
    or torchao quantized; scales are the model's own. `on_unsupported`: "float" leaves layers that the
    deploy format cannot express in float."""
    check_input_data(input_data)
    check_tensor_names(input_names, "input_names")
    check_tensor_names(output_names, "output_names")
    check_dynamic_axes(dynamic_axes)
    check_save_path(save_path)
    names: dict[str, Any] = {
        "input_names": input_names,
        "output_names": output_names,
        "dynamic_axes": dynamic_axes,
    }
    with tempfile.TemporaryDirectory(prefix="quantfold-") as folder:
        path = Path(folder, "model.onnx")
        if isinstance(model, torch.fx.GraphModule):
            graph_to_onnx(model, input_data, path)
            return export(path, save_path, source="qdq", on_unsupported=on_unsupported, **names)
        with evaluating(model), _exportable(model):
            to_onnx(model, input_data, path, (17,), **names)
        return export(path, save_path, source="qdq", on_unsupported=on_unsupported)
