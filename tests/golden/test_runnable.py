# SPDX-License-Identifier: Apache-2.0
"""Runnable models of the golden cases: the reference's own deploy models, executed.

Kind "reference" starts from the reference's m_deploy_model.onnx, "ours" from our deploy model, "record"
from the float model and its record. Outputs must be those of the reference's fake_quant model.

LSTM and GRU differ in one thing that is no rounding: the NPU's operator holds R in int8, so it must
quantize the hidden state before each step, while the fake_quant model quantizes initial_h alone. With
its own quantizer on the state before each step, the fake_quant model says the same as ours.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from test_golden import CASES, GOLDEN, THRESHOLDS, export_case, inputs_of, model_of

from runnable import HEADER, RUNNABLE, compare, make_runnable, relative
from support import DEPLOY, FAKE, assert_same_model, run_model, same_bits, snapshot

pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden files at {GOLDEN}")
LEAST = 1e-5
RNN = [c for c in CASES if "gru" in c or "lstm" in c]
PLAIN = [c for c in CASES if c not in RNN]
KINDS = ["reference", "ours", "record"]


@pytest.fixture(scope="module")
def made(quantfold, tmp_path_factory):
    """Makes the runnable model of a case once for each kind."""
    done: dict[tuple[str, str], Path] = {}

    def get(case: str, kind: str) -> Path:
        if (case, kind) in done:
            return done[case, kind]
        out = tmp_path_factory.mktemp(f"{case}-{kind}")
        if kind == "record":
            args = ["--record", GOLDEN / case / "record.txt"]
            model = model_of(case)
        else:
            args = []
            model = GOLDEN / case / DEPLOY
            if kind == "ours":
                model = export_case(quantfold, case, out) / DEPLOY
        if case in THRESHOLDS:
            args += ["--external-threshold", THRESHOLDS[case]]
        done[case, kind] = make_runnable(quantfold, out, model, *args)
        return done[case, kind]

    return get


def feed_of(case: str) -> dict[str, np.ndarray]:
    names = [i.name for i in onnx.load(GOLDEN / case / FAKE).graph.input]
    return dict(zip(names, inputs_of(case)))


def writable_fake(case: str, folder: Path) -> Path:
    """The reference's fake_quant model in a folder that copies may be put into."""
    model = onnx.load(GOLDEN / case / FAKE)
    onnx.save(model, folder / FAKE)
    return folder / FAKE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", PLAIN)
def test_outputs_are_those_of_fake_quant(made, case, kind, tmp_path, capsys):
    fake = writable_fake(case, tmp_path)
    result = compare(fake, made(case, kind), [feed_of(case)])
    with capsys.disabled():
        print(f"\n{HEADER}\n" if (case, kind) == (PLAIN[0], KINDS[0]) else "\n", end="")
        print("\n".join([result.row(f"{case} ({kind})"), *result.inexact()]), end="")
    assert result.layers
    assert result.relative <= LEAST


# ---- LSTM and GRU ----


def step_model(fake: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.NodeProto]:
    """The RNN of a fake_quant model with the quantizers of its inputs, as a model of its own whose
    inputs are x, h and c."""
    (rnn,) = [n for n in fake.graph.node if n.op_type in ("LSTM", "GRU")]
    heads = {f"{rnn.name}.quant.fakequant.mul": "x", f"{rnn.name}.quant1.fakequant.mul": "h"}
    nodes = []
    for node in fake.graph.node:
        if node.name.startswith(f"{rnn.name}.") or node is rnn:
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            if node.name in heads:
                copy.input[0] = heads[node.name]
            if node is rnn and node.op_type == "LSTM":
                copy.input[6] = "c"
            nodes.append(copy)
    names = ["x", "h"] + ["c"] * (rnn.op_type == "LSTM")
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(n, 1, [None] * 3) for n in names],
        [helper.make_empty_tensor_value_info(o) for o in rnn.output],
        list(fake.graph.initializer),
    )
    return (
        helper.make_model(graph, opset_imports=list(fake.opset_import), ir_version=fake.ir_version),
        rnn,
    )


def around(fake: onnx.ModelProto, rnn: onnx.NodeProto, folder: Path, feed: dict):
    """The RNN's inputs, and the outputs of the model for given outputs of the RNN."""
    made = {n.name: n for n in fake.graph.node}
    sources = [made[f"{rnn.name}.quant{i}.fakequant.mul"].input[0] for i in ("", "1")]
    sources += [rnn.input[6]] if rnn.op_type == "LSTM" else []
    before = onnx.ModelProto.FromString(fake.SerializeToString())
    for name in sources:
        if name not in {o.name for o in before.graph.output}:
            before.graph.output.append(helper.make_empty_tensor_value_info(name))
    onnx.save(before, folder / "before.onnx")
    names = [o.name for o in before.graph.output]
    values = dict(zip(names, run_model(folder / "before.onnx", feed))) | feed

    def after(outputs: list[np.ndarray]) -> list[np.ndarray]:
        rest = onnx.ModelProto.FromString(fake.SerializeToString())
        gone = [n for n in rest.graph.node if n.name == rnn.name]
        for n in gone:
            rest.graph.node.remove(n)
        given = [name for name in rnn.output if name]
        for name in given:
            rest.graph.input.append(helper.make_tensor_value_info(name, 1, None))
        results = {o.name for o in rest.graph.output}
        passed = dict(zip(given, outputs))
        for o in [o for o in rest.graph.output if o.name in passed]:
            rest.graph.output.remove(o)
        onnx.save(rest, folder / "after.onnx")
        wanted = {i.name for i in rest.graph.input}
        got = run_model(
            folder / "after.onnx", {k: v for k, v in (feed | passed).items() if k in wanted}
        )
        found = dict(zip([o.name for o in rest.graph.output], got)) | passed
        assert results <= found.keys()
        return [found[o.name] for o in fake.graph.output]

    return [values[n] for n in sources], after


