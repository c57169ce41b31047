# SPDX-License-Identifier: Apache-2.0
"""Exports of small models made here, against the numpy reimplementation of the rules.

The golden files show what one exporter's graphs look like. These models hold what they lack: every
rank and grouping, every width, every place where a weight may be stored, every shape of bias, and
the cases in which the reference tool fails although the work is valid.
"""

from __future__ import annotations

import itertools

import deploy_rules
import ml_dtypes
import numpy as np
import onnx
import pytest
import reference
from nets import (
    F32,
    Net,
    Options,
    build_wanted,
    check_export,
    conv,
    export_and_check,
    export_net,
    export_text,
    gemm,
    layer_values,
    random,
    records_for,
    resolve,
    save_net,
)
from onnx import TensorProto, helper, numpy_helper

import make_record
from support import DEPLOY, FAKE, check_model, differences, payload, run_model, same_bits, sqnr_db

EXTENT = {1: (11,), 2: (7, 6), 3: (5, 4, 6)}


# ---- convolutions ------------------------------------------------------------------------------


def conv_net(rank: int, group: int, bias: bool, cin=4, cout=8, **attributes) -> Net:
    net = Net()
    x = net.input("x", random(2, cin, *EXTENT[rank]))
    w = random(cout, cin // group, *[3] * rank, seed=1, scale=0.3)
    b = random(cout, seed=2) if bias else None
    net.output(conv(net, x, w, b, group=group, **attributes))
    return net


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("group", [1, 2, 4], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv(quantfold, tmp_path, rank, group, bias):
    export_and_check(quantfold, tmp_path, conv_net(rank, group, bias))


def deconv_net(rank: int, group: int, bias: bool) -> Net:
    net = Net()
    x = net.input("x", random(2, 4, *EXTENT[rank]))
    w = random(4, 6 // group, *[3] * rank, seed=1, scale=0.3)
    b = random(6, seed=2) if bias else None
    y = conv(net, x, w, b, group=group, op="ConvTranspose", strides=[2] * rank)
    net.output(y)
    return net


@pytest.mark.parametrize("per_channel", [True, False], ids=["channel", "tensor"])
@pytest.mark.parametrize("group", [1, 2], ids=["dense", "grouped"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_transpose(quantfold, tmp_path, rank, group, per_channel):
    options = Options(per_channel=per_channel, config=rank < 3)
    export_and_check(quantfold, tmp_path, deconv_net(rank, group, per_channel), options)


@pytest.mark.parametrize(
    "attributes", [{"strides": [2, 1]}, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}]
)
def test_conv_per_tensor_with_strides_and_dilations(quantfold, tmp_path, attributes):
    export_and_check(
        quantfold, tmp_path, conv_net(2, 1, True, **attributes), Options(per_channel=False)
    )


# ---- Gemm and MatMul ---------------------------------------------------------------------------

BIASES = {"none": None, "n": (6,), "1n": (1, 6), "one": (1,)}


def gemm_net(trans_b: int, bias) -> Net:
    net = Net()
    x = net.input("x", random(5, 8))
    w = random(*((6, 8) if trans_b else (8, 6)), seed=1)
    b = None if bias is None else random(*bias, seed=2)
    net.output(gemm(net, x, w, b, transB=trans_b))
    return net


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm(quantfold, tmp_path, trans_b, bias):
    export_and_check(quantfold, tmp_path, gemm_net(trans_b, BIASES[bias]))


def test_gemm_without_attributes(quantfold, tmp_path):
    net = Net()
    x = net.input("x", random(5, 8))
    net.output(gemm(net, x, random(8, 6, seed=1), random(6, seed=2)))
    export_and_check(quantfold, tmp_path, net)


def test_gemm_numbers_by_hand(quantfold, tmp_path):
    """The whole chain in integers, without ONNX: no file of ours takes part in the expectation."""
    net = gemm_net(1, (6,))
    options = Options(ranges={"g": (0.03, -7)}, scales={"g": [0.02]})
    export = export_net(quantfold, tmp_path, net, options)
    x, w, b = net.feeds["x"], *(numpy_helper.to_array(t) for t in net.tensors)
    sd, sw = F32(0.03), F32(0.02)
    qx = np.clip(np.rint(x * (F32(1) / sd)) - 7, -128, 127) + 7
    qw = np.clip(np.rint(w / sw), -128, 127)
    qb = np.rint(b / (sd * sw))
    (y,) = run_model(export.out / FAKE, net.feeds)
    assert np.array_equal(y, ((qx @ qw.T + qb) * (sd * sw)).astype(F32))


@pytest.mark.parametrize("bias", ["none", "n", "1n"])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_with_a_scale_per_column(quantfold, tmp_path, trans_b, bias):
    """An extension: the reference tool refuses more than one scale here."""
    net = gemm_net(trans_b, BIASES[bias])
    export = export_and_check(quantfold, tmp_path, net, Options(per_channel=True, strict=False))
    assert layer_values(export.out / DEPLOY, "g")["dequant"][1] == (6,)


def matmul_net(bias: str, transposed: bool = False, shape=(2, 5, 8)) -> Net:
    net = Net()
    x = net.input("x", random(*shape))
    if transposed:
        under = net.weight("m.weight", random(6, 8, seed=1))
        w = net.op("Transpose", [under], "t", perm=[1, 0])
    else:
        w = net.weight("m.weight", random(8, 6, seed=1))
    y = net.op("MatMul", [x, w], "m")
    if bias != "none":
        dims = {"1n": (1, 6), "short": (1,)}.get(bias, (6,))
        b = net.weight("m.bias", random(*dims, seed=2))
        y = net.op("Add", [b, y] if bias == "first" else [y, b], "add")
    net.output(y)
    return net


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("bias", ["none", "second", "first", "1n", "short"])
def test_matmul(quantfold, tmp_path, bias, transposed):
    export = export_and_check(quantfold, tmp_path, matmul_net(bias, transposed))
    if bias == "none":
        return
    # only a 1-D bias on input 1 of the Add goes into the integer domain, and only if it is as long
    # as the stored weight's last axis, which a Transpose in between turns into the other one
    inside = bias == "second" and not transposed
    wanted = TensorProto.INT32 if inside else TensorProto.FLOAT
    assert resolve(export.deploy, "m.bias").data_type == wanted


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "column"])
def test_matmul_with_a_square_weight_behind_a_transpose(quantfold, tmp_path, per_channel):
    net = Net()
    w = random(8, 8, seed=1)
    turned = net.op("Transpose", [net.weight("m.weight", w)], "t", perm=[1, 0])
    y = net.op("MatMul", [net.input("x", random(2, 5, 8)), turned], "m")
    net.output(net.op("Add", [y, net.weight("m.bias", random(8, seed=2))], "add"))
    scales = np.abs(w).max(1) / 127 if per_channel else [np.abs(w).max() / 127]
    options = Options(scales={"m": scales}, strict=not per_channel)
    export = export_and_check(quantfold, tmp_path, net, options)
    assert resolve(export.deploy, "m.bias").data_type == TensorProto.INT32


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("bias", ["none", "second"])
def test_matmul_with_a_scale_per_column(quantfold, tmp_path, bias, transposed):
    """An extension, as for Gemm."""
    net = matmul_net(bias, transposed)
    columns = (
        np.abs(random(6, 8, seed=1)).max(1) if transposed else np.abs(random(8, 6, seed=1)).max(0)
    )
    options = Options(scales={"m": columns / 127}, strict=False)
    export = export_and_check(quantfold, tmp_path, net, options)
    assert layer_values(export.out / DEPLOY, "m")["dequant"][1] == (6,)


def test_matmul_whose_sum_is_read_twice(quantfold, tmp_path):
    """The Add is not the only consumer, so the bias stays a float behind the dequant."""
    net = matmul_net("second")
    net.output(net.op("Relu", ["m:out"], "r"))
    export_and_check(quantfold, tmp_path, net)


# ---- pooling -----------------------------------------------------------------------------------


def pool_record(scale: float, offset: int) -> str:
    record = make_record.Record("p", scale, offset, [1.0])
    return make_record.record_text([record])


@pytest.mark.parametrize("padded", [None, "p_pad", "other"])
def test_average_pool(quantfold, tmp_path, padded):
    net = Net()
    y = net.input("x", random(2, 4, 8, 8))
    if padded:
        pads = net.weight("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        y = net.op("Pad", [y, pads], padded)
    net.output(net.op("AveragePool", [y], "p", kernel_shape=[2, 2], strides=[2, 2]))
    path = save_net(net, tmp_path)
    text = pool_record(0.031, 3)
    export = export_text(quantfold, tmp_path, path, text)
    options = Options(snr=25)
    check_export(export, net, options)
    quant = next(n for n in export.deploy.graph.node if n.op_type == "AscendQuant")
    # a Pad that belongs to the pooling is padded in integers, any other in floats
    assert quant.input[0] == ("other:out" if padded == "other" else "x")


# ---- recurrent layers --------------------------------------------------------------------------

HIDDEN = 6


def rnn_net(op: str, bias: bool = True, lens: bool = False) -> Net:
    gates = 4 if op == "LSTM" else 3
    net = Net()
    x = net.input("x", random(5, 2, 4))
    w = net.weight("w", random(1, gates * HIDDEN, 4, seed=1, scale=0.4))
    r = net.weight("r", random(1, gates * HIDDEN, HIDDEN, seed=2, scale=0.4))
    b = net.weight("b", random(1, 2 * gates * HIDDEN, seed=3, scale=0.2)) if bias else ""
    seq = net.input("lens", np.array([5, 3], np.int32)) if lens else ""
    h = net.input("h0", random(1, 2, HIDDEN, seed=4, scale=0.5))
    inputs = [x, w, r, b, seq, h]
    outputs = ["y", "yh"]
    attributes = {"hidden_size": HIDDEN}
    if op == "LSTM":
        inputs.append(net.input("c0", random(1, 2, HIDDEN, seed=5, scale=0.5)))
        outputs.append("yc")
    else:
        attributes["linear_before_reset"] = 1
    net.op(op, inputs, "rnn", outputs, **attributes)
    for name in outputs:
        net.output(name)
    return net


def rnn_record(net: Net, per_gate: bool, act: str, wts: str) -> str:
    arrays = {t.name: numpy_helper.to_array(t) for t in net.tensors}
    top = 2 ** (reference.BITS[wts] - 1) - 1
    full = 2 ** (reference.BITS[act] - 1) - 1
    lines = [
        f"    scale_d: {make_record.float_text(np.abs(net.feeds['x']).max() / full)}",
        f"    offset_d: {0 if act == 'INT16' else 5}",
        f"    scale_h: {make_record.float_text(1.6 / full)}",
        "    offset_h: 0",
    ]
    for suffix in ("w", "r"):
        rows = np.abs(arrays[suffix][0]).max(axis=1)
        if per_gate:
            rows = rows.reshape(-1, HIDDEN).max(axis=1)
        lines += [f"    scale_{suffix}: {make_record.float_text(s / top)}" for s in rows]
        lines += [f"    offset_{suffix}: 0" for _ in rows]
    lines += [f'    act_type: "{act}"', f'    wts_type: "{wts}"']
    return "\n".join(["record {", '  key: "rnn"', "  value {", *lines, "  }", "}", ""])


@pytest.mark.parametrize("act, wts", [("INT8", "INT8"), ("INT16", "INT8"), ("INT8", "INT4")])
@pytest.mark.parametrize("per_gate", [True, False], ids=["gate", "channel"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_rnn(quantfold, tmp_path, op, per_gate, act, wts):
    net = rnn_net(op)
    snr = 10 if wts == "INT4" else 25
    rnn_export(quantfold, tmp_path, net, rnn_record(net, per_gate, act, wts), snr)


def no_state(net: Net) -> None:
    net.nodes[0].input[5] = ""
    net.inputs = [v for v in net.inputs if v.name != "h0"]


def rnn_attribute(name: str, value):
    def change(net: Net) -> None:
        net.nodes[0].attribute.append(helper.make_attribute(name, value))

    return change


def rnn_reverse(net: Net) -> None:
    net.nodes[0].attribute.append(helper.make_attribute("direction", "reverse"))


def rnn_one_output(net: Net) -> None:
    del net.nodes[0].output[1:]
    del net.outputs[1:]


def gru_reset_before(net: Net) -> None:
    (old,) = [a for a in net.nodes[0].attribute if a.name == "linear_before_reset"]
    old.i = 0


@pytest.mark.parametrize(
    "op, change",
    [
        ("LSTM", no_state),
        ("GRU", no_state),
        ("LSTM", rnn_reverse),
        ("GRU", rnn_reverse),
        ("LSTM", rnn_attribute("clip", 2.0)),
        ("LSTM", rnn_attribute("activations", ["Sigmoid", "Tanh", "Tanh"])),
        ("LSTM", rnn_attribute("input_forget", 1)),
        ("LSTM", rnn_one_output),
        ("GRU", rnn_one_output),
        ("GRU", gru_reset_before),
    ],
)
def test_rnn_form_that_the_device_does_not_have(quantfold, tmp_path, op, change):
    net = rnn_net(op)
    text = rnn_record(net, True, "INT8", "INT8")
    change(net)
    (tmp_path / "record.txt").write_text(text)
    path = save_net(net, tmp_path)
    result = quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m", expect=1)
    assert "rnn" in result.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("change", [{"bias": False}, {"lens": True}], ids=["nobias", "lens"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_rnn_optional_inputs(quantfold, tmp_path, op, change):
    net = rnn_net(op, **change)
    rnn_export(quantfold, tmp_path, net, rnn_record(net, True, "INT8", "INT8"), 25)


def rnn_export(quantfold, folder, net, text, snr):
    export = export_text(quantfold, folder, save_net(net, folder), text)
    check_export(export, net, Options(snr=snr))


# ---- widths ------------------------------------------------------------------------------------

WIDTH_NETS = {
    "conv": lambda: conv_net(2, 1, True),
    "deconv": lambda: deconv_net(2, 1, True),
    "gemm": lambda: gemm_net(1, (6,)),
    "matmul": lambda: matmul_net("second"),
}
WIDTH_SNR = {"INT8": 25, "INT7": 22, "INT6": 18, "INT4": 8}


@pytest.mark.parametrize("kind", WIDTH_NETS)
@pytest.mark.parametrize("wts", ["INT8", "INT7", "INT6", "INT4"])
def test_weight_width(quantfold, tmp_path, kind, wts):
    options = Options(wts=wts, snr=WIDTH_SNR[wts])
    export_and_check(quantfold, tmp_path, WIDTH_NETS[kind](), options)


@pytest.mark.parametrize("kind", WIDTH_NETS)
@pytest.mark.parametrize("act, snr", [("INT16", 30), ("INT8", 25), ("INT4", 8)])
def test_activation_width(quantfold, tmp_path, kind, act, snr):
    """Four-bit activations put a Cast behind the bias, also behind a MatMul's (an extension)."""
    export = export_and_check(quantfold, tmp_path, WIDTH_NETS[kind](), Options(act=act, snr=snr))
    casts = [n.name for n in export.deploy.graph.node if n.op_type == "Cast"]
    assert [c.split(".")[-1] for c in casts] == (["bias_quant"] if act == "INT4" else [])


@pytest.mark.parametrize("kind", WIDTH_NETS)
@pytest.mark.parametrize("dst", ["INT4", "INT8"])
def test_dst_type_overrides_both(quantfold, tmp_path, kind, dst):
    """INT4 gives a native INT4 tensor; INT8 means eight bits whatever wts_type says, unpacked."""
    net = WIDTH_NETS[kind]()
    key = net.nodes[0].name
    lines = {key: [f'dst_type: "{dst}"']}
    options = Options(act=dst, wts="INT4", extra=lines, snr=3, config=False)
    export = export_and_check(quantfold, tmp_path, net, options)
    weight = layer_values(export.out / DEPLOY, key)["input 1"]
    assert weight[0] == (TensorProto.INT4 if dst == "INT4" else TensorProto.INT8)
    plain = numpy_helper.to_array(net.tensors[0]).shape
    assert weight[1] == (plain[::-1] if kind == "gemm" else plain)


def test_odd_int4_tensor_is_padded(quantfold, tmp_path):
    net = Net()
    x = net.input("x", random(4, 3))
    net.output(gemm(net, x, random(3, 5, seed=1), random(5, seed=2)))
    lines = {"g": ['dst_type: "INT4"']}
    options = Options(act="INT4", wts="INT4", extra=lines, snr=3, config=False)
    export = export_and_check(quantfold, tmp_path, net, options)
    assert len(layer_values(export.out / DEPLOY, "g")["input 1"][2]) == 8


def test_odd_axis_cannot_be_packed(quantfold, tmp_path):
    net = conv_net(2, 4, True)  # depthwise: one input channel for each filter
    path = save_net(net, tmp_path)
    text = make_record.record_text(records_for(path, net, Options(wts="INT4")))
    (tmp_path / "record.txt").write_text(text)
    result = quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m", expect=1)
    assert '"c"' in result.err or "'c'" in result.err or " c" in result.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", WIDTH_NETS)
def test_force_fp16_cuts_the_dequant_scales(quantfold, tmp_path, kind):
    net = WIDTH_NETS[kind]()
    key = net.nodes[0].name
    options = Options(extra={key: ['fakequant_precision_mode: "FORCE_FP16_QUANT"']})
    export = export_and_check(quantfold, tmp_path, net, options)
    values = np.frombuffer(layer_values(export.out / DEPLOY, key)["dequant"][2], "<u8")
    assert not np.any(values & np.uint64(0x1FFF)) and np.any(values)


# ---- balance factors and shared inputs ---------------------------------------------------------


def balance_lines(count: int) -> list[str]:
    return [f"tensor_balance_factor: {make_record.float_text(0.5 + i / 4)}" for i in range(count)]


@pytest.mark.parametrize("kind, count", [("conv", 4), ("deconv", 4), ("gemm", 8), ("matmul", 8)])
def test_tensor_balance_factor(quantfold, tmp_path, kind, count):
    net = WIDTH_NETS[kind]()
    key = net.nodes[0].name
    options = Options(extra={key: balance_lines(count)}, snr=None)
    export = export_and_check(quantfold, tmp_path, net, options)
    nodes = {n.name: n for n in export.deploy.graph.node}
    assert list(nodes[f"{key}.tensor_balance_factor"].output) == [
        f"{key}.tensor_balance_factor.output0"
    ]
    assert list(nodes[f"{key}.mul"].output) == [f"{key}.mul.output0"]
    assert list(nodes[f"{key}.quant"].input) == [f"{key}.mul.output0"]


def test_tensor_balance_factor_of_a_grouped_conv(quantfold, tmp_path):
    options = Options(extra={"c": balance_lines(4)}, snr=None)
    export_and_check(quantfold, tmp_path, conv_net(1, 2, True), options)


def siblings_net(at_input: bool) -> Net:
    net = Net()
    x = net.input("x", random(2, 4, 6, 6))
    y = x if at_input else net.op("Relu", [x], "r")
    for name in ("b", "a", "z"):
        w = random(4, 4, 3, 3, seed=ord(name), scale=0.3)
        net.output(conv(net, y, w, random(4, seed=5), name=name))
    return net


@pytest.mark.parametrize("at_input", [True, False])
def test_equal_quants_of_one_tensor_are_merged(quantfold, tmp_path, at_input):
    export = export_and_check(quantfold, tmp_path, siblings_net(at_input))
    quants = [n.name for n in export.deploy.graph.node if n.op_type == "AscendQuant"]
    assert quants == ["b.quant"]


@pytest.mark.parametrize("other", [(0.05, 3), (0.04, 4)])
def test_different_quants_of_one_tensor_stay_apart(quantfold, tmp_path, other):
    options = Options(ranges={"b": (0.05, 4), "a": other, "z": (0.05, 4)}, snr=None)
    export = export_and_check(quantfold, tmp_path, siblings_net(True), options)
    quants = [n.name for n in export.deploy.graph.node if n.op_type == "AscendQuant"]
    assert sorted(quants) == ["a.quant", "b.quant"]


@pytest.mark.parametrize("kind", ["conv", "gemm", "matmul"])
def test_output_that_is_also_consumed_keeps_its_name(quantfold, tmp_path, kind):
    net = WIDTH_NETS[kind]()
    last = net.outputs[0].name
    net.output(net.op("Relu", [last], "after"))
    export = export_and_check(quantfold, tmp_path, net)
    assert [v.name for v in export.fake.graph.output] == [last, "after:out"]
    assert next(n for n in export.deploy.graph.node if n.name == "after").input[0] == last


def test_layers_without_records_stay_float(quantfold, tmp_path):
    net = siblings_net(False)
    export = export_and_check(quantfold, tmp_path, net, Options(only=["a"]))
    kinds = {t.name: t.data_type for t in export.deploy.graph.initializer}
    assert kinds["a.weight"] == TensorProto.INT8 and kinds["b.weight"] == TensorProto.FLOAT


# ---- how weights are stored --------------------------------------------------------------------

HALVES = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    "fp64": (TensorProto.DOUBLE, np.float64),
}


def cast_net(kind: str, layer: str, typed: bool = False) -> Net:
    """float -> narrow or wide type -> layer -> float, so that every run can be fed floats."""
    code, dtype = HALVES[kind]
    net = Net(opset=17 if kind != "bf16" else 22, ir_version=8 if kind != "bf16" else 10)

    def store(name, value):
        value = value.astype(dtype)
        if typed:
            return net.tensor(helper.make_tensor(name, code, value.shape, value.reshape(-1)))
        return net.weight(name, value)

    shape = (2, 4, 6, 5) if layer == "conv" else (5, 8)
    y = net.op("Cast", [net.input("x", random(*shape))], "in", to=code)
    if layer == "conv":
        w = store("c.weight", random(8, 4, 3, 3, seed=1, scale=0.3))
        b = store("c.bias", random(8, seed=2))
        y = net.op("Conv", [y, w, b], "c", kernel_shape=[3, 3], pads=[1] * 4, group=1)
    elif layer == "gemm":
        w = store("c.weight", random(6, 8, seed=1))
        y = net.op("Gemm", [y, w, store("c.bias", random(6, seed=2))], "c", transB=1)
    else:
        y = net.op("MatMul", [y, store("c.weight", random(8, 6, seed=1))], "c")
        y = net.op("Add", [y, store("c.bias", random(6, seed=2))], "add")
    net.output(net.op("Cast", [y], "out", to=TensorProto.FLOAT))
    return net


@pytest.mark.parametrize("layer", ["conv", "gemm", "matmul"])
@pytest.mark.parametrize("kind", HALVES)
def test_other_float_types(quantfold, tmp_path, kind, layer):
    net = cast_net(kind, layer)
    strict = kind == "fp16"
    ranges = {"c": (0.03, -4)}
    # ONNX Runtime has no bfloat16 layers and no double Conv to compare with
    snr = None if kind == "bf16" or (kind, layer) == ("fp64", "conv") else 18
    options = Options(strict=strict, snr=snr, ranges=ranges)
    export = half_export(quantfold, tmp_path, net, options)
    for name, t in ((t.name, t) for t in export.fake.graph.initializer):
        assert t.data_type == TensorProto.FLOAT, name
    if strict:
        names = {n.name for n in export.fake.graph.node}
        assert {"c.quant.fakequant.cast", "c.fakedequant.cast"} <= names


def half_export(quantfold, folder, net, options):
    """Like export_and_check; where the float model cannot run, ranges are given, not observed."""
    if options.snr is not None:
        return export_and_check(quantfold, folder, net, options)
    path = save_net(net, folder)
    arrays = {t.name: numpy_helper.to_array(t).astype(F32) for t in net.tensors}
    op = next(n.op_type for n in net.nodes if n.name == "c")
    scales = make_record.weight_scales(op, arrays["c.weight"])
    text = make_record.record_text([make_record.Record("c", *options.ranges["c"], scales)])
    export = export_text(quantfold, folder, path, text)
    check_export(export, net, options)
    return export


@pytest.mark.parametrize("kind", HALVES)
def test_other_float_types_in_typed_fields(quantfold, tmp_path, kind):
    """fp16 in int32_data is read as bit patterns; the reference converts the numbers."""
    net = cast_net(kind, "gemm", typed=True)
    assert not net.tensors[0].HasField("raw_data")
    snr = 18 if kind != "bf16" else None
    options = Options(strict=False, snr=snr, ranges={"c": (0.03, -4)})
    half_export(quantfold, tmp_path, net, options)


def test_floats_in_float_data(quantfold, tmp_path):
    net = Net()
    x = net.input("x", random(5, 8))
    w, b = random(8, 6, seed=1), random(6, seed=2)
    names = [
        net.tensor(helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.reshape(-1)))
        for n, v in (("g.weight", w), ("g.bias", b))
    ]
    assert len(net.tensors[0].float_data) == 48
    net.output(net.op("Gemm", [x, *names], "g"))
    export_and_check(quantfold, tmp_path, net)


def test_fp16_with_balance_factor(quantfold, tmp_path):
    options = Options(extra={"c": balance_lines(4)}, snr=None, ranges={"c": (0.03, -4)})
    export = export_and_check(quantfold, tmp_path, cast_net("fp16", "conv"), options)
    factor = resolve(export.deploy, "c.tensor_balance_factor.output0")
    assert factor.data_type == TensorProto.FLOAT16


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm", "MatMul"])
def test_weights_in_constant_nodes(quantfold, tmp_path, op):
    """An extension: the reference parses these and then crashes."""
    net = Net()
    if op in ("Conv", "ConvTranspose"):
        x = net.input("x", random(2, 4, 7, 7))
        inputs = [x, net.constant("w", random(4, 4, 3, 3, seed=1, scale=0.3))]
        inputs.append(net.constant("b", random(4, seed=2)))
        y = net.op(op, inputs, "L", kernel_shape=[3, 3], group=1)
    else:
        inputs = [net.input("x", random(5, 8)), net.constant("w", random(8, 6, seed=1))]
        bias = net.constant("b", random(6, seed=2))
        y = net.op(op, inputs + [bias] * (op == "Gemm"), "L")
        if op == "MatMul":
            y = net.op("Add", [y, bias], "add")
    net.output(y)
    export_and_check(quantfold, tmp_path, net, Options(strict=False))


@pytest.mark.parametrize("depth", [1, 2])
def test_identity_between_initializer_and_layer(quantfold, tmp_path, depth):
    """torch writes equal tensors once and puts Identity in front of the others."""
    net = Net()
    x = net.input("x", random(2, 4, 7, 7))
    w, b = net.weight("w", random(4, 4, 3, 3, seed=1, scale=0.3)), net.weight(
        "b", random(4, seed=2)
    )
    for i in range(depth):
        w, b = net.op("Identity", [w], f"iw{i}"), net.op("Identity", [b], f"ib{i}")
    net.output(net.op("Conv", [x, w, b], "c", kernel_shape=[3, 3], group=1))
    export_and_check(quantfold, tmp_path, net, Options(strict=False))


def test_initializers_listed_as_inputs(quantfold, tmp_path):
    net = conv_net(2, 1, True)
    net.listed = True
    export = export_and_check(quantfold, tmp_path, net)
    assert [v.name for v in export.deploy.graph.input] == ["x"]


# ---- external data -----------------------------------------------------------------------------


def save_external(net: Net, folder, layout: str):
    """A net whose tensors are outside: in one file at offsets, or in files with no other key."""
    folder.mkdir(parents=True, exist_ok=True)
    model, blob = net.model(), b"\xee" * 24
    for t in model.graph.initializer:
        data = t.raw_data
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        keys = {"location": t.name}
        if layout == "one":
            keys = {"location": "all.bin", "offset": str(len(blob)), "length": str(len(data))}
            blob += data + b"\xee" * 8
        else:
            (folder / t.name).write_bytes(data)
        for key, value in keys.items():
            t.external_data.add(key=key, value=value)
    if layout == "one":
        (folder / "all.bin").write_bytes(blob)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


@pytest.mark.parametrize("layout", ["one", "each"])
@pytest.mark.parametrize("kind", WIDTH_NETS)
def test_external_input(quantfold, tmp_path, layout, kind):
    """Tensors that were external stay external, under the reference's names."""
    net = WIDTH_NETS[kind]()
    path = save_external(net, tmp_path, layout)
    export = export_and_check(quantfold, tmp_path, net, path=path)
    names = {f"{t.name}_{w}.external" for t in net.tensors for w in ("deploy", "fakequant")}
    assert {p.name for p in export.out.iterdir()} == {DEPLOY, FAKE} | names


@pytest.mark.parametrize("layout", ["one", "each"])
def test_external_input_made_inline(quantfold, tmp_path, layout):
    net = conv_net(2, 1, True)
    path = save_external(net, tmp_path, layout)
    options = Options(args=("--external", "never"))
    export = export_and_check(quantfold, tmp_path, net, options, path)
    assert {p.name for p in export.out.iterdir()} == {DEPLOY, FAKE}


def wide_net() -> Net:
    """Weights big enough to go out, a bias small enough to stay."""
    net = Net()
    y = net.input("x", random(3, 40))
    for name in ("f1", "f2"):
        y = gemm(net, y, random(40, 40, seed=ord(name[1]), scale=0.3), random(40, seed=2), name)
    net.output(y)
    return net


def big_ones(model: onnx.ModelProto, folder) -> list[TensorProto]:
    """Initializers of a kilobyte and more."""
    return [t for t in model.graph.initializer if len(payload(t, folder)) >= 1024]


def test_external_always(quantfold, tmp_path):
    """Everything but the small ones, in files of the reference's names."""
    net = wide_net()
    export = export_and_check(quantfold, tmp_path, net, Options(args=("--external", "always")))
    for model in (export.deploy, export.fake):
        outside = big_ones(model, export.out)
        assert len(outside) == 2
        assert all(t.data_location == TensorProto.EXTERNAL for t in outside)
    names = {p.name for p in export.out.iterdir()}
    assert {"f1.weight_deploy.external", "f1.weight_fakequant.external"} <= names


def test_external_single_file(quantfold, tmp_path):
    options = Options(args=("--external", "always", "--external-layout", "single"))
    export = export_and_check(quantfold, tmp_path, wide_net(), options)
    assert len(list(export.out.iterdir())) == 4
    for model in (export.deploy, export.fake):
        keys = [{e.key: e.value for e in t.external_data} for t in big_ones(model, export.out)]
        assert len(keys) == 2 and len({k["location"] for k in keys}) == 1
        assert all(int(k["offset"]) % 4096 == 0 for k in keys)
        assert len({k["offset"] for k in keys}) == len(keys)


def test_threshold_takes_the_largest_first(quantfold, tmp_path):
    net = Net()
    y = net.input("x", random(3, 8))
    for name, width in (("small", 16), ("large", 64), ("middle", 32)):
        size = net.tensors[-1].dims[1] if net.tensors else 8
        y = net.op("MatMul", [y, net.weight(name, random(size, width, scale=0.2))], f"m_{name}")
    net.output(y)
    options = Options(args=("--external-threshold", "7000"), snr=None)
    export = export_and_check(quantfold, tmp_path, net, options)
    assert not any(p.name.endswith("deploy.external") for p in export.out.iterdir())
    outside = {p.name for p in export.out.iterdir() if p.name.endswith("fakequant.external")}
    assert outside == {"middle_fakequant.external", "large_fakequant.external"}
    assert (export.out / FAKE).stat().st_size < 7000


NAMES = [
    "a/b",
    "/abs/path",
    "../up",
    "a%2Fb",
    "..",
    "tab\there",
    "x" * 300,
    "y" * 240,
    "UPPER",
    "upper",
]


def test_tensor_names_that_are_no_file_names(quantfold, tmp_path):
    """Each file stays in the folder, none is another's, and the model finds all of them."""
    net = Net()
    y = net.input("x", random(4, 36))
    for i, name in enumerate(NAMES):
        w = net.weight(name, random(36, 36, seed=i, scale=0.17))
        y = net.op("MatMul", [y, w], f"m{i}")
    net.output(y)
    options = Options(args=("--external", "always"), snr=8)
    export = export_and_check(quantfold, tmp_path, net, options)
    files = {p.name for p in export.out.iterdir() if p.is_file()}
    for model in (export.deploy, export.fake):
        tensors = [t for t in model.graph.initializer if t.name in NAMES]
        places = [{e.key: e.value for e in t.external_data}["location"] for t in tensors]
        assert len(tensors) == len(NAMES) == len(set(places))
        assert set(places) <= files
        assert all("/" not in p and len(p.encode()) <= 255 for p in places)


# ---- shared weights ----------------------------------------------------------------------------


def shared_net(op: str, float_user: bool) -> Net:
    net = Net()
    if op == "Conv":
        x, z = net.input("x", random(2, 4, 6, 6)), net.input("z", random(2, 4, 6, 6, seed=9))
        w = net.weight("w", random(4, 4, 3, 3, seed=1, scale=0.3))
        more = {"kernel_shape": [3, 3], "group": 1}
    else:
        x, z = net.input("x", random(5, 8)), net.input("z", random(5, 8, seed=9))
        w = net.weight("w", random(8, 8, seed=1))
        more = {"transB": 1} if op == "Gemm" else {}
    net.output(net.op(op, [x, w], "l1", **more))
    net.output(net.op(op, [z, w], "l2", **more))
    if float_user:
        net.output(net.op("Mul", [w, w], "square"))
    return net


@pytest.mark.parametrize("float_user", [False, True], ids=["", "and-a-float-user"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "different"])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_weight_shared_by_two_layers(quantfold, tmp_path, op, equal, float_user):
    """The reference quantizes the same tensor twice; each reader must get its own right values."""
    second = [0.017] if equal else [0.011]
    options = Options(strict=False, scales={"l1": [0.017], "l2": second}, snr=None)
    net = shared_net(op, float_user)
    export = export_and_check(quantfold, tmp_path, net, options)
    if float_user:
        w = numpy_helper.to_array(net.tensors[0])
        got = run_model(export.out / FAKE, net.feeds)[2]
        assert np.array_equal(got, w * w)
    inside = [t for t in export.deploy.graph.initializer if t.data_type == TensorProto.INT8]
    assert len(inside) == (1 if equal else 2)


def test_weight_shared_with_a_layer_that_stays_float(quantfold, tmp_path):
    options = Options(strict=False, only=["l2"])
    export_and_check(quantfold, tmp_path, shared_net("Gemm", False), options)


def test_bias_shared_by_two_layers(quantfold, tmp_path):
    net = Net()
    x = net.input("x", random(5, 8))
    b = net.weight("b", random(6, seed=3))
    for i in (1, 2):
        w = net.weight(f"w{i}", random(8, 6, seed=i))
        net.output(net.op("Gemm", [x, w, b], f"l{i}"))
    export_and_check(quantfold, tmp_path, net, Options(strict=False))


# ---- BatchNormalization ------------------------------------------------------------------------


def bn_net(epsilon, rank=2, bias=False, tail=True, group=1) -> Net:
    net = Net()
    x = net.input("x", random(2, 4, *EXTENT[rank]))
    w = random(8, 4 // group, *[3] * rank, seed=1, scale=0.3)
    y = conv(net, x, w, random(8, seed=2) if bias else None, group=group)
    stats = [
        net.weight("bn.weight", random(8, seed=3)),  # some gammas are negative
        net.weight("bn.bias", random(8, seed=4)),
        net.weight("bn.mean", random(8, seed=5)),
        net.weight("bn.var", np.abs(random(8, seed=6)) + F32(0.05)),
    ]
    more = {} if epsilon is None else {"epsilon": epsilon}
    y = net.op("BatchNormalization", [y, *stats], "bn", **more)
    net.output(net.op("Relu", [y], "r") if tail else y)
    return net


def bn_scales(net: Net) -> list[float]:
    t = {x.name: numpy_helper.to_array(x) for x in net.tensors}
    bn = next(n for n in net.nodes if n.op_type == "BatchNormalization")
    eps = make_record.attribute(bn, "epsilon", 1e-5)
    stats = [t[f"bn.{k}"] for k in ("weight", "bias", "mean", "var")]
    w, _ = reference.fold_bn(t["c.weight"], t.get("c.bias"), *stats, eps)
    return make_record.weight_scales("Conv", w)


@pytest.mark.parametrize(
    "epsilon, rank, bias, tail, group",
    [
        (None, 2, False, True, 1),
        (1e-5, 2, True, True, 1),
        (0.37, 2, False, False, 1),
        (1e-3, 1, True, False, 2),
        (2.5e-7, 3, False, True, 4),
    ],
)
def test_batch_norm_is_folded(quantfold, tmp_path, epsilon, rank, bias, tail, group):
    net = bn_net(epsilon, rank, bias, tail, group)
    options = Options(scales={"c": bn_scales(net)})
    export = export_and_check(quantfold, tmp_path, net, options)
    for model in (export.deploy, export.fake):
        assert not any(n.op_type == "BatchNormalization" for n in model.graph.node)
        assert not any(t.name.startswith("bn.") for t in model.graph.initializer)


def test_skip_fusion_keeps_the_batch_norm(quantfold, tmp_path):
    net = bn_net(1e-5)
    options = Options(extra={"c": ["skip_fusion: true"]})
    export = export_and_check(quantfold, tmp_path, net, options)
    assert any(n.op_type == "BatchNormalization" for n in export.fake.graph.node)


def test_batch_norm_of_a_shared_output_is_not_folded(quantfold, tmp_path):
    net = bn_net(1e-5)
    net.output(net.op("Sigmoid", ["c:out"], "s"))
    export = export_and_check(quantfold, tmp_path, net)
    assert any(n.op_type == "BatchNormalization" for n in export.fake.graph.node)


def two_convs_of_one_weight() -> Net:
    """Folding the BatchNormalization into the shared weight would spoil the other Conv."""
    net = bn_net(1e-5)
    inputs = ["x", "c.weight"]
    net.output(net.op("Conv", inputs, "plain", kernel_shape=[3, 3], pads=[1] * 4, group=1))
    return net


@pytest.mark.parametrize("recorded", [["c"], ["plain"], ["c", "plain"]], ids="-".join)
def test_folding_leaves_other_readers_alone(quantfold, tmp_path, recorded):
    net = two_convs_of_one_weight()
    scales = {"c": bn_scales(net)}
    path = save_net(net, tmp_path)
    text = make_record.record_text(records_for(path, net, Options(scales=scales, only=recorded)))
    (tmp_path / "record.txt").write_text(text)
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    check_model(tmp_path / "out" / FAKE)
    pairs = zip(run_model(path, net.feeds), run_model(tmp_path / "out" / FAKE, net.feeds))
    for exact, got in pairs:
        assert sqnr_db(exact, got) > 25


def test_batch_norm_whose_numbers_come_through_identity(quantfold, tmp_path):
    """torch writes equal tensors once, so an untrained BatchNormalization reads Identity nodes."""
    net = bn_net(1e-5)
    stats = next(n for n in net.nodes if n.op_type == "BatchNormalization")
    scales = bn_scales(net)
    for i in (1, 2, 3, 4):
        made = helper.make_node("Identity", [stats.input[i]], [f"id{i}"], f"id_{i}")
        stats.input[i] = f"id{i}"
        net.nodes.insert(0, made)
    path = save_net(net, tmp_path)
    text = make_record.record_text(records_for(path, net, Options(scales={"c": scales})))
    (tmp_path / "record.txt").write_text(text)
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    model = onnx.load(str(tmp_path / "out" / FAKE))
    assert not any(n.op_type == "BatchNormalization" for n in model.graph.node)
    (exact,), (got,) = run_model(path, net.feeds), run_model(tmp_path / "out" / FAKE, net.feeds)
    assert sqnr_db(exact, got) > 25


def test_batch_norm_in_training_mode_is_not_folded(quantfold, tmp_path):
    net = bn_net(1e-5)
    bn = next(n for n in net.nodes if n.op_type == "BatchNormalization")
    bn.attribute.append(helper.make_attribute("training_mode", 1))
    bn.output.extend(["mean_out", "var_out"])
    path = save_net(net, tmp_path)
    scales = make_record.weight_scales("Conv", numpy_helper.to_array(net.tensors[0]))
    record = make_record.Record("c", 0.03, 0, scales)
    (tmp_path / "record.txt").write_text(make_record.record_text([record]))
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    model = onnx.load(str(tmp_path / "out" / FAKE))
    assert any(n.op_type == "BatchNormalization" for n in model.graph.node)


# ---- names that are taken ------------------------------------------------------------------------


def crowded_net(node: str, tensor: str) -> Net:
    """A net that already uses a name the export wants to give."""
    net = Net()
    x = net.input("x", random(2, 4, 6, 6))
    y = conv(net, x, random(4, 4, 3, 3, seed=1, scale=0.3), random(4, seed=2))
    y = net.op("Relu", [y], node, tensor)
    y = net.op("Flatten", [y], "flat")
    net.output(gemm(net, y, random(5, 144, seed=3, scale=0.1), random(5, seed=4), transB=1))
    return net


@pytest.mark.parametrize(
    "node, tensor",
    [
        ("c.quant", "t"),
        ("c.dequant", "t"),
        ("g.quant.fakequant.round", "t"),
        ("g.fakedequant.dqscale", "t"),
        ("n", "c.quant.output0"),
        ("n", "c.dequant.param"),
        ("n", "c.dequant.output0"),
        ("n", "g.quant.fakequant.scale.output0"),
        ("n", "g.fakedequant.mul.output0"),
        ("n", "g_output0"),
    ],
)
def test_names_that_are_taken_do_not_clash(quantfold, tmp_path, node, tensor):
    net = crowded_net(node, tensor)
    export = export_net(quantfold, tmp_path, net)
    for model in (export.deploy, export.fake):
        names = [n.name for n in model.graph.node]
        made = [o for n in model.graph.node for o in n.output]
        made += [t.name for t in model.graph.initializer]
        assert len(set(names)) == len(names) and len(set(made)) == len(made)
    check_model(export.out / FAKE)
    plain = export_net(quantfold, tmp_path / "plain", crowded_net("n", "t"))
    same_bits(run_model(export.out / FAKE, net.feeds), run_model(plain.out / FAKE, net.feeds))


def test_two_nodes_of_one_name(quantfold, tmp_path):
    """Both stay float, the second gets a number; a record for the name could mean either."""
    net = siblings_net(True)
    for n in net.nodes:
        n.name = "same" if n.name in ("a", "z") else n.name
    path = save_net(net, tmp_path)
    text = make_record.record_text([make_record.Record("b", 0.03, 0, [0.01] * 4)])
    (tmp_path / "b.txt").write_text(text)
    (tmp_path / "same.txt").write_text(text.replace('"b"', '"same"'))
    quantfold.export(path, tmp_path / "b.txt", tmp_path / "out" / "m")
    model = check_model(tmp_path / "out" / FAKE)
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names) and {"same", "same1"} <= set(names)
    run_model(tmp_path / "out" / FAKE, net.feeds)
    result = quantfold.export(path, tmp_path / "same.txt", tmp_path / "no" / "m", expect=1)
    assert "same" in result.err


# ---- rounding ----------------------------------------------------------------------------------


def tie_weights(scale: np.float32, count: int) -> np.ndarray:
    """(k + 0.5) * scale in float32: what a division and a multiplication see differently."""
    k = np.arange(count, dtype=np.float64) - count // 2
    return ((k + 0.5) * np.float64(scale)).astype(F32)


@pytest.mark.parametrize("wts", ["INT8", "INT7", "INT6", "INT4"])
@pytest.mark.parametrize("scale", [0.1, 0.013, 1 / 3, 0.7, 3e-6])
def test_weights_on_ties(quantfold, tmp_path, scale, wts):
    scale = F32(scale)
    w = tie_weights(scale, 320).reshape(16, 20)
    net = Net()
    net.output(gemm(net, net.input("x", random(3, 16)), w))
    options = Options(wts=wts, scales={"g": [scale]}, snr=None)
    export_and_check(quantfold, tmp_path, net, options)


def test_tie_weights_tell_the_rules_apart():
    """The grid is worth something: other roundings than the right one give other values on it."""
    differ = {"reciprocal": 0, "half away": 0}
    for scale in map(F32, (0.1, 0.013, 1 / 3, 0.7, 3e-6)):
        w = tie_weights(scale, 320)
        right = reference.quantize(w, scale)
        differ["reciprocal"] += np.count_nonzero(
            np.rint(w * (F32(1) / scale)).clip(-128, 127) != right
        )
        away = np.trunc(w / scale + np.copysign(F32(0.5), w)).clip(-128, 127)
        differ["half away"] += np.count_nonzero(away != right)
    assert all(differ.values()), differ


def test_conv_weights_on_ties(quantfold, tmp_path):
    scales = [F32(s) for s in (0.1, 0.013, 1 / 3, 0.7)]
    w = np.stack([tie_weights(s, 270).reshape(30, 3, 3) for s in scales])
    net = Net()
    net.output(conv(net, net.input("x", random(1, 30, 5, 5)), w))
    export_and_check(quantfold, tmp_path, net, Options(scales={"c": scales}, snr=None))


def test_bias_on_ties(quantfold, tmp_path):
    scale_d, scale_w = F32(0.1), F32(0.07)
    net = Net()
    b = tie_weights(scale_d * scale_w, 64)
    net.output(gemm(net, net.input("x", random(3, 8)), random(8, 64, seed=1), b))
    options = Options(scales={"g": [scale_w]}, ranges={"g": (scale_d, 0)}, snr=None)
    export_and_check(quantfold, tmp_path, net, options)


def test_big_weights_saturate(quantfold, tmp_path):
    w = np.array([[3e38, -3e38, 1e10, -1e10, 0.0, -0.0, 127.5, -128.5]], F32)
    net = Net()
    net.output(gemm(net, net.input("x", random(3, 1, scale=0.1)), w))
    options = Options(scales={"g": [1.0]}, ranges={"g": (0.01, 0)}, snr=None)
    export = export_and_check(quantfold, tmp_path, net, options)
    q = np.frombuffer(layer_values(export.out / DEPLOY, "g")["input 1"][2], np.int8)
    assert q.tolist() == [127, -128, 127, -128, 0, 0, 127, -128]


# ---- values that cannot be -----------------------------------------------------------------------


def bias_edge(quantfold, folder, value: float, expect: int):
    net = Net()
    b = np.array([0.5, value, 2.0, -1.0], F32)
    net.output(gemm(net, net.input("x", random(3, 8)), random(8, 4, seed=1), b))
    path = save_net(net, folder)
    record = make_record.Record("g", 1.0, 0, [1.0])
    (folder / "record.txt").write_text(make_record.record_text([record]))
    return quantfold.export(path, folder / "record.txt", folder / "out" / "m", expect=expect)


@pytest.mark.parametrize(
    "value", [2.0**31, 3e9, -(2.0**31) - 256, 1e30, float("inf"), float("nan")]
)
def test_bias_beyond_int32_is_refused(quantfold, tmp_path, value):
    """Exactly 2^31 too, which the reference lets wrap."""
    result = bias_edge(quantfold, tmp_path, value, 1)
    assert "g" in result.err and "bias" in result.err and "model.onnx" in result.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("value", [-(2.0**31), 2.0**31 - 128])
def test_bias_at_the_edge_of_int32(quantfold, tmp_path, value):
    bias_edge(quantfold, tmp_path, value, 0)
    got = layer_values(tmp_path / "out" / DEPLOY, "g")["input 2"][2]
    assert np.frombuffer(got, "<i4").tolist() == [0, int(value), 2, -1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
def test_weight_that_is_not_finite_is_refused(quantfold, tmp_path, op, value):
    net = {"Conv": conv_net(2, 1, True), "Gemm": gemm_net(1, (6,)), "MatMul": matmul_net("none")}[
        op
    ]
    w = numpy_helper.to_array(net.tensors[0]).copy()
    w.reshape(-1)[w.size // 2] = value
    net.tensors[0].CopyFrom(numpy_helper.from_array(w, net.tensors[0].name))
    key = net.nodes[0].name
    count = w.shape[0] if op == "Conv" else 1
    record = make_record.Record(key, 0.02, 0, [0.01] * count)
    path = save_net(net, tmp_path)
    (tmp_path / "record.txt").write_text(make_record.record_text([record]))
    result = quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m", expect=1)
    assert net.tensors[0].name in result.err and "model.onnx" in result.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ---- old opsets, subgraphs, and what must survive ------------------------------------------------


def old_net(opset: int) -> Net:
    """Operators whose form changed in opset 11 stand beside the layers."""
    net = Net(opset=opset, ir_version=4)
    x = net.input("x", random(2, 4, 8, 8))
    if opset < 11:
        y = net.op("Pad", [x], "pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.25)
    else:
        pads = net.weight("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        y = net.op("Pad", [x, pads, net.weight("pv", np.array(0.25, F32))], "pad")
    y = conv(net, y, random(8, 4, 3, 3, seed=1, scale=0.3), random(8, seed=2))
    if opset < 11:
        y = net.op("Clip", [y], "relu6", min=0.0, max=6.0)
    else:
        low, high = net.weight("low", np.array(0, F32)), net.weight("high", np.array(6, F32))
        y = net.op("Clip", [y, low, high], "relu6")
    y = net.op("GlobalAveragePool", [y], "pool")
    y = net.op("Flatten", [y], "flat", axis=1)
    net.output(gemm(net, y, random(5, 8, seed=3), random(5, seed=4), transB=1))
    return net


@pytest.mark.parametrize("opset", [9, 10])
def test_old_opset(quantfold, tmp_path, opset):
    """Round came with opset 11, and so did other forms of Clip and Pad."""
    net, modern = old_net(opset), old_net(11)
    path = save_net(net, tmp_path / "old")
    options = Options()
    text = make_record.record_text(records_for(path, net, options))
    (tmp_path / "record.txt").write_text(text)
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    records = reference.parse_record(text)
    build_wanted(save_net(modern, tmp_path / "new"), records, tmp_path)
    check_model(tmp_path / "out" / FAKE)
    ours = run_model(tmp_path / "out" / FAKE, net.feeds)
    same_bits(ours, run_model(tmp_path / FAKE, net.feeds))
    for layer in records:
        for name in (DEPLOY, FAKE):
            assert layer_values(tmp_path / "out" / name, layer) == layer_values(
                tmp_path / name, layer
            )


def if_net() -> Net:
    """A Conv whose output is read in the branches of an If, as is the graph's own input."""
    net = Net()
    x = net.input("x", random(2, 4, 6, 6))
    flag = net.input("flag", np.array(True))
    y = conv(net, x, random(4, 4, 3, 3, seed=1, scale=0.3), random(4, seed=2))
    bodies = []
    for name, op in (("then", "Add"), ("else", "Sub")):
        node = helper.make_node(op, [y, x], [f"{name}_out"], f"{name}_op")
        inner = conv_node_inside(name, f"{name}_out")
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [2, 4, None, None])
        w = numpy_helper.from_array(random(4, 4, 1, 1, seed=7), f"{name}.weight")
        bodies.append(helper.make_graph([node, inner], name, [], [out], [w]))
    net.output(net.op("If", [flag], "if", then_branch=bodies[0], else_branch=bodies[1]))
    return net


def conv_node_inside(name: str, x: str):
    return helper.make_node(
        "Conv", [x, f"{name}.weight"], [f"{name}_y"], f"{name}_conv", kernel_shape=[1, 1], group=1
    )


@pytest.mark.parametrize("renamed", [False, True])
def test_subgraphs_follow(quantfold, tmp_path, renamed):
    """What a branch takes from outside is the dequantized tensor, under the input's new name."""
    net = if_net()
    args = ("--input-names", "image,choice", "--output-names", "result") if renamed else ()
    export = export_net(quantfold, tmp_path, net, Options(args=args))
    feeds = dict(net.feeds)
    if renamed:
        feeds = {"image": feeds["x"], "choice": feeds["flag"]}
        assert [v.name for v in export.fake.graph.input] == ["image", "choice"]
        assert [v.name for v in export.fake.graph.output] == ["result"]
    check_model(export.out / FAKE)
    for flag in (True, False):
        feeds["choice" if renamed else "flag"] = np.array(flag)
        wanted = run_model(export.wanted / FAKE, net.feeds | {"flag": np.array(flag)})
        same_bits(run_model(export.out / FAKE, feeds), wanted)
    kinds = [
        t.data_type
        for n in export.deploy.graph.node
        for a in n.attribute
        if a.HasField("g")
        for t in a.g.initializer
    ]
    assert kinds == [TensorProto.FLOAT] * 2


def furnished_model() -> tuple[Net, onnx.ModelProto]:
    """A net with everything a model can carry besides its layers."""
    net = conv_net(2, 1, True)
    net.weight("spare", np.arange(5, dtype=np.int64))
    net.op("Identity", ["spare"], "keep")
    net.output("keep:out", TensorProto.INT64)
    model = net.model()
    model.doc_string, model.producer_name, model.producer_version = "about", "someone", "1.2"
    model.model_version = 7
    model.metadata_props.add(key="author", value="a test")
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    model.graph.doc_string = "graph text"
    model.graph.node[1].doc_string = "node text"
    own = helper.make_node("Twice", ["x"], ["twice"], "own", domain="com.example")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("com.example", "Twice", ["a"], ["b"], body, opsets)
    model.functions.append(function)
    model.graph.node.append(own)
    model.graph.output.append(
        helper.make_tensor_value_info("twice", TensorProto.FLOAT, [2, 4, 7, 6])
    )
    return net, model


UNKNOWN = b"\xba\x3e\x0bhello there"  # field 999, a string: part of no schema


def test_everything_else_survives(quantfold, tmp_path):
    """Metadata, docs, foreign domains, functions, other tensors, and fields no proto knows."""
    net, model = furnished_model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString() + UNKNOWN)
    onnx.checker.check_model(str(path))
    export = export_and_check(quantfold, tmp_path, net, Options(config=False), path)
    for name in (DEPLOY, FAKE):
        assert UNKNOWN in (export.out / name).read_bytes(), name
        got = onnx.load(str(export.out / name))
        for field in ("doc_string", "producer_name", "producer_version", "model_version"):
            assert getattr(got, field) == getattr(model, field), field
        assert got.ir_version == model.ir_version and got.functions == model.functions
        assert [(p.key, p.value) for p in got.metadata_props] == [("author", "a test")]
        assert got.opset_import == model.opset_import
        assert got.graph.doc_string == "graph text" and got.graph.name == "net"
        keep = next(n for n in got.graph.node if n.name == "keep")
        assert keep.doc_string == "node text"
        spare = next(t for t in got.graph.initializer if t.name == "spare")
        assert payload(spare, export.out) == np.arange(5, dtype="<i8").tobytes()


@pytest.mark.parametrize(
    "option, name",
    [
        ("--input-names", "r:out"),
        ("--input-names", "c.weight"),
        ("--input-names", "c.quant.output0"),
        ("--output-names", "c.weight"),
        ("--output-names", "r:out"),
    ],
)
def test_new_name_that_another_tensor_has(quantfold, tmp_path, option, name):
    """The asked name goes to the input or output; what had it before gets out of the way."""
    net = Net()
    y = conv(net, net.input("x", random(2, 4, 6, 6)), random(4, 4, 3, 3, seed=1), name="c")
    y = net.op("Flatten", [net.op("Relu", [y], "r")], "flat")
    net.output(gemm(net, y, random(5, 144, seed=3, scale=0.1), random(5, seed=4), transB=1))
    plain = export_net(quantfold, tmp_path / "plain", net)
    renamed = export_net(quantfold, tmp_path / "renamed", net, Options(args=(option, name)))
    found = deploy_rules.violations(renamed.deploy, renamed.out)
    assert not [v for v in found if "c.quant.output0" not in name or "outputs" not in v], found
    check_model(renamed.out / FAKE)
    for model in (renamed.deploy, renamed.fake):
        values = model.graph.input if option == "--input-names" else model.graph.output
        assert [v.name for v in values] == [name]
    feeds = list(net.feeds.values())
    same_bits(run_model(renamed.out / FAKE, feeds), run_model(plain.out / FAKE, feeds))


# ---- keys --------------------------------------------------------------------------------------


def scoped_net(name: str, weight: str) -> Net:
    net = Net()
    x = net.input("x", random(2, 4, 6, 6))
    w = net.weight(weight, random(4, 4, 3, 3, seed=1, scale=0.3))
    net.output(net.op("Conv", [x, w], name, kernel_shape=[3, 3], group=1))
    return net


@pytest.mark.parametrize(
    "name, weight, key",
    [
        ("/a/b/Conv", "w", "/a/b/Conv"),
        ("/whatever/Conv", "a.b.weight", "a.b"),
        ("/whatever/Conv", "a.b.sub_module.weight", "a.b"),
        ("/a/b/Conv", "onnx::Conv_12", "a.b"),
    ],
    ids=["node", "weight", "sub_module", "scope"],
)
def test_key_finds_its_layer(quantfold, tmp_path, name, weight, key):
    net = scoped_net(name, weight)
    path = save_net(net, tmp_path)
    (record,) = records_for(path, net, Options())
    record.key = key
    (tmp_path / "record.txt").write_text(make_record.record_text([record]))
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    model = onnx.load(str(tmp_path / "out" / DEPLOY))
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds[weight] == TensorProto.INT8


def test_ambiguous_key_lists_the_candidates(quantfold, tmp_path):
    net = Net()
    x = net.input("x", random(2, 4, 6, 6))
    w = net.weight("a.b.weight", random(4, 4, 3, 3, seed=1))
    for name in ("/one/Conv", "/two/Conv"):
        net.output(net.op("Conv", [x, w], name, kernel_shape=[3, 3], group=1))
    path = save_net(net, tmp_path)
    record = make_record.Record("a.b", 0.02, 0, [0.01] * 4)
    (tmp_path / "record.txt").write_text(make_record.record_text([record]))
    result = quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m", expect=1)
    assert all(text in result.err for text in ("a.b", "/one/Conv", "/two/Conv"))


def test_unnamed_nodes_are_called_by_their_index(quantfold, tmp_path):
    net = Net()
    y = net.op("Relu", [net.input("x", random(5, 8))], "", "r")
    net.output(net.op("Gemm", [y, net.weight("w", random(8, 6, seed=1))], "", "y"))
    export = export_and_check(quantfold, tmp_path, net)
    assert {n.name for n in export.deploy.graph.node} == {
        "node_0",
        "node_1",
        "node_1.quant",
        "node_1.dequant",
    }


# ---- record file ---------------------------------------------------------------------------------

ODD_RECORD = """
# a comment, then every form that the text format allows
record: < key: 'g' ; value: {
  scale_d: 0.05, offset_d : -3
  scale_w: [ 0.0125f ];  offset_w: [0]
  act_type: "INT4"   # the last one wins
  act_type: "IN" 'T8'
  wts_type: "\\x49NT8"
  tensor_balance_factor: []
} >
prune_record { producer { name: "x" attr { name: "y" type: INTS ints: [1, -2] } } }
"""


def test_record_in_every_form_of_the_text_format(quantfold, tmp_path):
    net = gemm_net(1, (6,))
    path = save_net(net, tmp_path)
    plain = make_record.Record("g", 0.05, -3, [0.0125])
    for name, text in (("odd", ODD_RECORD), ("plain", make_record.record_text([plain]))):
        (tmp_path / f"{name}.txt").write_text(text)
        quantfold.export(path, tmp_path / f"{name}.txt", tmp_path / name / "m")
    for which in (DEPLOY, FAKE):
        ours, wanted = ((tmp_path / name / which).read_bytes() for name in ("odd", "plain"))
        assert ours == wanted


@pytest.mark.parametrize("flag, kept", [("deploy", DEPLOY), ("fake-quant", FAKE)])
def test_emit_one_of_the_two(quantfold, tmp_path, flag, kept):
    net = gemm_net(1, (6,))
    both = export_net(quantfold, tmp_path / "both", net)
    one = export_net(quantfold, tmp_path / "one", net, Options(args=("--emit", flag)))
    assert [p.name for p in one.out.iterdir()] == [kept]
    assert (one.out / kept).read_bytes() == (both.out / kept).read_bytes()


def test_dry_run_writes_nothing(quantfold, tmp_path):
    net = gemm_net(1, (6,))
    path = save_net(net, tmp_path)
    (tmp_path / "r.txt").write_text(make_record.record_text(records_for(path, net, Options())))
    result = quantfold.export(path, tmp_path / "r.txt", tmp_path / "out" / "m", "--dry-run")
    assert not (tmp_path / "out").exists()
    assert "m_deploy_model.onnx" in result.out + result.err


def test_file_modes_and_prefix(quantfold, tmp_path):
    net = gemm_net(1, (6,))
    path = save_net(net, tmp_path)
    (tmp_path / "r.txt").write_text(make_record.record_text(records_for(path, net, Options())))
    quantfold.export(path, tmp_path / "r.txt", f"{tmp_path}/new/deep/")
    names = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "new" / "deep").iterdir()}
    assert names == {"deploy_model.onnx": 0o640, "fake_quant_model.onnx": 0o640}


@pytest.mark.parametrize(
    "save_path, prefix",
    [
        ("m", "m_"),
        ("./m", "m_"),
        ("./", ""),
        ("", ""),
        ("sub/", ""),
        ("sub/../m", "m_"),
        ("name with space/pre.fix", "pre.fix_"),
    ],
)
def test_save_path_is_split_as_the_reference_does(quantfold, tmp_path, save_path, prefix):
    net = gemm_net(1, (6,))
    path = save_net(net, tmp_path / "in")
    record = tmp_path / "in" / "r.txt"
    record.write_text(make_record.record_text(records_for(path, net, Options())))
    work = tmp_path / "work"
    work.mkdir()
    quantfold.export(path, record, save_path, cwd=work)
    below = save_path.rsplit("/", 1)[0] if "/" in save_path and ".." not in save_path else "."
    names = {p.name for p in (work / below).iterdir() if p.is_file()}
    assert names == {f"{prefix}deploy_model.onnx", f"{prefix}fake_quant_model.onnx"}


def test_layers_by_all_kinds_together(quantfold, tmp_path):
    """One model with five kinds of layers in a row: what one pass does, the next must see."""
    net = Net()
    y = net.input("x", random(2, 4, 8, 8))
    y = conv(net, y, random(8, 4, 3, 3, seed=1, scale=0.3), random(8, seed=2), name="c1")
    y = net.op("Relu", [y], "r1")
    y = conv(net, y, random(8, 1, 3, 3, seed=3, scale=0.5), None, name="c2", group=8)
    y = conv(net, y, random(8, 4, 3, 3, seed=4, scale=0.3), None, name="up", op="ConvTranspose")
    y = net.op("GlobalAveragePool", [y], "pool")
    y = net.op("Flatten", [y], "flat")
    y = gemm(net, y, random(6, 4, seed=5), random(6, seed=6), name="fc1", transB=1)
    y = net.op("MatMul", [y, net.weight("fc2.weight", random(6, 3, seed=7))], "fc2")
    y = net.op("Add", [y, net.weight("fc2.bias", random(3, seed=8))], "add")
    net.output(y)
    for act, wts, snr in itertools.product(("INT8", "INT16"), ("INT8", "INT7"), (12,)):
        options = Options(act=act, wts=wts, snr=snr)
        export_and_check(quantfold, tmp_path / f"{act}{wts}", net, options)


def test_expected_models_differ_from_the_input(tmp_path):
    """A guard on the room itself: an expectation equal to the float model would prove nothing."""
    net = conv_net(2, 1, True)
    path = save_net(net, tmp_path)
    text = make_record.record_text(records_for(path, net, Options()))
    build_wanted(path, reference.parse_record(text), tmp_path)
    assert differences(tmp_path / FAKE, path) and differences(tmp_path / DEPLOY, path)
