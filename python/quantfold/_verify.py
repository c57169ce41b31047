# SPDX-License-Identifier: Apache-2.0
"""Whether an export is sound, and that of given inputs."""

from __future__ import annotations

import ctypes
from contextlib import ExitStack
from ctypes import byref
from dataclasses import dataclass, field
from collections.abc import Sequence

from . import _api as a
from . import _library as c
from .errors import Diagnostic

CHECKS = ("structure", "agreement", "manifest", "against", "runnable")


@dataclass(frozen=True)
class Finding(Diagnostic):
    """One thing that is wrong (severity "error"), or that could not be checked ("warning")."""

    check: str = ""  # of CHECKS


@dataclass(frozen=True)
class Verification:
    """What was looked at and found. `sound`: nothing is wrong."""

    sound: bool
    findings: list[Finding]
    done: dict[str, bool] = field(default_factory=dict)  # by check: whether it could be made
    models: int = 0
    layers: int = 0
    agreeing: int = 0
    tensors: int = 0
    hashed: int = 0
    recomputed: int = 0
    apart: int = 0  # layers of which not all could be compared
    shards: int = 0  # files of a checkpoint; its `layers` are quantized weights


def _findings(found: list[Diagnostic], result: c.VerifyResult) -> list[Finding]:
    """Findings are listed check by check."""
    named = []
    for i, d in enumerate(found):
        check = next((n for n, end in zip(CHECKS, result.listed) if i < end), "")
        named.append(Finding(d.severity, d.message, d.file, d.item, d.line, d.column, check))
    return named


def verify(
    prefix: a.PathLike,
    *,
    against: a.PathLike | None = None,
    record: a.PathLike | None = None,
    config: a.PathLike | None = None,
    source: str = "auto",
    on_unsupported: str = "error",
    free_qdq: str = "keep",
    weight_only: str | None = None,
    include: str | None = None,
    exclude: str | None = None,
    external_threshold: int | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: a.DynamicAxes | None = None,
    threads: int = 0,
) -> Verification:
    """Looks at what an export to the save path `prefix` wrote, or at the folder of an exported
    checkpoint. With `against`, the source model, every payload is recomputed and compared; the
    other arguments are then those of the export. Raises only where nothing can be found out."""
    planned = a._options(
        prefix,
        source=a._choice("source", source, a._SOURCE),
        on_unsupported=a._choice("on_unsupported", on_unsupported, a._UNSUPPORTED),
        free_qdq=a._choice("free_qdq", free_qdq, a._FREE_QDQ),
        **a._weights(weight_only, include, exclude),
    )
    if external_threshold is not None:
        planned.external_threshold = external_threshold
    spec = c.IoSpec(*a._names(input_names), *a._names(output_names), *a._axes(dynamic_axes))
    lib = c.library()
    options, result, error = c.VerifyOptions(), c.VerifyResult(), c.Error()
    lib.qf_verify_options_init_sized(byref(options), ctypes.sizeof(options))
    options.prefix = a._path(prefix)
    for name, path in (("model", against), ("record", record), ("config", config)):
        setattr(options, name, None if path is None else a._path(path))
    options.io = ctypes.pointer(spec)
    options.export_options = ctypes.pointer(planned)
    options.threads = threads
    with ExitStack() as stack:
        findings = a._Findings(stack)
        status = lib.qf_verify(byref(options), findings.handle, byref(result), byref(error))
        findings.check(status, error)
        found = _findings(findings.all(), result)
    return Verification(
        sound=sum(result.errors) == 0,
        findings=found,
        done=dict(zip(CHECKS, result.done)),
        **{n: getattr(result, n) for n in ("models", "layers", "agreeing")},
        **{n: getattr(result, n) for n in ("tensors", "hashed", "recomputed", "apart", "shards")},
    )
