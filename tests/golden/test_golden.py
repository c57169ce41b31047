# SPDX-License-Identifier: Apache-2.0
"""Exports against the reference tool's own outputs.

The golden folder holds inputs and outputs of the real tool. Equality with it is the definition of a
right export; everything in the other rooms rests on numbers that are proved here, the numpy
reimplementation in tests/conformance/reference.py included.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path

import deploy_rules
import numpy as np
import onnx
import pytest
import reference

import make_record
from support import (
    DEPLOY,
    FAKE,
    assert_same_model,
    check_model,
    payload,
    run_model,
    same_bits,
    snapshot,
)

REPO = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("QUANTFOLD_GOLDEN", REPO.parent / "shared" / "golden"))
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir()) if GOLDEN.is_dir() else []
THRESHOLDS = {"m_external": 1500, "m_external_partial": 6000}
pytestmark = pytest.mark.skipif(not CASES, reason=f"no golden files at {GOLDEN}")
# what torch's exporter calls a dimension it does not know
EXPORTER_DIM = re.compile(r"^[A-Z]\w*?_dim_\d+$")


def model_of(case: str) -> Path:
    """The float model of a case: m_ext_input_* have it beside its external tensors."""
    beside = GOLDEN / case / "amct_temp" / "temp.onnx"
    return beside if beside.is_file() else GOLDEN / case / "float.onnx"


def export_case(quantfold, case: str, out: Path, *extra, model: Path | None = None) -> Path:
    """Export a case into a folder."""
    threshold = THRESHOLDS.get(case)
    options = [] if threshold is None else ["--external-threshold", threshold]
    quantfold.export(
        model or model_of(case),
        GOLDEN / case / "record.txt",
        out / "m",
        *options,
        *extra,
        config=GOLDEN / case / "config.json",
    )
    return out


@pytest.fixture(scope="module")
def exported(quantfold, tmp_path_factory):
    """Exports each case once."""
    done: dict[str, Path] = {}

    def get(case: str) -> Path:
        if case not in done:
            done[case] = export_case(quantfold, case, tmp_path_factory.mktemp(case))
        return done[case]

    return get


def inputs_of(case: str) -> list[np.ndarray]:
    """The arrays in0.npy, in1.npy, ..."""
    paths = sorted((GOLDEN / case).glob("in*.npy"), key=lambda p: int(p.stem[2:]))
    return [np.load(p) for p in paths]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("which", [DEPLOY, FAKE], ids=["deploy", "fake_quant"])
def test_equals_reference(exported, case, which):
    assert_same_model(exported(case) / which, GOLDEN / case / which)


@pytest.mark.parametrize("case", CASES)
def test_files_are_the_reference_s(exported, case):
    names = {p.name for p in exported(case).iterdir()}
    external = {p.name for p in (GOLDEN / case).glob("*.external")}
    assert names == {DEPLOY, FAKE} | external


@pytest.mark.parametrize("case", [c for c in CASES if c.startswith("m_")])
def test_external_bytes_are_the_reference_s(exported, case):
    files = sorted((GOLDEN / case).glob("*.external"))
    assert files
    for wanted in files:
        assert (exported(case) / wanted.name).read_bytes() == wanted.read_bytes(), wanted.name


@pytest.mark.parametrize("case", CASES)
def test_fake_quant_gives_the_reference_s_outputs(exported, case):
    arrays = inputs_of(case)
    assert arrays
    ours = run_model(exported(case) / FAKE, arrays)
    same_bits(ours, run_model(GOLDEN / case / FAKE, arrays))


@pytest.mark.parametrize("case", CASES)
def test_checker_accepts_fake_quant(exported, case):
    check_model(exported(case) / FAKE)


@pytest.mark.parametrize("case", CASES)
def test_deploy_keeps_the_rules(exported, case):
    deploy_rules.assert_deploy(exported(case) / DEPLOY)


@pytest.mark.parametrize("case", CASES)
def test_rules_accept_the_reference_s_deploy(case):
    deploy_rules.assert_deploy(GOLDEN / case / DEPLOY)


@pytest.mark.parametrize("case", CASES)
def test_threads_and_repetition_change_no_byte(quantfold, exported, case, tmp_path):
    first = snapshot(exported(case))
    for threads in (1, 1, 2, 8):
        again = export_case(quantfold, case, tmp_path / str(threads), "--threads", threads)
        assert snapshot(again) == first, f"{threads} threads"


@pytest.mark.parametrize("case", CASES)
def test_numpy_reference_reproduces_golden(case, tmp_path):
    path = model_of(case)
    model = onnx.load(str(path), load_external_data=False)
    records = reference.parse_record((GOLDEN / case / "record.txt").read_text())
    deploy, fake, _ = reference.expected(model, str(path.parent), records)
    for built, name in ((deploy, DEPLOY), (fake, FAKE)):
        onnx.save(built, str(tmp_path / name))
        assert_same_model(tmp_path / name, GOLDEN / case / name)


# ---- other records for the same models -----------------------------------------------------------


def field_lines(name: str, value) -> list[str]:
    """A record field as text, one line for each repeated value."""
    if isinstance(value, list):
        return [line for v in value for line in field_lines(name, v)]
    if isinstance(value, str):
        return [f'    {name}: "{value}"']
    text = make_record.float_text(value) if isinstance(value, np.floating) else str(value)
    return [f"    {name}: {text}"]


def records_text(records: dict[str, dict]) -> str:
    """Records as parse_record gives them, written again."""
    out = []
    for key, record in records.items():
        out += ["record {", f'  key: "{key}"', "  value {"]
        out += [line for name, value in record.items() for line in field_lines(name, value)]
        out += ["  }", "}"]
    return "\n".join(out) + "\n"


def change_rnn(record: dict, gates: int, rng: random.Random) -> None:
    """Other widths, or one scale for each gate."""
    record["act_type"] = rng.choice(["INT8", "INT16"])
    record["wts_type"] = rng.choice(["INT8", "INT4"])
    record["offset_h"] = rng.randrange(-100, 100)
    if rng.random() < 0.5:
        for kind in ("w", "r"):
            record[f"scale_{kind}"] = [max(record[f"scale_{kind}"])] * gates
            record[f"offset_{kind}"] = [0] * gates


def change_layer(record: dict, op: str, dims: list[int], cin: int, group: int, rng) -> None:
    """Other widths, modes and granularity, within what the layer allows."""
    for name, choice in (
        ("act_type", ["INT8", "INT16", "INT4", None]),
        ("wts_type", ["INT8", "INT7", "INT6", None] + ["INT4"] * (dims[cin] % 2 == 0)),
        ("dst_type", [None, None, None, "INT8", "INT4"]),
        ("fakequant_precision_mode", [None, None, "DEFAULT", "FORCE_FP16_QUANT"]),
    ):
        record.pop(name, None)
        if value := rng.choice(choice):
            record[name] = value
    if op.startswith("Conv") and rng.random() < 0.3:
        record["scale_w"], record["offset_w"] = [max(record["scale_w"])], [0]
    if rng.random() < 0.25:
        channels = dims[cin] * (group if op == "Conv" else 1)
        record["tensor_balance_factor"] = [np.float32(rng.uniform(0.2, 5)) for _ in range(channels)]


def changed_records(case: str, seed: int) -> dict[str, dict]:
    """The case's records with seeded changes; some layers lose theirs."""
    path, rng = model_of(case), random.Random(f"{case} {seed}")
    model = onnx.load(str(path), load_external_data=False)
    records = reference.parse_record((GOLDEN / case / "record.txt").read_text())
    graph, _ = reference.prepare(model, str(path.parent), records)
    for key in list(records):
        node, record = graph.node(key), records[key]
        if len(records) > 1 and rng.random() < 0.15:
            del records[key]
            continue
        record["scale_d"] = np.float32(record["scale_d"] * rng.uniform(0.5, 3))
        record["offset_d"] = rng.randrange(-128, 128)
        if node.op_type in reference.RNN:
            change_rnn(record, 4 if node.op_type == "LSTM" else 3, rng)
            continue
        dims = list(graph.tensors[graph.constant(node.input[1])].dims)
        turned = node.op_type == "Gemm" and reference.attr(node, "transB", 0)
        cin = 1 if node.op_type == "Conv" or turned else 0
        change_layer(record, node.op_type, dims, cin, reference.attr(node, "group", 1), rng)
    return records


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
def test_other_records_give_what_the_rules_say(quantfold, case, seed, tmp_path):
    """The reference tool's models with records it did not write, against the numpy reference."""
    path, text = model_of(case), records_text(changed_records(case, seed))
    model = onnx.load(str(path), load_external_data=False)
    records = reference.parse_record(text)
    deploy, fake, _ = reference.expected(model, str(path.parent), records)
    (tmp_path / "record.txt").write_text(text)
    quantfold.export(path, tmp_path / "record.txt", tmp_path / "out" / "m")
    for built, name in ((deploy, DEPLOY), (fake, FAKE)):
        onnx.save(built, str(tmp_path / name))
        assert_same_model(tmp_path / "out" / name, tmp_path / name)


