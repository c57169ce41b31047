# SPDX-License-Identifier: Apache-2.0
"""Saving a trained network: the float model goes to a temporary ONNX file, and from there on it is
quantfold's export."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from .. import QuantfoldError, export
from . import config as configs
from .export import to_onnx
from .layers import evaluating, look_at
from .modules import QuantizedWeight
from .params import (
    check_dynamic_axes,
    check_file_name,
    check_input_data,
    check_save_path,
    check_tensor_names,
    typed,
)
from .retrain import current_config, put, quantized_layers, unwrap

OPSETS = (11, 17)  # the reference's, and one for networks with operators that it lacks


@contextmanager
def float_view(model: nn.Module) -> Iterator[nn.Module]:
    """The trained float network, in place: each quantized layer is the module that it wraps, and batch
    norms are where they were. All is put back afterwards; nothing is copied."""
    network = unwrap(model)
    layers = quantized_layers(network)
    replaced: dict[str, nn.Module] = dict(layers)
    hooks, network._forward_hooks = network._forward_hooks, type(network._forward_hooks)()
    try:
        for name, layer in layers.items():
            put(network, name, layer.module)
            if isinstance(layer, QuantizedWeight) and layer.batch_norm is not None:
                bn_name = layer.batch_norm_name
                replaced[bn_name] = network.get_submodule(bn_name)
                put(network, bn_name, layer.batch_norm)
        with evaluating(network):
            yield network
    finally:
        for name, module in replaced.items():
            put(network, name, module)
        network._forward_hooks = hooks


def _same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


@typed(
    config_file=str,
    model=nn.Module,
    record_file=str,
    save_path=str,
    input_names=list | None,
    output_names=list | None,
    dynamic_axes=dict | None,
)
def save_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    save_path: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: dict[str, Any] | None = None,
) -> None:
    """Writes <save_path>_deploy_model.onnx and <save_path>_fake_quant_model.onnx of a trained model,
    with the scales of `record_file`."""
    check_file_name(config_file, "config_file")
    check_file_name(record_file, "record_file")
    if not quantized_layers(model):
        raise RuntimeError("model: it is not a model after quantitative retraining")
    check_input_data(input_data)
    check_tensor_names(input_names, "input_names")
    check_tensor_names(output_names, "output_names")
    check_dynamic_axes(dynamic_axes)
    known = current_config()
    if known is None:
        raise RuntimeError(
            "create_quant_retrain_model or restore_quant_retrain_model should be called firstly"
        )
    names = {
        "input_names": input_names,
        "output_names": output_names,
        "dynamic_axes": dynamic_axes,
    }
    with tempfile.TemporaryDirectory(prefix="quantfold-") as folder:
        path = Path(folder, "model.onnx")
        with float_view(model) as network:
            if not _same(configs.parse(config_file, look_at(network, input_data)), known):
                raise RuntimeError(
                    "The config_file is inconsistent with the config_file input by the "
                    "create_quant_retrain_model or restore_quant_retrain_model interface!"
                )
            to_onnx(network, input_data, path, OPSETS, **names)
        _export(path, config_file, record_file, save_path)


def _export(path: Path, config_file: str, record_file: str, save_path: str) -> None:
    if os.path.isfile(record_file) and os.path.getsize(record_file) == 0:
        raise RuntimeError(
            "record_file is empty, no layers to be quantized: run the model once in evaluation mode "
            "after training"
        )
    if not os.path.exists(record_file):
        raise FileNotFoundError(2, os.strerror(2), record_file)
    check_save_path(save_path)
    try:
        export(path, save_path, config=config_file, record=record_file)
    except QuantfoldError as e:
        if e.status == "input":
            raise RuntimeError(str(e)) from e
        raise
