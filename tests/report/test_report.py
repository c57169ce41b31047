# SPDX-License-Identifier: Apache-2.0
"""quantfold report: what the page says, what it must never do, and how it looks in a browser."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import html5lib
import pytest
from nets import F32, Net, gemm, random, save_net
from pages import DIGITS, HOSTILE, chain, export, page, spoil

import make_record

REPO = Path(__file__).resolve().parents[2]
XHTML = "{http://www.w3.org/1999/xhtml}"


# ---- pages -------------------------------------------------------------------------------------


def data(quantfold, prefix: Path) -> dict:
    run = quantfold("report", prefix, "--json")
    assert run.code == 0, run.err
    return json.loads(run.out)


class Strict(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.stack: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        assert not any(n.startswith("on") or n == "style" for n in names), (tag, names)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1] == tag, (tag, self.stack[-5:])
        self.stack.pop()


def parse(path: Path):
    """The page's tree, after a check that it is well-formed."""
    text = path.read_text(encoding="utf-8")
    strict = Strict()
    strict.feed(text)
    strict.close()
    assert strict.stack == []
    parser = html5lib.HTMLParser(strict=False)
    tree = parser.parse(text)
    # a comment in an SVG or such would be here; html5lib knows no errors that matter but these
    assert [
        e for e in parser.errors if e[1] not in ("non-void-element-with-trailing-solidus",)
    ] == []
    return tree


def text_of(element) -> str:
    return "".join(element.itertext())


def cells(tree) -> list[list]:
    """Cells of the table of layers, row by row."""
    (table,) = [t for t in tree.iter(f"{XHTML}table") if t.get("id") == "layers"]
    return [list(row) for row in table.find(f"{XHTML}tbody")]


# ---- what it says ------------------------------------------------------------------------------


def assert_self_contained(text: str) -> None:
    """Nothing to be fetched."""
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|<embed|srcset", text, re.I)
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", text) == ["data:,"]
    assert "default-src 'none'" in text and "unsafe-inline" not in text


@pytest.mark.parametrize("name", ["digits", "many"])
def test_page(quantfold, request, name):
    """Well-formed, self-contained, with every layer, and the numbers of --json."""
    prefix = request.getfixturevalue(name)
    path = page(quantfold, prefix)
    assert_self_contained(path.read_text())
    rows, found = cells(parse(path)), data(quantfold, prefix)
    assert len(rows) == len(found["rows"]) == {"digits": 5, "many": 300}[name]
    keys = ["channels", "scale_min", "scale_max", "sqnr_db", "max_error", "clipped_percent"]
    keys += ["saturated_percent", "dead_channels", "bias_share_of_int32"]
    for row, wanted in zip(rows, found["rows"]):
        shown = text_of(row[0])
        assert shown == wanted["layer"] + wanted["tensor"]
        assert text_of(row[1]) == wanted["op_type"]
        assert text_of(row[2]) == f"A{wanted['activation_bits']} W{wanted['bits']}"
        for cell, key in zip(row[3:], keys, strict=True):
            factor = 100 if key == "bias_share_of_int32" else 1
            if wanted[key] is None:
                assert text_of(cell) == "–" and cell.get("data-v") is None
            else:
                assert float(cell.get("data-v")) == pytest.approx(factor * wanted[key], rel=1e-8)
    manifest = json.loads(Path(f"{prefix}.manifest.json").read_text())
    assert {r["layer"] for r in found["rows"]} == {x["name"] for x in manifest["layers"]}
    for row, weight in zip(
        sorted(found["rows"], key=lambda r: r["tensor"]),
        sorted(manifest["weights"], key=lambda w: w["tensor"]),
    ):
        histogram = weight["histogram"]
        assert row["histogram"] == histogram | {"below": histogram["below"]}
        assert row["saturated_percent"] == pytest.approx(
            100 * weight["saturated"] / weight["elements"]
        )


def test_headline(quantfold, digits):
    found = data(quantfold, digits)
    sizes = found["sizes"]
    assert sizes["before"] == (DIGITS / "model.onnx").stat().st_size
    assert sizes["deploy"] == Path(f"{digits}_deploy_model.onnx").stat().st_size
    assert sizes["fake_quant"] == Path(f"{digits}_fake_quant_model.onnx").stat().st_size
    assert sizes["ratio"] == pytest.approx(sizes["before"] / sizes["deploy"])
    assert [s["layer"] for s in found["skipped"]] == ["/pool/AveragePool"]
    text = text_of(parse(page(quantfold, digits)))
    for words in ("model.onnx", f"{sizes['before'] / 1000:.1f}\u00a0kB", "it has no record"):
        assert words in text
    assert f"{sizes['ratio']:.1f}× smaller" in text