def lstm_steps(step: onnx.ModelProto, folder: Path, x: np.ndarray, states: list[np.ndarray]):
    """The fake_quant model's own LSTM and quantizers, run for one step at a time."""
    onnx.save(step, folder / "step.onnx")
    ys = []
    for t in range(x.shape[0]):
        feed = {"x": x[t : t + 1]} | dict(zip("hc", states))
        y, *states = run_model(folder / "step.onnx", feed)
        ys.append(y)
    return [np.concatenate(ys), *states]


def gru_steps(step: onnx.ModelProto, x: np.ndarray, state: np.ndarray):
    """The fake_quant model's GRU in float64: W, R and B are its tensors. The ONNX operator has one
    input for h, where here R reads the quantized state and z the state itself."""
    (rnn,) = [n for n in step.graph.node if n.op_type == "GRU"]
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in step.graph.initializer}
    numbers = {
        n.name: onnx.numpy_helper.to_array(n.attribute[0].t)
        for n in step.graph.node
        if n.op_type == "Constant"
    }
    w, r, b = (tensors[i][0].astype(np.float64) for i in rnn.input[1:4])

    def quantize(value, number):
        p = f"{rnn.name}.quant{number}.fakequant"
        q = np.round(value.astype(np.float32) * numbers[f"{p}.scale"]) + numbers[f"{p}.offset"]
        q = np.clip(q, numbers[f"{p}.min_val"], numbers[f"{p}.max_val"]) - numbers[f"{p}.offset"]
        scale = numbers[f"{rnn.name}.anti_quant{number}.fake_antiquant.scale"]
        return (q * scale).astype(np.float64)

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    h, ys = quantize(state[0], "1"), []
    for t in range(x.shape[0]):
        gx = np.split(quantize(x[t], "") @ w.T + b[: len(w)], 3, axis=1)
        gh = np.split(quantize(h, "1") @ r.T + b[len(w) :], 3, axis=1)
        z, reset = sigmoid(gx[0] + gh[0]), sigmoid(gx[1] + gh[1])
        h = (1 - z) * np.tanh(gx[2] + reset * gh[2]) + z * h
        ys.append(h)
    y = np.stack(ys)[:, None].astype(np.float32)
    return [y, y[-1]]


def step_by_step(fake: Path, folder: Path, feed: dict) -> list[np.ndarray]:
    """The fake_quant model, the state of its RNN quantized before each step."""
    model = onnx.load(fake)
    step, rnn = step_model(model)
    (x, *states), after = around(model, rnn, folder, feed)
    if rnn.op_type == "GRU":
        return after(gru_steps(step, x, states[0]))
    return after(lstm_steps(step, folder, x, states))


def lively(case: str) -> dict[str, np.ndarray]:
    """The case's input, with states that are not zero."""
    rng = np.random.default_rng(len(case))
    feed = feed_of(case)
    first, *states = feed
    return {first: feed[first]} | {
        n: rng.uniform(-0.9, 0.9, feed[n].shape).astype(np.float32) for n in states
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", RNN)
def test_rnn_quantizes_its_state_at_each_step(made, case, kind, tmp_path, capsys):
    fake = writable_fake(case, tmp_path)
    for name, feed in (("its own input", feed_of(case)), ("random states", lively(case))):
        ours = run_model(made(case, kind), feed)
        whole = relative(ours, run_model(fake, feed))
        stepped = relative(ours, step_by_step(fake, tmp_path, feed))
        with capsys.disabled():
            print(f"\n{case} ({kind}), {name}: from fake_quant {whole:.2g}, ", end="")
            print(f"with its state quantized at each step {stepped:.2g}", end="")
        assert stepped <= LEAST
        assert whole <= 0.02  # what quantizing h does


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", RNN)
def test_rnn_of_one_step_is_that_of_fake_quant(quantfold, made, case, kind, tmp_path):
    """With one step there is no difference: the model is asked for the first step alone."""
    fake, feed = onnx.load(GOLDEN / case / FAKE), lively(case)
    step, rnn = step_model(fake)
    onnx.save(step, tmp_path / "step.onnx")
    (x, *states), _ = around(fake, rnn, tmp_path, feed)
    wanted = run_model(tmp_path / "step.onnx", dict(zip("xhc", [x[:1], *states])))
    model = onnx.load(made(case, kind))
    (node,) = [n for n in model.graph.node if n.op_type.startswith("Basic")]
    names = [node.input[0], node.input[4]] + list(node.input[5:6] if "LSTM" in node.op_type else [])
    graph = helper.make_graph(
        [node, *[n for n in model.graph.node if n.op_type == "UnpackInt4"]],
        "first",
        [helper.make_tensor_value_info(n, 1, [None] * 3) for n in names],
        [helper.make_empty_tensor_value_info(o) for o in node.output],
        list(model.graph.initializer),
    )
    graph.node.sort(key=lambda n: n.op_type != "UnpackInt4")
    one = helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        ir_version=model.ir_version,
    )
    onnx.save(one, tmp_path / "one.onnx")
    ours = run_model(tmp_path / "one.onnx", dict(zip(names, [x[:1], *states])))
    assert relative(ours, wanted) <= LEAST


