# SPDX-License-Identifier: Apache-2.0
"""What happens when something is wrong.

Every run here must end with the right exit code and a message that names the file, the layer and
the value at fault; it must leave nothing half-written, and an earlier pair of outputs in the same
place must still have the same bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import F32, Net, conv, gemm
from nets import random as normal
from onnx import TensorProto, helper, numpy_helper

import make_record
from support import DEPLOY, FAKE, assert_no_sanitizer_report, check_model, decode, snapshot

WRONG_INPUT, WRONG_USAGE, SYSTEM_FAILED, INTERRUPTED = 1, 2, 3, 130


# ---- a good job to spoil -------------------------------------------------------------------------


def small_net() -> Net:
    net = Net()
    y = net.input("x", normal(2, 4, 6, 6))
    y = conv(net, y, normal(6, 4, 3, 3, seed=1, scale=0.3), normal(6, seed=2), name="c")
    y = net.op("Relu", [y], "r")
    y = net.op("Flatten", [y], "flat")
    net.output(gemm(net, y, normal(5, 216, seed=3, scale=0.1), normal(5, seed=4), transB=1))
    return net


def conv_record() -> make_record.Record:
    return make_record.Record("c", 0.03, -5, [0.007 + i / 1000 for i in range(6)])


def gemm_record() -> make_record.Record:
    return make_record.Record("g", 0.05, -128, [0.004])


CONFIG = {"c": make_record.layer_config(True), "g": make_record.layer_config(False)}


@dataclass
class Job:
    """Files of an export that worked, and what it left in the target folder."""

    quantfold: object
    folder: Path
    out: Path
    model: Path
    record: Path
    config: Path
    before: dict

    def run(self, *extra, expect, **options):
        return self.quantfold.export(
            self.model,
            self.record,
            self.out / "m",
            *extra,
            config=self.config,
            expect=None if isinstance(expect, tuple) else expect,
            **options,
        )

    def refused(self, *names, expect=WRONG_INPUT, extra=(), **options):
        """A run that must fail, say why, and change nothing."""
        result = self.run(*extra, expect=expect, **options)
        if isinstance(expect, tuple):
            assert result.code in expect, f"exit {result.code}: {result.err}"
        for name in names:
            assert str(name) in result.err, f"{name!r} is not in the message:\n{result.err}"
        assert snapshot(self.out) == self.before, "the target folder changed"
        return result

    def write_records(self, *records, text: str = "") -> None:
        self.record.write_text(make_record.record_text(list(records)) + text)

    def spoil_record(self, old: str, new: str) -> None:
        text = self.record.read_text()
        assert old in text, f"the test's own record has no {old!r}"
        self.record.write_text(text.replace(old, new, 1))

    def edit_config(self, change) -> None:
        config = json.loads(self.config.read_text())
        change(config)
        self.config.write_text(json.dumps(config))


@pytest.fixture
def job(quantfold, tmp_path) -> Job:
    model = tmp_path / "in" / "model.onnx"
    model.parent.mkdir()
    onnx.save(small_net().model(), str(model))
    (tmp_path / "in" / "record.txt").write_text(
        make_record.record_text([conv_record(), gemm_record()])
    )
    (tmp_path / "in" / "config.json").write_text(make_record.config_text(CONFIG))
    job = Job(
        quantfold,
        tmp_path,
        tmp_path / "out",
        model,
        tmp_path / "in" / "record.txt",
        tmp_path / "in" / "config.json",
        {},
    )
    job.run(expect=0)
    job.before = snapshot(job.out)
    assert set(job.before) == {DEPLOY, FAKE}
    return job


def test_the_good_job_is_good(job):
    check_model(job.out / FAKE)
    again = job.run(expect=0)
    assert snapshot(job.out) == job.before
    assert "Error" not in again.err and "error" not in again.err


# ---- files ---------------------------------------------------------------------------------------

WHICH = ["model", "record", "config"]


@pytest.mark.parametrize("which", WHICH)
def test_missing_file(job, which):
    path = getattr(job, which)
    path.unlink()
    job.refused(path.name, expect=(WRONG_INPUT, SYSTEM_FAILED))


@pytest.mark.parametrize("which", WHICH)
def test_folder_instead_of_a_file(job, which):
    path = getattr(job, which)
    path.unlink()
    path.mkdir()
    job.refused(path.name, expect=(WRONG_INPUT, SYSTEM_FAILED))


@pytest.mark.parametrize("which", WHICH)
def test_empty_file(job, which):
    path = getattr(job, which)
    path.write_bytes(b"")
    job.refused(path.name)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("which", WHICH)
def test_garbage_file(job, which, seed):
    path = getattr(job, which)
    rng = random.Random(seed)
    path.write_bytes(bytes(rng.randrange(256) for _ in range([3, 50, 700, 5000][seed])))
    job.refused(path.name)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("which", WHICH)
def test_truncated_file(job, which, part):
    path = getattr(job, which)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data.rstrip()) * part)])
    job.refused(path.name)


def test_model_with_flipped_bytes_never_crashes(job):
    """Any outcome but a crash, a sanitizer report or a half-written target."""
    data = job.model.read_bytes()
    rng = random.Random(7)
    for _ in range(60):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        job.model.write_bytes(broken)
        shutil.rmtree(job.out, ignore_errors=True)
        result = job.run(expect=None)
        assert result.code in (0, WRONG_INPUT), result.err
        left = set(os.listdir(job.out)) if job.out.exists() else set()
        assert left == ({DEPLOY, FAKE} if result.code == 0 else set())


def test_model_without_a_graph(job):
    job.model.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    job.refused("model.onnx")


@pytest.mark.parametrize("field", ["raw_data", "float_data", "both"])
@pytest.mark.parametrize("count, elements", [([2, 3], 5), ([20, 30], 599), ([10], 11)])
def test_data_that_does_not_fit_its_dims(job, field, count, elements):
    """Of a tensor that is copied; it would be a model that nothing loads."""
    model = onnx.load(str(job.model))
    tensor = model.graph.initializer.add(name="spare", data_type=TensorProto.FLOAT, dims=count)
    if field != "float_data":
        tensor.raw_data = bytes(4 * elements)
    if field != "raw_data":
        tensor.float_data.extend([0.0] * elements)
    job.model.write_bytes(model.SerializeToString())
    want = 4 * int(np.prod(count))
    job.refused("spare", f"{4 * elements} bytes", "float32", str(want))


# ---- external data -------------------------------------------------------------------------------


def make_external(job: Job, **keys) -> onnx.TensorProto:
    """Move the Conv's weight out of the model and describe its place with the given keys."""
    model = onnx.load(str(job.model))
    tensor = next(t for t in model.graph.initializer if t.name == "c.weight")
    (job.model.parent / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "w.bin"} | keys).items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(model, str(job.model))
    return tensor


