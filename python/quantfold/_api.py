# SPDX-License-Identifier: Apache-2.0
"""The functions on ONNX models: export, commit, inspect, check, record, report."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes import byref, c_char_p, c_size_t, c_void_p
from dataclasses import dataclass, field
from typing import Any, Union

from . import _library as c
from ._watching import Progress, Watcher, bar, text as _text
from .errors import BY_STATUS, Diagnostic, QuantfoldError, UsageError

PathLike = Union[str, "os.PathLike[str]"]
DynamicAxes = Mapping[str, Union[Mapping[int, str], Sequence[int]]]

_EMIT = {"both": 0, "deploy": 1, "fake-quant": 2, "runnable": 3}
_EXTERNAL = {"auto": 0, "always": 1, "never": 2}
_LAYOUT = {"per-tensor": 0, "single": 1}
_IO = {"auto": 0, "pwrite": 1, "mmap": 2, "direct": 3}
_WEIGHTS = {"float": 0, "int8": 1, "shared": 2}
_SOURCE = {"auto": 0, "float": 1, "qdq": 2}
_UNSUPPORTED = {"error": 0, "float": 1}
_FREE_QDQ = {"keep": 0, "drop": 1}


@dataclass(frozen=True)
class LayerCandidate:
    """A node of a quantizable type."""

    name: str
    op_type: str
    weight: str
    dtype: str
    dims: tuple[int, ...]
    channels: int
    quantizable: bool
    reason: str


@dataclass(frozen=True)
class ModelInfo:
    """What `inspect` finds."""

    ir_version: int
    opset: int
    producer_name: str
    producer_version: str
    graph_name: str
    file_bytes: int
    tensor_count: int
    tensor_bytes: int
    external_count: int
    node_count: int
    graph_count: int
    layers: list[LayerCandidate] = field(repr=False)


@dataclass(frozen=True)
class Layer:
    """A quantized layer of an export. `activation_bits` 0: its weight alone is quantized; `group`:
    elements of a channel that share a scale, 0 for all."""

    name: str
    key: str
    op_type: str
    weight: str
    activation_bits: int
    weight_bits: int
    channels: int
    scale_d: float
    offset_d: int
    has_bias: bool
    batch_norm_folded: bool
    group: int = 0


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that stays float."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class OutputFile:
    """A file of an export; `existed`: one of that name was replaced."""

    path: str
    bytes: int
    existed: bool


@dataclass(frozen=True)
class ExportReport:
    """What an export did, or with dry_run would do."""

    layers: list[Layer]
    skipped: list[SkippedLayer]
    outputs: list[OutputFile]
    diagnostics: list[Diagnostic]
    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    bytes_saved: int = 0
    bytes_kept: int = 0


@dataclass(frozen=True)
class CommitReport:
    """What `commit` put in place."""

    bytes_written: int
    seconds: float


# ---- between C and Python ----------------------------------------------------------------------


def _values(struct: ctypes.Structure) -> dict[str, Any]:
    """A struct's fields, texts decoded."""
    names = [f[0] for f in struct._fields_]
    values = {name: getattr(struct, name) for name in names}
    return {k: _text(v) if v is None or isinstance(v, bytes) else v for k, v in values.items()}


def _choice(name: str, word: str, words: Mapping[str, int]) -> int:
    if word not in words:
        raise UsageError(f"{name} must be one of {', '.join(words)}, not {word!r}", "usage")
    return words[word]


class _Findings:
    """A qf_diagnostics list."""

    def __init__(self, stack: ExitStack):
        self.lib = c.library()
        self.handle = self.lib.qf_diagnostics_create()
        if not self.handle:
            raise MemoryError
        stack.callback(self.lib.qf_diagnostics_free, self.handle)

    def all(self) -> list[Diagnostic]:
        found = []
        for i in range(self.lib.qf_diagnostics_count(self.handle)):
            values = _values(self.lib.qf_diagnostics_at(self.handle, i))
            values["severity"] = "warning" if values["severity"] == 1 else "error"
            found.append(Diagnostic(**values))
        return found

    def check(self, status: int, error: c.Error) -> None:
        """Raises what a call returned."""
        if status == 0:
            return
        word, kind = BY_STATUS.get(status, ("unknown", QuantfoldError))
        raise kind(
            _text(error.message) or f"quantfold failed with status {status}",
            word,
            _text(error.file),
            _text(error.item),
            error.line,
            error.column,
            error.byte if error.has_byte else None,
            error.sys_errno,
            self.all(),
        )

    def open(self, stack: ExitStack, name: str, close: str, *args: Any) -> c_void_p:
        """Calls a function whose last arguments are a handle's place and an error."""
        handle, error = c_void_p(), c.Error()
        self.check(getattr(self.lib, name)(*args, byref(handle), byref(error)), error)
        stack.callback(getattr(self.lib, close), handle)
        return handle

    def config(self, stack: ExitStack, path: PathLike) -> c_void_p:
        handle, error = c_void_p(), c.Error()
        status = self.lib.qf_config_open(_path(path), byref(handle), self.handle, byref(error))
        self.check(status, error)
        stack.callback(self.lib.qf_config_close, handle)
        return handle

    def model(self, stack: ExitStack, path: PathLike) -> c_void_p:
        return self.open(stack, "qf_model_open", "qf_model_close", _path(path))


