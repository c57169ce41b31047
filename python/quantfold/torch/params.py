# SPDX-License-Identifier: Apache-2.0
"""What the reference's functions demand of their parameters, and the exceptions that say so.

The types are checked first, in the order of the signature, then the names of files; the rest is
checked where it is used. Every message names the function or the parameter at fault.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_FILE_NAME = 254
LONGEST_PREFIX = 241  # leaves room for what is appended to it


def _type_names(wanted: type | types.UnionType) -> str:
    kinds = wanted.__args__ if isinstance(wanted, types.UnionType) else (wanted,)
    return " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)


def typed(**wanted: type | types.UnionType) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function so that a named argument of another type is a TypeError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in wanted and not isinstance(value, wanted[name]):
                    raise TypeError(
                        f"{function.__name__}: argument '{name}' must be "
                        f"{_type_names(wanted[name])}, not {type(value).__name__}"
                    )
            return function(*args, **kwargs)

        return checked

    return decorate


def check_file_name(path: str, parameter: str) -> None:
    """A path that ends in a file name of at most 254 characters; whether it exists is not asked."""
    if path == "":
        raise ValueError(f"{parameter} must not be an empty string")
    if path.endswith("/"):
        raise ValueError(f"{parameter} must name a file; '{path}' names a folder")
    name = os.path.basename(os.path.realpath(path))
    if not 1 <= len(name) <= LONGEST_FILE_NAME:
        raise ValueError(
            f"{parameter}: the file name '{name}' must have 1 to {LONGEST_FILE_NAME} characters"
        )


def check_save_path(save_path: str) -> None:
    """A folder, or a folder and a prefix of at most 241 characters."""
    if save_path == "" or save_path.endswith("/"):
        return
    prefix = os.path.basename(os.path.realpath(save_path))
    if len(prefix) > LONGEST_PREFIX:
        raise ValueError(
            f"save_path: the prefix '{prefix}' must have at most {LONGEST_PREFIX} characters"
        )


def check_input_data(input_data: object) -> None:
    """What a model is called with: one tensor or a tuple."""
    if not isinstance(input_data, (tuple, torch.Tensor)):
        raise RuntimeError(
            f"input_data must be a tuple or a torch.Tensor, not {type(input_data).__name__}"
        )


def check_tensor_names(names: Sequence[object] | None, parameter: str) -> None:
    """input_names or output_names: strings."""
    for name in names or ():
        if not isinstance(name, str):
            raise RuntimeError(
                f"{parameter} must be a list of strings; it holds a {type(name).__name__}"
            )


def _check_axes(tensor: str, axes: Iterable[object]) -> None:
    for axis in axes:
        if not isinstance(axis, int):
            raise RuntimeError(
                f"dynamic_axes: the axes of '{tensor}' must be int, not {type(axis).__name__}"
            )
        if axis < 0:
            raise RuntimeError(
                f"dynamic_axes: axis {axis} of '{tensor}' must not be a negative number"
            )


def check_dynamic_axes(dynamic_axes: Mapping[Any, Any] | None) -> None:
    """{tensor: {axis: label}} or {tensor: [axis, ...]}."""
    for tensor, axes in (dynamic_axes or {}).items():
        if not isinstance(tensor, str):
            raise RuntimeError(
                f"dynamic_axes: its keys must be names of tensors, not {type(tensor).__name__}"
            )
        if not isinstance(axes, (dict, list)):
            raise RuntimeError(
                f"dynamic_axes: '{tensor}' must have a dict of int to str or a list of int, "
                f"not {type(axes).__name__}"
            )
        labels = axes.values() if isinstance(axes, dict) else ()
        for label in labels:
            if not isinstance(label, str):
                raise RuntimeError(
                    f"dynamic_axes: the labels of '{tensor}' must be str, "
                    f"not {type(label).__name__}"
                )
        _check_axes(tensor, axes)