def test_bounded(quantfold, many):
    """A page of a model with many layers has pictures of the worst alone, and says so."""
    path = page(quantfold, many)
    tree = parse(path)
    pictures = [s for s in tree.iter("{http://www.w3.org/2000/svg}svg") if s.get("class") == "hist"]
    assert len(pictures) == 48
    assert "48 of 300" in text_of(tree)
    assert path.stat().st_size < 400_000


def test_external_files_and_repeated_runs(quantfold, tmp_path):
    """External files count for their model; the same input makes the same page."""
    model, record = chain(tmp_path, ["a", "b"], [0.0017, 0.0017])
    prefix = export(
        quantfold, model, record, tmp_path / "o" / "m", "--stats", "--external", "always"
    )
    sizes = data(quantfold, prefix)["sizes"]
    files = {f["name"]: f for f in sizes["files"]}
    for name, file in files.items():
        assert file["bytes"] == (tmp_path / "o" / name).stat().st_size
        assert file["model"] == ("fake_quant" if "fake" in name else "deploy")
    assert sizes["deploy"] + sizes["fake_quant"] == sum(f["bytes"] for f in files.values())
    first = page(quantfold, prefix).read_bytes()
    assert page(quantfold, prefix).read_bytes() == first
    assert quantfold("report", prefix, "-o", "-").out.encode() == first


# ---- warnings ----------------------------------------------------------------------------------


def test_models_are_told_apart_by_how_their_files_end(quantfold, tmp_path):
    """A prefix may hold the words of another model's name; a runnable model is neither."""
    args = (DIGITS / "model.onnx", DIGITS / "record.txt")
    wanted = {"deploy": 0, "fake_quant": 0, "runnable": 0}
    for name in ("fake_quant_model_v2", "runnable_model", "deploy_fakequant"):
        prefix = export(quantfold, *args, tmp_path / name, "--stats", "--external", "always")
        sizes = data(quantfold, prefix)["sizes"]
        kinds = {f["name"]: f["model"] for f in sizes["files"]}
        assert kinds[f"{name}_deploy_model.onnx"] == "deploy"
        assert kinds[f"{name}_fake_quant_model.onnx"] == "fake_quant"
        assert {k for n, k in kinds.items() if n.endswith("_deploy.external")} == {"deploy"}
        for kind in wanted:
            total = sum(f["bytes"] for f in sizes["files"] if f["model"] == kind)
            assert sizes[kind] == total and (total > 0) == (kind != "runnable")
    for layout in ("per-tensor", "single"):
        extra = ("--emit", "runnable", "--stats", "--external", "always")
        prefix = export(quantfold, *args, tmp_path / "r", *extra, "--external-layout", layout)
        sizes = data(quantfold, prefix)["sizes"]
        assert {f["model"] for f in sizes["files"]} == {"runnable"} and len(sizes["files"]) > 1
        assert sizes["deploy"] == 0 and sizes["ratio"] is None and sizes["runnable"] > 0
        text = text_of(parse(page(quantfold, prefix)))
        assert "Runnable model" in text and "Deploy model" not in text and "After" not in text


