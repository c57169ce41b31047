# SPDX-License-Identifier: Apache-2.0
"""`quantfold checkpoint`: numbers, names and files, against the arithmetic in NumPy and against what
the compressed-tensors package calculates and packs."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import torch
import xxhash
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

from support import snapshot

SCHEMES = ["w8a16", "w8a8", "w4a16", "w4a16:group=32", "w8a16:group=16"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", list(ck.FLOATS))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_numbers(quantfold, tmp_path, scheme, dtype, shards):
    """Integers, words and scales bit for bit; all other tensors as they were."""
    tensors = ck.model(dtype)
    tensors["odd.weight"] = ck.normal(40, 96, 5).to(ck.FLOATS[dtype][0])
    if ck.group_of(scheme) == 0:  # a last word that is not full
        tensors["odd.weight"] = tensors["odd.weight"][:, :37].contiguous()
    source = ck.write(tmp_path / "in", tensors, shards, ck.config(dtype))
    ck.run(quantfold, source, tmp_path / "out", scheme)
    written = ck.read(tmp_path / "out")
    expected = set()
    for name, weight in tensors.items():
        if ck.is_linear(name) or name == "odd.weight":
            ck.assert_quantized(written, name, weight, scheme)
            stem = name.removesuffix(".weight")
            ends = ["weight"] if scheme == "w8a8" else ["weight_packed", "weight_shape"]
            expected |= {f"{stem}.{end}" for end in [*ends, "weight_scale"]}
        else:
            assert written[name].dtype == weight.dtype and torch.equal(written[name], weight)
            expected.add(name)
    assert set(written) == expected
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == shards


def package_args(scheme: str) -> QuantizationArgs:
    group = ck.group_of(scheme)
    return QuantizationArgs(
        num_bits=ck.bits_of(scheme),
        type="int",
        symmetric=True,
        strategy="group" if group else "channel",
        group_size=group or None,
    )


def package_scales(weight: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    groups = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    return calculate_qparams(groups.amin(-1), groups.amax(-1), args)[0]


@pytest.mark.parametrize("dtype", list(ck.FLOATS))
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16", "w4a16:group=32"])
def test_the_package_calculates_the_same(quantfold, tmp_path, scheme, dtype):
    """Scales are those of compressed-tensors in the weight's dtype, and integers and words those of
    it in float32, bit for bit. In 16-bit floats it rounds the quotient to 16 bits before it rounds
    to an integer, so that what was near a half becomes a tie: one step apart at most, and only
    where the exact quotient is nearer to ours."""
    tensors = ck.model(dtype)
    source = ck.write(tmp_path / "in", tensors, 1, ck.config(dtype))
    ck.run(quantfold, source, tmp_path / "out", scheme)
    written = ck.read(tmp_path / "out")
    args = package_args(scheme)
    differing = total = 0
    for name in filter(ck.is_linear, tensors):
        weight, stem = tensors[name], name.removesuffix(".weight")
        scale = written[stem + ".weight_scale"]
        assert torch.equal(scale, package_scales(weight, args)), name
        exact = quantize(weight.float(), scale.float(), None, args, dtype=torch.int8)
        assert torch.equal(written[stem + ".weight_packed"], pack_to_int32(exact, args.num_bits))
        native = quantize(weight, scale, None, args, dtype=torch.int8)
        apart = (native.int() - exact.int()).abs()
        assert apart.max() <= 1
        differing, total = differing + int(apart.sum()), total + apart.numel()
        wide = scale.double().repeat_interleave(weight.shape[1] // scale.shape[1], 1)
        quotient = weight.double() / wide
        error = lambda q: (q.double() - quotient).abs()
        assert bool((error(exact)[apart > 0] <= error(native)[apart > 0]).all())
    assert differing / total <= {"fp32": 0, "fp16": 0.02, "bf16": 0.12}[dtype]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_config(quantfold, tmp_path, scheme):
    """config.json is the source's, its text untouched, with a quantization_config that the package
    reads, whose `ignore` names what stayed float."""
    source = ck.write(tmp_path / "in", ck.model())
    ck.run(quantfold, source, tmp_path / "out", scheme, "--exclude", r"layers\.1\.mlp\.up")
    text = (tmp_path / "out" / "config.json").read_text()
    for kept in ('"rope_theta": 10000.0', '"rms_norm_eps": 1e-05'):
        assert kept in text
    stated = ck.quantization(tmp_path / "out")
    settings = json.loads(text)
    del settings["quantization_config"]
    assert settings == ck.config()
    floats = {"model.layers.1.mlp.up_proj", "model.embed_tokens", "lm_head"}
    assert len(stated["ignore"]) == 3 and set(stated["ignore"]) == floats
    assert stated["quant_method"] == "compressed-tensors"
    parsed = QuantizationConfig.model_validate(stated)
    group = parsed.config_groups["group_0"]
    assert group.targets == ["Linear"] and parsed.quantization_status == "compressed"
    weights = group.weights
    assert weights.num_bits == ck.bits_of(scheme) and weights.symmetric and not weights.dynamic
    assert weights.strategy == ("group" if ck.group_of(scheme) else "channel")
    assert weights.group_size == (ck.group_of(scheme) or None)
    assert parsed.format == ("int-quantized" if scheme == "w8a8" else "pack-quantized")
    if scheme == "w8a8":
        activations = group.input_activations
        assert (activations.num_bits, activations.strategy) == (8, "token") and activations.dynamic
    else:
        assert group.input_activations is None


def test_case_of_the_scheme(quantfold, tmp_path):
    """As words of a model's name are often written; the output is the same, manifest and all."""
    source = ck.write(tmp_path / "in", ck.model())
    written = []
    for scheme in ("W4A16:Group=32", "w4a16:group=32"):
        ck.run(quantfold, source, tmp_path / scheme, scheme, "--manifest")
        files = sorted((tmp_path / scheme).iterdir())
        written.append([(f.name, f.read_bytes()) for f in files])
    assert len(written[0]) == 3 and written[0] == written[1]