def test_external_data_in_place_is_fine(job):
    make_external(job, offset="0", length="864")
    job.run("--external", "never", expect=0)
    assert snapshot(job.out) == job.before


def test_external_data_missing(job):
    make_external(job)
    (job.model.parent / "w.bin").unlink()
    job.refused("c.weight", "w.bin", expect=(WRONG_INPUT, SYSTEM_FAILED))


@pytest.mark.parametrize("keys", [{}, {"offset": "0", "length": "864"}, {"offset": "4"}])
def test_external_data_short(job, keys):
    make_external(job, **keys)
    data = (job.model.parent / "w.bin").read_bytes()
    (job.model.parent / "w.bin").write_bytes(
        data if "offset" in keys and len(keys) == 1 else data[:-1]
    )
    job.refused("c.weight", "w.bin")


@pytest.mark.parametrize(
    "keys",
    [
        {"length": "860"},
        {"length": "868"},
        {"length": "-1"},
        {"offset": "-4"},
        {"offset": "four"},
        {"offset": "99999999999999999999999"},
        {"offset": "9223372036854775807"},
        {"offset": "18446744073709551612", "length": "864"},
        {"length": "0x360"},
        {"location": ""},
        {"location": "."},
    ],
    ids=str,
)
def test_external_place_that_cannot_be(job, keys):
    make_external(job, **keys)
    result = job.refused("c.weight")
    assert "model.onnx" in result.err or "w.bin" in result.err


def test_external_without_a_location(job):
    make_external(job)
    model = onnx.load(str(job.model), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "c.weight")
    del tensor.external_data[:]
    job.model.write_bytes(model.SerializeToString())
    job.refused("c.weight")


@pytest.mark.parametrize("how", ["parent", "inner-parent", "absolute", "symlink", "linked-folder"])
def test_external_data_outside_the_folder(job, how):
    """The file is there and right: it is refused for where it is."""
    outside = job.folder / "outside"
    outside.mkdir()
    location = {
        "parent": "../outside/w.bin",
        "inner-parent": "sub/../../outside/w.bin",
        "absolute": str(outside / "w.bin"),
        "symlink": "link.bin",
        "linked-folder": "linked/w.bin",
    }[how]
    make_external(job, location=location)
    (job.model.parent / "sub").mkdir()
    (job.model.parent / "w.bin").rename(outside / "w.bin")
    (job.model.parent / "link.bin").symlink_to(outside / "w.bin")
    (job.model.parent / "linked").symlink_to(outside)
    job.refused("c.weight", location)


