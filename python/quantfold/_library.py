# SPDX-License-Identifier: Apache-2.0
"""The C library: where it lies, its structs and its functions, as include/quantfold/quantfold.h
declares them. ctypes lets go of the interpreter lock during a call and takes it for callbacks."""

from __future__ import annotations

import ctypes
import os
import sysconfig
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    c_bool,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

ProgressFn = CFUNCTYPE(c_bool, c_uint64, c_uint64, c_char_p, c_void_p)


class Error(Structure):
    """qf_error"""

    _fields_ = [
        ("code", c_int),
        ("sys_errno", c_int),
        ("line", c_uint32),
        ("column", c_uint32),
        ("byte", c_uint64),
        ("has_byte", c_bool),
        ("file", c_char * 256),
        ("item", c_char * 256),
        ("message", c_char * 1024),
    ]


class DiagnosticStruct(Structure):
    """qf_diagnostic"""

    _fields_ = [
        ("severity", c_int),
        ("file", c_char_p),
        ("line", c_uint32),
        ("column", c_uint32),
        ("item", c_char_p),
        ("message", c_char_p),
    ]


class ModelInfoStruct(Structure):
    """qf_model_info"""

    _fields_ = [
        ("ir_version", c_int64),
        ("opset", c_int64),
        ("producer_name", c_char_p),
        ("producer_version", c_char_p),
        ("graph_name", c_char_p),
        ("file_bytes", c_uint64),
        ("tensor_count", c_uint64),
        ("tensor_bytes", c_uint64),
        ("external_count", c_uint64),
        ("node_count", c_uint64),
        ("graph_count", c_uint64),
    ]


class LayerCandidateStruct(Structure):
    """qf_layer_candidate"""

    _fields_ = [
        ("name", c_char_p),
        ("op_type", c_char_p),
        ("weight", c_char_p),
        ("dtype", c_char_p),
        ("dims", c_int64 * 8),
        ("rank", c_size_t),
        ("channels", c_uint64),
        ("quantizable", c_bool),
        ("reason", c_char_p),
    ]


class DynamicAxis(Structure):
    """qf_dynamic_axis"""

    _fields_ = [("tensor", c_char_p), ("axis", c_int64), ("label", c_char_p)]


class IoSpec(Structure):
    """qf_io_spec"""

    _fields_ = [
        ("input_names", POINTER(c_char_p)),
        ("input_name_count", c_size_t),
        ("output_names", POINTER(c_char_p)),
        ("output_name_count", c_size_t),
        ("dynamic_axes", POINTER(DynamicAxis)),
        ("dynamic_axis_count", c_size_t),
    ]


class ExportOptions(Structure):
    """qf_export_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("save_path", c_char_p),
        ("emit", c_int),
        ("external", c_int),
        ("external_threshold", c_uint64),
        ("external_layout", c_int),
        ("threads", c_int),
        ("progress", ProgressFn),
        ("progress_user", c_void_p),
        ("ignore_target", c_bool),
        ("memory_limit", c_uint64),
        ("io", c_int),
        ("fake_quant_weights", c_int),
        ("no_sync", c_bool),
        ("source", c_int),
        ("on_unsupported", c_int),
        ("free_qdq", c_int),
        ("weight_only", c_char_p),
        ("include", c_char_p),
        ("exclude", c_char_p),
        ("dedup", c_bool),
        ("manifest", c_bool),
        ("resume", c_bool),
        ("shard", c_uint32),
        ("shard_count", c_uint32),
        ("stats", c_bool),
    ]


class LayerInfoStruct(Structure):
    """qf_layer_info"""

    _fields_ = [
        ("name", c_char_p),
        ("key", c_char_p),
        ("op_type", c_char_p),
        ("weight", c_char_p),
        ("activation_bits", c_int),
        ("weight_bits", c_int),
        ("channels", c_uint64),
        ("scale_d", c_float),
        ("offset_d", c_int32),
        ("has_bias", c_bool),
        ("batch_norm_folded", c_bool),
        ("group", c_uint64),
    ]


class SkippedLayerStruct(Structure):
    """qf_skipped_layer"""

    _fields_ = [("name", c_char_p), ("op_type", c_char_p), ("reason", c_char_p)]


class OutputFileStruct(Structure):
    """qf_output_file"""

    _fields_ = [("path", c_char_p), ("bytes", c_uint64), ("exists", c_bool)]


class ReportTotals(Structure):
    """qf_report_totals"""

    _fields_ = [
        ("bytes_read", c_uint64),
        ("bytes_written", c_uint64),
        ("seconds", ctypes.c_double),
        ("bytes_kept", c_uint64),
    ]


class CheckpointOptions(Structure):
    """qf_checkpoint_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("out", c_char_p),
        ("scheme", c_char_p),
        ("include", c_char_p),
        ("exclude", c_char_p),
        ("scales", c_char_p),
        ("max_shard_bytes", c_uint64),
        ("threads", c_int),
        ("io", c_int),
        ("memory_limit", c_uint64),
        ("no_sync", c_bool),
        ("manifest", c_bool),
        ("resume", c_bool),
        ("shard", c_uint32),
        ("shard_count", c_uint32),
        ("ignore_target", c_bool),
        ("progress", ProgressFn),
        ("progress_user", c_void_p),
        ("stats", c_bool),
    ]


