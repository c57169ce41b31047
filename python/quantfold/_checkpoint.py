# SPDX-License-Identifier: Apache-2.0
"""The function on Hugging Face folders: checkpoint."""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any

from . import _library as c
from ._api import (
    _IO,
    OutputFile,
    PathLike,
    _choice,
    _Findings,
    _part,
    _path,
    _values,
    _write,
)
from ._watching import Progress, Watcher, bar, text


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint. `bits` 0: it is not quantized, and `reason` says why, or is None
    where it is no weight matrix. `group`: elements to a scale, 0 for one scale a row."""

    name: str
    dtype: str
    reason: str | None
    rows: int
    cols: int
    bits: int
    group: int


@dataclass(frozen=True)
class CheckpointReport:
    """What `checkpoint` did, or with dry_run would do. `passed`: files of the source folder that
    are not taken along."""

    tensors: list[CheckpointTensor]
    outputs: list[OutputFile]
    passed: list[str]
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    bytes_kept: int = 0


def _options(**fields: Any) -> c.CheckpointOptions:
    options = c.CheckpointOptions()
    c.library().qf_checkpoint_options_init_sized(byref(options), ctypes.sizeof(options))
    for name, value in fields.items():
        setattr(options, name, value)
    return options


def _tensor(struct: c.CheckpointTensorStruct) -> CheckpointTensor:
    reason = None if struct.reason is None else text(struct.reason)
    return CheckpointTensor(**{**_values(struct), "reason": reason})


def _describe(plan: c_void_p, lib: ctypes.CDLL) -> dict[str, Any]:
    tensors = lib.qf_checkpoint_plan_tensor_count(plan)
    files = [
        lib.qf_checkpoint_plan_output(plan, i)
        for i in range(lib.qf_checkpoint_plan_output_count(plan))
    ]
    return {
        "tensors": [_tensor(lib.qf_checkpoint_plan_tensor(plan, i)) for i in range(tensors)],
        "outputs": [OutputFile(os.fsdecode(f.path), f.bytes, f.exists) for f in files],
        "passed": [
            os.fsdecode(lib.qf_checkpoint_plan_passed(plan, i))
            for i in range(lib.qf_checkpoint_plan_passed_count(plan))
        ],
    }


def checkpoint(
    model_dir: PathLike,
    out_dir: PathLike,
    *,
    scheme: str,
    include: str | None = None,
    exclude: str | None = None,
    scales: PathLike | None = None,
    max_shard_bytes: int = 0,
    manifest: bool = False,
    stats: bool = False,
    resume: bool = False,
    shard: tuple[int, int] | None = None,
    io: str = "auto",
    fsync: bool = True,
    threads: int = 0,
    memory_limit: int | None = None,
    progress: Progress | bool | None = None,
    dry_run: bool = False,
) -> CheckpointReport:
    """Quantizes the linear weights of a Hugging Face folder and writes one that loaders of the
    compressed-tensors convention read.

    `scheme`: "w8a16", "w8a8", "w4a16", "w4a16:group=128", ... `scales`: a record or a safetensors
    file with the scales to take; without it they are found. The other options are those of
    `quantfold checkpoint`, and `shard`, `progress` and what is raised are as in `export`; parts are
    put in place by `commit(out=out_dir)`.
    """
    fields = {
        "out": _path(out_dir),
        "scheme": scheme.encode(),
        "include": None if include is None else include.encode(),
        "exclude": None if exclude is None else exclude.encode(),
        "scales": None if scales is None else _path(scales),
        "max_shard_bytes": max_shard_bytes,
        "manifest": manifest,
        "stats": stats,
        "resume": resume,
        **_part(shard),
        "io": _choice("io", io, _IO),
        "no_sync": not fsync,
        "threads": threads,
        "memory_limit": memory_limit or 0,
    }
    with ExitStack() as stack:
        findings = _Findings(stack)
        watcher = Watcher(stack.enter_context(bar(progress)))
        options = _options(progress=watcher.callback, **fields)
        opened = findings.open(stack, "qf_checkpoint_open", "qf_checkpoint_close", _path(model_dir))
        plan = findings.open(
            *(stack, "qf_checkpoint_plan_create", "qf_checkpoint_plan_free"),
            *(opened, byref(options)),
        )
        described = _describe(plan, findings.lib)
        if dry_run:
            return CheckpointReport(**described)
        totals = _write(findings, stack, watcher, "qf_checkpoint_export", plan)
        return CheckpointReport(**described, **_values(totals))