def test_external_data_that_is_a_folder_or_a_pipe(job):
    make_external(job)
    place = job.model.parent / "w.bin"
    place.unlink()
    place.mkdir()
    job.refused("c.weight", expect=(WRONG_INPUT, SYSTEM_FAILED))
    place.rmdir()
    os.mkfifo(place)
    job.refused("c.weight", expect=(WRONG_INPUT, SYSTEM_FAILED), timeout=20)


# ---- models whose parts do not fit ---------------------------------------------------------------


def edit_model(job: Job, change) -> None:
    model = onnx.load(str(job.model))
    change(
        model, {t.name: t for t in model.graph.initializer}, {n.name: n for n in model.graph.node}
    )
    job.model.write_bytes(model.SerializeToString())


def test_payload_shorter_than_the_dims(job):
    def change(model, tensors, nodes):
        tensors["c.weight"].raw_data = tensors["c.weight"].raw_data[:-4]

    edit_model(job, change)
    job.refused("c.weight", "model.onnx")


@pytest.mark.parametrize("dims", [[6, 4, 3, -3], [2**62, 4], [2**40, 2**40, 3, 3]], ids=str)
def test_dims_that_cannot_be(job, dims):
    def change(model, tensors, nodes):
        del tensors["c.weight"].dims[:]
        tensors["c.weight"].dims.extend(dims)

    edit_model(job, change)
    job.refused(" c", "weight")


def test_integer_weight(job):
    def change(model, tensors, nodes):
        w = numpy_helper.to_array(tensors["c.weight"]).astype(np.int32)
        tensors["c.weight"].CopyFrom(numpy_helper.from_array(w, "c.weight"))

    edit_model(job, change)
    job.refused(" c", "weight", "int32")


def test_cycle(job):
    def change(model, tensors, nodes):
        nodes["c"].input[0] = "r:out"

    edit_model(job, change)
    job.refused("model.onnx")


def test_missing_tensor(job):
    def change(model, tensors, nodes):
        nodes["r"].input[0] = "nowhere"

    edit_model(job, change)
    job.refused("nowhere", "model.onnx")


# ---- records: numbers ----------------------------------------------------------------------------

SCALE_D, SCALE_W = "scale_d: 0.03", "scale_w: 0.007"


@pytest.mark.parametrize(
    "value", ["0", "-0.0", "-0.03", "nan", "inf", "-inf", "1e-40", "1e39", "1e-50"]
)
@pytest.mark.parametrize("field, old", [("scale_d", SCALE_D), ("scale_w", SCALE_W)])
def test_scale_that_cannot_be(job, field, old, value):
    job.spoil_record(old, f"{field}: {value}")
    job.refused("record.txt", "c", field)


def test_message_shows_the_value(job):
    job.spoil_record(SCALE_D, "scale_d: -0.125")
    job.refused("-0.125")


@pytest.mark.parametrize(
    "act, value",
    [("INT8", 128), ("INT8", -129), ("INT4", 128), ("INT16", 32768), ("INT16", -32769)],
)
def test_offset_out_of_range(job, act, value):
    record = conv_record()
    record.offset_d, record.act_type = value, act
    job.write_records(record, gemm_record())
    job.refused("record.txt", "c", "offset_d", value)


@pytest.mark.parametrize("value", [300, -32768, 32767])
def test_offset_in_the_range_of_int16(job, value):
    record = conv_record()
    record.offset_d, record.act_type = value, "INT16"
    job.write_records(record, gemm_record())
    job.run(expect=0)


@pytest.mark.parametrize("value", ["3000000000", "1.5", "0x1G", '"5"'])
def test_offset_that_is_no_int32(job, value):
    job.spoil_record("offset_d: -5", f"offset_d: {value}")
    result = job.refused("record.txt")
    assert ":5" in result.err or "line 5" in result.err


def test_weight_offset_must_be_zero(job):
    job.spoil_record("offset_w: 0", "offset_w: 1")
    job.refused("record.txt", "c", "offset_w")


@pytest.mark.parametrize("count", [2, 5, 7, 12])
def test_wrong_channel_count(job, count):
    record = conv_record()
    record.scale_w = [0.01] * count
    job.write_records(record, gemm_record())
    job.refused("record.txt", "c", "scale_w", count, 6)


def test_one_scale_for_all_channels_is_fine(job):
    record = conv_record()
    record.scale_w = [0.01]
    job.write_records(record, gemm_record())
    job.run(expect=0)


def test_gemm_with_the_wrong_number_of_scales(job):
    record = gemm_record()
    record.scale_w = [0.01] * 3
    job.write_records(conv_record(), record)
    job.refused("record.txt", "g", "scale_w", 3)


def test_scales_and_offsets_of_different_length(job):
    job.spoil_record("    offset_w: 0\n", "")
    job.refused("record.txt", "c", "offset_w")


