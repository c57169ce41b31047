# SPDX-License-Identifier: Apache-2.0
"""The Python functions: the same files as the command line writes, and errors as exceptions."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import quantfold as qf
from nets import F32, Net, gemm, random

from support import DEPLOY, FAKE


@pytest.fixture
def digits(repo) -> Path:
    return repo / "datasets" / "digits"


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, Path]:
    """A model that takes a while, and its record."""
    folder = tmp_path_factory.mktemp("large")
    net = Net()
    x = net.input("x", random(1, 2048))
    for i in range(12):
        x = gemm(net, x, np.ones((2048, 2048), F32), name=f"g{i}", transB=1)
    net.output(x)
    onnx.save(net.model(), folder / "m.onnx")
    entry = (
        'record {{ key: "g{}" value {{ scale_d: 0.1 offset_d: 0 scale_w: 0.01 offset_w: 0 }} }}\n'
    )
    (folder / "r.txt").write_text("".join(entry.format(i) for i in range(12)))
    return folder / "m.onnx", folder / "r.txt"


def test_export_is_the_command_line(quantfold, digits, tmp_path):
    """Every option, once."""
    files = {"config": digits / "config.json", "record": digits / "record.txt"}
    report = qf.export(
        digits / "model.onnx",
        tmp_path / "a" / "m",
        **files,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": {0: "n"}, "scores": [0]},
        external="always",
        external_layout="single",
        fake_quant_weights="int8",
        io="pwrite",
        fsync=False,
        threads=1,
        memory_limit=1 << 36,
    )
    quantfold.export(
        digits / "model.onnx",
        digits / "record.txt",
        tmp_path / "b" / "m",
        *("--input-names", "image", "--output-names", "scores"),
        *("--dynamic-axes", '{"image": {"0": "n"}, "scores": [0]}'),
        *("--external", "always", "--external-layout", "single", "--fake-quant-weights", "int8"),
        config=digits / "config.json",
    )
    written = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert written == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    assert {Path(o.path).name for o in report.outputs} == set(written)
    assert report.bytes_written == sum(map(len, written.values()))
    assert [l.op_type for l in report.layers] == ["Conv", "Conv", "Conv", "Gemm", "Gemm"]
    assert report.skipped[0].reason == "it has no record"


def test_paths(digits, tmp_path):
    """str and Path, and names that are not ASCII."""
    folder = tmp_path / "ordner-für-ü"
    report = qf.export(str(digits / "model.onnx"), str(folder / "模"), record=digits / "record.txt")
    assert sorted(p.name for p in folder.iterdir()) == [
        "模_deploy_model.onnx",
        "模_fake_quant_model.onnx",
    ]
    assert report.outputs[0].path.startswith(str(folder))


def test_dry_run(digits, tmp_path):
    report = qf.export(
        digits / "model.onnx", tmp_path / "m", record=digits / "record.txt", dry_run=True
    )
    assert report.layers and report.bytes_written == 0 and not list(tmp_path.iterdir())


def test_inspect(digits):
    info = qf.inspect(digits / "model.onnx")
    assert info.opset == 17 and info.tensor_count == 20
    first = info.layers[0]
    assert (first.name, first.op_type, first.channels) == ("/conv1/Conv", "Conv", 16)
    assert first.dims == (16, 1, 3, 3) and first.quantizable and first.dtype == "float32"


def test_check(digits, tmp_path):
    """Findings are returned, all at once."""
    files = {"config": digits / "config.json", "record": digits / "record.txt"}
    assert qf.check(digits / "model.onnx", **files) == []
    text = (digits / "record.txt").read_text()
    (tmp_path / "r.txt").write_text(text.replace("offset_w: 0", "offset_w: 1", 1))
    found = qf.check(digits / "model.onnx", record=tmp_path / "r.txt")
    assert [d.severity for d in found] == ["error"]
    assert "weight offsets must be 0" in found[0].message and found[0].item and found[0].line
    assert "no QuantizeLinear" in str(qf.check(digits / "model.onnx")[0])
    assert "no.onnx" in str(qf.check(tmp_path / "no.onnx")[0])


def test_record(quantfold, digits, tmp_path):
    """From a dictionary and from a file, returned and written."""
    config, model = digits / "config.json", digits / "model.onnx"
    ranges = {l: {"min": -1.0, "max": 1.5} for l in ("conv1", "conv2", "conv3", "fc1", "fc2")}
    text = qf.record(model, config=config, activations=ranges, output=tmp_path / "r.txt")
    assert (tmp_path / "r.txt").read_text() == text and text.count("record {") == 5
    (tmp_path / "a.json").write_text(str(ranges).replace("'", '"'))
    args = ["--model", model, "--config", config, "--activations", tmp_path / "a.json"]
    assert quantfold("record", *args).out == text
    assert qf.record(model, config=config, activations=tmp_path / "a.json") == text
    with pytest.raises(qf.InputError, match="conv1"):
        qf.record(model, config=config, activations={})
    with pytest.raises(qf.InputError, match="surround|no QuantizeLinear"):
        qf.record(model, from_qdq=True)
    with pytest.raises(qf.UsageError):
        qf.record(model)


def test_errors_carry_the_facts(digits, tmp_path):
    (tmp_path / "r.txt").write_text("record {\n  key: 3\n}\n")
    with pytest.raises(qf.InputError) as e:
        qf.export(digits / "model.onnx", tmp_path / "m", record=tmp_path / "r.txt")
    assert isinstance(e.value, ValueError) and e.value.status == "input"
    assert e.value.file.endswith("r.txt") and (e.value.line, e.value.column) == (2, 8)
    assert str(e.value) == e.value.message and pickle.loads(pickle.dumps(e.value)).args
    (tmp_path / "file").write_text("")
    with pytest.raises(qf.SystemFailure) as e:
        qf.export(digits / "model.onnx", tmp_path / "file" / "m", record=digits / "record.txt")
    assert isinstance(e.value, OSError) and e.value.errno
    with pytest.raises(qf.UsageError, match="emit must be one of"):
        qf.export(digits / "model.onnx", tmp_path / "m", emit="nothing")
    with pytest.raises(qf.UsageError):
        qf.export(digits / "model.onnx", tmp_path / "m", input_names="image")
    assert not (tmp_path / DEPLOY).exists()


def test_progress(large, tmp_path):
    """It is told of all bytes, and may stop the export."""
    seen: list[tuple] = []
    qf.export(large[0], tmp_path / "m", record=large[1], progress=lambda *a: seen.append(a))
    assert seen and all(done <= total for done, total, _ in seen)
    with pytest.raises(qf.Cancelled):
        qf.export(large[0], tmp_path / "n", record=large[1], progress=lambda *a: False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [DEPLOY, FAKE]


def test_exception_in_progress(large, tmp_path):
    def fail(*_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        qf.export(large[0], tmp_path / "m", record=large[1], progress=fail)
    assert not list(tmp_path.iterdir())


def test_bar(large, tmp_path, capsys):
    """tqdm's, where it is installed; nothing is missed where it is not."""
    qf.export(large[0], tmp_path / "m", record=large[1], progress=True)
    assert (tmp_path / FAKE).exists()


