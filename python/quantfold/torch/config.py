# SPDX-License-Identifier: Apache-2.0
"""The QAT ("retrain") configuration: making it, from defaults or a short definition, and reading it
with the reference's rules and exceptions."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from .layers import CHANNEL_WISE, LISTED, Network, kind

Config = dict[str, Any]
GLOBAL = ("version", "batch_num", "fakequant_precision_mode")
COMBINATIONS = {("INT4", "INT4"), ("INT8", "INT8"), ("INT16", "INT8"), ("INT8", "INT4")}

# ---- making one --------------------------------------------------------------------------------


def default_layer(module: nn.Module) -> Config:
    """What a layer has unless a definition says otherwise."""
    return {
        "retrain_enable": True,
        "retrain_data_config": {"algo": "ulq_quantize", "dst_type": "INT8"},
        "retrain_weight_config": {
            "algo": "arq_retrain",
            "channel_wise": kind(module) in CHANNEL_WISE,
            "dst_type": "INT8",
        },
    }


def _can_pack(module: nn.Module) -> bool:
    """INT4 weights are packed in pairs along the input channels."""
    if isinstance(module, nn.Linear):
        return module.in_features % 2 == 0
    if isinstance(module, (nn.LSTM, nn.GRU)):
        return module.input_size % 2 == 0 and module.hidden_size % 2 == 0
    groups, channels = getattr(module, "groups", 1), getattr(module, "in_channels", 2)
    return groups == 1 and channels % 2 == 0


def make(net: Network, definition: str | None = None) -> Config:
    """The configuration of a network's listed layers."""
    listed = {name: m for name, m in net.layers.items() if kind(m) in LISTED}
    config: Config = {"version": 1, "batch_num": 1}
    if definition is None:
        return config | {name: default_layer(m) for name, m in listed.items()}
    given = _read_definition(definition)
    if given.fakequant_precision_mode:
        config = {"version": 1, "fakequant_precision_mode": "FORCE_FP16_QUANT", "batch_num": 1}
    if given.HasField("batch_num"):
        config["batch_num"] = given.batch_num
    _check_names(given, net)
    for name, module in listed.items():
        config[name] = _defined_layer(given, name, module)
    check(config, net)
    return config


def write(config: Config, config_file: str) -> None:
    """The reference's form of JSON."""
    text = json.dumps(config, indent=4, separators=(",", ":"))
    Path(config_file).write_text(text, encoding="utf-8")


# ---- the short definition ----------------------------------------------------------------------

_SCALARS = {"uint32": 13, "string": 9, "float": 2, "bool": 8}
_ENUMS = {"DataType": ["INT4", "INT8", "INT16"], "Precision": ["DEFAULT", "FORCE_FP16_QUANT"]}
_MESSAGES: dict[str, dict[str, str]] = {
    "Clips": {"clip_max": "float", "clip_min": "float"},
    "Ulq": {"clip_max_min": "Clips", "fixed_min": "bool", "dst_type": "DataType"},
    "Weights": {"dst_type": "DataType", "channel_wise": "bool"},
    "DataConfig": {"ulq_quantize": "Ulq"},
    "WeightConfig": {"arq_retrain": "Weights", "ulq_retrain": "Weights"},
    "Override": {
        "layer_name": "string",
        "layer_type": "string",
        "retrain_data_quant_config": "DataConfig",
        "retrain_weight_quant_config": "WeightConfig",
    },
    "Definition": {
        "batch_num": "uint32",
        "retrain_data_quant_config": "DataConfig",
        "retrain_weight_quant_config": "WeightConfig",
        "skip_layers": "*string",
        "skip_layer_types": "*string",
        "override_layer_configs": "*Override",
        "override_layer_types": "*Override",
        "quant_skip_layers": "*string",
        "quant_skip_types": "*string",
        "fakequant_precision_mode": "Precision",
    },
}


@cache
def _definition_class() -> Any:
    """The definition's message, described at run time: its text names fields and has no numbers."""
    from google.protobuf import (  # type: ignore[import-untyped]
        descriptor_pb2,
        descriptor_pool,
        message_factory,
    )

    file = descriptor_pb2.FileDescriptorProto(name="quantfold_definition.proto", package="qf")
    for name, words in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for i, word in enumerate(words):
            enum.value.add(name=word, number=i)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for i, (key, wanted) in enumerate(fields.items(), 1):
            base = wanted.lstrip("*")
            field = message.field.add(name=key, number=i, label=3 if wanted[0] == "*" else 1)
            field.type = _SCALARS.get(base, 14 if base in _ENUMS else 11)
            if base not in _SCALARS:
                field.type_name = f".qf.{base}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("qf.Definition"))


