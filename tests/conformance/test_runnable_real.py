# SPDX-License-Identifier: Apache-2.0
"""Runnable models of real models: what the deploy file calculates, against fake_quant.

Sums of real layers pass 2^24, where float32 stops holding every integer. There fake_quant, which adds
in float32, is not what the NPU adds up; the table that is printed says in how many sums, by how much,
and how many integers of the layers behind round to another value for it. Each layer is held to what
float32 rounding can explain (runnable.compare). Where no integer flips, outputs agree to 1e-5; where
some do, one flip is a whole step of a quantizer, which a deep model may carry to its outputs.
"""

from __future__ import annotations

from pathlib import Path

import minilm
import numpy as np
import onnx
import pytest
from nets import export_text, random
from test_qdq_real import LARGE, TORCH, WAYS, modern, quantize
from test_qdq_real import MODELS as QDQ_MODELS
from test_real_models import BRANCHED, MODELS, STATE, export_real, package_file, vad

import make_record
from runnable import HEADER, compare, make_runnable, relative
from support import DEPLOY, FAKE, run_model, same_bits, snapshot

LEAST = 1e-5
printed: list[bool] = []


def judge(name: str, fake: Path, runnable: Path, feeds: list[dict], capsys) -> None:
    """Print a row, and hold the outputs to the bar if nothing can have flipped."""
    result = compare(fake, runnable, feeds)
    rnn = any(n.op_type in ("LSTM", "GRU") for n in onnx.load(fake).graph.node)
    with capsys.disabled():
        print("\n" if printed else f"\n{HEADER}\n", end="")
        print("\n".join([result.row(name) + (" (RNN)" if rnn else ""), *result.inexact()]), end="")
    printed.append(True)
    if not rnn and not any(x.flips for x in result.layers):
        assert result.relative <= LEAST


def both_ways(quantfold, folder: Path, deploy: Path, model: Path, feed: dict, *record) -> Path:
    """The runnable model from the deploy file; that from the float model must give the same bits.
    The latter is told which weights are packed, so their nodes may differ."""
    path = make_runnable(quantfold, folder / "run", deploy)
    again = make_runnable(quantfold, folder / "again", model, *record)
    same_bits(run_model(path, feed), run_model(again, feed))
    return path


def record_of(folder: Path, text: str) -> list:
    (folder / "record.txt").write_text(text)
    return ["--record", folder / "record.txt"]


@pytest.mark.parametrize("name", MODELS)
def test_real_model(quantfold, tmp_path, capsys, name):
    package, path, make_feeds, layers, _ = MODELS[name]
    model, feeds = package_file(package, path), make_feeds()
    export = export_real(quantfold, model, feeds, tmp_path, layers)
    text = make_record.make(model, feeds, quantfold=quantfold.binary)[0]
    record = record_of(tmp_path, text)
    path = both_ways(quantfold, tmp_path, export.out / DEPLOY, model, feeds[0], *record)
    judge(name, export.out / FAKE, path, feeds, capsys)


def test_transformer(quantfold, tmp_path, capsys):
    archive = package_file("all_minilm_l6_v2", "model.zip")
    model = minilm.build(archive, tmp_path / "minilm.onnx")
    rng = np.random.default_rng(5)
    feeds = [{"ids": rng.integers(1000, 29000, (2, 32))} for _ in range(2)]
    export = export_real(quantfold, model, feeds, tmp_path, 36)
    path = make_runnable(quantfold, tmp_path / "run", export.out / DEPLOY)
    judge("minilm", export.out / FAKE, path, feeds, capsys)


@pytest.mark.parametrize("path", BRANCHED)
def test_layers_inside_branches(quantfold, tmp_path, capsys, path):
    model = package_file("silero_vad", path)
    feeds = [f | {"sr": np.array(16000, np.int64)} for f in vad(state=STATE)]
    text, _, keys, _ = make_record.make(
        model, feeds, quantfold=quantfold.binary, branch=BRANCHED[path][0]
    )
    record = record_of(tmp_path, text)
    quantfold.export(model, record[1], tmp_path / "out" / "m")
    run = both_ways(quantfold, tmp_path, tmp_path / "out" / DEPLOY, model, feeds[0], *record)
    worst = max(
        relative(run_model(run, feed), run_model(tmp_path / "out" / FAKE, feed)) for feed in feeds
    )
    with capsys.disabled():
        print(f"\n{Path(path).stem}: {len(keys)} layers in an If, outputs {worst:.2g}", end="")
    assert worst <= LEAST


def test_shipped_dataset(quantfold, repo, tmp_path, capsys):
    data = repo / "datasets" / "digits"
    images, labels = np.load(data / "test_inputs.npy"), np.load(data / "test_labels.npy")
    text, config = ((data / n).read_text() for n in ("record.txt", "config.json"))
    export = export_text(quantfold, tmp_path, data / "model.onnx", text, config=config)
    name = onnx.load(data / "model.onnx").graph.input[0].name
    feed, record = {name: images}, ["--record", data / "record.txt"]
    path = both_ways(quantfold, tmp_path, export.out / DEPLOY, data / "model.onnx", feed, *record)
    judge("digits", export.out / FAKE, path, [feed], capsys)
    (scores,) = run_model(path, [images])
    right = float(np.mean(np.argmax(scores, 1) == labels))
    with capsys.disabled():
        print(f"\ndigits: runnable deploy model right in {right:.4f}", end="")
    assert right > 0.98


@pytest.mark.parametrize("name, way", [(n, w) for n in QDQ_MODELS for w in LARGE.get(n, WAYS)])
def test_quantize_static(quantfold, repo, tmp_path, capsys, name, way):
    """QDQ models, whose free pairs are AscendQuant and AscendAntiQuant."""
    source, feeds = QDQ_MODELS[name](repo)
    qdq = tmp_path / "q.onnx"
    quantize(modern(source, tmp_path), feeds, qdq, *WAYS[way])
    result = quantfold("export", "--model", qdq, "--save-path", tmp_path / "m", "--quiet")
    assert result.code == 0, result.err
    path = both_ways(quantfold, tmp_path, tmp_path / DEPLOY, qdq, feeds[0])
    judge(f"{name} {way}", tmp_path / FAKE, path, feeds[:2], capsys)


@pytest.mark.parametrize("source", TORCH, ids=lambda p: p.stem)
def test_trained_by_others(quantfold, tmp_path, capsys, source):
    result = quantfold("export", "--model", source, "--save-path", tmp_path / "m", "--quiet")
    assert result.code == 0, result.err
    name = onnx.load(source).graph.input[0].name
    feeds = [{name: random(2, 3, 8, 8, seed=seed)} for seed in range(20)]
    path = both_ways(quantfold, tmp_path, tmp_path / DEPLOY, source, feeds[0])
    judge(source.stem, tmp_path / FAKE, path, feeds, capsys)


def test_threads_make_no_difference(quantfold, repo, tmp_path):
    data, written = repo / "datasets" / "digits", []
    args = ["--record", data / "record.txt", "--external", "always"]
    for threads in (1, 2, 8):
        out = tmp_path / str(threads)
        make_runnable(quantfold, out, data / "model.onnx", *args, "--threads", threads)
        written.append(snapshot(out))
    assert written[0] == written[1] == written[2]
    assert any(name.endswith("_runnable.external") for name in written[0])