@pytest.mark.parametrize("line", [SCALE_D, "offset_d: -5"])
def test_field_that_must_be_there(job, line):
    job.spoil_record(f"    {line}\n", "")
    job.refused("record.txt", "c", line.split(":")[0])


def test_no_weight_scales(job):
    record = conv_record()
    record.scale_w = []
    job.write_records(record, gemm_record())
    job.refused("record.txt", "c", "scale_w")


@pytest.mark.parametrize(
    "factors",
    [
        [1.0] * 3,
        [1.0, 1.0, 1.0, 0.0],
        [1.0, 1.0, 1.0, -2.0],
        [1.0, 1.0, 1.0, 1e9],
        [1.0, 1.0, 1.0, 1e-9],
    ],
    ids=str,
)
def test_balance_factors_that_cannot_be(job, factors):
    record = conv_record()
    record.extra = [f"tensor_balance_factor: {f}" for f in factors]
    job.write_records(record, gemm_record())
    job.refused("record.txt", "c", "tensor_balance_factor")


def test_dequant_scale_that_vanishes(job):
    """Both scales are fine, their product is zero: no bias could be divided by it."""
    record = conv_record()
    record.scale_d, record.scale_w = 1e-30, [1e-30]
    job.write_records(record, gemm_record())
    job.refused("c")


@pytest.mark.parametrize("field", ["act_type", "wts_type", "dst_type", "fakequant_precision_mode"])
def test_unknown_type_name(job, field):
    record = conv_record()
    record.act_type = record.wts_type = None
    record.extra = [f'{field}: "INT9"']
    job.write_records(record, gemm_record())
    job.refused("record.txt", "c", field, "INT9")


def test_shift_bit_is_not_supported(job):
    job.spoil_record('act_type: "INT8"', 'act_type: "INT8"\n    shift_bit: 1')
    job.refused("record.txt", "c", "shift_bit")


# ---- records: text and keys ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "old, new, line",
    [
        ("scale_d", "scale_q", 4),
        ("value {", "valu {", 3),
        ("scale_d: 0.03", "scale_d 0.03", 4),
        ('key: "c"', 'key: "c', 2),
        ('act_type: "INT8"', "act_type: INT8", 18),
        ("scale_d: 0.03", "scale_d: zero", 4),
        ("value {", "value: 3 {", 3),
        ("offset_d: -5", "offset_d: 1 1", 5),
    ],
)
def test_record_that_does_not_parse_names_the_line(job, old, new, line):
    lines = job.record.read_text().splitlines()
    at = next(i for i, text in enumerate(lines, 1) if old in text)
    job.spoil_record(old, new)
    result = job.refused("record.txt")
    places = [f":{n}:" for n in (at, at + 1)] + [f"line {n}" for n in (at, at + 1)]
    assert any(p in result.err for p in places), result.err


def test_record_without_entries(job):
    job.record.write_text("# nothing\n")
    job.refused("record.txt")


@pytest.mark.parametrize(
    "text",
    [
        "record { value { scale_d: 1 offset_d: 0 } }",
        'record { key: "c" }',
        'record { key: "c" kv_cache_value { scale: 1 offset: 0 } }',
    ],
)
def test_record_without_key_or_value(job, text):
    job.write_records(gemm_record(), text=text)
    job.refused("record.txt")


@pytest.mark.parametrize("key", ["nope", "cc", "C", "c.weight", ""])
def test_record_for_an_unknown_layer(job, key):
    record = conv_record()
    record.key = key
    job.write_records(gemm_record(), record)
    job.refused("record.txt", key)


def test_record_for_a_layer_that_cannot_be_quantized(job):
    job.write_records(conv_record(), gemm_record(), make_record.Record("r", 0.1, 0, [0.1]))
    job.refused("record.txt", "r", "Relu")


def drop_kernel_shape(model, tensors, nodes):
    kept = [a for a in nodes["c"].attribute if a.name != "kernel_shape"]
    del nodes["c"].attribute[:]
    nodes["c"].attribute.extend(kept)


def set_trans_a(model, tensors, nodes):
    nodes["g"].attribute.append(helper.make_attribute("transA", 1))


def dynamic_weight(model, tensors, nodes):
    model.graph.initializer.remove(tensors["g.weight"])
    model.graph.input.append(helper.make_tensor_value_info("g.weight", 1, [5, 216]))


@pytest.mark.parametrize("change, layer", [(set_trans_a, "g"), (dynamic_weight, "g")])
def test_layer_whose_form_cannot_be_quantized(job, change, layer):
    edit_model(job, change)
    job.refused("record.txt", layer)


# ---- configs -------------------------------------------------------------------------------------