# ---- BN folding --------------------------------------------------------------------------------

RESTORED = [
    c
    for c in CASES
    if (GOLDEN / c / "restored.onnx").is_file() and not (GOLDEN / c / "amct_temp").is_dir()
]


def constants_by_use(path: Path) -> dict[tuple, tuple]:
    """Constant inputs of every node, by node name and input index: type, dims, bytes."""
    model = onnx.load(str(path), load_external_data=False)
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors[node.output[0]] = onnx.helper.get_attribute_value(node.attribute[0])
    return {
        (node.name, i): (t.data_type, tuple(t.dims), payload(t, path.parent))
        for node in model.graph.node
        for i, name in enumerate(node.input)
        if (t := tensors.get(name)) is not None
    }


@pytest.mark.parametrize("case", RESTORED)
@pytest.mark.parametrize("which", [DEPLOY, FAKE], ids=["deploy", "fake_quant"])
def test_folding_gives_the_folded_model_s_values(quantfold, case, which, tmp_path):
    restored = GOLDEN / case / "restored.onnx"
    out = export_case(quantfold, case, tmp_path, model=restored)
    ours, wanted = constants_by_use(out / which), constants_by_use(GOLDEN / case / which)
    assert ours.keys() == wanted.keys()
    assert [k for k in wanted if ours[k] != wanted[k]] == []