def _path(path: PathLike) -> bytes:
    return os.fsencode(path)


def _names(names: Sequence[str] | None) -> tuple[Any, int]:
    if not names:
        return None, 0
    if isinstance(names, str):
        raise UsageError("names of inputs and outputs are a list of strings", "usage")
    return (c_char_p * len(names))(*(n.encode() for n in names)), len(names)


def _axes(axes: DynamicAxes | None) -> tuple[Any, int]:
    """Both forms that torch.onnx.export takes."""
    items = []
    for tensor, wanted in (axes or {}).items():
        if isinstance(wanted, Mapping):
            labelled: list[tuple[int, str | None]] = list(wanted.items())
        else:
            labelled = [(axis, None) for axis in wanted]
        for axis, label in labelled:
            items.append(
                c.DynamicAxis(tensor.encode(), axis, None if label is None else label.encode())
            )
    return ((c.DynamicAxis * len(items))(*items) if items else None), len(items)


# ---- planning ----------------------------------------------------------------------------------


def _options(save_path: PathLike, **fields: Any) -> c.ExportOptions:
    options = c.ExportOptions()
    c.library().qf_export_options_init_sized(byref(options), ctypes.sizeof(options))
    options.save_path = _path(save_path)
    for name, value in fields.items():
        setattr(options, name, value)
    return options


def _weights(weight_only: str | None, include: str | None, exclude: str | None) -> dict[str, Any]:
    """The options that choose weights to be quantized alone."""
    texts = {"weight_only": weight_only, "include": include, "exclude": exclude}
    return {name: None if text is None else text.encode() for name, text in texts.items()}


def _part(shard: tuple[int, int] | None) -> dict[str, int]:
    """The fields of part i of n, from 0."""
    if shard is None:
        return {}
    part, parts = shard
    if not 0 <= part < parts < 1 << 32:
        raise UsageError(f"shard is a part from 0 and how many there are, not {shard!r}", "usage")
    return {"shard": part, "shard_count": parts}


def _write(
    findings: _Findings, stack: ExitStack, watcher: Watcher, name: str, plan: c_void_p
) -> c.ReportTotals:
    """Calls a function that runs a plan."""
    report, error = c_void_p(), c.Error()
    function = getattr(findings.lib, name)
    try:
        status = watcher.run(lambda: function(plan, byref(report), byref(error)))
    finally:
        stack.callback(findings.lib.qf_report_free, report)
    findings.check(status, error)
    totals: c.ReportTotals = findings.lib.qf_report_get(report)
    return totals


def _plan(
    stack: ExitStack,
    findings: _Findings,
    model: PathLike,
    config: PathLike | None,
    record: PathLike | None,
    io: c.IoSpec | None,
    options: c.ExportOptions,
) -> c_void_p:
    opened = findings.model(stack, model)
    read = record and findings.open(stack, "qf_record_open", "qf_record_close", _path(record))
    checked = config and findings.config(stack, config)
    handle, error = c_void_p(), c.Error()
    status = findings.lib.qf_plan_create(
        *(opened, checked or None, read or None),
        *(io, byref(options), findings.handle, byref(handle), byref(error)),
    )
    findings.check(status, error)
    stack.callback(findings.lib.qf_plan_free, handle)
    return handle


def _describe(plan: c_void_p, findings: _Findings) -> dict[str, Any]:
    lib = findings.lib
    outputs = []
    for i in range(lib.qf_plan_output_count(plan)):
        file = lib.qf_plan_output(plan, i)
        outputs.append(OutputFile(os.fsdecode(file.path), file.bytes, file.exists))
    return {
        "layers": [
            Layer(**_values(lib.qf_plan_layer(plan, i)))
            for i in range(lib.qf_plan_layer_count(plan))
        ],
        "skipped": [
            SkippedLayer(**_values(lib.qf_plan_skipped(plan, i)))
            for i in range(lib.qf_plan_skipped_count(plan))
        ],
        "outputs": outputs,
        "diagnostics": findings.all(),
        "bytes_saved": lib.qf_plan_bytes_saved(plan),
    }