def edit(path: str, value):
    """A change of one key of the config; the path's parts are split at '/'."""

    def change(config):
        *parents, last = path.split("/")
        for part in parents:
            config = config[part]
        if value is None:
            del config[last]
        else:
            config[last] = value

    return change


@pytest.mark.parametrize(
    "path, value, named",
    [
        ("version", None, ["version"]),
        ("version", 2, ["version"]),
        ("version", "1", ["version"]),
        ("batch_num", None, ["batch_num"]),
        ("batch_num", 0, ["batch_num"]),
        ("batch_num", 1.5, ["batch_num"]),
        ("fakequant_precision_mode", "FP16", ["fakequant_precision_mode", "FP16"]),
        ("c", 3, ["c"]),
        ("c/retrain_enable", 1, ["c", "retrain_enable"]),
        ("c/retrain_data_config/algo", "minmax", ["c", "algo", "minmax"]),
        ("c/retrain_data_config/dst_type", "INT7", ["c", "dst_type", "INT7"]),
        ("c/retrain_data_config/dst_type", 8, ["c", "dst_type"]),
        ("c/retrain_data_config/clip_max", 1.5, ["c", "clip_max"]),
        ("c/retrain_data_config/fixed_min", 0, ["c", "fixed_min"]),
        ("c/retrain_data_config/dst_tipe", "INT8", ["c", "dst_tipe", "dst_type"]),
        ("c/retrain_weight_config/algo", "arq", ["c", "algo", "arq"]),
        ("c/retrain_weight_config/channel_wise", "yes", ["c", "channel_wise"]),
        ("c/retrain_weight_config/chanel_wise", True, ["c", "chanel_wise", "channel_wise"]),
        ("g/retrain_weight_config/channel_wise", True, ["g", "channel_wise"]),
        ("nope", make_record.layer_config(True), ["nope"]),
        ("r", make_record.layer_config(True), ["r"]),
    ],
)
def test_config_value_that_cannot_be(job, path, value, named):
    job.edit_config(edit(path, value))
    job.refused("config.json", *named)


def test_config_clip_range(job):
    def change(config):
        config["c"]["retrain_data_config"] |= {"clip_max": -1.0, "clip_min": -2.0}

    job.edit_config(change)
    job.refused("config.json", "c", "clip_max")


def test_config_combination_of_widths(job):
    def change(config):
        config["c"]["retrain_data_config"]["dst_type"] = "INT16"
        config["c"]["retrain_weight_config"]["dst_type"] = "INT4"

    job.edit_config(change)
    job.refused("config.json", "c")


def test_config_with_a_key_twice(job):
    text = job.config.read_text()
    job.config.write_text(text.replace('"batch_num":1', '"batch_num":1, "batch_num":1', 1))
    job.refused("config.json", "batch_num")


def test_config_that_enables_nothing(job):
    def change(config):
        config["c"]["retrain_enable"] = config["g"]["retrain_enable"] = False

    job.edit_config(change)
    job.refused("config.json")


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"version":1,}', "{'version':1}", "\ufeff{}", "{} {}"]
)
def test_config_that_is_no_json_object(job, text):
    job.config.write_text(text)
    job.refused("config.json")


def test_layer_in_the_config_alone_is_mentioned(job):
    """The reference does not look: the record decides. A user would want to know."""
    job.write_records(conv_record())
    result = job.run(expect=0)
    assert "g" in result.err.replace("config", "") and "record" in result.err
    kinds = [n.op_type for n in onnx.load(job.out / DEPLOY).graph.node]
    assert kinds.count("AscendQuant") == 1


def test_everything_wrong_is_told_at_once(job):
    """Two findings in the record and one in the config, in one run; check says the same."""
    job.spoil_record(SCALE_D, "scale_d: -0.25")
    job.spoil_record("offset_d: -128", "offset_d: 999")
    job.edit_config(edit("batch_num", 0))
    names = ("record.txt", "config.json", "-0.25", "999", "batch_num")
    job.refused(*names)
    files = ("--model", job.model, "--record", job.record, "--config", job.config)
    result = job.quantfold("check", *files)
    assert result.code == WRONG_INPUT
    assert all(n in result.err + result.out for n in names)


def test_check_of_a_good_job(job):
    files = ("--model", job.model, "--record", job.record, "--config", job.config)
    assert job.quantfold("check", *files).code == 0


