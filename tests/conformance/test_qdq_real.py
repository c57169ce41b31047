# SPDX-License-Identifier: Apache-2.0
"""QDQ import of real models, quantized by onnxruntime's quantize_static.

The QDQ model in ONNX Runtime is the oracle: every quantized layer of the fake_quant model, given the
same integers, must be within one step of the quantizer that follows there, and outputs must agree to
40 dB. What differs is that AscendQuant multiplies by a float32 reciprocal where QuantizeLinear divides,
and that a layer's sum is of integers and exact: near a tie a value can round to the other side.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference
from nets import random
from onnx import helper, numpy_helper, version_converter
from test_real_models import ocr, package_file

from support import DEPLOY, FAKE, check_model, run_model, session, sqnr_db

quantization = pytest.importorskip("onnxruntime.quantization")
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"}
LEAST_DB = 40


class Reader(quantization.CalibrationDataReader):
    """Calibration data from a list."""

    def __init__(self, feeds: list[dict]):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def modern(path: Path, folder: Path) -> Path:
    """The model in opset 13, which per-channel scales need, its Constant nodes as initializers: the
    quantizer takes those of the graph for activations."""
    model = onnx.load(path)
    for node in [n for n in model.graph.node if n.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            node.attribute[0].t.name = node.output[0]
            model.graph.initializer.append(node.attribute[0].t)
            model.graph.node.remove(node)
    if max(o.version for o in model.opset_import if not o.domain) < 13:
        model = version_converter.convert_version(model, 13)
    onnx.save(model, folder / "float.onnx")
    return folder / "float.onnx"


def digits(repo: Path) -> tuple[Path, list[dict]]:
    data = repo / "datasets" / "digits"
    images = np.load(data / "test_inputs.npy")
    name = onnx.load(data / "model.onnx").graph.input[0].name
    return data / "model.onnx", [{name: images[i : i + 64]} for i in (0, 64, 128)]


def paddle(kind: str, height: int, width: int) -> tuple[Path, list[dict]]:
    return package_file("rapidocr_onnxruntime", f"models/{kind}_infer.onnx"), ocr(height, width)


MODELS = {
    "digits": lambda repo: digits(repo),
    "ppocr-cls": lambda repo: paddle("ch_ppocr_mobile_v2.0_cls", 48, 192),
    "ppocr-det": lambda repo: paddle("ch_PP-OCRv4_det", 96, 160),
    "ppocr-rec": lambda repo: paddle("ch_PP-OCRv4_rec", 48, 160),
}


def quantize(
    model: Path, feeds: list[dict], out: Path, per_channel: bool, activations: str
) -> None:
    logging.disable(logging.WARNING)
    try:
        quantization.quantize_static(
            model,
            out,
            Reader(feeds),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=getattr(quantization.QuantType, activations),
            weight_type=quantization.QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )
    finally:
        logging.disable(logging.NOTSET)


def run_all(path: Path, names: list[str], feed: dict) -> dict[str, np.ndarray]:
    """The named tensors and the outputs."""
    model = onnx.load(path)
    have = [o.name for o in model.graph.output]
    for name in names:
        if name not in have:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    exposed = path.with_suffix(".exposed.onnx")
    onnx.save(model, exposed)
    s = session(exposed)
    return dict(zip([o.name for o in s.get_outputs()], s.run(None, feed)))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers, and the values of Constant nodes."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for n in model.graph.node:
        if n.op_type == "Constant" and n.attribute[0].name == "value":
            found[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
        if n.op_type == "Identity" and n.input[0] in found:
            found[n.output[0]] = found[n.input[0]]
    return found


def step_behind(model: onnx.ModelProto, output: str, values: np.ndarray) -> float:
    """The scale of the quantizer that reads a layer's output, next or behind operators that keep its
    range; where there is none, a 255th of the range of the values."""
    scales = constants(model)
    for _ in range(4):
        users = [n for n in model.graph.node if output in n.input]
        for n in users:
            if n.op_type == "QuantizeLinear":
                return float(scales[n.input[1]].max())
        if len(users) != 1 or users[0].op_type not in {"Relu", "Clip", "Reshape", "Transpose"}:
            break
        output = users[0].output[0]
    return float(values.max() - values.min()) / 255


def layer_outputs(fake: onnx.ModelProto, layers: list[str]) -> dict[str, str]:
    """What each layer's dequant Mul gives; a graph output keeps its name."""
    muls = {n.name: n.output[0] for n in fake.graph.node}
    return {layer: muls[f"{layer}.fakedequant.mul"] for layer in layers}


def uncouple(fake: onnx.ModelProto, theirs: dict[str, str], scales: dict[str, float]):
    """Every quantizer reads a graph input of its own, so that each layer can be given what the QDQ
    model's layer reads, and divides as QuantizeLinear does, so that ties round alike. Returns the
    model, and the QDQ model's tensors by the names of those inputs."""
    model, given, ending = onnx.ModelProto(), {}, ".quant.fakequant.mul"
    model.CopyFrom(fake)
    for node in model.graph.node:
        if node.name.endswith(ending):
            source = theirs.get(node.input[0], node.input[0])
            given[f"given:{source}"] = source
            scale = np.array(scales[node.name.removesuffix(ending)], np.float32)
            model.graph.initializer.append(numpy_helper.from_array(scale, f"{node.name}:scale"))
            node.op_type = "Div"
            node.input[:] = [f"given:{source}", f"{node.name}:scale"]
    model.graph.input.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in given
    )
    return model, given