def _read_definition(path: str) -> Any:
    from google.protobuf import text_format

    message = _definition_class()()
    try:
        text_format.Merge(Path(path).read_text(encoding="utf-8"), message)
    except text_format.ParseError as e:
        raise RuntimeError(f"config_defination: {path} cannot be read: {e}") from e
    return message


def _check_names(given: Any, net: Network) -> None:
    for names in (given.skip_layers, given.quant_skip_layers):
        for name in names:
            if name not in net.layers:
                raise ValueError(f"config_defination: there is no layer '{name}' to skip")
    for override in given.override_layer_configs:
        if override.layer_name not in net.layers:
            raise ValueError(f"config_defination: there is no layer '{override.layer_name}'")


def _defined_layer(given: Any, name: str, module: nn.Module) -> Config:
    layer = default_layer(module)
    sources = [given]
    sources += [o for o in given.override_layer_types if o.layer_type == kind(module)]
    sources += [o for o in given.override_layer_configs if o.layer_name == name]
    source = sources[-1]  # what an override does not say is the default, not what all have
    if source.HasField("retrain_data_quant_config"):
        layer["retrain_data_config"] = _data(source.retrain_data_quant_config.ulq_quantize)
    if source.HasField("retrain_weight_quant_config"):
        layer["retrain_weight_config"] = _weights(source.retrain_weight_quant_config, module)
    skipped = [*given.skip_layers, *given.quant_skip_layers]
    types = [*given.skip_layer_types, *given.quant_skip_types]
    if source is given:  # an override counts for more than being skipped
        layer["retrain_enable"] = name not in skipped and kind(module) not in types
    weight = layer["retrain_weight_config"]
    if weight["dst_type"] == "INT4" and not _can_pack(module):
        warnings.warn(
            f"layer '{name}': INT4 weights are packed in pairs along the input channels, of which it "
            "has an odd number or groups; INT8 is used",
            stacklevel=2,
        )
        weight["dst_type"] = "INT8"
    return layer


def _data(ulq: Any) -> Config:
    data: Config = {"algo": "ulq_quantize"}
    if ulq.HasField("clip_max_min"):
        data["clip_max"] = ulq.clip_max_min.clip_max
        data["clip_min"] = ulq.clip_max_min.clip_min
    if ulq.HasField("fixed_min"):
        data["fixed_min"] = ulq.fixed_min
    data["dst_type"] = _ENUMS["DataType"][ulq.dst_type] if ulq.HasField("dst_type") else "INT8"
    return data


def _weights(given: Any, module: nn.Module) -> Config:
    algo = "ulq_retrain" if given.HasField("ulq_retrain") else "arq_retrain"
    fields = getattr(given, algo)
    per_channel = kind(module) in CHANNEL_WISE
    return {
        "algo": algo,
        "channel_wise": fields.channel_wise if fields.HasField("channel_wise") else per_channel,
        "dst_type": _ENUMS["DataType"][fields.dst_type] if fields.HasField("dst_type") else "INT8",
    }


# ---- reading one -------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> Config:
    found: Config = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"config_file: '{key}' is given twice; delete repeated items")
        found[key] = value
    return found


def parse(config_file: str, net: Network) -> Config:
    """The file's configuration with every default filled in; layers that it does not list are
    disabled. FileNotFoundError, json.JSONDecodeError, ValueError, TypeError or RuntimeError."""
    with open(config_file, encoding="utf-8") as file:
        given = json.load(file, object_pairs_hook=_unique)
    if not isinstance(given, dict):
        raise ValueError("config_file: a JSON object is expected")
    check(given, net)
    config: Config = {key: given[key] for key in GLOBAL if key in given}
    config.setdefault("fakequant_precision_mode", "DEFAULT")
    for name, module in net.layers.items():
        if name in given:
            config[name] = _filled(given[name], module)
        elif kind(module) in LISTED:
            config[name] = default_layer(module) | {"retrain_enable": False}
    return config


