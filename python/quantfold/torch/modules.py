# SPDX-License-Identifier: Apache-2.0
"""Layers under quantization-aware training: each wraps the float module that it stands for, whose
parameters are what is trained, and quantizes its input and its weights on the way."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .layers import POOLS, TRANSPOSED, kind
from .quantizers import (
    EPSILON,
    ArqWeight,
    UlqActivation,
    UlqWeight,
    activation_scale,
    initial_clips,
    weight_scale,
)
from .recorder import Recorder

GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # ONNX's order of torch's gates


def bits_of(config: dict[str, Any]) -> int:
    return int(config["dst_type"].removeprefix("INT"))


class ActivationQuantizer(nn.Module):
    """Fake quantization of activations with learned clips. Unless the config has clips, they are
    found from the first `batch_num` batches; until then each batch is quantized by its own range.
    """

    batches: Tensor

    def __init__(self, config: dict[str, Any], batch_num: int):
        super().__init__()
        self.bits = bits_of(config)
        self.fixed_min = bool(config.get("fixed_min", False))
        given = "clip_max" in config
        self.batch_num = 0 if given else batch_num
        self.clip_max = nn.Parameter(torch.tensor(float(config.get("clip_max", 1.0))))
        self.clip_min = nn.Parameter(torch.tensor(float(config.get("clip_min", -1.0))))
        self.register_buffer("batches", torch.tensor(0))
        self.seen: list[Tensor] = []

    @property
    def ready(self) -> bool:
        return int(self.batches) >= self.batch_num

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Takes a batch into account."""
        self.seen.append(x.detach().float().reshape(-1).cpu())
        self.batches += 1
        if not self.ready:
            self.clip_max.copy_(x.max())
            self.clip_min.copy_(x.min())
            return
        high, low = initial_clips(torch.cat(self.seen), self.bits)
        self.clip_max.copy_(high)
        self.clip_min.copy_(low)
        self.seen = []

    def clips(self) -> tuple[Tensor, Tensor]:
        low = torch.zeros_like(self.clip_min) if self.fixed_min else self.clip_min
        return self.clip_max, low

    def factors(self) -> tuple[float, int]:
        """scale and offset, as a record has them."""
        scale, offset = activation_scale(*self.clips(), self.bits)
        return float(scale), int(offset)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, UlqActivation.apply(x, *self.clips(), self.bits))  # type: ignore[no-untyped-call]


class WeightQuantizer(nn.Module):
    """Fake quantization of a weight, given as a row for each output channel, with a scale for each or
    one for all: by ARQ from the extremes of the moment, by ULQ learned, from those of the first."""

    started: Tensor

    def __init__(self, config: dict[str, Any], channels: int):
        super().__init__()
        self.bits = bits_of(config)
        self.channel_wise = bool(config["channel_wise"])
        self.learned = config["algo"] == "ulq_retrain"
        if self.learned:
            self.scale = nn.Parameter(torch.ones(channels if self.channel_wise else 1))
            self.register_buffer("started", torch.tensor(False))

    def scales(self, rows: Tensor) -> Tensor:
        if self.learned and bool(self.started):
            return self.scale.clamp(min=EPSILON)
        found = rows.detach() if self.channel_wise else rows.detach().reshape(1, -1)
        return weight_scale(found, self.bits)

    def forward(self, rows: Tensor) -> Tensor:
        if self.learned and not bool(self.started):
            with torch.no_grad():
                self.scale.copy_(self.scales(rows))
                self.started.fill_(True)
        function = UlqWeight if self.learned else ArqWeight
        scales = self.scales(rows).expand(rows.shape[0])
        return cast(Tensor, function.apply(rows, scales, self.bits))  # type: ignore[no-untyped-call]


class QuantizedLayer(nn.Module):
    """What all have in common. `module` is the float module; `owns_input`: no earlier layer with the
    same quantizer reads the same tensor."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: dict[str, Any],
        activation: ActivationQuantizer,
        owns_input: bool,
        recorder: Recorder,
    ):
        super().__init__()
        self.name, self.config, self.recorder = name, config, recorder
        self.module, self.activation, self.owns_input = module, activation, owns_input
        self.recorded = False

    def common(self) -> dict[str, Any]:
        scale, offset = self.activation.factors()
        return {
            "scale_d": scale,
            "offset_d": offset,
            "act_type": self.config["retrain_data_config"]["dst_type"],
            "wts_type": self.config["retrain_weight_config"]["dst_type"],
        }

    def factors(self) -> dict[str, Any]:
        """The layer's record."""
        raise NotImplementedError

    def finish(self) -> None:
        """Records once for each time that training has ended."""
        if self.training:
            self.recorded = False
        elif self.activation.ready and not self.recorded:
            self.recorder.put(self.name, self.factors())
            self.recorded = True


def zeros(scales: list[float]) -> list[int]:
    return [0] * len(scales)


