# SPDX-License-Identifier: Apache-2.0
"""--fake-quant-weights: int8 weights in fake_quant, and weights that both models share.

The float form is proved against the reference elsewhere; here the other two must be the same model:
the same deploy, the same numbers behind every Cast, the same bits out of ONNX Runtime. ONNX Runtime
packs constant weights when it loads a model, and its packed kernels add in another order than the
others. A weight behind a Cast is constant only once graph optimizations have folded it, so with
optimizations off the forms are compared with packing off as well; where all sums are exact
(integers below 2^24, not the scaled weights of an RNN) that makes no difference.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import test_golden
import test_odd_models as odd
import test_random_graphs
import test_synthetic as nets_of
from nets import Net, Options, conv, gemm, random, records_for, save_net
from onnx import TensorProto, numpy_helper

import make_record
from support import DEPLOY, FAKE, check_model, payload, same_bits, snapshot

FORMS = ["float", "int8", "shared"]
SHARED_MIN = 1024  # bytes
OFF, ALL = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL


# ---- what must hold ----------------------------------------------------------------------------


def run(path: Path, feeds: dict, level, packing: bool) -> list[np.ndarray]:
    """Outputs with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = level
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", str(int(not packing)))
    s = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return s.run(None, feeds)


def export_forms(quantfold, folder: Path, model: Path, record: Path, *args) -> dict[str, Path]:
    """Every form in a folder of its own."""
    for form in FORMS:
        quantfold.export(model, record, folder / form / "m", "--fake-quant-weights", form, *args)
    return {form: folder / form for form in FORMS}


def load(path: Path) -> onnx.ModelProto:
    """A model without its external data."""
    return onnx.load(str(path), load_external_data=False)


def graphs(graph: onnx.GraphProto):
    """A graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for a in node.attribute:
            for inner in ([a.g] if a.HasField("g") else []) + list(a.graphs):
                yield from graphs(inner)


def inlined(path: Path) -> bytes:
    """A model with its external data inside."""
    model = onnx.load(str(path))
    for graph in graphs(model.graph):
        for t in graph.initializer:
            t.ClearField("data_location")
    return model.SerializeToString(deterministic=True)


def constants(path: Path) -> dict[tuple, tuple]:
    """Dtype, dims and bytes of the constant inputs of the layers, Casts and Muls of their weights
    evaluated."""
    found, model = {}, load(path)
    for number, graph in enumerate(graphs(model.graph)):
        tensors = {t.name: t for t in graph.initializer}
        producers = {o: n for n in graph.node for o in n.output}

        def value(name):
            """The array that the name stands for if it is constant; None if it is not."""
            if name in tensors:
                data, dims = payload(tensors[name], path.parent), tensors[name].dims
                kind = {TensorProto.INT8: np.int8, TensorProto.FLOAT: np.float32}
                dtype = kind.get(tensors[name].data_type)
                return None if dtype is None else np.frombuffer(data, dtype).reshape(dims)
            node = producers.get(name)
            steps = (".cast", ".mul", ".scale")
            if node is None or not node.name.rstrip("0123456789").endswith(steps):
                return None
            if node.op_type == "Constant":
                return numpy_helper.to_array(node.attribute[0].t)
            values = [value(n) for n in node.input]
            if any(v is None for v in values):
                return None
            return values[0] * values[1] if node.op_type == "Mul" else values[0].astype(np.float32)

        for node in graph.node:
            for i, name in enumerate(node.input):
                if ".weight." in node.name or ".recurrence_weight." in node.name:
                    continue
                v = value(name)
                if v is not None:
                    found[number, node.name, i] = (v.dtype, v.shape, v.tobytes())
    return found


def quantized(path: Path) -> dict[str, TensorProto]:
    """The int8 initializers of a model by name, which differs between branches that share one."""
    found = {}
    for graph in graphs(load(path).graph):
        for t in graph.initializer:
            if t.data_type == TensorProto.INT8:
                found[f"{graph.name}/{t.name}"] = t
    return found


def place(tensor: TensorProto) -> dict[str, str]:
    """Location, offset and length of an external tensor; {} if it is not external."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return {}
    return {e.key: e.value for e in tensor.external_data}