def test_other_threads_run(large, tmp_path):
    """The interpreter is free while C works: a counter goes on."""
    ticks, done = [0], threading.Event()

    def count():
        while not done.is_set():
            ticks[0] += 1
            time.sleep(0.001)

    counter = threading.Thread(target=count)
    counter.start()
    before = ticks[0]
    report = qf.export(large[0], tmp_path / "m", record=large[1], threads=1)
    during = ticks[0] - before
    done.set()
    counter.join()
    assert during > report.seconds * 50  # a tenth of what an idle machine would give


def test_exports_side_by_side(digits, tmp_path):
    def one(i: int) -> bytes:
        qf.export(digits / "model.onnx", tmp_path / f"{i}" / "m", record=digits / "record.txt")
        return (tmp_path / f"{i}" / DEPLOY).read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(one, range(12)))) == 1


INTERRUPTED = """
import os, signal, sys, threading
import quantfold as qf
seen = []
def progress(*_):
    seen.append(1)
    if len(seen) == 1:
        os.kill(os.getpid(), signal.SIGINT)
try:
    qf.export(sys.argv[1], sys.argv[3], record=sys.argv[2], progress=progress)
except KeyboardInterrupt:
    sys.exit(42)
"""


FROM_OUTSIDE = """
import os, signal, sys, threading, time
import quantfold as qf
def interrupt():
    while not any(os.scandir(sys.argv[4])):  # until it writes
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    qf.export(sys.argv[1], sys.argv[3], record=sys.argv[2], threads=1)
except KeyboardInterrupt:
    sys.exit(42)
"""


