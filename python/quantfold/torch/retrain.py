# SPDX-License-Identifier: Apache-2.0
"""The reference's three functions before and during training."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import torch
from torch import nn

from . import config as configs
from .layers import RNNS, Network, look_at
from .modules import ActivationQuantizer, QuantizedLayer, QuantizedRnn, QuantizedWeight
from .params import check_file_name, check_input_data, typed
from .recorder import Recorder

_current: configs.Config | None = None


def current_config() -> configs.Config | None:
    """What the last create_ or restore_ of this process was given, defaults filled in."""
    return _current


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DataParallel or DistributedDataParallel."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    return {n: m for n, m in unwrap(model).named_modules() if isinstance(m, QuantizedLayer)}


def _must_be_float(model: nn.Module) -> None:
    if quantized_layers(model):
        raise RuntimeError("the model has been modified for quantization-aware training already")


def _place(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Makes `module` the one called `name`."""
    parent, attribute = _place(model, name)
    setattr(parent, attribute, module)


@typed(config_file=str, model=nn.Module, config_defination=str | None)
def create_quant_retrain_config(
    config_file: str, model: nn.Module, input_data: Any, config_defination: str | None = None
) -> None:
    """Writes the configuration of all layers that can be quantized: defaults, or what the short
    definition in the file `config_defination` says."""
    check_file_name(config_file, "config_file")
    check_input_data(input_data)
    _must_be_float(model)
    net = look_at(unwrap(model), input_data)
    configs.write(configs.make(net, config_defination), config_file)


def _wrap(net: Network, model: nn.Module, config: configs.Config, recorder: Recorder) -> None:
    quantizers: dict[str, ActivationQuantizer] = {}
    for name, module in net.layers.items():
        layer = config.get(name)
        if not layer or not layer["retrain_enable"]:
            continue
        data, owner = layer["retrain_data_config"], net.same_input.get(name)
        shared = (
            quantizers.get(owner)
            if owner and config.get(owner, {}).get("retrain_data_config") == data
            else None
        )
        quantizer = shared or ActivationQuantizer(data, config["batch_num"])
        quantizers[name] = quantizer
        arguments = (name, module, layer, quantizer, shared is None, recorder)
        if isinstance(module, RNNS):
            hidden = ActivationQuantizer(data, config["batch_num"])
            wrapper: QuantizedLayer = QuantizedRnn(*arguments, hidden=hidden)
        else:
            bn_name = net.batch_norm.get(name)
            bn = model.get_submodule(bn_name) if bn_name else None
            wrapper = QuantizedWeight(*arguments, batch_norm=bn, batch_norm_name=bn_name or "")
            if bn_name:
                put(model, bn_name, nn.Identity())
        reference = next(iter(module.parameters()), None)
        put(model, name, wrapper if reference is None else wrapper.to(reference.device))
        wrapper.train(module.training)


def _modify(config_file: str, model: nn.Module, record_file: str, input_data: Any) -> nn.Module:
    global _current
    for path, parameter in ((config_file, "config_file"), (record_file, "record_file")):
        check_file_name(path, parameter)
    check_input_data(input_data)
    _must_be_float(model)
    try:
        model = copy.deepcopy(model)
    except (RuntimeError, TypeError) as e:
        warnings.warn(f"the model cannot be copied and is modified itself: {e}", stacklevel=3)
    network = unwrap(model)
    net = look_at(network, input_data)
    config = configs.parse(config_file, net)
    recorder = Recorder(record_file, list(net.layers))
    recorder.clear()
    _wrap(net, network, config, recorder)
    network.register_forward_hook(recorder.after_forward)
    _current = config
    return model


@typed(config_file=str, model=nn.Module, record_file=str)
def create_quant_retrain_model(
    config_file: str, model: nn.Module, record_file: str, input_data: Any
) -> nn.Module:
    """A copy of the model to train: the layers that the configuration enables quantize their inputs
    and weights. A pass in evaluation mode after training writes `record_file`."""
    return _modify(config_file, model, record_file, input_data)


@typed(config_file=str, model=nn.Module, record_file=str, pth_file=str, state_dict_name=str | None)
def restore_quant_retrain_model(
    config_file: str,
    model: nn.Module,
    record_file: str,
    input_data: Any,
    pth_file: str,
    state_dict_name: str | None = None,
) -> nn.Module:
    """The same with the parameters of a checkpoint, `pth_file`: a state dict, or a dictionary that has
    it under `state_dict_name`."""
    check_file_name(pth_file, "pth_file")
    modified = _modify(config_file, model, record_file, input_data)
    checkpoint = torch.load(os.path.realpath(pth_file), map_location="cpu", weights_only=True)
    if state_dict_name is not None:
        if state_dict_name not in checkpoint:
            raise KeyError(f"state_dict_name: '{state_dict_name}' is not in {pth_file}")
        checkpoint = checkpoint[state_dict_name]
    prefix = "module."
    if all(key.startswith(prefix) for key in checkpoint):
        checkpoint = {key.removeprefix(prefix): value for key, value in checkpoint.items()}
    unwrap(modified).load_state_dict(checkpoint)
    return modified