class QuantizedWeight(QuantizedLayer):
    """Convolutions, transposed convolutions, linear layers and average pooling. A batch norm that
    alone reads a convolution is called from here; the record is of the folded weight."""

    def __init__(self, *args: Any, batch_norm: nn.Module | None = None, batch_norm_name: str = ""):
        super().__init__(*args)
        self.batch_norm, self.batch_norm_name = batch_norm, batch_norm_name
        if not isinstance(self.module, POOLS):
            channels = self.rows(cast(Tensor, self.module.weight)).shape[0]
            self.weight = WeightQuantizer(self.config["retrain_weight_config"], channels)

    def rows(self, weight: Tensor) -> Tensor:
        """A row for each output channel."""
        if isinstance(self.module, TRANSPOSED):
            groups = self.module.groups
            weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = weight.transpose(1, 2).flatten(0, 1)
        return weight.flatten(1)

    def from_rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        if not isinstance(self.module, TRANSPOSED):
            return rows.reshape(weight.shape)
        groups = self.module.groups
        shape = (groups, weight.shape[1], weight.shape[0] // groups, *weight.shape[2:])
        return rows.reshape(shape).transpose(1, 2).reshape(weight.shape)

    def quantized(self, weight: Tensor) -> Tensor:
        return self.from_rows(self.weight(self.rows(weight)), weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.owns_input and not self.activation.ready:
            self.activation.calibrate(x)
        x = self.activation(x)
        if isinstance(self.module, POOLS):
            y = self.module(x)
        else:
            weight = cast(Tensor, self.module.weight)
            y = functional_call(self.module, {"weight": self.quantized(weight)}, (x,))
        if self.batch_norm is not None:
            y = self.batch_norm(y)
        self.finish()
        return cast(Tensor, y)

    def factors(self) -> dict[str, Any]:
        scales = torch.ones(1)
        if not isinstance(self.module, POOLS):
            rows = self.rows(cast(Tensor, self.module.weight))
            scales = self.weight.scales(rows).detach()
        bn = cast(Any, self.batch_norm)
        if bn is not None:
            factor = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
            scales = scales * factor.detach().abs()
            scales = torch.where(scales < EPSILON, torch.ones_like(scales), scales)
        values = scales.tolist()
        return self.common() | {"scale_w": values, "offset_w": zeros(values)}


class QuantizedRnn(QuantizedLayer):
    """LSTM and GRU: the input and the hidden state of every step are quantized, and both weights, by
    gate rows or as a whole."""

    def __init__(self, *args: Any, hidden: ActivationQuantizer):
        super().__init__(*args)
        self.hidden = hidden
        channels = cast(Tensor, self.module.weight_ih_l0).shape[0]
        weight = self.config["retrain_weight_config"]
        self.weight, self.recurrence = (WeightQuantizer(weight, channels) for _ in range(2))

    def _calibrate(self, x: Tensor, hx: Any, h: Tensor) -> None:
        """The hidden state is seen at every step, as the float module makes it."""
        with torch.no_grad():
            states = self.module(x, hx)[0]
        steps = states.transpose(0, 1) if cast(nn.LSTM, self.module).batch_first else states
        if not self.activation.ready:
            self.activation.calibrate(x)
        if not self.hidden.ready:
            self.hidden.calibrate(torch.cat([h, steps[:-1]]))

    def forward(self, x: Tensor, hx: Any = None) -> Any:
        if x.dim() != 3 or hx is None:
            raise ValueError(
                f"layer '{self.name}' takes a batch of sequences, 3 axes, and its initial state"
            )
        lstm = isinstance(self.module, nn.LSTM)
        module = cast(nn.LSTM, self.module)
        h, c = (hx[0], hx[1]) if lstm else (hx, hx)  # of a GRU, c goes along unused
        if not (self.activation.ready and self.hidden.ready):
            self._calibrate(x, hx, h)
        weights = self.weight(module.weight_ih_l0), self.recurrence(module.weight_hh_l0)
        biases = (module.bias_ih_l0, module.bias_hh_l0) if module.bias else (None, None)
        h, c, made = h[0], c[0], []
        for step in self.activation(x).unbind(1 if module.batch_first else 0):
            state = self.hidden(h)
            if lstm:
                h, c = torch.lstm_cell(step, (state, c), *weights, *biases)
            else:
                h = torch.gru_cell(step, state, *weights, *biases)
            made.append(h)
        output = torch.stack(made, 1 if module.batch_first else 0)
        self.finish()
        last = h.unsqueeze(0)
        return output, (last, c.unsqueeze(0)) if lstm else last

    def _in_onnx_order(self, scale: Tensor) -> list[float]:
        gates = GATES[kind(self.module)]
        if scale.numel() == 1:
            return cast("list[float]", scale.expand(len(gates)).tolist())
        parts = scale.chunk(len(gates))
        return cast("list[float]", torch.cat([parts[i] for i in gates]).tolist())

    def factors(self) -> dict[str, Any]:
        module = cast(Any, self.module)
        scale_w = self._in_onnx_order(self.weight.scales(module.weight_ih_l0).detach())
        scale_r = self._in_onnx_order(self.recurrence.scales(module.weight_hh_l0).detach())
        scale_h, offset_h = self.hidden.factors()
        return self.common() | {
            **{"scale_w": scale_w, "offset_w": zeros(scale_w)},
            **{"scale_h": scale_h, "offset_h": offset_h},
            **{"scale_r": scale_r, "offset_r": zeros(scale_r)},
        }