# ---- what it is for ----

SEEDED = {
    "weight": lambda m: flip(tensor_of(m, onnx.TensorProto.INT8)),
    "bias": lambda m: set_int32(tensor_of(m, onnx.TensorProto.INT32)),
    "scale": lambda m: double_scale(tensor_of(m, onnx.TensorProto.UINT64)),
    "offset": lambda m: move_offset(m),
}


def tensor_of(model: onnx.ModelProto, data_type: int) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.data_type == data_type)


def flip(t: onnx.TensorProto) -> None:
    t.raw_data = bytes([t.raw_data[0] ^ 0x40]) + t.raw_data[1:]


def set_int32(t: onnx.TensorProto) -> None:
    t.int32_data[0] += 1000


def double_scale(t: onnx.TensorProto) -> None:
    t.uint64_data[0] += 1 << 23


def move_offset(model: onnx.ModelProto) -> None:
    quant = next(n for n in model.graph.node if n.op_type == "AscendQuant")
    (offset,) = [a for a in quant.attribute if a.name == "offset"]
    offset.f += 1 if offset.f < 0 else -1


@pytest.mark.parametrize("what", SEEDED)
def test_a_wrong_deploy_model_shows(quantfold, tmp_path, what):
    """One weight, bias, scale or offset that is not what it should be."""
    case = "g_asym_convbn"
    deploy = onnx.load(GOLDEN / case / DEPLOY)
    SEEDED[what](deploy)
    (tmp_path / "d.onnx").write_bytes(deploy.SerializeToString())
    path = make_runnable(quantfold, tmp_path, tmp_path / "d.onnx")
    fake = writable_fake(case, tmp_path)
    assert relative(run_model(path, feed_of(case)), run_model(fake, feed_of(case))) > LEAST
    if what in ("weight", "bias"):
        with pytest.raises(AssertionError):
            compare(fake, path, [feed_of(case)])


# ---- files ----


@pytest.mark.parametrize("case", CASES)
def test_the_two_ways_give_one_model(made, case):
    """From the record and from our deploy model: the same graph and the same tensors, unless the
    deploy model does not tell which weights are packed; then the same bits."""
    ours, theirs = made(case, "ours"), made(case, "record")
    if any(n.op_type == "ChooseChannels" for n in onnx.load(ours).graph.node):
        same_bits(run_model(ours, feed_of(case)), run_model(theirs, feed_of(case)))
    else:
        assert_same_model(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_the_deploy_models(made, case):
    """Weights, biases and parameters are those of the deploy file, byte for byte."""
    deploy, run = onnx.load(GOLDEN / case / DEPLOY), onnx.load(made(case, "reference"))
    ours = {t.name: t for t in run.graph.initializer}
    assert ours.keys() == {t.name for t in deploy.graph.initializer}
    for t in deploy.graph.initializer:
        mine = ours[t.name]
        if t.data_type == onnx.TensorProto.INT4:
            assert mine.data_type == onnx.TensorProto.UINT8 and mine.raw_data == t.raw_data
        else:
            assert mine.data_type == t.data_type and list(mine.dims) == list(t.dims)
            assert np.array_equal(onnx.numpy_helper.to_array(mine), onnx.numpy_helper.to_array(t))


@pytest.mark.parametrize("case", ["a_convbn_default", "j_gru_a8w4", "m_external", "k_int4_convbn"])
def test_threads_make_no_difference(quantfold, case, tmp_path):
    written = []
    for threads in (1, 2, 8):
        out = tmp_path / str(threads)
        limit = ["--external-threshold", THRESHOLDS.get(case, 2_000_000_000)]
        make_runnable(quantfold, out, GOLDEN / case / DEPLOY, "--threads", threads, *limit)
        written.append(snapshot(out))
    assert written[0] == written[1] == written[2]
    external = [name for name in written[0] if name.endswith(".external")]
    assert bool(external) == (case == "m_external")
    assert all(name.endswith("_runnable.external") for name in external)
    assert RUNNABLE in written[0]