class CheckpointTensorStruct(Structure):
    """qf_checkpoint_tensor"""

    _fields_ = [
        ("name", c_char_p),
        ("dtype", c_char_p),
        ("reason", c_char_p),
        ("rows", c_uint64),
        ("cols", c_uint64),
        ("bits", c_int),
        ("group", c_uint64),
    ]


class VerifyOptions(Structure):
    """qf_verify_options"""

    _fields_ = [
        ("struct_size", c_size_t),
        ("prefix", c_char_p),
        ("model", c_char_p),
        ("record", c_char_p),
        ("config", c_char_p),
        ("io", POINTER(IoSpec)),
        ("export_options", POINTER(ExportOptions)),
        ("threads", c_int),
        ("skip_runnable", c_bool),
    ]


class VerifyResult(Structure):
    """qf_verify_result"""

    _fields_ = [
        ("done", c_bool * 5),
        ("errors", c_uint64 * 5),
        ("listed", c_uint64 * 5),
        ("models", c_uint64),
        ("layers", c_uint64),
        ("agreeing", c_uint64),
        ("tensors", c_uint64),
        ("hashed", c_uint64),
        ("recomputed", c_uint64),
        ("apart", c_uint64),
        ("shards", c_uint64),
    ]


_OUT = POINTER(c_void_p)
_ERR = POINTER(Error)