def scales_of(quantfold, qdq: Path) -> dict[str, float]:
    """The scale of every quantizer, by layer or by the name of its QuantizeLinear node."""
    model = onnx.load(qdq)
    values = constants(model)
    found = {
        n.name: float(values[n.input[1]].max())
        for n in model.graph.node
        if n.op_type == "QuantizeLinear"
    }
    text = quantfold("record", "--model", qdq, "--from-qdq").out
    return found | {k: v["scale_d"] for k, v in reference.parse_record(text).items()}


def worst_layer(folder: Path, feed: dict, layers: list[str], scales) -> tuple[float, str]:
    """The largest error of any layer's output, and the layer, in steps of the quantizer behind it,
    each layer given what it reads in the QDQ model."""
    original, fake = onnx.load(folder / "q.onnx"), onnx.load(folder / FAKE)
    outputs = {n.name: n.output[0] for n in original.graph.node}
    ours, theirs = layer_outputs(fake, layers), {l: outputs[l] for l in layers}
    apart, given = uncouple(fake, {ours[l]: theirs[l] for l in layers}, scales)
    exact = run_all(folder / "q.onnx", [*theirs.values(), *given.values()], feed)
    onnx.save(apart, folder / "apart.onnx")
    known = feed | exact
    feeds = feed | {name: known[source] for name, source in given.items()}
    got = run_all(folder / "apart.onnx", list(ours.values()), feeds)
    worst = (0.0, "")
    for layer in layers:
        wanted = exact[theirs[layer]]
        error = float(np.abs(wanted - got[ours[layer]]).max())
        worst = max(worst, (error / step_behind(original, theirs[layer], wanted), layer))
    return worst


def another_way(path: Path, feed: dict) -> list[np.ndarray]:
    """The same model as ONNX Runtime runs it with all optimizations, on integer kernels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    s = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return s.run(None, feed)


WAYS = {
    "tensor-int8": (False, "QInt8"),
    "tensor-uint8": (False, "QUInt8"),
    "channel-int8": (True, "QInt8"),
    "channel-uint8": (True, "QUInt8"),
}
LARGE = {"ppocr-det": ["tensor-int8", "channel-uint8"], "ppocr-rec": ["channel-int8"]}


@pytest.mark.parametrize("name, way", [(n, w) for n in MODELS for w in LARGE.get(n, WAYS)])
def test_quantize_static(quantfold, repo, tmp_path, capsys, name, way):
    """Where plain min/max calibration on a generated page breaks a deep model, so that a rounding
    that goes the other way is felt everywhere (ONNX Runtime's own two ways to run it are no nearer
    to each other), those two ways are the bar; else 40 dB."""
    source, feeds = MODELS[name](repo)
    per_channel, activations = WAYS[way]
    qdq = tmp_path / "q.onnx"
    quantize(modern(source, tmp_path), feeds, qdq, per_channel, activations)
    result = quantfold("export", "--model", qdq, "--save-path", tmp_path / "m", "--json", "--quiet")
    assert result.code == 0, result.err
    layers = [l["name"] for l in json.loads(result.out)["layers"]]
    check_model(tmp_path / FAKE)
    scales = scales_of(quantfold, qdq)
    made = {n.op_type for n in onnx.load(tmp_path / DEPLOY).graph.node}
    assert not made & {"QuantizeLinear", "DequantizeLinear"}
    worst, ours, theirs = (0.0, ""), float("inf"), float("inf")
    for feed in feeds[:2]:
        worst = max(worst, worst_layer(tmp_path, feed, layers, scales))
        wanted = run_model(qdq, feed)
        for a, b, c in zip(wanted, run_model(tmp_path / FAKE, feed), another_way(qdq, feed)):
            ours, theirs = min(ours, sqnr_db(a, b)), min(theirs, sqnr_db(a, c))
    with capsys.disabled():
        print(f"\n{name}, {way}: {len(layers)} layers, {ours:.1f} dB ", end="")
        print(f"(ONNX Runtime's other way: {theirs:.1f}), ", end="")
        print(f"worst layer {worst[1]} off by {worst[0]:.3f} steps", end="")
    assert worst[0] <= 1.0
    assert ours >= min(LEAST_DB, theirs - 6)


TORCH = sorted((Path(__file__).parent / "qdq").glob("*.onnx"))


@pytest.mark.parametrize("path", TORCH, ids=lambda p: p.stem)
def test_trained_by_others(quantfold, tmp_path, capsys, path):
    """What quantization-aware training in PyTorch writes (qdq/make.py made the files)."""
    (tmp_path / "q.onnx").write_bytes(path.read_bytes())
    qdq = tmp_path / "q.onnx"
    result = quantfold("export", "--model", qdq, "--save-path", tmp_path / "m", "--json", "--quiet")
    assert result.code == 0, result.err
    layers = [l["name"] for l in json.loads(result.out)["layers"]]
    assert len(layers) == 3
    check_model(tmp_path / FAKE)
    kinds = [n.op_type for n in onnx.load(tmp_path / DEPLOY).graph.node]
    assert kinds.count("AscendDequant") == 3
    assert not {"QuantizeLinear", "DequantizeLinear", "Cast", "ConstantOfShape"} & set(kinds)
    name = onnx.load(qdq).graph.input[0].name
    scales, worst, exact, noisy = scales_of(quantfold, qdq), (0.0, ""), [], []
    for seed in range(20):
        feed = {name: random(2, 3, 8, 8, seed=seed)}
        worst = max(worst, worst_layer(tmp_path, feed, layers, scales))
        exact += run_model(qdq, feed)
        noisy += run_model(tmp_path / FAKE, feed)
    least = sqnr_db(np.concatenate(exact), np.concatenate(noisy))
    with capsys.disabled():
        print(f"\n{path.stem}: {least:.1f} dB, worst layer {worst[1]} off by {worst[0]:.4f} steps")
    assert worst[0] <= 1.0 and least >= LEAST_DB