def check_sharing(out: Path) -> int:
    """Weights are shared exactly where they can be; returns how many are."""
    count, deploy = 0, quantized(out / DEPLOY)
    for key, ours in quantized(out / FAKE).items():
        theirs = deploy.get(key)
        equal = theirs is not None and payload(theirs, out) == payload(ours, out)
        if equal and theirs.dims == ours.dims and np.prod(ours.dims) >= SHARED_MIN:
            assert place(ours) and place(ours) == place(theirs), key
            assert int(place(ours)["length"]) == np.prod(ours.dims)
            count += 1
        else:
            assert not place(ours) or "_fake" in place(ours)["location"], key
    return count


def check_nodes(forms: dict[str, Path]) -> None:
    """An int8 form has one Cast for each int8 weight, and no node that is not of the float form."""
    plain = {n.name for n in load(forms["float"] / FAKE).graph.node}
    for form in FORMS[1:]:
        model = check_model(forms[form] / FAKE)
        assert all(n.name in plain or "weight." in n.name for n in model.graph.node)
        nodes = [n for g in graphs(model.graph) for n in g.node]
        casts = [n.input[0] for n in nodes if n.op_type == "Cast" and "weight.cast" in n.name]
        weights = [t.name for g in graphs(model.graph) for t in g.initializer]
        kinds = {t.name: t.data_type for g in graphs(model.graph) for t in g.initializer}
        assert sorted(casts) == sorted(w for w in weights if kinds[w] == TensorProto.INT8)
        outputs = [o for n in nodes for o in n.output if o]
        assert len(outputs) == len(set(outputs)) or len(list(graphs(model.graph))) > 1


def check_forms(forms: dict[str, Path], feeds: list[dict], exact: bool) -> int:
    """Everything that must hold for three exports of one model; the number of shared weights."""
    check_nodes(forms)
    wanted = constants(forms["float"] / FAKE)
    assert wanted
    for form in FORMS[1:]:
        assert constants(forms[form] / FAKE) == wanted
        assert inlined(forms[form] / DEPLOY) == inlined(forms["float"] / DEPLOY)
    assert snapshot(forms["int8"])[DEPLOY] == snapshot(forms["float"])[DEPLOY]
    for level, packing in [(OFF, False), (ALL, True)] + [(OFF, True)] * exact:
        for feed in feeds:
            plain = run(forms["float"] / FAKE, feed, level, packing)
            for form in FORMS[1:]:
                same_bits(run(forms[form] / FAKE, feed, level, packing), plain)
    return check_sharing(forms["shared"])


def check_net(quantfold, folder: Path, net: Net, options=Options(), text=None, exact=True) -> int:
    """Exports a net in every form and compares them."""
    path = save_net(net, folder)
    text = text or make_record.record_text(records_for(path, net, options))
    (folder / "record.txt").write_text(text)
    forms = export_forms(quantfold, folder, path, folder / "record.txt", *options.args)
    return check_forms(forms, [net.feeds], exact)


# ---- the models of the other rooms -------------------------------------------------------------


@pytest.mark.parametrize("case", test_golden.CASES)
def test_golden_case(quantfold, case, tmp_path):
    model, record = test_golden.model_of(case), test_golden.GOLDEN / case / "record.txt"
    forms = export_forms(quantfold, tmp_path, model, record)
    names = [i.name for i in load(forms["float"] / FAKE).graph.input]
    feeds = dict(zip(names, test_golden.inputs_of(case)))
    check_forms(forms, [feeds], exact="lstm" not in case and "gru" not in case)


@pytest.mark.parametrize("seed", range(0, 150, 2))
def test_random_graph(quantfold, tmp_path, seed):
    maker = test_random_graphs.Maker(seed)
    if not maker.records:
        return
    text = make_record.record_text(maker.records)
    path = save_net(maker.net, tmp_path)
    (tmp_path / "record.txt").write_text(text)
    forms = export_forms(quantfold, tmp_path, path, tmp_path / "record.txt")
    if quantized(forms["int8"] / FAKE):
        check_forms(forms, [maker.net.feeds], exact=True)