# name -> (result, arguments); handles are void pointers
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "qf_version": (c_char_p, []),
    "qf_kernels_active": (c_char_p, []),
    "qf_diagnostics_create": (c_void_p, []),
    "qf_diagnostics_free": (None, [c_void_p]),
    "qf_diagnostics_count": (c_size_t, [c_void_p]),
    "qf_diagnostics_errors": (c_size_t, [c_void_p]),
    "qf_diagnostics_add_error": (None, [c_void_p, _ERR]),
    "qf_diagnostics_at": (DiagnosticStruct, [c_void_p, c_size_t]),
    "qf_model_open": (c_int, [c_char_p, _OUT, _ERR]),
    "qf_model_close": (None, [c_void_p]),
    "qf_model_describe": (ModelInfoStruct, [c_void_p]),
    "qf_model_layer_count": (c_size_t, [c_void_p]),
    "qf_model_layer": (LayerCandidateStruct, [c_void_p, c_size_t]),
    "qf_record_open": (c_int, [c_char_p, _OUT, _ERR]),
    "qf_record_close": (None, [c_void_p]),
    "qf_record_format": (c_int, [c_void_p, _OUT, POINTER(c_size_t), _ERR]),
    "qf_record_save": (c_int, [c_void_p, c_char_p, _ERR]),
    "qf_config_open": (c_int, [c_char_p, _OUT, c_void_p, _ERR]),
    "qf_config_close": (None, [c_void_p]),
    "qf_record_from_qdq": (c_int, [c_void_p, c_int, c_void_p, _OUT, _ERR]),
    "qf_ranges_open": (c_int, [c_char_p, _OUT, _ERR]),
    "qf_ranges_parse": (c_int, [c_char_p, c_char_p, c_size_t, _OUT, _ERR]),
    "qf_ranges_close": (None, [c_void_p]),
    "qf_record_compute": (c_int, [c_void_p, c_void_p, c_void_p, c_int, c_void_p, _OUT, _ERR]),
    "qf_export_options_init_sized": (None, [POINTER(ExportOptions), c_size_t]),
    "qf_plan_create": (
        c_int,
        [
            *(c_void_p, c_void_p, c_void_p, POINTER(IoSpec)),
            *(POINTER(ExportOptions), c_void_p, _OUT, _ERR),
        ],
    ),
    "qf_plan_free": (None, [c_void_p]),
    "qf_plan_layer_count": (c_size_t, [c_void_p]),
    "qf_plan_layer": (LayerInfoStruct, [c_void_p, c_size_t]),
    "qf_plan_skipped_count": (c_size_t, [c_void_p]),
    "qf_plan_skipped": (SkippedLayerStruct, [c_void_p, c_size_t]),
    "qf_plan_output_count": (c_size_t, [c_void_p]),
    "qf_plan_bytes_saved": (c_uint64, [c_void_p]),
    "qf_plan_output": (OutputFileStruct, [c_void_p, c_size_t]),
    "qf_export": (c_int, [c_void_p, _OUT, _ERR]),
    "qf_report_get": (ReportTotals, [c_void_p]),
    "qf_report_free": (None, [c_void_p]),
    "qf_commit": (c_int, [c_char_p, c_bool, _OUT, _ERR]),
    "qf_checkpoint_open": (c_int, [c_char_p, _OUT, _ERR]),
    "qf_checkpoint_close": (None, [c_void_p]),
    "qf_checkpoint_options_init_sized": (None, [POINTER(CheckpointOptions), c_size_t]),
    "qf_checkpoint_plan_create": (c_int, [c_void_p, POINTER(CheckpointOptions), _OUT, _ERR]),
    "qf_checkpoint_plan_free": (None, [c_void_p]),
    "qf_checkpoint_plan_tensor_count": (c_size_t, [c_void_p]),
    "qf_checkpoint_plan_tensor": (CheckpointTensorStruct, [c_void_p, c_size_t]),
    "qf_checkpoint_plan_output_count": (c_size_t, [c_void_p]),
    "qf_checkpoint_plan_output": (OutputFileStruct, [c_void_p, c_size_t]),
    "qf_checkpoint_plan_passed_count": (c_size_t, [c_void_p]),
    "qf_checkpoint_plan_passed": (c_char_p, [c_void_p, c_size_t]),
    "qf_checkpoint_export": (c_int, [c_void_p, _OUT, _ERR]),
    "qf_summary_html": (c_int, [c_char_p, _OUT, POINTER(c_size_t), _ERR]),
    "qf_summary_json": (c_int, [c_char_p, _OUT, POINTER(c_size_t), _ERR]),
    "qf_summary_save": (c_int, [c_char_p, c_char_p, _OUT, _ERR]),
    "qf_verify_options_init_sized": (None, [POINTER(VerifyOptions), c_size_t]),
    "qf_verify": (c_int, [POINTER(VerifyOptions), c_void_p, POINTER(VerifyResult), _ERR]),
}


def _place() -> str:
    """The library that the environment names, the one of the wheel (meson-python puts it into a
    folder beside the package), or the system's."""
    named = os.environ.get("QUANTFOLD_LIBRARY")
    if named:
        return named
    for folder in (Path(__file__).parents[1], Path(sysconfig.get_path("platlib"))):
        beside = folder / ".quantfold.mesonpy.libs" / "libquantfold.so"
        if beside.is_file():
            return str(beside)
    return "libquantfold.so.0"


@cache
def library() -> ctypes.CDLL:
    """The library, its functions typed."""
    place = _place()
    try:
        lib = ctypes.CDLL(place)
    except OSError as e:
        raise ImportError(
            f"cannot load the quantfold library {place!r}: {e}; install the wheel, or set "
            "QUANTFOLD_LIBRARY to a libquantfold.so"
        ) from e
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


@cache
def libc_free() -> Any:
    """free() of the C library, for what the C side allocated for us."""
    free = ctypes.CDLL(None).free
    free.restype, free.argtypes = None, [c_void_p]
    return free
