# SPDX-License-Identifier: Apache-2.0
"""From a float network to an ONNX file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn


def to_onnx(
    network: nn.Module, input_data: Any, path: Path, opsets: tuple[int, ...], **names: Any
) -> None:
    """Writes `path` in the first of the opsets that has all operators. The exporter by TorchScript: it
    knows fake quantization and names nodes by module, and of a model over 2 GB it writes each weight
    to a file of its own, without a copy of all in memory."""
    arguments = input_data if isinstance(input_data, tuple) else (input_data,)
    for opset in opsets:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter; what matters raises
                torch.onnx.export(
                    network,
                    arguments,
                    str(path),
                    dynamo=False,
                    opset_version=opset,
                    # as the modules are: "eval" would fold batch norms in torch's arithmetic
                    training=torch.onnx.TrainingMode.PRESERVE,
                    **names,
                )
            return
        except torch.onnx.errors.UnsupportedOperatorError as e:
            if opset == opsets[-1]:
                raise RuntimeError(f"The model cannot export to onnx, exception is: {e}") from e
        except Exception as e:
            raise RuntimeError(f"The model cannot export to onnx, exception is: {e}") from e


def graph_to_onnx(graph: torch.fx.GraphModule, input_data: Any, path: Path) -> None:
    """The same of a graph that torch.export made, by the exporter for those; weights go to a file
    beside `path`."""
    arguments = input_data if isinstance(input_data, tuple) else (input_data,)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                arguments,
                str(path),
                dynamo=True,
                external_data=True,
                opset_version=18,
                verbose=False,
            )
    except Exception as e:
        raise RuntimeError(f"The model cannot export to onnx, exception is: {e}") from e