def _filled(given: Config, module: nn.Module) -> Config:
    layer = default_layer(module)
    layer["retrain_enable"] = given.get("retrain_enable", True)
    for part in ("retrain_data_config", "retrain_weight_config"):
        layer[part] |= given.get(part, {})
    return layer


def check(config: Config, net: Network) -> None:
    """Raises what the reference raises for a configuration that is wrong."""
    _check_global(config)
    enabled = False
    for name, layer in config.items():
        if name in GLOBAL:
            continue
        if not isinstance(layer, dict):
            raise ValueError(
                f"config_file: '{name}' is not valid config, its value should be a dict"
            )
        if name not in net.layers:
            why = net.refused.get(name, "the model has no such layer")
            raise ValueError(f"config_file: unsupported layer '{name}': {why}")
        _check_layer(name, layer, net.layers[name])
        enabled |= layer.get("retrain_enable", True)
    if not enabled:
        raise ValueError("config_file: No layer retrain enabled")


def _check_global(config: Config) -> None:
    for key in ("version", "batch_num"):
        if key not in config:
            raise ValueError(f"config_file: must has '{key}'")
        if not isinstance(config[key], int):
            raise TypeError(f"config_file: '{key}' must be an int, not {config[key]!r}")
    if config["version"] != 1:
        raise ValueError(f"config_file: 'version' must be 1, not {config['version']}")
    if config["batch_num"] <= 0:
        raise ValueError(f"config_file: 'batch_num' must be above 0, not {config['batch_num']}")
    _word("the model", "fakequant_precision_mode", config, ("DEFAULT", "FORCE_FP16_QUANT"))


def _word(layer: str, key: str, part: Config, words: tuple[str, ...]) -> None:
    if part.get(key, words[0]) not in words:
        raise ValueError(f"config_file: {layer}: '{key}' must be one of {words}, not {part[key]!r}")


def _flag(layer: str, key: str, part: Config) -> None:
    if not isinstance(part.get(key, True), bool):
        raise TypeError(f"config_file: {layer}: '{key}' must be a bool, not {part[key]!r}")


def _known(layer: str, part: Config, what: str, keys: set[str]) -> None:
    if not isinstance(part, dict):
        raise TypeError(f"config_file: {layer}: the {what} config must be a dict")
    if set(part) - keys:
        raise ValueError(f"config_file: {layer}: Invalid keys in {what} config: {set(part) - keys}")


def _check_layer(name: str, layer: Config, module: nn.Module) -> None:
    _flag(name, "retrain_enable", layer)
    if "regular_prune_enable" in layer or "regular_prune_config" in layer:
        raise ValueError(f"config_file: {name}: not expect pruning if prune is disable")
    data, weight = layer.get("retrain_data_config", {}), layer.get("retrain_weight_config", {})
    clips = {"clip_max", "clip_min"}
    both = clips if isinstance(data, dict) and clips <= set(data) else set()
    _known(name, data, "data", {"algo", "fixed_min", "dst_type"} | both)
    _known(name, weight, "weight", {"algo", "channel_wise", "dst_type"})
    _word(name, "algo", data, ("ulq_quantize",))
    _word(name, "algo", weight, ("arq_retrain", "ulq_retrain"))
    _word(name, "dst_type", data, ("INT8", "INT4", "INT16"))
    _word(name, "dst_type", weight, ("INT8", "INT4", "INT16"))
    _flag(name, "fixed_min", data)
    _flag(name, "channel_wise", weight)
    for key in both:
        right = isinstance(data[key], float) and (data[key] > 0) == (key == "clip_max")
        if not right or data[key] == 0:
            sign = "above" if key == "clip_max" else "below"
            raise ValueError(
                f"config_file: {name}: '{key}' must be a float {sign} 0, not {data[key]!r}"
            )
    if weight.get("channel_wise") and kind(module) not in CHANNEL_WISE:
        raise ValueError(f"config_file: {name}: a {kind(module)} layer can not be channewised")
    types = data.get("dst_type", "INT8"), weight.get("dst_type", "INT8")
    if types not in COMBINATIONS:
        raise ValueError(
            f"config_file: {name}: activations {types[0]} and weights {types[1]} do not go "
            "together; A4W4, A8W8, A16W8 and A8W4 do"
        )
    if "AvgPool" in name and types[1] == "INT4" and layer.get("retrain_enable", True):
        raise RuntimeError(f"config_file: {name}: average pooling does not take INT4")