def constant_net() -> Net:
    net = Net()
    x = net.input("x", random(5, 40))
    net.output(net.op("MatMul", [x, net.constant("w", random(40, 40, seed=1))], "L"))
    return net


def identity_net() -> Net:
    net = Net()
    x = net.input("x", random(2, 16, 7, 7))
    w = net.op("Identity", [net.weight("w", random(16, 16, 3, 3, seed=1, scale=0.3))], "i")
    net.output(net.op("Conv", [x, w], "c", kernel_shape=[3, 3], group=1))
    return net


NETS = {
    "conv1d": lambda: nets_of.conv_net(1, 1, True),
    "conv grouped": lambda: nets_of.conv_net(2, 2, True, cin=32, cout=64),
    "conv3d": lambda: nets_of.conv_net(3, 1, False, cin=8, cout=8),
    "depthwise": lambda: nets_of.conv_net(2, 4, True),
    "deconv grouped": lambda: nets_of.deconv_net(2, 2, True),
    "gemm": lambda: nets_of.gemm_net(0, (6,)),
    "gemm transB": lambda: nets_of.gemm_net(1, (1, 6)),
    "matmul behind Transpose": lambda: nets_of.matmul_net("second", True),
    "matmul": lambda: nets_of.matmul_net("first"),
    "two wide layers": nets_of.wide_net,
    "batch norm": lambda: nets_of.bn_net(1e-5),
    "Constant node": constant_net,
    "Identity": identity_net,
    "layer before an If": nets_of.if_net,
    "opset 9": lambda: nets_of.old_net(9),
}


@pytest.mark.parametrize("name", NETS)
def test_net(quantfold, tmp_path, name):
    check_net(quantfold, tmp_path, NETS[name]())


@pytest.mark.parametrize("kind", nets_of.WIDTH_NETS)
@pytest.mark.parametrize("wts", ["INT7", "INT6", "INT4", "native INT4"])
def test_width(quantfold, tmp_path, kind, wts):
    """Packed and native INT4 are int8, one a byte, in fake_quant."""
    net = nets_of.WIDTH_NETS[kind]()
    extra = {net.nodes[0].name: ['dst_type: "INT4"']} if wts == "native INT4" else {}
    options = Options(act="INT4" if extra else "INT8", wts=wts.split()[-1], extra=extra)
    check_net(quantfold, tmp_path, net, options)
    (weight,) = quantized(tmp_path / "int8" / FAKE).values()
    values = np.frombuffer(payload(weight, tmp_path / "int8"), np.int8)
    bits = int(wts[-1])
    assert -(2 ** (bits - 1)) <= values.min() < 0 < values.max() < 2 ** (bits - 1)


@pytest.mark.parametrize(
    "kind, layer", [("fp16", "conv"), ("fp16", "gemm"), ("fp64", "gemm"), ("fp64", "matmul")]
)
def test_other_float_types(quantfold, tmp_path, kind, layer):
    check_net(quantfold, tmp_path, nets_of.cast_net(kind, layer))


@pytest.mark.parametrize("float_user", [False, True], ids=["", "and-a-float-user"])
@pytest.mark.parametrize("equal", [True, False], ids=["equal", "different"])
def test_weight_of_two_layers(quantfold, tmp_path, equal, float_user):
    options = Options(scales={"l1": [0.017], "l2": [0.017 if equal else 0.011]})
    check_net(quantfold, tmp_path, nets_of.shared_net("Gemm", float_user), options)
    assert len(quantized(tmp_path / "int8" / FAKE)) == (1 if equal else 2)


