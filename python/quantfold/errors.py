# SPDX-License-Identifier: Apache-2.0
"""What goes wrong, and what is found about the inputs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Diagnostic:
    """One finding about the inputs."""

    severity: str  # "warning" or "error"
    message: str
    file: str = ""
    item: str = ""  # layer, tensor or key
    line: int = 0  # 1-based; 0: none
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (place, self.item, self.message) if part)


@dataclass(eq=False)
class QuantfoldError(Exception):
    """A failed call. `message` is a whole sentence; the other attributes tell its parts."""

    message: str
    status: str = "input"  # "input", "usage", "system", "memory" or "cancelled"
    file: str = ""
    item: str = ""
    line: int = 0
    column: int = 0
    byte: int | None = None
    errno: int = 0
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def __str__(self) -> str:
        return self.message

    def __post_init__(self) -> None:
        self.args = (self.message,)


class InputError(QuantfoldError, ValueError):
    """A file or a request is wrong; another try with the same fails too."""


class UsageError(QuantfoldError, ValueError):
    """The call itself is wrong."""


class SystemFailure(QuantfoldError, OSError):  # type: ignore[misc]
    """The system refused: no space, no permission, an I/O error."""


class OutOfMemory(QuantfoldError, MemoryError):
    """An allocation failed."""


class Cancelled(QuantfoldError):
    """The progress callback asked to stop; nothing was written."""


BY_STATUS: dict[int, tuple[str, type[QuantfoldError]]] = {
    -1: ("input", InputError),
    -2: ("usage", UsageError),
    -3: ("system", SystemFailure),
    -4: ("memory", OutOfMemory),
    -5: ("cancelled", Cancelled),
}
