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
    version,
)
from ._verify import Finding, Verification, verify
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
    "Finding",
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
    "Verification",
    "check",
    "export",
    "inspect",
    "kernels",
    "record",
    "verify",
    "version",
]