STARTING = """
import os, signal, sys, threading
import quantfold as qf
start = threading.Thread.start
def start_and_interrupt(thread):
    start(thread)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread.start = start_and_interrupt
try:
    qf.export(sys.argv[1], sys.argv[3], record=sys.argv[2], threads=1)
except KeyboardInterrupt:
    sys.exit(42 if signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)
"""


@pytest.mark.parametrize(
    "program", [INTERRUPTED, FROM_OUTSIDE, STARTING], ids=["inside", "outside", "starting"]
)
def test_keyboard_interrupt(large, tmp_path, program):
    """Ctrl-C ends the export with KeyboardInterrupt and without leavings, whether it comes while the
    progress function runs, while C does, or as it begins."""
    (tmp_path / "out").mkdir()
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            large[0],
            large[1],
            tmp_path / "out" / "m",
            tmp_path / "out",
        ],
        env={**__import__("os").environ, "PYTHONPATH": str(Path(qf.__file__).parents[1])},
        timeout=60,
    )
    assert run.returncode == 42
    # nothing, or all if it came at the very end
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) in ([], [DEPLOY, FAKE])


def test_no_library(tmp_path):
    """A message that says what to do."""
    code = "import quantfold; quantfold.version()"
    env = {"QUANTFOLD_LIBRARY": "/nowhere/lib.so", "PYTHONPATH": str(Path(qf.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 1 and "QUANTFOLD_LIBRARY" in run.stderr


def test_weight_only_is_the_command_line(quantfold, tmp_path):
    net = Net(opset=21, ir_version=10)
    x = net.input("x", random(3, 32))
    for name in ("a", "b"):
        x = gemm(net, x, random(32, 32, seed=1), name=name)
    net.output(x)
    onnx.save(net.model(), tmp_path / "m.onnx")
    report = qf.export(
        *(tmp_path / "m.onnx", tmp_path / "a" / "m"),
        weight_only="w4a16:group=16",
        include="weight$",
        exclude="^none$",
        dedup=True,
    )
    assert [(x.name, x.activation_bits, x.weight_bits, x.group) for x in report.layers] == [
        ("a", 0, 4, 16),
        ("b", 0, 4, 16),
    ]
    assert report.bytes_saved == 2 * (32 * 16 + 2 * 32 * 4)
    args = ["--weight-only", "w4a16:group=16", "--include", "weight$", "--exclude", "^none$"]
    model = ["--model", tmp_path / "m.onnx", "--save-path", tmp_path / "b" / "m"]
    assert quantfold("export", *model, *args, "--dedup").code == 0
    for name in (DEPLOY, FAKE):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert qf.check(tmp_path / "m.onnx", weight_only="w8a16") == []
    (finding,) = qf.check(tmp_path / "m.onnx", weight_only="w8a16", include="none")
    assert "finds no weight" in finding.message
    with pytest.raises(qf.UsageError, match="w8a16"):
        qf.export(tmp_path / "m.onnx", tmp_path / "c" / "m", weight_only="w9")
