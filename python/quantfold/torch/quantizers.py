# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of quantization-aware training: scales, fake quantization, and its gradients.

ULQ learns the clips of activations, and of weights the scales; ARQ takes the scale of weights from their
extremes. Rounding is
the export's: to even, activations times the float32 reciprocal of the scale, weights divided by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


def limits(bits: int) -> tuple[int, int]:
    """The least and the greatest integer."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def activation_scale(clip_max: Tensor, clip_min: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (a whole number, as float) of the range, which is widened to hold 0."""
    low, _ = limits(bits)
    high, least = clip_max.detach().float().clamp(min=0), clip_min.detach().float().clamp(max=0)
    scale = (high - least) / (2**bits - 1)
    offset = torch.round(low - least / scale)
    empty = scale < EPSILON
    return (
        torch.where(empty, torch.ones_like(scale), scale),
        torch.where(empty, torch.full_like(offset, low), offset),
    )


def weight_scale(rows: Tensor, bits: int) -> Tensor:
    """ARQ: the greatest magnitude of each row over 2^(bits-1) - 1 steps, one more if it is negative."""
    high, low = rows.amax(dim=1).float(), rows.amin(dim=1).float()
    steps = torch.where(high.abs() < low.abs(), 2.0 ** (bits - 1), 2.0 ** (bits - 1) - 1)
    scale = torch.maximum(high.abs(), low.abs()) / steps
    return torch.where(scale < EPSILON, torch.ones_like(scale), scale)


class UlqActivation(torch.autograd.Function):
    """Fake quantization of activations whose clips are learned.

    The gradient of the clips is that of Uniform Learned Quantization: where a value is clipped, that
    of the output; elsewhere that of the rounding error, which a change of the range moves.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip_max: Tensor, clip_min: Tensor, bits: int) -> Tensor:
        scale, offset = activation_scale(clip_max, clip_min, bits)
        low, high = limits(bits)
        ctx.save_for_backward(x, clip_max, clip_min, scale, offset)
        ctx.bits = bits
        q = torch.clamp(torch.round(x * (1 / scale)) + offset, low, high)
        return (q - offset) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        x, clip_max, clip_min, scale, offset = ctx.saved_tensors
        low, high = limits(ctx.bits)
        above, below = x > scale * (high - offset), x < scale * (low - offset)
        clipped = torch.where(above, clip_max, torch.where(below, clip_min, x)) / scale
        error = (torch.round(clipped) - clipped) / (2**ctx.bits - 1)
        return (
            grad.masked_fill(above | below, 0.0),
            ((error + above) * grad).sum().reshape(clip_max.shape),
            ((below.to(grad.dtype) - error) * grad).sum().reshape(clip_min.shape),
            None,
        )


class ArqWeight(torch.autograd.Function):
    """Fake quantization of weights, given as rows with a scale each; gradients pass through."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, bits: int) -> Tensor:
        low, high = limits(bits)
        scale = scale.unsqueeze(1)
        return torch.clamp(torch.round(rows / scale), low, high) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


class UlqWeight(torch.autograd.Function):
    """The same with scales that are learned: their gradient is that of the rounding error inside the
    range and of the bounds outside, over the square root of a row's length times the greatest
    integer."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(rows, scale)
        ctx.bits = bits
        low, high = limits(bits)
        scale = scale.unsqueeze(1)
        return torch.clamp(torch.round(rows / scale), low, high) * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        rows, scale = ctx.saved_tensors
        low, high = limits(ctx.bits)
        steps = rows / scale.unsqueeze(1)
        moved = torch.where(
            steps > high, high, torch.where(steps < low, low, steps.round() - steps)
        )
        weight = (rows.shape[1] * high) ** -0.5
        return grad, (moved * grad).sum(1) * weight, None


def initial_clips(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Clips to begin with: of symmetric ranges from 0.7 to 1.3 times the greatest magnitude (but for
    one value in a million), the one whose rounding and clipping costs least in the mean square."""
    flat = values.detach().float().reshape(-1)
    outliers = max(1, flat.numel() - int(0.999999 * flat.numel()))
    high = torch.topk(flat, outliers).values[-1].clamp(min=0)
    low = torch.topk(flat, outliers, largest=False).values[-1].clamp(max=0)
    steps = 2.0 ** (bits - 1) - (0.0 if high.abs() < low.abs() else 1.0)
    bounds = torch.arange(0.7, 1.3, 0.01, device=flat.device) * torch.maximum(high.abs(), low.abs())
    scales = bounds / steps
    scales = torch.where(scales < EPSILON, torch.ones_like(scales), scales)
    costs = []
    for bound, scale in zip(bounds, scales):
        rounded = torch.round(flat.clamp(-bound, bound) / scale) * scale
        costs.append(torch.mean((rounded - flat) ** 2))
    scale = scales[torch.stack(costs).argmin()]
    least, most = limits(bits)
    return most * scale, least * scale
