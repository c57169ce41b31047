# SPDX-License-Identifier: Apache-2.0
"""docs/security.md: its limits are those of the code, and some of them are run into."""

from __future__ import annotations

import json
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def limits() -> list[tuple[str, int, str, str]]:
    """What, how much, in which file, under which name."""
    text = (REPO / "docs" / "security.md").read_text().partition("## Limits")[2]
    rows = re.findall(r"^\| (.*?) \| ([\d,]+) ?(\w*) \| `(.*?)`: `(\w+)` \|$", text, re.MULTILINE)
    return [
        (what, int(number.replace(",", "")) * UNITS.get(unit, 1), file, name)
        for what, number, unit, file, name in rows
    ]


def constant(file: str, name: str) -> int:
    """Value of a constant: an enumerator, a macro or a variable that never changes."""
    source = (REPO / file).read_text()
    found = re.search(rf"\b{name}\b(?: =)? ((?:[\w() *<+-]|\n)+?)(?:[,;}}]|\s*/\*|\n)", source)
    assert found, f"{file} has no {name}"
    expression = re.sub(r"UINT64_C|\(size_t\)", "", found[1])
    assert re.fullmatch(r"[\d() *<+-]+", expression), f"{file}: {name} is '{expression}'"
    return eval(expression)  # numbers and signs alone


def test_limits_are_those_of_the_code():
    """Every row of the table."""
    rows = limits()
    table = (REPO / "docs" / "security.md").read_text().partition("## Limits")[2]
    assert len(rows) == len(re.findall(r"^\| [^w|-]", table.partition("\n\nJSON")[0], re.MULTILINE))
    assert len(rows) >= 15
    for what, number, file, name in rows:
        assert constant(file, name) == number, f"{what}: {file} has {constant(file, name)}"


def test_budget_of_a_record():
    """The factor and the sum of the text."""
    source = (REPO / "src" / "quant" / "text_format_read.c").read_text()
    assert "length * 16 + (UINT64_C(64) << 20)" in source
    text = (REPO / "docs" / "security.md").read_text()
    assert re.search(r"at most 16 times its\s+length and 64 MiB", text)


def message(number: int, content: bytes) -> bytes:
    """A field that holds a message or text."""
    length, n = b"", len(content)
    while n > 127:
        length, n = length + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + length + bytes([n]) + content


def nested(levels: int) -> bytes:
    """A model with an If in an If in an If, which is deeper than Python's protobuf goes."""
    graph = b""
    for _ in range(levels):
        attribute = message(1, b"then_branch") + message(6, graph) + b"\xa0\x01\x05"
        graph = message(1, message(2, b"y") + message(4, b"If") + message(5, attribute))
    return message(7, graph)


def test_nested_graphs(quantfold, tmp_path):
    """Three messages a graph: those within the limit are read, more are refused."""
    most = next(number for _, number, _, name in limits() if name == "MAX_DEPTH")
    said = {}
    for levels in (most // 3 - 2, most // 3 + 2):
        (tmp_path / "m.onnx").write_bytes(nested(levels))
        run = quantfold("inspect", tmp_path / "m.onnx")
        said[levels] = "nested too deeply" in run.err
        assert run.code == 1 or not said[levels]
    assert list(said.values()) == [False, True]


def test_nested_json(quantfold, tmp_path):
    """A config of a thousand brackets."""
    model = REPO / "datasets" / "digits" / "model.onnx"
    (tmp_path / "c.json").write_text('{"a": ' + "[" * 1001 + "]" * 1001 + "}")
    run = quantfold("check", "--model", model, "--config", tmp_path / "c.json")
    assert run.code == 1 and "1000 levels" in run.err


def test_long_files(quantfold, tmp_path):
    """Files one byte longer than the table allows are refused before they are read."""
    model = REPO / "datasets" / "digits" / "model.onnx"
    sizes = {what: number for what, number, _, _ in limits()}
    long = tmp_path / "long"
    for option, size in (
        ("--config", sizes["QAT config"]),
        ("--record", sizes["record"]),
    ):
        with long.open("wb") as f:
            f.truncate(size + 1)  # takes no space
        run = quantfold("check", "--model", model, option, long)
        assert run.code == 1 and str(size) in run.err, run.err
    (tmp_path / "axes").write_bytes(b" " * (sizes["file of dynamic axes"] + 1))
    record = REPO / "datasets" / "digits" / "record.txt"
    out = ("--save-path", tmp_path / "out" / "m", "--dry-run")
    axes = ("--dynamic-axes", f"@{tmp_path}/axes")
    run = quantfold("export", "--model", model, "--record", record, *out, *axes)
    assert run.code == 1 and "dynamic axes" in run.err


def test_many_dynamic_axes(quantfold, tmp_path):
    """What would be compared with each other for hours is refused at once."""
    most = next(number for _, number, _, name in limits() if name == "AXES_MOST")
    model = REPO / "datasets" / "digits" / "model.onnx"
    record = REPO / "datasets" / "digits" / "record.txt"
    many = {f"t{i}": [] for i in range(most)}
    out = ("--save-path", tmp_path / "out" / "m", "--dry-run")
    for axes, refused in ((many, False), (many | {"more": []}, True), ({"x": [0] * most}, True)):
        (tmp_path / "axes").write_text(json.dumps(axes))
        axes = ("--dynamic-axes", f"@{tmp_path}/axes")
        run = quantfold("export", "--model", model, "--record", record, *out, *axes, timeout=30)
        assert ("dynamic_axes has more than" in run.err) == refused, run.err


def test_long_safetensors_header(quantfold, tmp_path):
    """A header that claims more than the limit, in a file that has as much."""
    most = next(n for _, n, _, name in limits() if name == "QF_SAFETENSORS_HEADER_MOST")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as f:
        f.write((most + 1).to_bytes(8, "little"))
        f.truncate(most + 100)
    run = quantfold("checkpoint", "--model", folder, "--out", tmp_path / "out", "--scheme", "w8a16")
    assert run.code == 1 and "100,000,000" in run.err
