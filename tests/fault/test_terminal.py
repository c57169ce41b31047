# SPDX-License-Identifier: Apache-2.0
"""Signals that a shell has the program ignore, and names that would steer a terminal."""

from __future__ import annotations

import signal
import subprocess
import time

import make_large
import pytest


@pytest.mark.parametrize("ignored", [True, False])
def test_nohup(quantfold, tmp_path, ignored):
    """What nohup or a script's background ignores stays ignored; else the run ends, and says what it
    left."""
    source, out = tmp_path / "in", tmp_path / "o"
    make_large.write(source, make_large.Spec(layout="external", size=512, count=24))
    args = ["export", "--model", source / "model.onnx", "--record", source / "record.txt"]
    args += ["--save-path", out / "m", "--external", "always", "--no-fsync", "--threads", "1"]
    how = signal.SIG_IGN if ignored else signal.SIG_DFL
    run = subprocess.Popen(
        [quantfold.binary, *map(str, args)],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: [signal.signal(s, how) for s in (signal.SIGHUP, signal.SIGINT)],
    )
    while run.poll() is None and not out.exists():
        time.sleep(0.0005)
    for number in (signal.SIGHUP, signal.SIGINT):
        run.send_signal(number)
    _, err = run.communicate(timeout=60)
    if ignored:
        assert run.returncode == 0 and (out / "m_deploy_model.onnx").exists()
    elif run.returncode != 0:  # it may have been done
        assert run.returncode == 130 and b"interrupted" in err and str(out).encode() in err
        assert not out.exists()


@pytest.mark.parametrize(
    "name, said",
    [
        (b"\x1b[31m", b"\\x1b[31m"),
        (b"\x7f", b"\\x7f"),
        (b"\xc2\x9b31m", b"\\xc2\\x9b31m"),
        (b"a\x9b31m", b"a\\x9b31m"),
        (b"\xc3\xa9\x9b", b"\xc3\xa9\\x9b"),
        (b"\xc2\x85\xc2\xa0", b"\\xc2\\x85\xc2\xa0"),
        (b"\xe2\x82\xac \xf0\x9f\x98\x80 \xc4\x9b", b"\xe2\x82\xac \xf0\x9f\x98\x80 \xc4\x9b"),
        (b"\xc2", b"\xc2"),
    ],
    ids=repr,
)
def test_control_characters(quantfold, tmp_path, name, said):
    """Those of ISO 6429 too, in UTF-8 and as bytes; letters that have such bytes are let through."""
    run = subprocess.run(
        [quantfold.binary, b"inspect", bytes(tmp_path) + b"/" + name + b".onnx"],
        capture_output=True,
    )
    assert run.returncode == 1 and b"/" + said + b".onnx" in run.stderr