# ---- the functions -----------------------------------------------------------------------------


def export(
    model: PathLike,
    save_path: PathLike,
    *,
    config: PathLike | None = None,
    record: PathLike | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    emit: str = "both",
    external: str = "auto",
    external_threshold: int | None = None,
    external_layout: str = "per-tensor",
    fake_quant_weights: str = "float",
    source: str = "auto",
    on_unsupported: str = "error",
    free_qdq: str = "keep",
    weight_only: str | None = None,
    include: str | None = None,
    exclude: str | None = None,
    dedup: bool = False,
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
) -> ExportReport:
    """Writes <save_path>_deploy_model.onnx and <save_path>_fake_quant_model.onnx, or what `emit` says:
    "deploy", "fake-quant", or "runnable", for which `model` may be a deploy model.

    Without `record`, the model's QuantizeLinear and DequantizeLinear nodes tell the scales, but for
    the weights that `weight_only` ("w8a16", "w4a16:group=128", ...) quantizes by themselves. The
    options are those of `quantfold export`; `shard` is (i, n) for part i, from 0, of n, and `commit`
    puts the parts in place. `progress`: True for a bar (tqdm), or a function of bytes done, bytes in
    all and a tensor's name that may return False to cancel; it is called from a thread of its own.
    Other threads run meanwhile. Raises a QuantfoldError; what was found before is in its
    `diagnostics`.
    """
    fields: dict[str, Any] = {
        "emit": _choice("emit", emit, _EMIT),
        "external": _choice("external", external, _EXTERNAL),
        "external_layout": _choice("external_layout", external_layout, _LAYOUT),
        "fake_quant_weights": _choice("fake_quant_weights", fake_quant_weights, _WEIGHTS),
        "source": _choice("source", source, _SOURCE),
        "on_unsupported": _choice("on_unsupported", on_unsupported, _UNSUPPORTED),
        "free_qdq": _choice("free_qdq", free_qdq, _FREE_QDQ),
        **_weights(weight_only, include, exclude),
        "dedup": dedup,
        "manifest": manifest,
        "stats": stats,
        "resume": resume,
        **_part(shard),
        "io": _choice("io", io, _IO),
        "no_sync": not fsync,
        "threads": threads,
        "memory_limit": memory_limit or 0,
    }
    if external_threshold is not None:
        fields["external_threshold"] = external_threshold
    spec = c.IoSpec(*_names(input_names), *_names(output_names), *_axes(dynamic_axes))
    with ExitStack() as stack:
        findings = _Findings(stack)
        watcher = Watcher(stack.enter_context(bar(progress)))
        options = _options(save_path, progress=watcher.callback, **fields)
        plan = _plan(stack, findings, model, config, record, spec, options)
        described = _describe(plan, findings)
        if dry_run:
            return ExportReport(**described)
        totals = _write(findings, stack, watcher, "qf_export", plan)
        return ExportReport(**described, **_values(totals))


def commit(
    save_path: PathLike | None = None, *, out: PathLike | None = None, fsync: bool = True
) -> CommitReport:
    """Puts in place what exports with `shard` have written, once all parts are done: `save_path` as
    they had it, or, for parts of a checkpoint, its folder as `out`."""
    if save_path is not None and out is None:
        path = _path(save_path)
    elif out is not None and save_path is None:
        path = _path(out) + b"/"
    else:
        raise TypeError("commit takes either save_path or out, the folder of a checkpoint")
    with ExitStack() as stack:
        findings = _Findings(stack)
        report = findings.open(stack, "qf_commit", "qf_report_free", path, not fsync)
        totals = findings.lib.qf_report_get(report)
        return CommitReport(totals.bytes_written, totals.seconds)


def check(
    model: PathLike,
    *,
    config: PathLike | None = None,
    record: PathLike | None = None,
    source: str = "auto",
    on_unsupported: str = "error",
    weight_only: str | None = None,
    include: str | None = None,
    exclude: str | None = None,
) -> list[Diagnostic]:
    """All that is wrong with the inputs, as an export would find it; [] if nothing is. Raises only
    where that cannot be found out."""
    options = _options(
        "quantfold-check/",  # names files that are never written
        ignore_target=True,
        source=_choice("source", source, _SOURCE),
        on_unsupported=_choice("on_unsupported", on_unsupported, _UNSUPPORTED),
        **_weights(weight_only, include, exclude),
    )
    with ExitStack() as stack:
        findings = _Findings(stack)
        try:
            _plan(stack, findings, model, config, record, None, options)
        except QuantfoldError as e:
            if e.status != "input":
                raise
            found = findings.all()
            if not any(d.severity == "error" for d in found):
                found.append(Diagnostic("error", e.message, e.file, e.item, e.line, e.column))
            return found
        return findings.all()


