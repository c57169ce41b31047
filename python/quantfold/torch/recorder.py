# SPDX-License-Identifier: Apache-2.0
"""The record file: what a network's layers were quantized with, written as they are found."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np
from torch import nn

FIELDS = (
    *("scale_d", "offset_d", "scale_w", "offset_w", "act_type", "wts_type"),
    *("scale_h", "offset_h", "scale_r", "offset_r"),
)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return str(value) if isinstance(value, int) else str(np.float32(value))


def _entry(name: str, values: dict[str, Any]) -> str:
    lines = ["record {", f'  key: "{name}"', "  value {"]
    for field in FIELDS:
        given = values.get(field, [])
        for value in given if isinstance(given, list) else [given]:
            lines.append(f"    {field}: {_value(value)}")
    return "\n".join([*lines, "  }", "}", ""])


class Recorder:
    """Collects the records of a model's layers, in the model's order, and writes them after a pass
    in which one changed. The file is always whole: it is replaced by a rename."""

    def __init__(self, record_file: str, layers: list[str]):
        self.record_file = os.path.realpath(record_file)
        self.order = {name: i for i, name in enumerate(layers)}
        self.records: dict[str, dict[str, Any]] = {}
        self.changed = False

    def clear(self) -> None:
        """An empty file, mode 0640, in a folder that is made if it is missing."""
        os.makedirs(os.path.dirname(self.record_file), mode=0o750, exist_ok=True)
        self.records = {}
        self._write()

    def put(self, name: str, values: dict[str, Any]) -> None:
        self.records[name] = values
        self.changed = True

    def after_forward(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook of the whole model."""
        if self.changed:
            self._write()
            self.changed = False

    def _write(self) -> None:
        names = sorted(self.records, key=lambda name: self.order[name])
        text = "".join(_entry(name, self.records[name]) for name in names)
        folder, base = os.path.split(self.record_file)
        fd, temporary = tempfile.mkstemp(prefix=f".{base}.", dir=folder)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(temporary, 0o640)
            os.replace(temporary, self.record_file)
        except BaseException:
            os.unlink(temporary)
            raise