@pytest.mark.parametrize("wts", ["INT8", "INT4"])
@pytest.mark.parametrize("per_gate", [True, False], ids=["gate", "channel"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_rnn(quantfold, tmp_path, monkeypatch, op, per_gate, wts):
    """Scaled weights: the Mul's float32 products are those of the float form."""
    monkeypatch.setattr(nets_of, "HIDDEN", 24)
    net = nets_of.rnn_net(op)
    text = nets_of.rnn_record(net, per_gate, "INT8", wts)
    shared = check_net(quantfold, tmp_path, net, text=text, exact=False)
    assert shared == (1 if wts == "INT8" else 0)  # R; W has less than a kilobyte


@pytest.mark.parametrize("op,gates", [("LSTM", 4), ("GRU", 3)])
def test_float16_rnn(quantfold, tmp_path, op, gates):
    half, lstm = np.float16, op == "LSTM"
    inits = [odd.tensor(n, 1, gates * 2, k, dtype=half) for n, k in (("W", 3), ("R", 2))]
    names = ["x", "W", "R", "", "", "h"] + ["c"] * lstm
    more = {} if lstm else {"linear_before_reset": 1}
    feeds = {n: random(*s).astype(half) for n, s in (("x", (5, 1, 3)), ("h", (1, 1, 2)))}
    feeds |= {"c": random(1, 1, 2, seed=3).astype(half)} if lstm else {}
    inputs = [odd.value(n, v.shape, TensorProto.FLOAT16) for n, v in feeds.items()]
    outs = ["Y", "Yh"] + ["Yc"] * lstm
    node = onnx.helper.make_node(op, names, outs, name="r", hidden_size=2, **more)
    m = odd.model(
        [node], inputs, [odd.value("Y", [5, 1, 1, 2], TensorProto.FLOAT16)], inits, opset=14
    )
    onnx.save(m, str(tmp_path / "model.onnx"))
    (tmp_path / "r.txt").write_text(odd.record({"r": odd.rnn_scales(gates)}))
    forms = export_forms(quantfold, tmp_path, tmp_path / "model.onnx", tmp_path / "r.txt")
    check_forms(forms, [feeds], exact=False)


@pytest.mark.parametrize("size", [2, 40], ids=["small", "large"])
def test_branches_that_share_a_weight(quantfold, tmp_path, size):
    """Each branch of an If has its own int8 tensor and Cast; large ones are external in it."""
    m = odd.if_model()
    w = odd.tensor("w", 3, size * 9, 1, 1) if size == 40 else odd.tensor("w", 3, 2, 1, 1)
    m.graph.initializer[0].CopyFrom(w)
    m.graph.input[0].type.tensor_type.shape.dim[1].dim_value = w.dims[1]
    onnx.save(m, str(tmp_path / "model.onnx"))
    layers = {"then": odd.scales(3), "else": odd.scales(3, 0.01)}
    (tmp_path / "r.txt").write_text(odd.record(layers))
    forms = export_forms(quantfold, tmp_path, tmp_path / "model.onnx", tmp_path / "r.txt")
    x = random(1, w.dims[1], 4, 4)
    feeds = [{"x": x, "flag": np.array(flag)} for flag in (True, False)]
    assert check_forms(forms, feeds, exact=True) == (2 if size == 40 else 0)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_two_layers_behind_transposes_of_one_weight(quantfold, tmp_path, trans_b):
    """One Cast in front of all Transposes, wherever they stand."""
    net = Net()
    w = net.weight("w", random(40, 40, seed=1))
    turned = [net.op("Transpose", [w], f"t{i}", perm=[1, 0]) for i in (1, 2)]
    x, z = net.input("x", random(3, 40)), net.input("z", random(3, 40, seed=4))
    # the second Transpose stands before the first layer's
    net.nodes.reverse()
    net.output(net.op("Gemm", [x, turned[0]], "g1", transB=trans_b))
    net.output(net.op("Gemm", [z, turned[1]], "g2", transB=trans_b))
    options = Options(scales={"g1": [0.02], "g2": [0.02]})
    assert check_net(quantfold, tmp_path, net, options) == 1


@pytest.mark.parametrize(
    "node, tensor",
    [("c.weight.cast", "t"), ("n", "c.weight.cast.output0"), ("n", "g.weight.cast.output0")],
)
def test_names_that_are_taken(quantfold, tmp_path, node, tensor):
    check_net(quantfold, tmp_path, nets_of.crowded_net(node, tensor))


@pytest.mark.parametrize("node", ["rnn.weight.mul", "rnn.recurrence_weight.scale"])
def test_names_that_are_taken_in_an_rnn(quantfold, tmp_path, node):
    net = nets_of.rnn_net("GRU")
    text = nets_of.rnn_record(net, True, "INT8", "INT8")
    net.output(net.op("Relu", ["y"], node, f"{node}.output0"))
    path = save_net(net, tmp_path)
    (tmp_path / "record.txt").write_text(text)
    forms = export_forms(quantfold, tmp_path, path, tmp_path / "record.txt")
    for form in FORMS[1:]:
        names = [n.name for n in check_model(forms[form] / FAKE).graph.node]
        assert len(names) == len(set(names)) and node in names and f"{node}1" in names
        for level in (OFF, ALL):
            plain = run(forms["float"] / FAKE, net.feeds, level, False)
            same_bits(run(forms[form] / FAKE, net.feeds, level, False), plain)


def long_sums_net() -> Net:
    net = Net()
    net.output(gemm(net, net.input("x", random(3, 900)), random(900, 24, seed=1), transB=0))
    return net


def test_sums_that_are_not_exact(quantfold, tmp_path):
    """16-bit activations leave the integers that float32 holds; only the order of sums differs."""
    check_net(quantfold, tmp_path, long_sums_net(), Options(act="INT16"), exact=False)


def test_models_of_this_room_tell_forms_apart(quantfold, tmp_path):
    """A guard: if the float form were written for all, everything above would pass but this."""
    path, record = big_model(tmp_path)
    forms = export_forms(quantfold, tmp_path, path, record)
    assert not quantized(forms["float"] / FAKE)
    for form in FORMS[1:]:
        assert len(quantized(forms[form] / FAKE)) == 4


# ---- sizes and files ---------------------------------------------------------------------------


def big_net() -> Net:
    """Weights that are cut into blocks: flat, transposed, packed, and small enough to stay."""
    net = Net()
    y = net.input("x", random(2, 300))
    y = gemm(net, y, random(400, 300, seed=1, scale=0.1), random(400, seed=2), "g1", transB=1)
    y = net.op("MatMul", [y, net.weight("m.w", random(400, 300, seed=3, scale=0.1))], "m")
    y = gemm(net, y, random(300, 400, seed=4, scale=0.1), None, "g4")
    y = net.op("MatMul", [y, net.weight("free", random(400, 50, seed=5, scale=0.1))], "float")
    net.output(gemm(net, y, random(50, 8, seed=6), None, "last"))
    return net


def big_model(folder: Path) -> tuple[Path, Path]:
    """The net above on disk; g4 has packed INT4 weights and one layer no record."""
    net = big_net()
    path, options = save_net(net, folder), Options(only=["g1", "m", "last"])
    text = make_record.record_text(records_for(path, net, options))
    four = Options(only=["g4"], wts="INT4")
    text += make_record.record_text(records_for(path, net, four))
    (folder / "record.txt").write_text(text)
    return path, folder / "record.txt"


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file."""
    return {name: len(data) for name, data in snapshot(folder).items()}


def test_sizes(quantfold, tmp_path):
    forms = export_forms(quantfold, tmp_path, *big_model(tmp_path))
    weights = 3 * 300 * 400 + 50 * 8
    rest = sizes(forms["float"])[FAKE] - 4 * weights
    int8 = sizes(forms["int8"])[FAKE]
    assert weights < int8 < weights + rest + 2000
    assert sizes(forms["shared"])[FAKE] == pytest.approx(int8 - 2 * 300 * 400, abs=1000)
    both = sum(sizes(forms["shared"]).values())
    assert both == pytest.approx(sum(sizes(forms["int8"]).values()) - 2 * 300 * 400, abs=2000)
    assert check_forms(forms, [big_net().feeds], exact=True) == 2


def test_one_file_of_both_models(quantfold, tmp_path):
    forms = export_forms(quantfold, tmp_path, *big_model(tmp_path))
    names = set(sizes(forms["shared"]))
    assert names == {DEPLOY, FAKE, "g1.weight_deploy.external", "m.w_deploy.external"}
    assert set(sizes(forms["int8"])) == {DEPLOY, FAKE}


def test_single_layout(quantfold, tmp_path):
    """Shared weights lie in the deploy model's file; what only fake_quant has, in its own."""
    args = ("--external-layout", "single", "--external", "always")
    forms = export_forms(quantfold, tmp_path, *big_model(tmp_path), *args)
    out = forms["shared"]
    assert check_forms(forms, [big_net().feeds], exact=True) == 2
    names = {"m_deploy_model.external", "m_fake_quant_model.external"}
    assert set(sizes(out)) == {DEPLOY, FAKE} | names
    locations = {t.name: place(t)["location"] for t in quantized(out / FAKE).values() if place(t)}
    wanted = {"g1.weight": 0, "m.w": 0, "g4.weight": 1}
    assert locations == {k: sorted(names)[v] for k, v in wanted.items()}
    offsets = [int(place(t)["offset"]) for t in quantized(out / FAKE).values() if place(t)]
    assert all(o % 4096 == 0 for o in offsets)


def test_single_layout_with_nothing_else_outside(quantfold, tmp_path):
    forms = export_forms(quantfold, tmp_path, *big_model(tmp_path), "--external-layout", "single")
    assert set(sizes(forms["shared"])) == {DEPLOY, FAKE, "m_deploy_model.external"}
    assert check_forms(forms, [big_net().feeds], exact=True) == 2


@pytest.mark.parametrize("form, outside", [("int8", {"g1.weight", "m.w"}), ("shared", set())])
def test_threshold_holds_for_the_rest(quantfold, tmp_path, form, outside):
    """What is shared does not count; with a limit below the rest, its largest goes out."""
    path, record = big_model(tmp_path)
    for limit, more in ((250_000, set()), (100_000, {"g4.weight", "free"})):
        args = ("--fake-quant-weights", form, "--external-threshold", limit)
        quantfold.export(path, record, tmp_path / str(limit) / "m", *args)
        out = tmp_path / str(limit)
        assert (out / FAKE).stat().st_size < limit
        files = {p.name for p in out.glob("*_fakequant.external")}
        if form == "shared" or more:
            allowed = outside | more
            assert files <= {f"{n}_fakequant.external" for n in allowed} and bool(files) == bool(
                more
            )
        else:
            assert files and files <= {f"{n}_fakequant.external" for n in outside | {"g4.weight"}}


def test_external_source(quantfold, tmp_path):
    """Small tensors that were external stay so, each model with its own; large ones are shared."""
    net = nets_of.wide_net()
    path = nets_of.save_external(net, tmp_path, "one")
    text = make_record.record_text(records_for(path, net, Options()))
    (tmp_path / "r.txt").write_text(text)
    forms = export_forms(quantfold, tmp_path, path, tmp_path / "r.txt")
    assert check_forms(forms, [net.feeds], exact=True) == 2
    names = {f"{n}.weight_deploy.external" for n in ("f1", "f2")}
    names |= {f"{n}.bias_{m}.external" for n in ("f1", "f2") for m in ("deploy", "fakequant")}
    assert set(sizes(forms["shared"])) == {DEPLOY, FAKE} | names


def test_names_that_are_no_file_names(quantfold, tmp_path):
    net = Net()
    y = net.input("x", random(4, 36))
    for i, name in enumerate(nets_of.NAMES):
        w = net.weight(name, random(36, 36, seed=i, scale=0.17))
        y = net.op("MatMul", [y, w], f"m{i}")
    net.output(y)
    assert check_net(quantfold, tmp_path, net) == len(nets_of.NAMES)


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("layout", ["per-tensor", "single"])
def test_threads_change_no_byte(quantfold, tmp_path, form, layout):
    path, record = big_model(tmp_path)
    args = ("--fake-quant-weights", form, "--external-layout", layout)
    first = None
    for i, threads in enumerate((1, 2, 2)):
        out = tmp_path / str(i)
        quantfold.export(path, record, out / "m", *args, "--threads", threads)
        first = first or snapshot(out)
        assert snapshot(out) == first, f"{threads} threads"


def test_report_names_each_file_once(quantfold, tmp_path):
    """The dry run promises what the export writes, in an order that puts models behind files."""
    path, record = big_model(tmp_path)
    args = ("--fake-quant-weights", "shared", "--external", "always", "--json")
    said = []
    for more in (["--dry-run"], []):
        result = quantfold.export(path, record, tmp_path / "out" / "m", *args, *more)
        said.append(json.loads(result.out))
    assert said[0]["files"] == said[1]["files"]
    files = {Path(f["path"]).name: f["bytes"] for f in said[1]["files"]}
    assert len(files) == len(said[1]["files"]) and files == sizes(tmp_path / "out")
    assert said[1]["bytes_written"] == sum(files.values())
    order = list(files)
    for model in (DEPLOY, FAKE):
        for t in load(tmp_path / "out" / model).graph.initializer:
            if place(t):
                assert order.index(place(t)["location"]) < order.index(model)


def test_files_that_exist(quantfold, tmp_path):
    """The earlier model of the prefix explains its files; without it they may be another's."""
    path, record = big_model(tmp_path)
    args = ("--fake-quant-weights", "shared")
    quantfold.export(path, record, tmp_path / "out" / "m", *args)
    again = quantfold.export(path, record, tmp_path / "out" / "m", *args)
    assert again.err.count("warning") == 2 and "external" not in again.err
    other = quantfold.export(path, record, tmp_path / "out" / "other", *args)
    assert other.err.count("another model in the folder may use it") == 2


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, word",
    [
        (("--external", "never"), "--external never"),
        (("--emit", "deploy"), "both models"),
        (("--emit", "fake-quant"), "both models"),
    ],
)
def test_sharing_that_cannot_be(quantfold, tmp_path, args, word):
    path, record = big_model(tmp_path)
    args = ("--fake-quant-weights", "shared", *args)
    result = quantfold.export(path, record, tmp_path / "out" / "m", *args, expect=2)
    assert word in result.err and "int8" in result.err
    assert not (tmp_path / "out").exists()


def test_unknown_form(quantfold, tmp_path):
    args = ("--fake-quant-weights", "int4")
    result = quantfold.export("m.onnx", "r.txt", tmp_path / "m", *args, expect=2)
    assert "float, int8, shared" in result.err


@pytest.mark.parametrize("args", [("--external", "never"), ("--emit", "fake-quant")])
def test_int8_alone(quantfold, tmp_path, args):
    """What int8 can do where shared cannot."""
    path, record = big_model(tmp_path)
    outs = []
    for form in FORMS[:2]:
        outs.append(tmp_path / form)
        quantfold.export(path, record, outs[-1] / "m", "--fake-quant-weights", form, *args)
    assert not list(outs[1].glob("*.external"))
    assert constants(outs[1] / FAKE) == constants(outs[0] / FAKE)


def test_opset_that_is_too_old(quantfold, tmp_path):
    """Before opset 6, Cast names its type by a string; such models are refused as in float form."""
    m = odd.model(
        [odd.conv("x", "w", "y", "c")],
        [odd.value("x", [1, 2, 4, 4])],
        [odd.value("y", [1, 3, 4, 4])],
        [odd.tensor("w", 3, 2, 1, 1)],
        opset=5,
    )
    result = odd.export(
        quantfold, tmp_path, m, {"c": odd.scales(3)}, "--fake-quant-weights", "int8", expect=1
    )
    assert "opset 5" in result.err and "needs 7" in result.err


def test_model_without_layers(quantfold, tmp_path):
    """Nothing to share: both models are the source."""
    path, _ = big_model(tmp_path)
    (tmp_path / "none.txt").write_text('record { key: "m" value { scale_d: 0 } }')
    args = ("--fake-quant-weights", "shared")
    quantfold.export(path, tmp_path / "none.txt", tmp_path / "out" / "m", *args)
    assert snapshot(tmp_path / "out") == dict.fromkeys((DEPLOY, FAKE), path.read_bytes())