def inspect(model: PathLike) -> ModelInfo:
    """The model's size and its layers, and which of those can be quantized."""
    with ExitStack() as stack:
        findings = _Findings(stack)
        opened = findings.model(stack, model)
        layers = []
        for i in range(findings.lib.qf_model_layer_count(opened)):
            values = _values(findings.lib.qf_model_layer(opened, i))
            values["dims"] = tuple(values["dims"][: values.pop("rank")])
            layers.append(LayerCandidate(**values))
        return ModelInfo(**_values(findings.lib.qf_model_describe(opened)), layers=layers)


def _ranges(stack: ExitStack, findings: _Findings, given: object) -> c_void_p | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        path = _path(given)  # type: ignore[arg-type]
        return findings.open(stack, "qf_ranges_open", "qf_ranges_close", path)
    text = json.dumps(given).encode()
    return findings.open(
        stack, "qf_ranges_parse", "qf_ranges_close", b"activations", text, len(text)
    )


def record(
    model: PathLike,
    *,
    config: PathLike | None = None,
    activations: PathLike | Mapping[str, Mapping[str, float]] | None = None,
    from_qdq: bool = False,
    on_unsupported: str = "error",
    threads: int = 0,
    output: PathLike | None = None,
) -> str:
    """The text of a record, also written to `output`: calculated from the weights of the layers
    that `config` enables and from the ranges of `activations`, a file or a dictionary such as
    {"conv1": {"min": -0.7, "max": 2.0}}; or, with from_qdq, taken from the model."""
    if from_qdq == (config is not None):
        raise UsageError("record takes either a config or from_qdq=True", "usage")
    with ExitStack() as stack:
        findings = _Findings(stack)
        lib, made, error = findings.lib, c_void_p(), c.Error()
        opened = findings.model(stack, model)
        if config is None:
            choice = _choice("on_unsupported", on_unsupported, _UNSUPPORTED)
            status = lib.qf_record_from_qdq(
                opened, choice, findings.handle, byref(made), byref(error)
            )
        else:
            ranges = _ranges(stack, findings, activations)
            status = lib.qf_record_compute(
                *(opened, findings.config(stack, config), ranges, threads),
                *(findings.handle, byref(made), byref(error)),
            )
        findings.check(status, error)
        stack.callback(lib.qf_record_close, made)
        if output is not None:
            findings.check(lib.qf_record_save(made, _path(output), byref(error)), error)
        text, length = c_void_p(), c_size_t()
        findings.check(lib.qf_record_format(made, byref(text), byref(length), byref(error)), error)
        stack.callback(c.libc_free(), text)
        return ctypes.string_at(text, length.value).decode()


def report(prefix: PathLike, output: PathLike | None = None) -> str:
    """Makes a page of what an export with stats=True wrote to `prefix` (or `quantfold checkpoint
    --stats` to a folder), as `quantfold report` does, and returns its path: `output`, or
    <prefix>.report.html."""
    with ExitStack() as stack:
        findings = _Findings(stack)
        saved, error = c_void_p(), c.Error()
        target = None if output is None else _path(output)
        status = findings.lib.qf_summary_save(_path(prefix), target, byref(saved), byref(error))
        findings.check(status, error)
        stack.callback(c.libc_free(), saved)
        return os.fsdecode(ctypes.string_at(saved))


def report_data(prefix: PathLike) -> dict[str, Any]:
    """The data of that page, as `quantfold report --json` prints it."""
    with ExitStack() as stack:
        findings = _Findings(stack)
        text, length, error = c_void_p(), c_size_t(), c.Error()
        status = findings.lib.qf_summary_json(
            _path(prefix), byref(text), byref(length), byref(error)
        )
        findings.check(status, error)
        stack.callback(c.libc_free(), text)
        data: dict[str, Any] = json.loads(ctypes.string_at(text, length.value))
        return data


def version() -> str:
    """The library's version."""
    return _text(c.library().qf_version())


def kernels() -> str:
    """The instruction set whose kernels run: "scalar", "avx2", "avx512" or "neon"."""
    return _text(c.library().qf_kernels_active())
