# SPDX-License-Identifier: Apache-2.0
"""Exports of trained models that other people made, and of the one that ships.

None of the others was trained for quantization, so their records come from datasets/make_record.py.
What is asked: the export succeeds, its integers are those of the numpy reference, the fake_quant
model runs, and its error against the float model is printed and stays below a bar. The bars are loose:
plain min/max ranges on generated inputs are no calibration, they only tell a sane export from noise.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import deploy_rules
import minilm
import numpy as np
import onnx
import pytest
import reference
from nets import Export, build_wanted, export_text, layer_values

import make_record
from support import DEPLOY, FAKE, check_model, run_model, same_bits, sqnr_db


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package that is never imported; skips where it is not there."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed (tests/requirements-models.txt)")
    found = Path(next(iter(spec.submodule_search_locations)), path)
    if not found.is_file():
        pytest.skip(f"{package} has no {path}")
    return found


def page(height: int, width: int, seed: int) -> np.ndarray:
    """A white page with dark strokes in rows, as a text model might see it, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    image = np.full((1, 3, height, width), 0.9, np.float32)
    for top in range(4, height - 12, 24):
        left = 6
        while left < width - 14:
            w, h = rng.integers(2, 9), rng.integers(6, 16)
            image[:, :, top : top + h, left : left + w] = -0.8 + 0.3 * rng.random()
            left += int(w + rng.integers(2, 7))
    return image + rng.normal(0, 0.03, image.shape).astype(np.float32)


