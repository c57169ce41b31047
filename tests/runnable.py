# SPDX-License-Identifier: Apache-2.0
"""Runnable models: making them, and comparing what they calculate with the fake_quant model.

The two models are taken apart at each quantized layer. The runnable model gives the integers that a
layer reads and its int32 sums; the fake_quant model, its layers cut off from each other, is given the
same integers. So each layer is compared by itself: where its float32 sums are not the integer ones,
and how many integers of the layers behind it become others for that reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from support import check_model, run_model, session

RUNNABLE = "m_runnable_model.onnx"
DOMAIN = "quantfold.npu"
LAST_EXACT = 2**24  # float32 holds every integer up to here


def make_runnable(quantfold, out: Path, model: Path, *extra, name: str = "m") -> Path:
    """Export a runnable model, have it checked and return its path."""
    result = quantfold(
        "export", "--model", model, "--emit", "runnable", "--save-path", out / name, *extra
    )
    assert result.code == 0, result.err[-4000:]
    path = out / f"{name}_runnable_model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    assert_closed(check_model(path))
    return path


def assert_closed(model: onnx.ModelProto) -> None:
    """Every operator is of an imported domain, and none of those that only the NPU knows is left."""
    domains = {o.domain for o in model.opset_import}
    functions = {f.name for f in model.functions}
    for node in nodes_of(model.graph):
        assert node.domain in domains or node.domain == "ai.onnx", node.op_type
        assert not node.op_type.startswith(("Ascend", "Basic")) or node.domain == DOMAIN
        if node.domain == DOMAIN:
            assert node.op_type in functions


def nodes_of(graph: onnx.GraphProto):
    """The nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for a in node.attribute:
            for g in [a.g] if a.HasField("g") else a.graphs:
                yield from nodes_of(g)


def relative(ours: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """The largest difference over the largest magnitude, of the worst output."""
    worst = 0.0
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{a.dtype}{a.shape} {b.dtype}{b.shape}"
        a, b = a.astype(np.float64), b.astype(np.float64)
        difference = np.max(np.abs(a - b), initial=0)
        if difference:
            worst = max(worst, difference / np.max(np.abs(b)))
    return float(worst)


@dataclass
class Layer:
    """A quantized layer, and what its tensors are called in the two models."""

    name: str
    op_type: str
    integers: str  # runnable: q
    zero: str
    total: str  # runnable: the sums, with bias
    fake_integers: str
    fake_total: str
    terms: int  # products in one sum; 0: of a pool
    # what was measured
    sums: int = 0
    different: int = 0  # sums that float32 does not give
    largest: float = 0.0  # difference of one
    peak: float = 0.0  # magnitude of a sum
    bound: float = 0.0  # of a sum of magnitudes
    flips: int = 0  # integers that become others in the fake_quant model


@dataclass
class Comparison:
    """What a pair of models has shown."""

    layers: list[Layer] = field(default_factory=list)
    relative: float = 0.0

    def inexact(self) -> list[str]:
        """A line for each layer whose float32 sums are not the integer ones."""
        return [
            f"  {x.name} ({x.op_type}, {x.terms} terms): {x.different} of {x.sums} sums differ, "
            f"by up to {x.largest:.3g}; largest sum {x.peak:.4g}"
            for x in self.layers
            if x.different
        ]

    def row(self, name: str) -> str:
        """A line of the table."""
        sums = sum(x.sums for x in self.layers)
        different = sum(x.different for x in self.layers)
        inexact = sum(x.different > 0 for x in self.layers)
        largest = max((x.largest for x in self.layers), default=0)
        peak = max((x.peak for x in self.layers), default=0)
        flips = sum(x.flips for x in self.layers)
        return (
            f"{name:28} {len(self.layers):6} {sums:10} {inexact:8} {different:9} {largest:9.3g} "
            f"{peak:11.4g} {flips:7} {self.relative:9.2g}"
        )


HEADER = (
    f"{'model':28} {'layers':>6} {'sums':>10} {'inexact':>8} {'different':>9} {'by up to':>9} "
    f"{'largest sum':>11} {'flips':>7} {'outputs':>9}"
)


def producers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {o: n for n in graph.node for o in n.output if o}


def terms_of(model: onnx.ModelProto, layer: str) -> int:
    """Products in one sum of a layer of the fake_quant model."""
    made, shapes = producers(model.graph), {t.name: t.dims for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.name == layer)
    if node.op_type == "AveragePool":
        return 0
    name, turned = node.input[1], False
    while name not in shapes:
        turned ^= made[name].op_type == "Transpose"
        name = made[name].input[0]
    dims = list(shapes[name])
    if node.op_type == "Conv":
        return int(np.prod(dims[1:]))
    if node.op_type == "ConvTranspose":
        return int(np.prod(dims) // dims[1])
    trans_b = any(a.name == "transB" and a.i for a in node.attribute)
    return int(dims[0] if trans_b == turned else dims[1])


def find_layers(runnable: onnx.ModelProto, fake: onnx.ModelProto) -> list[Layer]:
    """The layers of the main graphs, in order."""
    made, fake_made = producers(runnable.graph), {n.name: n for n in fake.graph.node}
    layers = []
    for node in runnable.graph.node:
        if node.op_type != "AscendDequant" or node.domain != DOMAIN:
            continue
        name = node.name.removesuffix(".dequant")
        layer = next(n for n in runnable.graph.node if n.name == name)
        reader = layer
        while reader.domain != DOMAIN:  # a pool, perhaps behind a Pad
            reader = made[reader.input[0]]
        quant = made[reader.input[0]]
        assert quant.op_type == "AscendQuant", quant.op_type
        layers.append(
            Layer(
                name,
                layer.op_type,
                reader.input[0],
                reader.input[1],
                node.input[0],
                f"{quant.name}.fakequant.sub.output0",
                fake_made[f"{name}.fakedequant.mul"].input[0],
                terms_of(fake, name),
            )
        )
    return layers


def expose(path: Path, model: onnx.ModelProto, names: list[str], kind: str) -> Path:
    """A copy of the model with more outputs, beside it."""
    have = {o.name for o in model.graph.output}
    for name in dict.fromkeys(names):
        if name not in have:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))
    exposed = path.with_name(f"{path.stem}.{kind}.onnx")
    onnx.save(model, exposed)
    return exposed


