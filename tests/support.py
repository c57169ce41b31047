# SPDX-License-Identifier: Apache-2.0
"""What the rooms share: running quantfold, running ONNX Runtime, comparing what came out."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_equal
import onnxruntime as ort

SANITIZER_MARKS = (
    "ERROR: AddressSanitizer",
    "ERROR: LeakSanitizer",
    "WARNING: ThreadSanitizer",
    "runtime error:",
)
DEPLOY, FAKE = "m_deploy_model.onnx", "m_fake_quant_model.onnx"


@dataclass
class Result:
    """How a run ended and what it said."""

    code: int
    out: str
    err: str


def decode(data) -> str:
    """Output as text; a message may quote bytes of a broken file."""
    return data if isinstance(data, str) else (data or b"").decode("utf-8", "replace")


def assert_no_sanitizer_report(err: str) -> None:
    """Fail if a sanitizer spoke."""
    for mark in SANITIZER_MARKS:
        assert mark not in err, f"sanitizer report:\n{err[-6000:]}"


class Quantfold:
    """Runs the binary; every run has a time limit and must be free of sanitizer reports."""

    def __init__(self, binary: Path):
        self.binary = str(binary)

    def __call__(self, *args, timeout: float = 60, **options) -> Result:
        """Any command line."""
        run = subprocess.run(
            [self.binary, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            **options,
        )
        result = Result(run.returncode, decode(run.stdout), decode(run.stderr))
        assert_no_sanitizer_report(result.err)
        assert result.code >= 0, f"died of signal {-result.code}: {result.err[-2000:]}"
        return result

    def export(
        self, model, record, prefix, *extra, config=None, expect: int | None = 0, **options
    ) -> Result:
        """An export that must end with the given code; None accepts any."""
        args = ["export", "--model", model, "--record", record, "--save-path", prefix]
        if config is not None:
            args += ["--config", config]
        result = self(*args, *extra, **options)
        if expect is not None:
            assert result.code == expect, f"exit {result.code}, not {expect}:\n{result.err[-4000:]}"
        return result


class Pair(Quantfold):
    """A binary whose every export another one does too, and both must write the same bytes."""

    def __init__(self, binary: Path, other: Path):
        super().__init__(binary)
        self.other = Quantfold(other)

    def export(self, model, record, prefix, *extra, **options) -> Result:
        """The other one goes first, elsewhere, as an export may replace its own input."""
        folder, base = os.path.split(str(prefix))
        with tempfile.TemporaryDirectory() as elsewhere:
            elsewhere = Path(elsewhere)
            again = os.path.join(elsewhere, base)
            twin = self.other.export(model, record, again, *extra, **options | {"expect": None})
            result = super().export(model, record, prefix, *extra, **options)
            assert result.code == twin.code, f"exit {result.code}, the other {twin.code}"
            for name, wanted in snapshot(elsewhere).items():
                ours = Path(options.get("cwd", ""), folder, name)
                assert ours.read_bytes() == wanted, f"{name} differs from the other binary's"
        return result


class Verifying(Quantfold):
    """A binary whose every export is looked at by `quantfold verify` as well, against its inputs.
    What the options say about the form of the output is left to verify to find out."""

    DROPPED = {"--resume", "--manifest", "--no-fsync", "--fsync", "--dedup", "--json"}
    DROPPED |= {"-v", "--verbose", "-q", "--quiet", "export"}
    WITH_VALUE = {"--emit", "--external", "--external-layout", "--fake-quant-weights", "--io"}
    WITH_VALUE |= {"--memory-limit", "--progress"}
    # what a source may already have wrong with its tensors, which is copied
    SOURCE = ("bytes of data than its dtype", "a field that does not belong")

    def __call__(self, *args, **options) -> Result:
        result = super().__call__(*args, **options)
        words = [str(w) for w in args]
        if not words or words[0] != "export" or result.code != 0:
            return result
        if {"--dry-run", "--shard", "--help"} & set(words):
            return result
        left, prefix = ["verify"], ""
        while words:
            word = words.pop(0)
            if word in self.DROPPED:
                continue
            value = [words.pop(0)] if word.startswith("--") else []
            if word == "--save-path":
                prefix = value[0]
            elif word not in self.WITH_VALUE:
                left += ["--against" if word == "--model" else word, *value]
        given = {k: v for k, v in options.items() if k != "preexec_fn"}
        seen = super().__call__(*left, prefix, **given)
        if any(text in seen.err for text in self.SOURCE):
            return result
        assert seen.code == 0, f"{left} {prefix}: verify says\n{seen.err[-3000:]}"
        return result


def differences(ours: Path, wanted: Path) -> list[str]:
    """Differences by meaning between two model files."""
    found: list[str] = []
    onnx_equal.compare(str(ours), str(wanted), found.append)
    return found


def assert_same_model(ours: Path, wanted: Path) -> None:
    """Fail with the first differences."""
    found = differences(ours, wanted)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:20])


def session(path: Path) -> ort.InferenceSession:
    """A session whose results repeat: one thread, no graph optimization."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_model(path: Path, arrays: list[np.ndarray] | dict) -> list[np.ndarray]:
    """Outputs of a model for inputs in order, or by name."""
    s = session(path)
    if not isinstance(arrays, dict):
        names = [i.name for i in s.get_inputs()]
        assert len(names) == len(arrays), f"model wants inputs {names}"
        arrays = dict(zip(names, arrays))
    return s.run(None, arrays)


def same_bits(ours: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    """Fail unless both lists hold the same bytes."""
    assert len(ours) == len(wanted)
    for i, (a, b) in enumerate(zip(ours, wanted)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"output {i}: {a.dtype}{a.shape}"
        if a.tobytes() != b.tobytes():
            delta = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            raise AssertionError(f"output {i} differs by up to {delta}")


def sqnr_db(exact: np.ndarray, noisy: np.ndarray) -> float:
    """Signal to quantization noise ratio in decibels."""
    exact, noisy = exact.astype(np.float64), noisy.astype(np.float64)
    noise = np.sum((exact - noisy) ** 2)
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(exact**2) / noise))


def check_model(path: Path) -> onnx.ModelProto:
    """Fail unless onnx.checker accepts the file; returns the model without external data."""
    onnx.checker.check_model(str(path))
    return onnx.load(str(path), load_external_data=False)


def payload(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """Bytes of a tensor, wherever they are stored."""
    return onnx_equal.payload(tensor, str(folder))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content, dot files included."""
    return {
        os.path.relpath(os.path.join(top, name), folder): Path(top, name).read_bytes()
        for top, _, names in os.walk(folder)
        for name in names
    }