def sound(samples: int, seed: int) -> np.ndarray:
    """A sum of a few tones with noise, as a microphone might hear it."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    tones = sum(rng.random() * np.sin(2 * np.pi * f * t) for f in rng.uniform(90, 3000, 6))
    return (0.12 * tones + rng.normal(0, 0.01, samples)).astype(np.float32)[None]


def ocr(height: int, width: int) -> list[dict]:
    return [{"x": page(height, width, seed)} for seed in (1, 2)]


def vad(**more) -> list[dict]:
    return [{"input": sound(576, seed)} | more for seed in (1, 2, 3)]


STATE = np.zeros((2, 1, 128), np.float32)
CELL = np.zeros((1, 1, 128), np.float32)
# package, file, inputs, least number of layers, lowest SQNR in dB of any output
MODELS = {
    "ppocr-det": (
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_det_infer.onnx",
        lambda: ocr(96, 160),
        60,
        12.0,
    ),
    "ppocr-rec": (
        "rapidocr_onnxruntime",
        "models/ch_PP-OCRv4_rec_infer.onnx",
        lambda: ocr(48, 160),
        40,
        4.0,
    ),
    "ppocr-cls": (
        "rapidocr_onnxruntime",
        "models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lambda: ocr(48, 192),
        50,
        12.0,
    ),
    "silero-16k": (
        "silero_vad",
        "data/silero_vad_16k_op15.onnx",
        lambda: vad(state=STATE, sr=np.array(16000, np.int64)),
        6,
        18.0,
    ),
    "silero-sequence": (
        "silero_vad",
        "data/silero_vad_16k_sequence.onnx",
        lambda: vad(h=CELL, c=CELL),
        6,
        18.0,
    ),
}


def export_real(quantfold, model: Path, feeds: list[dict], folder: Path, layers: int) -> Export:
    """Make a record, export, and check both outputs against the numpy reference."""
    text, config, keys, skipped = make_record.make(model, feeds, quantfold=quantfold.binary)
    assert len(keys) >= layers, skipped
    export = export_text(quantfold, folder, model, text, config=config)
    deploy_rules.assert_deploy(export.out / DEPLOY)
    check_model(export.out / FAKE)
    for name in (DEPLOY, FAKE):
        for key in keys:
            ours = layer_values(export.out / name, key)
            assert ours and ours == layer_values(export.wanted / name, key), f"{name}: {key}"
    wanted = run_model(export.wanted / FAKE, feeds[0])
    same_bits(run_model(export.out / FAKE, feeds[0]), wanted)
    return export


def report(name: str, capsys, export: Export, feeds: list[dict], bar: float) -> None:
    """Print the error of each output over all inputs, and hold it against the bar."""
    exact = [run_model(export.model, f) for f in feeds]
    noisy = [run_model(export.out / FAKE, f) for f in feeds]
    layers = len(export.records)
    for i, output in enumerate(export.fake.graph.output):
        a = np.concatenate([r[i].reshape(-1) for r in exact])
        b = np.concatenate([r[i].reshape(-1) for r in noisy])
        snr, worst = sqnr_db(a, b), np.max(np.abs(a - b))
        with capsys.disabled():
            print(f"\n{name}: {layers} layers, output {output.name}: SQNR {snr:.1f} dB, ", end="")
            print(f"largest error {worst:.4g} on values up to {np.max(np.abs(a)):.4g}", end="")
        assert np.all(np.isfinite(b)) and snr > bar, f"{output.name}: {snr:.1f} dB"


@pytest.mark.parametrize("name", MODELS)
def test_real_model(quantfold, tmp_path, capsys, name):
    package, path, make_feeds, layers, bar = MODELS[name]
    model, feeds = package_file(package, path), make_feeds()
    export = export_real(quantfold, model, feeds, tmp_path, layers)
    report(name, capsys, export, feeds, bar)


def test_transformer(quantfold, tmp_path, capsys):
    archive = package_file("all_minilm_l6_v2", "model.zip")
    model = minilm.build(archive, tmp_path / "minilm.onnx")
    rng = np.random.default_rng(5)
    feeds = [{"ids": rng.integers(1000, 29000, (2, 32))} for _ in range(2)]
    export = export_real(quantfold, model, feeds, tmp_path, 36)
    report("minilm", capsys, export, feeds, 6.0)


BRANCHED = {
    # file: the branch that 16 kHz takes, and how many layers it has
    "data/silero_vad.onnx": ("then", 6),
    "data/silero_vad_op18_ifless.onnx": ("then", 8),
}


@pytest.mark.parametrize("path", BRANCHED)
def test_layers_inside_branches_are_seen(quantfold, path):
    """Every layer of these sits in an If: inspect lists them, make_record says why it skips them."""
    model = package_file("silero_vad", path)
    result = quantfold("inspect", model, "--json")
    assert result.code == 0, result.err
    kinds = [x["op_type"] for x in json.loads(result.out)["layers"]]
    assert kinds.count("Conv") >= 12
    text, _, keys, skipped = make_record.make(model)
    assert not text and not keys and "If/Loop" in skipped[-1]


@pytest.mark.parametrize("path", BRANCHED)
def test_layers_inside_branches_are_quantized(quantfold, tmp_path, capsys, path):
    """What comes out of a branch is what comes out of the same layers in a graph without an If."""
    model = package_file("silero_vad", path)
    branch, layers = BRANCHED[path]
    names = [v.name for v in onnx.load(str(model)).graph.input]
    feeds = [f | {"sr": np.array(16000, np.int64)} for f in vad(state=STATE)]
    assert set(names) == set(feeds[0])
    made = make_record.make(model, feeds, quantfold=quantfold.binary, branch=branch)
    text, config, keys, skipped = made
    assert len(keys) == layers, skipped
    flat = tmp_path / "flat.onnx"
    onnx.save(make_record.take_branch(onnx.load(str(model)), branch), str(flat))
    wanted = tmp_path / "wanted"
    wanted.mkdir()
    build_wanted(flat, reference.parse_record(text), wanted)
    (tmp_path / "record.txt").write_text(text)
    (tmp_path / "config.json").write_text(config)
    quantfold.export(
        model, tmp_path / "record.txt", tmp_path / "out" / "m", config=tmp_path / "config.json"
    )
    check_model(tmp_path / "out" / FAKE)
    for feed in feeds:
        ours = run_model(tmp_path / "out" / FAKE, feed)
        same_bits(ours, run_model(wanted / FAKE, feed))
    export = Export(tmp_path / "out", model, reference.parse_record(text), wanted)
    report(Path(path).stem, capsys, export, feeds, 18.0)
    inside = [q for n in export.deploy.graph.node for q in reference.bodies(n)]
    kinds = [n.op_type for body in inside for n in body.node]
    assert kinds.count("AscendDequant") == layers


def test_shipped_dataset(quantfold, repo, tmp_path, capsys):
    """The trained classifier that ships: quantized, it is as right as it was."""
    data = repo / "datasets" / "digits"
    model, images = data / "model.onnx", np.load(data / "test_inputs.npy")
    labels = np.load(data / "test_labels.npy")
    text, config = ((data / n).read_text() for n in ("record.txt", "config.json"))
    export = export_text(quantfold, tmp_path, model, text, config=config)
    deploy = deploy_rules.assert_deploy(export.out / DEPLOY)
    assert sum(n.op_type == "AscendDequant" for n in deploy.graph.node) == 5
    assert not any(n.op_type == "BatchNormalization" for n in deploy.graph.node)
    check_model(export.out / FAKE)
    (ours,) = run_model(export.out / FAKE, [images])
    same_bits([ours], run_model(export.wanted / FAKE, [images]))
    (exact,) = run_model(model, [images])
    right = [float(np.mean(np.argmax(y, 1) == labels)) for y in (exact, ours)]
    with capsys.disabled():
        print(f"\ndigits: float {right[0]:.4f}, fake_quant {right[1]:.4f}", end="")
    assert right[0] > 0.98 and right[1] > 0.98