def test_warnings(quantfold, tmp_path):
    """Each kind is found on the layer that was made for it, and on no other."""
    net = Net()
    x = net.input("x", random(1, 32))
    weights = {
        "good": random(32, 32, seed=1, scale=0.1),
        "small_scale": random(32, 32, seed=2, scale=0.1),
        "outlier": random(32, 32, seed=3, scale=0.1),
        "dead": random(32, 32, seed=4, scale=0.1),
        "zero_scale": random(32, 32, seed=5, scale=0.1),
        "bias": random(32, 32, seed=6, scale=0.1),
    }
    weights["outlier"][3, 3] = 90
    weights["dead"][:, 5] *= F32(1e-6)
    weights["zero_scale"][:, 7] = 0
    records = []
    for name, w in weights.items():
        b = random(32, seed=9)
        scales = [float(np_max) / 127.5 for np_max in abs(w).max(axis=0)]
        if name != "zero_scale":
            scales = [max(scales)]
        if name == "small_scale":
            scales = [s / 3 for s in scales]
        if name == "bias":
            b[4] = F32(1.5e9) * F32(scales[0]) * F32(0.1)
        scales = [float(make_record.float_text(max(s, 1e-7))) for s in scales]
        x = gemm(net, x, w, b, name=name)
        records.append(make_record.Record(name, 0.1, 0, scales, "INT8", "INT8", []))
    net.output(x)
    path = save_net(net, tmp_path)
    (tmp_path / "r.txt").write_text(make_record.record_text(records))
    prefix = export(quantfold, path, tmp_path / "r.txt", tmp_path / "o" / "m")
    found = data(quantfold, prefix)
    by_kind: dict[str, set] = {}
    for warning in found["warnings"]:
        assert warning["advice"] and warning["message"]
        by_kind.setdefault(warning["kind"], set()).add(warning["layer"])
    assert by_kind == {
        "low_sqnr": {"outlier", "small_scale"},
        "bias_near_range": {"bias"},
        "clipped": {"small_scale"},
        "saturated": {"small_scale"},
        "dead_channels": {"dead", "outlier", "zero_scale"},
        "near_zero_scales": {"zero_scale"},
    }
    tree = parse(page(quantfold, prefix))
    text = text_of(tree)
    for warning in found["warnings"]:
        assert warning["message"] in text and warning["advice"] in text
    heads = [text_of(h) for h in tree.iter(f"{XHTML}h2")]
    assert heads[0] == "Warnings" and "Layers" in heads


def test_nothing_to_warn_of(quantfold, tmp_path):
    model, record = chain(tmp_path, ["a"], [0.0017])
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    assert data(quantfold, prefix)["warnings"] == []
    assert "Nothing stands out." in text_of(parse(page(quantfold, prefix)))


def test_weights_that_nothing_is_lost_of(quantfold, tmp_path):
    """A step of them is the scale, so rounding changes none: there is no ratio, but "exact"."""
    net = Net()
    w = (random(24, 24) * F32(40)).round().clip(-100, 100) / F32(64)
    net.output(gemm(net, net.input("x", random(1, 24)), w.astype(F32)))
    path = save_net(net, tmp_path)
    one = make_record.Record("g", 0.1, 0, [1 / 64], "INT8", "INT8", [])
    (tmp_path / "r.txt").write_text(make_record.record_text([one]))
    prefix = export(quantfold, path, tmp_path / "r.txt", tmp_path / "o" / "m")
    (row,) = data(quantfold, prefix)["rows"]
    assert row["sqnr_db"] is None and row["max_error"] == 0 and row["mean_square_error"] == 0
    tree = parse(page(quantfold, prefix))
    assert "exact" in [text_of(c) for c in cells(tree)[0]]
    svg = "{http://www.w3.org/2000/svg}svg"
    assert (
        any("exact" in text_of(s) for s in tree.iter(svg))
        and data(quantfold, prefix)["warnings"] == []
    )


def test_an_activation_scale_of_nearly_nothing(quantfold, tmp_path):
    model, record = chain(tmp_path, ["a", "b"], [0.0017, 0.0017], bias=0)
    record.write_text(record.read_text().replace("scale_d: 0.1", "scale_d: 1e-08", 1))
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    told = [w for w in data(quantfold, prefix)["warnings"] if w["kind"] == "near_zero_scales"]
    assert [w["layer"] for w in told] == ["a"]
    assert told[0]["message"] == "its activation scale is 1e-08"
    assert told[0]["message"] in text_of(parse(page(quantfold, prefix)))


def test_groups_and_long_names(quantfold, tmp_path):
    """The number of weights to a scale; and of a name that is cut, the whole in its title."""
    net, name = Net(opset=21, ir_version=10), "layer" * 30
    net.op("MatMul", [net.input("x", random(3, 32)), net.weight(name, random(32, 8))], "m", "y")
    net.output("y")
    path = save_net(net, tmp_path)
    line = ("export", "--model", path, "--save-path", tmp_path / "m", "--no-fsync", "--stats")
    assert quantfold(*line, "--weight-only", "w4a16:group=16").code == 0
    (row,) = data(quantfold, tmp_path / "m")["rows"]
    assert row["group"] == 16 and row["bits"] == 4
    (shown,) = cells(parse(page(quantfold, tmp_path / "m")))
    assert text_of(shown[2]) == "W4 /16"
    assert len(text_of(shown[0])) < 2 * len(name)
    assert any(e.get("title") and row["layer"] in e.get("title") for e in shown[0].iter()) == (
        len(row["layer"]) > 60
    )
    model, record = chain(tmp_path / "long", [name], [0.0017])
    prefix = export(quantfold, model, record, tmp_path / "long" / "o" / "m")
    (shown,) = cells(parse(page(quantfold, prefix)))
    assert shown[0].get("title") == name and name not in text_of(shown[0])