def test_some_restored_model_has_a_batch_norm():
    kinds = {
        n.op_type for c in RESTORED for n in onnx.load(GOLDEN / c / "restored.onnx").graph.node
    }
    assert "BatchNormalization" in kinds


# ---- names and dynamic axes --------------------------------------------------------------------


def io_options(case: str) -> list[str]:
    """Command line options for the save arguments of a case."""
    saved = json.loads((GOLDEN / case / "meta.json").read_text())["save_kwargs"]
    options = []
    for key in ("input_names", "output_names"):
        if key in saved:
            options += ["--" + key.replace("_", "-"), ",".join(saved[key])]
    if "dynamic_axes" in saved:
        options += ["--dynamic-axes", json.dumps(saved["dynamic_axes"])]
    return options


def forget_exporter_dims(path: Path, target: Path) -> Path:
    """A copy whose dimensions with a name of the exporter's own all have the same one."""
    model = onnx.load(str(path))
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if EXPORTER_DIM.match(dim.dim_param):
                dim.dim_param = "unknown"
    onnx.save(model, str(target))
    return target


@pytest.mark.parametrize(
    "source, case", [("a_convbn_default", "h_dynamic"), ("d_mlp2d", "h_names_only")]
)
@pytest.mark.parametrize("which", [DEPLOY, FAKE], ids=["deploy", "fake_quant"])
def test_renaming_gives_the_renamed_export(quantfold, source, case, which, tmp_path):
    options = io_options(case)
    assert options
    out = export_case(quantfold, source, tmp_path / "out", *options)
    ours = forget_exporter_dims(out / which, tmp_path / "ours.onnx")
    wanted = forget_exporter_dims(GOLDEN / case / which, tmp_path / "wanted.onnx")
    assert_same_model(ours, wanted)


@pytest.mark.parametrize("form", ["file", "list"])
def test_dynamic_axes_forms(quantfold, form, tmp_path):
    axes = {"in_data.1": [0, 2, 3]} if form == "list" else {"in_data.1": {"0": "n", "2": "h"}}
    text = json.dumps(axes)
    if form == "file":
        (tmp_path / "axes.json").write_text(text)
        text = f"@{tmp_path / 'axes.json'}"
    out = export_case(quantfold, "a_convbn_default", tmp_path / "out", "--dynamic-axes", text)
    wanted = ["n", "3", "h", "16"]
    if form == "list":  # named by their place in the list, counted from 1, as torch does
        names = [f"in_data.1_dynamic_axes_{i}" for i in (1, 2, 3)]
        wanted = [names[0], "3", names[1], names[2]]
    for which in (DEPLOY, FAKE):
        dims = onnx.load(out / which).graph.input[0].type.tensor_type.shape.dim
        assert [d.dim_param or str(d.dim_value) for d in dims] == wanted