def run_named(path: Path, feed: dict) -> dict[str, np.ndarray]:
    s = session(path)
    wanted = {i.name for i in s.get_inputs()}
    return dict(
        zip(
            [o.name for o in s.get_outputs()],
            s.run(None, {k: v for k, v in feed.items() if k in wanted}),
        )
    )


def cut(fake: onnx.ModelProto, layers: list[Layer]) -> None:
    """Whatever reads the integers of a layer reads a graph input instead."""
    given = {x.fake_integers for x in layers}
    for node in fake.graph.node:
        for i, name in enumerate(node.input):
            if name in given:
                node.input[i] = f"{name}.given"
    for name in given:
        fake.graph.input.append(helper.make_tensor_value_info(f"{name}.given", 1, None))


def weigh(layer: Layer, x: np.ndarray, total: np.ndarray, fake_total: np.ndarray) -> None:
    """Enter how the sums compare."""
    exact, rounded = total.astype(np.float64), fake_total.astype(np.float64)
    assert exact.shape == rounded.shape
    difference = np.abs(exact - rounded)
    layer.sums += exact.size
    layer.different += int(np.count_nonzero(difference))
    layer.largest = max(layer.largest, float(np.max(difference, initial=0)))
    layer.peak = max(layer.peak, float(np.max(np.abs(exact), initial=0)))
    reach = layer.terms * 128 * float(np.max(np.abs(x), initial=0))
    layer.bound = max(layer.bound, reach + layer.peak + reach)  # |bias| <= |sum| + |products|


def layers_compared(fake: Path, runnable: Path, feeds: list[dict]) -> list[Layer]:
    """Each layer by itself."""
    run, cut_fake = onnx.load(runnable), onnx.load(fake)
    layers = find_layers(run, cut_fake)
    if not layers:
        return layers
    cut(cut_fake, layers)
    tensors = [t for x in layers for t in (x.integers, x.zero, x.total)]
    fakes = [t for x in layers for t in (x.fake_integers, x.fake_total)]
    exposed = expose(runnable, run, tensors, "exposed")
    fake_exposed = expose(fake, cut_fake, fakes, "cut")
    for feed in feeds:
        ours = run_named(exposed, feed)
        given = {
            f"{x.fake_integers}.given": ours[x.integers].astype(np.float32)
            - ours[x.zero].astype(np.float32)
            for x in layers
        }
        theirs = run_named(fake_exposed, feed | given)
        for x in layers:
            integers = given[f"{x.fake_integers}.given"]
            weigh(x, integers, ours[x.total], theirs[x.fake_total])
            x.flips += int(np.count_nonzero(integers != theirs[x.fake_integers]))
    exposed.unlink()
    fake_exposed.unlink()
    return layers


def compare(fake: Path, runnable: Path, feeds: list[dict]) -> Comparison:
    """Compare outputs and layers, and hold each layer against what float32 can explain."""
    result = Comparison(layers_compared(fake, runnable, feeds))
    for feed in feeds:
        result.relative = max(
            result.relative, relative(run_model(runnable, feed), run_model(fake, feed))
        )
    for x in result.layers:
        assert x.largest < 2**31, f"{x.name}: a sum has wrapped"
        if x.terms and x.bound <= LAST_EXACT:
            assert not x.different, f"{x.name}: float32 is exact here"
        # each of the additions may be off by half a unit in the last place of what it gives
        limit = (x.terms + 1) * x.bound / LAST_EXACT
        assert not x.terms or x.largest <= limit, f"{x.name}: off by {x.largest}, at most {limit}"
        assert x.terms or not x.different, f"{x.name}: a pool"
    if not any(x.different for x in result.layers):
        assert not any(x.flips for x in result.layers)
    return result
