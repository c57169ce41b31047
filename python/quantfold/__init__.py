# SPDX-License-Identifier: Apache-2.0
"""quantfold: from a quantization-aware-trained ONNX model to the deploy and fake_quant models."""

from ._api import (
    CommitReport,
    ExportReport,
    Layer,
    LayerCandidate,
    ModelInfo,
    OutputFile,
    SkippedLayer,
    check,
    commit,
    export,
    inspect,
    kernels,
    record,
    report,
    report_data,
    version,
)
from ._checkpoint import CheckpointReport, CheckpointTensor, checkpoint
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
    "CheckpointReport",
    "CheckpointTensor",
    "CommitReport",
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
    "checkpoint",
    "commit",
    "export",
    "inspect",
    "kernels",
    "record",
    "report",
    "report_data",
    "verify",
    "version",
]
