# SPDX-License-Identifier: Apache-2.0
"""quantfold: from a quantization-aware-trained ONNX model to the deploy and fake_quant models."""

from ._api import (
    ExportReport,
    Layer,
    LayerCandidate,
    ModelInfo,
    OutputFile,
    SkippedLayer,
    check,
    export,
    inspect,
    kernels,
    record,
    report,
    report_data,
    version,
)
from .errors import (
    Cancelled,
    Diagnostic,
    InputError,
    OutOfMemory,
    QuantfoldError,
    SystemFailure,
    UsageError,
)

__all__ = [
    "Cancelled",
    "Diagnostic",
    "ExportReport",
    "InputError",
    "Layer",
    "LayerCandidate",
    "ModelInfo",
    "OutOfMemory",
    "OutputFile",
    "QuantfoldError",
    "SkippedLayer",
    "SystemFailure",
    "UsageError",
    "check",
    "export",
    "inspect",
    "kernels",
    "record",
    "report",
    "report_data",
    "version",
]