# ---- the request ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "axes, named",
    [
        ('{"nope": {"0": "n"}}', ["nope"]),
        ('{"x": {"4": "n"}}', ["x", "4"]),
        ('{"x": [0, 9]}', ["x", "9"]),
        ('{"x": [-1]}', ["x", "-1"]),
        ('{"x": {"-2": "n"}}', ["x", "-2"]),
        ('{"x": {"zero": "n"}}', ["x", "zero"]),
        ('{"x": {"1.0": "n"}}', ["x", "1.0"]),
        ('{"x": ["0"]}', ["x"]),
        ('{"x": [0.5]}', ["x", "0.5"]),
        ('{"x": {"0": 5}}', ["x"]),
        ('{"x": 0}', ["x"]),
        ('{"x": {"0": "n"}, "c:out": {"0": "n"}}', ["c:out"]),
        ("[0]", []),
        ("{", []),
    ],
)
def test_wrong_dynamic_axes(job, axes, named):
    job.refused("dynamic", *named, extra=("--dynamic-axes", axes))


def test_dynamic_axes_from_a_missing_file(job):
    job.refused(
        "axes.json",
        expect=(WRONG_INPUT, SYSTEM_FAILED),
        extra=("--dynamic-axes", f"@{job.folder / 'axes.json'}"),
    )


@pytest.mark.parametrize(
    "option, names, named",
    [
        ("--input-names", "a,b", ["input_names", "2"]),
        ("--output-names", "a,b,c", ["output_names", "3"]),
        ("--input-names", "g:out", ["g:out"]),
        ("--output-names", "x", ["x"]),
    ],
)
def test_wrong_names(job, option, names, named):
    """More names than there are inputs, or an output's name for an input."""
    job.refused(*named, extra=(option, names))


@pytest.mark.parametrize("name", ["p" * 242, "p" * 300])
def test_prefix_too_long(job, name):
    result = job.quantfold.export(
        job.model, job.record, job.out / name, config=job.config, expect=WRONG_INPUT
    )
    assert "p" * 20 in result.err
    assert snapshot(job.out) == job.before


USAGE = [
    [],
    ["explode"],
    ["export"],
    ["export", "--model"],
    ["export", "--modell", "m"],
    ["export", "--model", "m", "--record", "r", "--save-path", "p", "stray"],
    *[
        ["export", "--model", "m", "--record", "r", "--save-path", "p", option, value]
        for option, value in [
            ("--threads", "-1"),
            ("--threads", "many"),
            ("--emit", "nothing"),
            ("--external", "sometimes"),
            ("--external-threshold", "-5"),
            ("--external-threshold", "2GBB"),
            ("--external-layout", "round"),
            ("--progress", "perhaps"),
            ("--from", "nowhere"),
            ("--on-unsupported", "panic"),
            ("--free-qdq", "perhaps"),
        ]
    ],
    ["inspect"],
    ["check"],
    ["check", "--model", "m", "--from", "nowhere"],
]


@pytest.mark.parametrize("args", USAGE, ids=" ".join)
def test_wrong_usage(quantfold, tmp_path, args):
    result = quantfold(*args, cwd=tmp_path)
    assert result.code == WRONG_USAGE, result.err
    assert result.err.strip() and not list(tmp_path.iterdir())


OPTION_ERRORS = {
    "unknown option '--modle'": ["export", "--modle", "m"],
    "unknown option '--save-pth'": ["check", "--save-pth=x"],
    "unknown option '-z'": ["export", "-z"],
    "option '--ex' is short for several": ["export", "--ex", "2"],
    "--model needs a value": ["record", "--model"],
    "--output needs a value": ["report", "m", "-o"],
    "--json takes no value": ["inspect", "--json=1", "m"],
    "--help takes no value": ["commit", "--help=me"],
}


@pytest.mark.parametrize("message", OPTION_ERRORS)
def test_wrong_option_is_named(quantfold, message):
    """In one line of the program's own, and where to look."""
    args = OPTION_ERRORS[message]
    result = quantfold(*args)
    hint = f"Try: quantfold {args[0]} --help"
    assert (result.code, result.err) == (WRONG_USAGE, f"quantfold: {message}\n{hint}\n")


def test_help_and_version(quantfold):
    for args in (["--help"], ["export", "--help"], ["--version"]):
        result = quantfold(*args)
        assert result.code == 0 and result.out.strip(), args
    for word in ("build", "instructions", "protobuf-c", "cJSON", "xxHash", "OpenMP", "MPI"):
        assert re.search(rf"^  {word} +\S", result.out, re.M), result.out


def test_inspect_of_a_bad_model(job):
    job.model.write_bytes(b"not a model at all")
    result = job.quantfold("inspect", job.model)
    assert result.code == WRONG_INPUT and "model.onnx" in result.err


def test_json_is_one_document(job):
    result = job.run("--json", expect=0)
    assert isinstance(json.loads(result.out), dict)
    inspected = job.quantfold("inspect", job.model, "--json")
    layers = {x["name"]: x for x in json.loads(inspected.out)["layers"]}
    assert set(layers) >= {"c", "g"}