def test_more_than_a_page_shows(quantfold, tmp_path):
    """What is left out is counted: rows, columns of a chart, files, warnings, layers in float."""
    model, record = chain(tmp_path, ["a"], [0.0017 * 9])
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    path = Path(f"{prefix}.manifest.json")
    made = json.loads(path.read_text())
    (layer,), (weight,), count = made["layers"], made["weights"], 5200
    made["layers"] = [
        layer | {"name": f"l{i}", "weights": [{"tensor": f"w{i}", "layer": f"l{i}"}]}
        for i in range(count)
    ]
    made["weights"] = [weight | {"tensor": f"w{i}", "layer": f"l{i}"} for i in range(count)]
    made["files"] += [made["files"][0] | {"name": f"f{i}"} for i in range(400)]
    made["skipped"] = [{"name": f"s{i}", "op_type": "Conv", "reason": "why"} for i in range(350)]
    path.write_text(json.dumps(made))
    found = data(quantfold, prefix)
    assert len(found["rows"]) == count and len(found["skipped"]) == 350
    assert len(found["warnings"]) >= count
    text = re.sub("<[^>]*>", "", page(quantfold, prefix).read_text())  # parsing it takes seconds
    files = len(made["files"]) + len(made["inputs"])
    for words in (
        "The first 5000 of 5200",
        "Each column is the worst of 13 weights",
        f"and {files - 300} more",
        "and 50 more",
        f"and {count - 205} more; quantfold report --json has all",
    ):
        assert words in text, words


def test_a_model_of_the_size_that_it_was(quantfold, tmp_path):
    """Little of it is weights."""
    net = Net()
    x = gemm(net, net.input("x", random(1, 4)), random(4, 4), name="a")
    net.output(net.op("Add", [x, net.weight("much", random(3000, 4))], "add"))
    path = save_net(net, tmp_path)
    one = make_record.Record("a", 0.1, 0, [0.02], "INT8", "INT8", [])
    (tmp_path / "r.txt").write_text(make_record.record_text([one]))
    prefix = export(quantfold, path, tmp_path / "r.txt", tmp_path / "o" / "m")
    assert data(quantfold, prefix)["sizes"]["ratio"] == pytest.approx(1, abs=0.05)
    assert "as before" in text_of(parse(page(quantfold, prefix)))


# ---- hostile and broken ------------------------------------------------------------------------


def test_hostile_names(quantfold, tmp_path):
    """Names are text, whatever is in them."""
    model, record = chain(tmp_path, ["a"], [0.0001])
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    spoil(Path(f"{prefix}.manifest.json"))
    path = page(quantfold, prefix)
    text = path.read_text()
    assert "<img" not in text and text.count("<script>") == text.count("</script>") == 1
    tree = parse(path)
    assert text_of(tree).count(HOSTILE) >= 6
    assert data(quantfold, prefix)["rows"][0]["layer"] == HOSTILE


def test_hostile_names_through_an_export(quantfold, tmp_path):
    """The same from a model."""
    names = ["<b>&amp;'x'</b>", "</script><img src=x onerror=alert(1)>"]
    model, record = chain(tmp_path, names, [0.0017, 0.0017])
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    assert [r["layer"] for r in data(quantfold, prefix)["rows"]] == names
    path = page(quantfold, prefix)
    assert "<b>&amp;" not in path.read_text() and "<img" not in path.read_text()
    assert [text_of(row[0]) for row in cells(parse(path))] == [
        f"{n}w{i}" for i, n in enumerate(names)
    ]


BROKEN = {
    "no JSON": "{",
    "empty": "",
    "an array": "[]",
    "no files": "{}",
    "files is a number": '{"files": 3}',
    "deep": "[" * 100000,
}


@pytest.mark.parametrize("name", BROKEN)
def test_not_a_manifest(quantfold, tmp_path, name):
    (tmp_path / "m.manifest.json").write_text(BROKEN[name])
    run = quantfold("report", tmp_path / "m")
    text = name in ("no JSON", "empty", "deep")
    assert run.code == 1 and ("damaged" if text else "no manifest of quantfold") in run.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.manifest.json"]


WRONG = [None, True, -1, 1e308, 1e999, "text", [], [1], {}, {"a": 1}, 0, 1e-320, [[[]]], "\ud800"]


