# SPDX-License-Identifier: Apache-2.0
"""Which modules of a network can be quantized, and how they hang together in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
RNNS = (nn.LSTM, nn.GRU)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# the reference's list, which configs are made for; the others may stand in a config
LISTED = {
    *("Conv1d", "Conv2d", "Conv3d", "Linear"),
    *("ConvTranspose1d", "ConvTranspose2d", "LSTM", "GRU"),
}
ACCEPTED = LISTED | {"ConvTranspose3d", "AvgPool1d", "AvgPool2d", "AvgPool3d"}
CHANNEL_WISE = LISTED - {"Linear"} | {"ConvTranspose3d"}


def kind(module: nn.Module) -> str:
    """The name of its type, as configs have it."""
    return type(module).__name__


@dataclass
class Network:
    """What a run of the model on sample input has shown."""

    layers: dict[str, nn.Module]  # those that can be quantized, in the order of named_modules
    refused: dict[str, str]  # layers of an accepted type that cannot be, and why
    batch_norm: dict[str, str] = field(default_factory=dict)  # of a conv: the one that reads it
    same_input: dict[str, str] = field(default_factory=dict)  # layer: the first that reads the same


class _Uses(TorchFunctionMode):
    """Counts how often functions read tensors; looking at a shape is not reading. Tensors are kept
    alive: the id of one that is gone may be that of another."""

    LOOKS = {"__get__", "size", "dim", "numel", "is_floating_point", "is_complex", "stride"}

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") not in self.LOOKS:
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, Tensor):
                    self.count[id(leaf)] += 1
                    self.kept.append(leaf)
        return func(*args, **(kwargs or {}))


class _Run:
    """One forward pass, watched by hooks. Tensors are kept alive, so that an id means one tensor."""

    def __init__(self, model: nn.Module):
        self.names = {module: name for name, module in model.named_modules()}
        self.calls: Counter[str] = Counter()
        self.read: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.kept: list[Any] = []
        self.uses = _Uses()

    def hook(self, module: nn.Module, inputs: Any, output: Any) -> None:
        name = self.names[module]
        self.calls[name] += 1
        self.kept += [inputs, output]
        if inputs and isinstance(inputs[0], Tensor):
            self.read[name] = inputs[0]
        if isinstance(output, Tensor):
            self.made[name] = output


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; each module's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, input_data: Any) -> tuple[_Run, Any]:
    run = _Run(model)
    handles = [
        module.register_forward_hook(run.hook)
        for module in run.names
        if kind(module) in ACCEPTED or isinstance(module, BATCH_NORMS)
    ]
    arguments = input_data if isinstance(input_data, tuple) else (input_data,)
    try:
        with evaluating(model), run.uses:
            output = model(*arguments)
    finally:
        for handle in handles:
            handle.remove()
    return run, output


def _why_not(module: nn.Module, name: str, run: _Run, shared: set[int]) -> str:
    """Why a module cannot be quantized; "" if it can: facts of the reference, part 6."""
    if run.calls[name] != 1:
        return "it is not called exactly once"
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        return "it shares its weights with another module"
    if isinstance(module, CONVS + TRANSPOSED):
        if module.padding_mode != "zeros":
            return f"its padding mode is {module.padding_mode}"
        if run.read[name].dim() != module.weight.dim():
            return "its input has no batch axis"
    if isinstance(module, nn.Conv3d) and module.dilation[0] != 1:
        return "it is dilated along its first axis"
    if isinstance(module, RNNS) and (
        module.num_layers != 1 or module.bidirectional or module.dropout or module.proj_size
    ):
        return "only one layer, one direction, no dropout and no projection are supported"
    return ""


def _batch_norms(run: _Run, model: nn.Module, output: Any, net: Network) -> dict[str, str]:
    """For each conv whose output a batch norm alone reads, that batch norm."""
    results = {id(t) for t in tree_leaves(output) if isinstance(t, Tensor)}
    readers = {
        id(run.read[name]): name
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and run.calls[name] == 1
    }
    found = {}
    for name, module in net.layers.items():
        made = run.made.get(name)
        if not isinstance(module, CONVS) or made is None or id(made) in results:
            continue
        if id(made) in readers and run.uses.count[id(made)] == 1:
            found[name] = readers[id(made)]
    return found


def look_at(model: nn.Module, input_data: Any) -> Network:
    """Runs the model once and finds its layers."""
    run, output = _run(model, input_data)
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    shared = {i for i, n in owners.items() if n > 1}
    net = Network({}, {})
    for name, module in model.named_modules():
        if kind(module) not in ACCEPTED:
            continue
        why = _why_not(module, name, run, shared)
        if why:
            net.refused[name] = why
        else:
            net.layers[name] = module
    net.batch_norm = _batch_norms(run, model, output, net)
    first: dict[int, str] = {}
    for name in net.layers:
        owner = first.setdefault(id(run.read[name]), name)
        if owner != name:
            net.same_input[name] = owner
    return net