# ---- outputs that are inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("how", ["same", "hard link", "symlink"])
def test_output_that_is_an_input(job, which, how):
    """Refused before anything is written, whatever name the input goes by."""
    path = getattr(job, which)
    target = job.out / DEPLOY
    target.unlink()
    if how == "same":
        shutil.move(path, target)
        setattr(job, which, target)
    elif how == "hard link":
        os.link(path, target)
    else:
        target.symlink_to(path)
    job.before = snapshot(job.out)
    job.refused(DEPLOY)


def test_external_output_that_is_an_input(job):
    make_external(job)
    job.run(expect=0)
    os.remove(job.out / "c.weight_deploy.external")
    os.link(job.model.parent / "w.bin", job.out / "c.weight_deploy.external")
    job.before = snapshot(job.out)
    job.refused("c.weight_deploy.external")


# ---- targets -------------------------------------------------------------------------------------


def export_to(job: Job, prefix, expect=(WRONG_INPUT, SYSTEM_FAILED), **options):
    result = job.quantfold.export(
        job.model, job.record, prefix, config=job.config, expect=None, **options
    )
    assert result.code in expect, f"exit {result.code}: {result.err}"
    assert Path(prefix).parent.name in result.err, result.err
    return result


def test_target_below_a_file(job):
    (job.folder / "plain").write_text("a file")
    export_to(job, job.folder / "plain" / "m")
    assert (job.folder / "plain").read_text() == "a file"


def test_target_below_a_file_deep(job):
    (job.folder / "plain").write_text("a file")
    result = job.quantfold.export(
        job.model, job.record, job.folder / "plain" / "deep" / "m", config=job.config, expect=None
    )
    assert result.code in (WRONG_INPUT, SYSTEM_FAILED) and "plain" in result.err


def test_target_in_proc(job):
    export_to(job, "/proc/quantfold/m")


def test_target_is_a_folder(job):
    """A folder of the output's own name cannot be replaced, and the other model must not appear."""
    (job.out / FAKE).unlink()
    (job.out / FAKE).mkdir()
    job.before = snapshot(job.out)
    job.refused(FAKE, expect=(WRONG_INPUT, SYSTEM_FAILED))
    assert (job.out / FAKE).is_dir() and len(os.listdir(job.out)) == 2