def mutations(made: dict):
    """The manifest with one value at a time replaced by what does not belong there."""

    def places(node, at=()):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield at + (key,)
            if isinstance(value, (dict, list)) and not (
                isinstance(value, list) and at and key == "float"
            ):
                yield from places(value, at + (key,))

    for place in places(made):
        for wrong in WRONG:
            changed = json.loads(json.dumps(made))
            node = changed
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = wrong
            yield changed


def test_values_that_do_not_belong(quantfold, tmp_path):
    """A report of anything that is JSON ends with a page or a message."""
    model, record = chain(tmp_path, ["a"], [0.0017])
    prefix = export(quantfold, model, record, tmp_path / "o" / "m")
    manifest = Path(f"{prefix}.manifest.json")
    made = json.loads(manifest.read_text())
    for histogram in [w["histogram"] for w in made["weights"]]:
        histogram["float"] = histogram["float"][:64]
    every = list(mutations(made))
    assert len(every) > 500
    step = 1 if "QUANTFOLD_THOROUGH" in os.environ else 7
    for changed in every[::step]:
        manifest.write_text(json.dumps(changed).replace("Infinity", "1e999"))
        run = quantfold("report", prefix, "-o", "-")
        assert run.code in (0, 1), run.err
        if run.code == 0:
            assert "nan" not in re.sub(r"<script>.*|<style>.*?</style>", "", run.out, flags=re.S)
            json.loads(quantfold("report", prefix, "--json").out)


def test_huge_counts(quantfold, tmp_path):
    """Numbers and arrays beyond all bounds."""
    weight = {"layer": "a", "tensor": "w", "elements": 1e300, "bits": 8, "channels": 1e300}
    weight["histogram"] = {
        "from": -1e308,
        "to": 1e308,
        "float": [1e308] * 64,
        "quantized": [1] * 99,
    }
    made = {"files": [{"name": "x" * 100000, "bytes": 1e300}], "weights": [weight] * 3000}
    (tmp_path / "m.manifest.json").write_text(json.dumps(made))
    tree = parse(page(quantfold, tmp_path / "m"))
    assert len(cells(tree)) == 3000


# ---- with less, and from elsewhere -------------------------------------------------------------


def test_no_manifest(quantfold, tmp_path):
    quantfold.export(DIGITS / "model.onnx", DIGITS / "record.txt", tmp_path / "m", "--no-fsync")
    run = quantfold("report", tmp_path / "m")
    assert run.code == 1 and "--stats" in run.err and "m.manifest.json" in run.err


def test_plain_manifest(quantfold, tmp_path):
    """What there is, and how to get more."""
    prefix = export(
        quantfold, DIGITS / "model.onnx", DIGITS / "record.txt", tmp_path / "m", "--manifest"
    )
    found = data(quantfold, prefix)
    assert found["statistics"] is False and len(found["rows"]) == 5
    assert all(r["sqnr_db"] > 40 and r["saturated"] is None for r in found["rows"])
    text = text_of(parse(page(quantfold, prefix)))
    assert "export --stats" in text and "/conv1/Conv" in text


def test_places(quantfold, tmp_path):
    """A save path that is a folder, the manifest itself, a target of one's own."""
    args = (DIGITS / "model.onnx", DIGITS / "record.txt", f"{tmp_path}/", "--no-fsync", "--stats")
    quantfold.export(*args)
    for given in (f"{tmp_path}/", tmp_path / "manifest.json", tmp_path):
        assert quantfold("report", given).code == 0
        (tmp_path / "report.html").unlink()
    assert quantfold("report", f"{tmp_path}/", "-o", tmp_path / "new" / "r.html", "-q").out == ""
    assert (tmp_path / "new" / "r.html").stat().st_size > 10000


@pytest.mark.parametrize(
    "args, code",
    [
        ((), 2),
        (("a", "b"), 2),
        (("--nonsense", "a"), 2),
        (("a", "--json", "-o", "-"), 2),
        (("/nowhere/at/all/m",), 1),
    ],
)
def test_usage(quantfold, args, code):
    run = quantfold("report", *args)
    assert run.code == code and run.err


def test_target_that_cannot_be_written(quantfold, digits, tmp_path):
    """An old page stays as it was."""
    (tmp_path / "dir.html").mkdir()
    run = quantfold("report", digits, "-o", tmp_path / "dir.html")
    assert run.code in (1, 3) and "dir.html" in run.err
    assert [p.name for p in tmp_path.iterdir()] == ["dir.html"]