def test_old_quantization_config_is_replaced(quantfold, tmp_path):
    """Of an fp8 checkpoint, wherever in the text it stands."""
    for i, where in enumerate(("first", "last")):
        old = {"quantization_config": {"quant_method": "fp8", "note": 'a "}" in a text'}}
        both = {**old, **ck.config()} if where == "first" else {**ck.config(), **old}
        source = ck.write(tmp_path / f"in{i}", ck.model(), 1, both)
        ck.run(quantfold, source, tmp_path / f"out{i}", "w8a16")
        text = (tmp_path / f"out{i}" / "config.json").read_text()
        assert text.count("quantization_config") == 1 and "fp8" not in text
        json.loads(text)


# ---- 8-bit floats


def fp8_model(
    scale_shape: str, kind=torch.float8_e4m3fn
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of float8 with scales, and the float32 values that they stand for."""
    tensors, values = {}, {}
    for name, weight in ck.model("bf16").items():
        if not ck.is_linear(name):
            tensors[name] = weight
            continue
        rows, cols = weight.shape
        shape = {"one": (1,), "row": (rows, 1), "block": (-(-rows // 32), -(-cols // 24))}
        scale = torch.from_numpy(
            np.random.default_rng(len(name)).uniform(1e-4, 1e-3, shape[scale_shape])
        ).float()
        wide = scale
        if scale_shape == "block":
            wide = scale.repeat_interleave(32, 0)[:rows].repeat_interleave(24, 1)[:, :cols]
        small = (weight.float() / wide).clamp(-448, 448).to(kind)
        end = "_scale" if scale_shape == "row" else "_scale_inv"
        tensors[name], tensors[name + end] = small, scale
        if scale_shape == "one":  # of static activations
            tensors[name.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
        values[name] = small.float() * wide
    return tensors, values


@pytest.mark.parametrize("scale_shape", ["one", "row", "block"])
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16:group=16"])
@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8(quantfold, tmp_path, scheme, scale_shape, kind):
    """Weights of 8-bit floats times their scales, whatever these span; new scales have the dtype of
    config.json, and the old ones are gone. The journal of --resume makes no difference."""
    tensors, values = fp8_model(scale_shape, getattr(torch, kind))
    method: dict = {"quant_method": "fp8"}
    if scale_shape == "block":
        method["weight_block_size"] = [32, 24]
    source = ck.write(tmp_path / "in", tensors, 2, ck.config(quantization_config=method))
    ck.run(quantfold, source, tmp_path / "out", scheme)
    written = ck.read(tmp_path / "out")
    for name, value in values.items():
        ck.assert_quantized(written, name, value, scheme, dtype="bf16")
    assert not any(n.endswith(("_scale_inv", ".input_scale")) for n in written)
    ck.run(quantfold, source, tmp_path / "resumed", scheme, "--resume")
    assert snapshot(tmp_path / "resumed") == snapshot(tmp_path / "out")


# ---- which tensors


def chosen(written: dict[str, torch.Tensor]) -> set[str]:
    return {n.removesuffix("_scale") for n in written if n.endswith(".weight_scale")}


def test_include_and_exclude(quantfold, tmp_path):
    tensors = ck.model()
    source = ck.write(tmp_path / "in", tensors)
    default = set(filter(ck.is_linear, tensors))
    cases = {
        (): default,
        ("--exclude", "q_proj|k_proj"): {n for n in default if "q_p" not in n and "k_p" not in n},
        ("--include", "down_proj"): {n for n in default if "down" in n},
        ("--include", "lm_head|layers.0", "--exclude", "mlp"): {"lm_head.weight"}
        | {n for n in default if "layers.0.self" in n},
    }
    for i, (options, wanted) in enumerate(cases.items()):
        ck.run(quantfold, source, tmp_path / f"{i}", "w8a16", *options)
        written = ck.read(tmp_path / f"{i}")
        assert chosen(written) == wanted, options
        for name in wanted:
            ck.assert_quantized(written, name, tensors[name], "w8a16")
        ignored = set(ck.quantization(tmp_path / f"{i}")["ignore"])
        assert ignored >= {n.removesuffix(".weight") for n in default - wanted}
        assert not ignored & {n.removesuffix(".weight") for n in wanted}


def test_embeddings_are_never_chosen(quantfold, tmp_path):
    """By whatever name, and whoever asks; what has the name of one, as a linear module may, is
    ignored, so that no loader takes it for a quantized one."""
    stays = ["shared", "decoder.embed_tokens", "h.wte", "h.wpe", "embeddings_project"]
    stays.append("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    tensors = {name + ".weight": ck.normal(64, 64, i) for i, name in enumerate(stays)}
    tensors["encoder.block.0.q.weight"] = ck.normal(64, 64, 9)
    source = ck.write(tmp_path / "in", tensors)
    for i, options in enumerate([(), ("--include", ".")]):
        result = ck.run(quantfold, source, tmp_path / f"{i}", "w8a16", "-v", *options)
        assert chosen(ck.read(tmp_path / f"{i}")) == {"encoder.block.0.q.weight"}
        assert result.out.count("it is an embedding or a norm") == len(stays)
        assert result.out.count("which --include cannot choose") == (len(stays) if i else 0)
        assert set(ck.quantization(tmp_path / f"{i}")["ignore"]) == {*stays, "lm_head"}


def test_tied_embedding(quantfold, tmp_path):
    """It is written once and stays float, and lm_head is ignored though it has no tensor."""
    tensors = ck.model(tied=True)
    source = ck.write(tmp_path / "in", tensors, 1, ck.config(tie_word_embeddings=True))
    ck.run(quantfold, source, tmp_path / "out", "w8a8")
    written = ck.read(tmp_path / "out")
    embedding = "model.embed_tokens.weight"
    assert torch.equal(written[embedding], tensors[embedding]) and "lm_head.weight" not in written
    assert "lm_head" in ck.quantization(tmp_path / "out")["ignore"]


def test_routers_norms_and_small_ones_stay(quantfold, tmp_path):
    tensors = ck.model()
    left = {
        "model.layers.0.mlp.gate.weight": ck.normal(64, 64, 1),
        "model.layers.0.block.router.weight": ck.normal(64, 64, 1),
        "model.layers.0.tiny.weight": ck.normal(31, 64, 1),
        "model.layers.0.mlp.experts.weight": torch.ones(2, 64, 64),
        "model.layers.0.linear.bias": torch.ones(64, 64),
        "model.layers.0.count.weight": torch.ones(64, 64, dtype=torch.int32),
        "model.layers.0.empty.weight": torch.ones(0, 64),
    }
    source = ck.write(tmp_path / "in", tensors | left)
    result = ck.run(quantfold, source, tmp_path / "out", "w8a16", "--json")
    written = ck.read(tmp_path / "out")
    for name, weight in left.items():
        assert written[name].dtype == weight.dtype and torch.equal(written[name], weight), name
    reasons = {t["name"]: t["reason"] for t in json.loads(result.out)["tensors"]}
    assert reasons["model.layers.0.mlp.gate.weight"] == "it is a router"
    assert "32 x 32" in reasons["model.layers.0.tiny.weight"]
    ignored = ck.quantization(tmp_path / "out")["ignore"]
    assert {"model.layers.0.mlp.gate", "model.layers.0.tiny"} <= set(ignored)


def test_transposed_modules_are_not_taken(quantfold, tmp_path):
    source = ck.write(tmp_path / "in", ck.model(), 1, ck.config() | {"model_type": "gpt2"})
    result = ck.run(quantfold, source, tmp_path / "out", "w8a16", code=1)
    assert "no weight is chosen" in result.err and not (tmp_path / "out").exists()
    assert "of 16 weight matrices, 14 stay float because" in result.err  # but embedding and head
    assert "stored [in, out]" in result.err


# ---- given scales


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16:group=16"])
@pytest.mark.parametrize("form", ["safetensors", "record"])
def test_given_scales(quantfold, tmp_path, scheme, form):
    """From a safetensors file by module, or from a record; per row or group, or one for all."""
    tensors = ck.model("fp32")
    source = ck.write(tmp_path / "in", tensors, 2, ck.config("fp32"))
    rng = np.random.default_rng(3)
    given, lines = {}, []
    for name in filter(ck.is_linear, tensors):
        rows, cols = tensors[name].shape
        across = cols // (ck.group_of(scheme) or cols)
        shape = (1, 1) if "k_proj" in name else (rows, across)
        given[name] = rng.uniform(1e-3, 1e-2, shape).astype(np.float32)
        values = "".join(f" scale_w: {v!r}" for v in given[name].ravel().tolist())
        key = name if "o_proj" in name else name.removesuffix(".weight")
        lines.append(f'record {{ key: "{key}" value {{{values} }} }}\n')
    if form == "record":
        (tmp_path / "r.txt").write_text("".join(lines))
        options = ["--scales", "record", "--record", tmp_path / "r.txt"]
    else:
        file = {n + "_scale": torch.from_numpy(s) for n, s in given.items()}
        save_file(file, tmp_path / "s.safetensors")
        options = ["--scales", tmp_path / "s.safetensors"]
    ck.run(quantfold, source, tmp_path / "out", scheme, *options, "--manifest")
    manifest = json.loads((tmp_path / "out" / "quantfold.manifest.json").read_text())
    said, given_file = manifest["record" if form == "record" else "scales"], options[-1]
    assert said["name"] == given_file.name and said["bytes"] == given_file.stat().st_size
    assert said["hash"] == xxhash.xxh3_128_hexdigest(given_file.read_bytes())
    written = ck.read(tmp_path / "out")
    for name, scales in given.items():
        rows, cols = tensors[name].shape
        full = np.broadcast_to(scales, (rows, cols // (ck.group_of(scheme) or cols)))
        ck.assert_quantized(written, name, tensors[name], scheme, np.ascontiguousarray(full))


def test_given_scales_that_do_not_fit(quantfold, tmp_path):
    source = ck.write(tmp_path / "in", {"a.weight": ck.normal(64, 64, 1)})
    cases = {
        "no scales for this weight": {"b.weight_scale": torch.ones(64)},
        "it needs 1 or 64": {"a.weight_scale": torch.ones(63)},
        "0 float scales": {"a.weight_scale": torch.ones(64, dtype=torch.int32)},
        "scale 5 is -1": {"a.weight_scale": torch.tensor([1.0] * 5 + [-1.0] * 59)},
        "scale 0 is inf": {"a.weight_scale": torch.full((64,), float("inf"))},
        "scale 0 is 0": {"a.weight_scale": torch.zeros(1)},
    }
    for message, tensors in cases.items():
        save_file(tensors, tmp_path / "s.safetensors")
        options = ["--scales", tmp_path / "s.safetensors"]
        result = ck.run(quantfold, source, tmp_path / "out", "w8a16", *options, code=1)
        assert message in result.err and "a.weight" in result.err, result.err
        assert not (tmp_path / "out").exists()


# ---- files


def test_what_goes_along(quantfold, tmp_path):
    """Other files are copied, in folders too; weights in other formats and hidden files are not."""
    source = ck.write(tmp_path / "in", ck.model())
    kept = {"tokenizer.json": b"{}", "README.md": b"", "onnx/notes/a.txt": b"x" * 70000}
    left = {"pytorch_model.bin": b"1", "other.safetensors": b"2", "onnx/model.onnx": b"3"}
    for name, data in {**kept, **left, ".git/config": b"4"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    result = ck.run(quantfold, source, tmp_path / "out", "w8a16")
    for name, data in kept.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    names = {str(p.relative_to(tmp_path / "out")) for p in files}
    assert names == {*kept, "config.json", "model.safetensors"}
    told = [l for l in result.out.splitlines() if l.startswith("not taken along")]
    assert {l.partition(": ")[2] for l in told} == set(left)


def test_replacing_is_said(quantfold, tmp_path):
    """Files of another model in the target are replaced, with a warning."""
    source, out = ck.write(tmp_path / "in", ck.model()), tmp_path / "out"
    assert "replaced" not in ck.run(quantfold, source, out, "w8a16").err
    (out / "model.safetensors").unlink()
    result = ck.run(quantfold, source, out, "w8a16")
    assert f"warning: 1 file is there already and will be replaced: {out}/config.json" in result.err
    assert "warning: 2 files are" in ck.run(quantfold, source, out, "w8a16", "--dry-run").err
    assert not ck.run(quantfold, source, out, "w8a16", "-q").err


def test_target_within_the_source(quantfold, tmp_path):
    """What an earlier run has left there does not go along."""
    source = ck.write(tmp_path / "in", ck.model())
    (source / "out-notes").mkdir()
    (source / "out-notes" / "a.txt").write_text("kept")
    for _ in range(2):
        ck.run(quantfold, source, source / "out", "w8a16")
        names = {str(p.relative_to(source / "out")) for p in (source / "out").rglob("*")}
        assert names == {"config.json", "model.safetensors", "out-notes", "out-notes/a.txt"}


@pytest.mark.parametrize("limit", ["20000", "50K", "50kb", "50KiB", "1G"])
def test_max_shard_size(quantfold, tmp_path, limit):
    """New shards within the limit, but for a tensor that is larger by itself."""
    source = ck.write(tmp_path / "in", ck.model(), 2)
    ck.run(quantfold, source, tmp_path / "whole", "w4a16:group=32")
    ck.run(quantfold, source, tmp_path / "out", "w4a16:group=32", "--max-shard-size", limit)
    whole, cut = ck.read(tmp_path / "whole"), ck.read(tmp_path / "out")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[n], cut[n]) for n in whole)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    most = {"20000": 20000, "1G": 1 << 30}.get(limit, 50 << 10)
    alone = 128 * 64 * 2  # lm_head and the embedding
    for file in files:
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size - 8 - length <= max(most, alone)
    assert (len(files) == 1) == (limit == "1G")
    assert files[0].name.startswith("model-00001-of-" if len(files) > 1 else "model.safetensors")


def test_alignment(quantfold, tmp_path):
    """Data begins at a multiple of 8, and tensors at multiples of their elements."""
    tensors = ck.model() | {"flag": torch.ones(3, dtype=torch.bool)}
    source = ck.write(tmp_path / "in", tensors)
    ck.run(quantfold, source, tmp_path / "out", "w4a16")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    width = {"I64": 8, "I32": 4, "BF16": 2, "BOOL": 1}
    assert all(t["data_offsets"][0] % width[t["dtype"]] == 0 for t in header.values())


def test_huge_shape_of_names(quantfold, tmp_path):
    """Names that are not ASCII, and that need escapes in JSON."""
    tensors = {f'mödel."q\\{i}.weight': ck.normal(40, 40, i) for i in range(3)}
    source = ck.write(tmp_path / "in", tensors, 3)
    ck.run(quantfold, source, tmp_path / "out", "w8a8")
    written = ck.read(tmp_path / "out")
    for name, weight in tensors.items():
        ck.assert_quantized(written, name, weight, "w8a8", dtype="fp32")


def test_hugging_face_cache(quantfold, tmp_path):
    """A snapshot of a cache is made of links into its blobs."""
    plain = ck.write(tmp_path / "plain", ck.model())
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    (tmp_path / "cache" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(plain.iterdir()):
        file.rename(tmp_path / "cache" / "blobs" / str(i))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(i)))
    ck.run(quantfold, snapshot, tmp_path / "out", "w8a16")
    assert chosen(ck.read(tmp_path / "out"))


@pytest.mark.parametrize("scheme", ["w8a16", "w8a8", "w4a16", "w4a16:group=32"])
def test_the_peer_of_the_benchmark(quantfold, repo, monkeypatch, tmp_path, scheme):
    """bench/llm_peer.py writes the same names and scales, and in float32 the same integers."""
    monkeypatch.syspath_prepend(str(repo / "bench"))
    import llm_peer

    source = ck.write(tmp_path / "in", ck.model(), 2)
    ck.run(quantfold, source, tmp_path / "ours", scheme)
    llm_peer.quantize(source, tmp_path / "wide", scheme, True)
    llm_peer.quantize(source, tmp_path / "native", scheme, False)
    same = llm_peer.compare(tmp_path / "ours", tmp_path / "wide")
    assert same["integers"] == 61440 and same["different"] == same["different_scales"] == 0
    near = llm_peer.compare(tmp_path / "ours", tmp_path / "native")
    assert near["largest"] == 1 and near["different_scales"] == 0
    assert 0 < near["different"] / near["integers"] < 0.12
    stated = [ck.quantization(tmp_path / name) for name in ("ours", "wide")]
    a, b = (QuantizationConfig.model_validate(s).config_groups["group_0"] for s in stated)
    for member in ("num_bits", "type", "symmetric", "strategy", "group_size", "dynamic"):
        assert getattr(a.weights, member) == getattr(b.weights, member), member
    assert stated[0]["format"] == stated[1]["format"]