@contextlib.contextmanager
def tmpfs(folder: Path, options: str):
    """A small file system of its own; skips where mounting is not allowed."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode()) != 0:
        pytest.skip(f"cannot mount a tmpfs here: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), 2)


def remount_read_only(folder: Path) -> None:
    read_only, remount = 1, 32
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", read_only | remount, b"") == 0


def test_read_only_target(job):
    with tmpfs(job.folder / "ro", "size=4m") as place:
        shutil.copytree(job.out, place / "out")
        remount_read_only(place)
        result = job.quantfold.export(
            job.model, job.record, place / "out" / "m", config=job.config, expect=SYSTEM_FAILED
        )
        assert "ro/out" in result.err
        assert snapshot(place / "out") == job.before


def test_full_target(job):
    with tmpfs(job.folder / "full", "size=64k") as place:
        (place / "out").mkdir()
        old = b"an earlier model" * 256
        (place / "out" / DEPLOY).write_bytes(old)
        (place / "filler").write_bytes(b"x" * 57344)
        result = job.quantfold.export(
            job.model, job.record, place / "out" / "m", config=job.config, expect=SYSTEM_FAILED
        )
        assert "full/out" in result.err
        assert snapshot(place / "out") == {DEPLOY: old}


def test_target_without_inodes(job):
    """Free space says yes, creating a file says no."""
    with tmpfs(job.folder / "inodes", "size=4m,nr_inodes=3") as place:
        (place / "out").mkdir()
        result = job.quantfold.export(
            job.model, job.record, place / "out" / "m", config=job.config, expect=SYSTEM_FAILED
        )
        assert "inodes/out" in result.err
        assert snapshot(place / "out") == {}


@pytest.mark.parametrize("limit", [100, 2000, 4096, 7000])
@pytest.mark.parametrize("layout", ["auto", "always"])
def test_file_size_limit(job, limit, layout):
    """The system stops the write in the middle; the signal that comes with it must not kill."""
    assert limit < max(len(x) for x in job.before.values())

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    if layout == "always":
        limit = min(limit, 2000)
    job.refused(expect=SYSTEM_FAILED, extra=("--external", layout), preexec_fn=limited)


def test_full_target_with_external_files(job):
    with tmpfs(job.folder / "full", "size=32k") as place:
        (place / "filler").write_bytes(b"x" * 20480)
        result = job.quantfold.export(
            job.model,
            job.record,
            place / "m",
            "--external",
            "always",
            config=job.config,
            expect=SYSTEM_FAILED,
        )
        assert "full" in result.err
        assert set(snapshot(place)) == {"filler"}


# ---- interrupted runs ----------------------------------------------------------------------------

LAYERS, WIDTH = 12, 2048


@dataclass
class Big:
    """A model of about 200 MB and the two records that give two different exports of it."""

    model: Path
    old: Path
    new: Path


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Big:
    folder = tmp_path_factory.mktemp("big")
    net = Net()
    rng = np.random.default_rng(1)
    y = net.input("x", np.zeros((1, WIDTH), F32))
    for i in range(LAYERS):
        w = rng.random((WIDTH, WIDTH), F32) - F32(0.5)
        y = net.op("MatMul", [y, net.weight(f"w{i}", w)], f"m{i}")
    net.output(y)
    onnx.save(net.model(), str(folder / "big.onnx"))
    for name, scale in (("old", 0.004), ("new", 0.005)):
        records = [make_record.Record(f"m{i}", 0.02, 0, [scale]) for i in range(LAYERS)]
        (folder / f"{name}.txt").write_text(make_record.record_text(records))
    return Big(folder / "big.onnx", folder / "old.txt", folder / "new.txt")


def start(quantfold, big: Big, prefix: Path, *extra) -> subprocess.Popen:
    args = [quantfold.binary, "export", "--model", big.model, "--record", big.new]
    return subprocess.Popen(
        [*map(str, args), "--save-path", str(prefix), *extra],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def checksums(folder: Path) -> dict[str, int]:
    return {name: hash(data) for name, data in snapshot(folder).items()}


@pytest.fixture(scope="module")
def both_exports(quantfold, big, tmp_path_factory):
    """Checksums of the old and the new export, and how long one takes."""
    sums, seconds = [], 0.0
    for record in (big.old, big.new):
        folder = tmp_path_factory.mktemp("pair")
        begun = time.monotonic()
        quantfold.export(big.model, record, folder / "m", timeout=120)
        seconds = time.monotonic() - begun
        sums.append(checksums(folder))
        shutil.rmtree(folder)
    assert sums[0] != sums[1]
    return (*sums, seconds)


def test_killed_at_any_time(quantfold, big, both_exports, tmp_path):
    """Each model is the old one or the new one, never a part; the next run clears what was left."""
    old, new, seconds = both_exports
    quantfold.export(big.model, big.old, tmp_path / "m", timeout=120)
    rng = random.Random(3)
    survivors = 0
    for i in range(8):
        run = start(quantfold, big, tmp_path / "m")
        time.sleep(seconds * (i + rng.random()) / 8)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        now = {n: s for n, s in checksums(tmp_path).items() if n in (DEPLOY, FAKE)}
        assert set(now) == {DEPLOY, FAKE}
        assert all(now[n] in (old[n], new[n]) for n in now)
        survivors += now == old
        if now != old:
            quantfold.export(big.model, big.old, tmp_path / "m", timeout=120)
    assert survivors, "no kill came before the end: the test proves nothing"
    quantfold.export(big.model, big.new, tmp_path / "m", timeout=120)
    assert checksums(tmp_path) == new, "litter, or a wrong result, after a rerun"


def test_killed_with_external_files(quantfold, big, tmp_path):
    """The first export into a folder is killed: whatever is there, a rerun makes it whole."""
    options = ("--external", "always")
    clean = tmp_path / "clean"
    begun = time.monotonic()
    quantfold.export(big.model, big.new, clean / "m", *options, timeout=120)
    seconds = time.monotonic() - begun
    for i in range(3):
        run = start(quantfold, big, tmp_path / "out" / "m", *options)
        time.sleep(seconds * (i + 1) / 4)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    quantfold.export(big.model, big.new, tmp_path / "out" / "m", *options, timeout=120)
    assert checksums(tmp_path / "out") == checksums(clean)


def test_interrupt(quantfold, big, both_exports, tmp_path):
    old, new, seconds = both_exports
    codes = []
    for part in (0.5, 0.35, 0.2, 0.6, 0.1):
        # a run that was over before the signal came has put its own output there
        quantfold.export(big.model, big.old, tmp_path / "m", timeout=120)
        run = start(quantfold, big, tmp_path / "m", "--threads", "1")
        time.sleep(seconds * part)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
        assert_no_sanitizer_report(decode(err))
        codes.append(run.returncode)
        if run.returncode == INTERRUPTED:
            assert checksums(tmp_path) == old, "an interrupted run left something"
            break
        assert run.returncode in (0, -signal.SIGINT), decode(err)
        if checksums(tmp_path) != old:  # it was done before it heard of the interrupt
            quantfold.export(big.model, big.old, tmp_path / "m", timeout=120)
    assert INTERRUPTED in codes, f"exit codes {codes}"