def test_target_that_is_an_input(quantfold, tmp_path):
    """A page never takes the place of anything but a page, by whatever name that is called."""
    source, record, prefix = tmp_path / "model.onnx", tmp_path / "record.txt", tmp_path / "m"
    source.write_bytes((DIGITS / "model.onnx").read_bytes())
    record.write_bytes((DIGITS / "record.txt").read_bytes())
    quantfold.export(source, record, prefix, "--no-fsync", "--stats", "--external", "always")
    (tmp_path / "short").write_text("<!DOC")
    (tmp_path / "alias").symlink_to(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert any(name.endswith(".external") for name in before) and len(before) > 4
    for name in before:
        for target in (tmp_path / name, tmp_path / "alias" / name):
            run = quantfold("report", prefix, "-o", target)
            assert run.code == 1 and str(target) in run.err and "would replace" in run.err, name
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    other = tmp_path / "other.html"
    other.touch()
    for _ in range(2):  # a page takes the place of an empty file, and of an older one
        assert quantfold("report", prefix, "-o", other).code == 0
        assert other.stat().st_size > 1000


@pytest.mark.parametrize("through", ["p", "link"])
def test_target_that_is_a_pipe(quantfold, tmp_path, through):
    prefix = export(quantfold, DIGITS / "model.onnx", DIGITS / "record.txt", tmp_path / "m")
    os.mkfifo(tmp_path / "p")
    (tmp_path / "link").symlink_to("p")
    run = quantfold("report", prefix, "-o", tmp_path / through)
    assert run.code == 1 and "pipe" in run.err
    assert (tmp_path / "p").is_fifo() and (tmp_path / "link").is_symlink()


def test_where_the_manifest_is_looked_for(quantfold, tmp_path):
    """A model stands for its save path; where there is none, the message says what to give."""
    prefix = export(quantfold, DIGITS / "model.onnx", DIGITS / "record.txt", tmp_path / "m")
    for model in ("deploy", "fake_quant"):
        run = quantfold("report", f"{prefix}_{model}_model.onnx", "--json")
        assert run.code == 0 and json.loads(run.out) == data(quantfold, prefix)
    export(quantfold, DIGITS / "model.onnx", DIGITS / "record.txt", f"{tmp_path}/bare/")
    run = quantfold("report", tmp_path / "bare" / "deploy_model.onnx", "--json")
    assert run.code == 0 and json.loads(run.out)["rows"]
    run = quantfold("report", tmp_path / "no" / "m")
    assert run.code == 1 and "no/m.manifest.json" in run.err and "--save-path" in run.err
    cut = tmp_path / "cut.manifest.json"
    cut.write_bytes(Path(f"{prefix}.manifest.json").read_bytes()[:500])
    run = quantfold("report", cut)
    assert run.code == 1 and "damaged" in run.err


def test_checkpoint(quantfold, tmp_path):
    """A folder of safetensors has weights and no layers."""
    import numpy as np

    header, blob = {}, b""
    for i in range(3):
        w = random(64, 96, seed=i, scale=0.02)
        raw = w.astype(np.float16).tobytes()
        name = f"model.layers.{i}.mlp.down_proj.weight"
        header[name] = {
            "dtype": "F16",
            "shape": [64, 96],
            "data_offsets": [len(blob), len(blob) + len(raw)],
        }
        blob += raw
    text = json.dumps(header).encode()
    source = tmp_path / "in"
    source.mkdir()
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    (source / "config.json").write_text('{"model_type": "llama"}')
    args = ("--model", source, "--out", tmp_path / "out", "--scheme", "w4a16:group=32", "--stats")
    run = quantfold("checkpoint", *args)
    assert run.code == 0, run.err
    assert quantfold("report", tmp_path / "out").code == 0
    found = data(quantfold, tmp_path / "out")
    assert [r["bits"] for r in found["rows"]] == [4, 4, 4]
    assert [r["channels"] for r in found["rows"]] == [64] * 3
    assert [r["scales"] for r in found["rows"]] == [192] * 3
    parse(tmp_path / "out" / "quantfold.report.html")


def test_pages_that_are_not_well_formed_are_found():
    """The tests' own idea of a page that is not well-formed."""
    strict = Strict()
    with pytest.raises(AssertionError):
        strict.feed("<p><b></p></b>")
    with pytest.raises(AssertionError):
        Strict().feed('<p onclick="x">')
