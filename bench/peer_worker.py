# SPDX-License-Identifier: Apache-2.0
"""One quantization by a peer, file to file, in a process of its own: `peer_worker.py NAME FOLDER OUT`.

FOLDER holds a model as datasets/make_large.py writes it with --layout external: float32 matrices in
weights.bin, one after the other. Every peer reads all of it and writes int8 weights, one scale a
column. Prints the seconds of the work alone: starting Python and importing the libraries is not
counted, which is in the peer's favour, as quantfold is timed as a whole process.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path


def shapes(folder: Path) -> tuple[int, int]:
    """Number of matrices and their width."""
    about = json.loads((folder / "peer.json").read_text())
    return about["count"], about["size"]


def column_scales(folder: Path) -> list[float]:
    """The scales of the record, the same for every matrix."""
    return json.loads((folder / "peer.json").read_text())["scales"]


def numpy_given(folder: Path, out: Path) -> Callable[[], None]:
    """numpy, whole matrices, with the scales of the record."""
    import numpy as np

    def work() -> None:
        count, size = shapes(folder)
        scales = np.array(column_scales(folder), np.float32)
        source = np.memmap(folder / "weights.bin", np.float32, "r", shape=(count, size, size))
        with open(out / "weights.int8", "wb") as f:
            for matrix in source:
                levels = np.rint(matrix / scales)
                np.clip(levels, -128, 127, out=levels)
                f.write(levels.astype(np.int8).data)

    return work


def numpy_absmax(folder: Path, out: Path) -> Callable[[], None]:
    """numpy, whole matrices, scales from the largest magnitude of each column."""
    import numpy as np

    def work() -> None:
        count, size = shapes(folder)
        source = np.memmap(folder / "weights.bin", np.float32, "r", shape=(count, size, size))
        with open(out / "weights.int8", "wb") as f:
            for matrix in source:
                scales = np.abs(matrix).max(axis=0) / np.float32(127)
                levels = np.rint(matrix / scales)
                f.write(levels.astype(np.int8).data)

    return work


def torch_given(folder: Path, out: Path) -> Callable[[], None]:
    """PyTorch's quantize_per_channel with the scales of the record, on all cores."""
    import torch

    def work() -> None:
        count, size = shapes(folder)
        scales = torch.tensor(column_scales(folder), dtype=torch.float64)
        zeros = torch.zeros(size, dtype=torch.int64)
        name = str(folder / "weights.bin")
        source = torch.from_file(name, shared=False, size=count * size * size)
        with open(out / "weights.int8", "wb") as f:
            for matrix in source.view(count, size, size):
                q = torch.quantize_per_channel(matrix, scales, zeros, 1, torch.qint8)
                f.write(q.int_repr().numpy().data)

    return work


def torch_expression(folder: Path, out: Path) -> Callable[[], None]:
    """PyTorch, the same as a tensor expression: divide, round, clamp, convert."""
    import torch

    def work() -> None:
        count, size = shapes(folder)
        scales = torch.tensor(column_scales(folder), dtype=torch.float32)
        name = str(folder / "weights.bin")
        source = torch.from_file(name, shared=False, size=count * size * size)
        with open(out / "weights.int8", "wb") as f:
            for matrix in source.view(count, size, size):
                q = (matrix / scales).round_().clamp_(-128, 127).to(torch.int8)
                f.write(q.numpy().data)

    return work


def ort(folder: Path, out: Path, per_channel: bool) -> Callable[[], None]:
    """onnxruntime's quantize_dynamic: a float model in, a model with int8 weights out."""
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)

    def work() -> None:
        quantize_dynamic(
            folder / "model.onnx",
            out / "model.onnx",
            per_channel=per_channel,
            weight_type=QuantType.QInt8,
            use_external_data_format=math.prod(shapes(folder)) * shapes(folder)[1] > 1.9e9,
        )

    return work


PEERS: dict[str, Callable[[Path, Path], Callable[[], None]]] = {
    "numpy": numpy_given,
    "numpy-absmax": numpy_absmax,
    "torch": torch_given,
    "torch-expression": torch_expression,
    "onnxruntime": lambda folder, out: ort(folder, out, True),
    "onnxruntime-per-tensor": lambda folder, out: ort(folder, out, False),
}


def main() -> None:
    name, folder, out, to = sys.argv[1], *map(Path, sys.argv[2:])
    work = PEERS[name](folder, out)
    begin = time.perf_counter()
    work()
    to.write_text(json.dumps({"work_seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
