# SPDX-License-Identifier: Apache-2.0
"""`quantfold checkpoint` in any number of threads, with any instruction set, in shards, and killed and
taken up again: always the same bytes. And its manifest."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import checkpoints as ck
import numpy as np
import pytest
import torch
import xxhash
from make_llama import Shape, make_pool, write_checkpoint
from safetensors.torch import save_file

from support import snapshot

SCHEMES = ["w8a16", "w8a8", "w4a16", "w4a16:group=128"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """About 30 MB in several shards, with other files beside them."""
    folder = tmp_path_factory.mktemp("llama")
    write_checkpoint(folder, Shape(512, 4, 2048, False), "bf16", 6 << 20, make_pool("bf16", 7))
    (folder / "tokenizer.json").write_bytes(os.urandom(3 << 20))
    (folder / "empty.txt").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def whole(quantfold, llama, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What one process writes, by scheme, with the manifest."""
    out = {}
    for scheme in SCHEMES:
        folder = tmp_path_factory.mktemp("whole")
        ck.run(quantfold, llama, folder, scheme, "--manifest", "--threads", 1)
        out[scheme] = snapshot(folder)
    return out


def instruction_sets() -> list[str]:
    """Those of this machine."""
    flags = Path("/proc/cpuinfo").read_text()
    known = {"avx2": " avx2", "avx512": " avx512bw"}
    return ["scalar", *(name for name, flag in known.items() if flag in flags)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_threads_and_instruction_sets(quantfold, llama, whole, tmp_path, scheme):
    runs = [("", threads) for threads in (2, 8)]
    runs += [(isa, 2) for isa in instruction_sets()]
    for i, (isa, threads) in enumerate(runs):
        environment = {**os.environ, "QUANTFOLD_ISA": isa} if isa else dict(os.environ)
        out = tmp_path / f"{i}"
        command = ["checkpoint", "--model", llama, "--out", out, "--scheme", scheme, "--manifest"]
        result = quantfold(*command, "--threads", threads, "--no-fsync", env=environment)
        assert result.code == 0, result.err
        assert snapshot(out) == whole[scheme], (isa, threads)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16:group=128"])
@pytest.mark.parametrize("how", ["pwrite", "mmap", "direct"])
def test_ways_of_writing(quantfold, llama, whole, tmp_path, scheme, how):
    ck.run(quantfold, llama, tmp_path, scheme, "--manifest", "--io", how)
    assert snapshot(tmp_path) == whole[scheme]


@pytest.mark.parametrize("scheme", ["w8a8", "w4a16:group=128"])
@pytest.mark.parametrize("parts", [1, 3, 7])
def test_shards(quantfold, llama, whole, tmp_path, scheme, parts):
    """In any order, and nothing is in place before `commit`."""
    order = list(range(parts))
    random.Random(parts).shuffle(order)
    for part in order:
        shard = ["--shard", f"{part}/{parts}", "--manifest"]
        ck.run(quantfold, llama, tmp_path / "out", scheme, *shard)
        assert not any(not p.name.startswith(".") for p in (tmp_path / "out").iterdir())
    done = quantfold("commit", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert snapshot(tmp_path / "out") == whole[scheme]


def test_missing_shard(quantfold, llama, whole, tmp_path):
    """`commit` names it, leaves all as it is, and goes through once it is there."""
    for part in (0, 2):
        ck.run(quantfold, llama, tmp_path / "out", "w8a16", "--shard", f"{part}/3", "--manifest")
    result = quantfold("commit", "--out", tmp_path / "out")
    assert result.code == 1 and "1" in result.err
    ck.run(quantfold, llama, tmp_path / "out", "w8a16", "--shard", "1/3", "--manifest")
    assert quantfold("commit", "--out", tmp_path / "out").code == 0
    assert snapshot(tmp_path / "out") == whole["w8a16"]


def staged(out: Path) -> set[str]:
    return {p.name for p in next(out.glob(".*quantfold-partial")).iterdir() if p.is_file()}


def test_first_shard_has_all_but_weights(quantfold, llama, tmp_path):
    """Also a tokenizer of 3 MB; the others have weights alone, and each of them has some."""
    out, seen = tmp_path / "out", set()
    for part in (3, 2, 1, 0):
        ck.run(quantfold, llama, out, "w8a16", "--shard", f"{part}/4")
        new, seen = staged(out) - seen, staged(out)
        others = {name for name in new if not name.endswith(".safetensors")}
        assert others == (
            {p.name for p in llama.iterdir() if p.suffix != ".safetensors"} if not part else set()
        )
        assert part == 0 or new


def kill_when(command: list, journal_of: Path, size: int) -> bool:
    """Starts the command and kills it once its journal has `size` bytes; False if it ended first."""
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    journal, until = None, time.monotonic() + 60
    while run.poll() is None and time.monotonic() < until:
        journal = journal or next(journal_of.glob(".*quantfold-partial/run/journal.*"), None)
        if journal and journal.exists() and journal.stat().st_size >= size:
            run.send_signal(signal.SIGKILL)
            break
    return run.wait(60) == -signal.SIGKILL


def test_killed_and_resumed(quantfold, llama, whole, tmp_path):
    """Ten times at random places: what was done is kept, and the output is that of a whole run."""
    rng, killed, kept = random.Random(11), 0, []
    for i in range(10):
        scheme = SCHEMES[i % len(SCHEMES)]
        out = tmp_path / f"{i}"
        command = ["checkpoint", "--model", llama, "--out", out, "--scheme", scheme]
        command += ["--manifest", "--no-fsync", "--resume", "--threads", rng.choice([1, 2])]
        died = kill_when([quantfold.binary, *command], out, rng.randrange(1, 4000))
        killed += died
        if died:
            assert not any(not p.name.startswith(".") for p in out.iterdir())
        result = quantfold(*command, "--json")
        assert result.code == 0, result.err
        assert snapshot(out) == whole[scheme], i
        totals = json.loads(result.out)
        if died:
            kept.append(totals["bytes_kept"])
            assert 0 < totals["bytes_kept"] <= totals["bytes_written"]
    assert killed >= 5, "too few kills came before the end: the test proves nothing"
    assert max(kept) > 1 << 20


def test_resume_of_another_scheme_keeps_nothing(quantfold, llama, whole, tmp_path):
    """What another scheme has left is not taken for its own."""
    command = ["checkpoint", "--model", llama, "--out", tmp_path, "--no-fsync", "--threads", 1]
    command += ["--manifest", "--resume", "--scheme"]
    assert kill_when([quantfold.binary, *command, "w4a16"], tmp_path, 500)
    result = quantfold(*command, "w8a16", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["bytes_kept"] == 0
    assert snapshot(tmp_path) == whole["w8a16"]


def test_a_source_that_changed_keeps_nothing_of_it(quantfold, tmp_path):
    """A weight is changed between the kill and the resumed run: the output is that of the new one."""
    source = tmp_path / "in"
    source.mkdir()
    write_checkpoint(source, Shape(512, 3, 512, False), "bf16", 8 << 20, make_pool("bf16", 1))
    out = tmp_path / "out"
    command = ["checkpoint", "--model", source, "--out", out, "--no-fsync", "--threads", 1]
    command += ["--resume", "--scheme", "w8a16"]
    assert kill_when([quantfold.binary, *command], out, 300)
    first = sorted(source.glob("*.safetensors"))[0]
    data = bytearray(first.read_bytes())
    data[-1000:] = bytes(1000)
    first.write_bytes(data)
    assert quantfold(*command).code == 0
    ck.run(quantfold, source, tmp_path / "fresh", "w8a16")
    assert snapshot(out) == snapshot(tmp_path / "fresh")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_manifest(quantfold, llama, whole, tmp_path, scheme):
    """Its parts cover every file, with their hashes, and its errors are those of the weights."""
    files = dict(whole[scheme])
    manifest = json.loads(files.pop("quantfold.manifest.json"))
    assert manifest["scheme"] == scheme and manifest["hash"] == "xxh3-128"
    listed = {f["name"]: f for f in manifest["files"]}
    assert set(listed) == set(files)
    for name, data in files.items():
        assert listed[name]["bytes"] == len(data)
        at = 0
        for part in listed[name]["parts"]:
            assert part["offset"] == at, (name, part)
            piece = data[at : at + part["bytes"]]
            assert part["hash"] == xxhash.xxh3_128_hexdigest(piece), (name, part)
            at += part["bytes"]
        assert at == len(data)
        (tmp_path / name).write_bytes(data)
    written, tensors = ck.read(tmp_path), ck.read(llama)
    layers = {l["layer"]: l for l in manifest["weights"]}
    linear = list(filter(ck.is_linear, tensors))
    assert set(layers) == {n.removesuffix(".weight") for n in linear}
    for name in linear:
        weight, stem = tensors[name].float().numpy(), name.removesuffix(".weight")
        scales = written[stem + ".weight_scale"].float().numpy()
        integers = ck.integers_of(weight, scales, ck.bits_of(scheme))
        wide = np.repeat(scales, weight.shape[1] // scales.shape[1], axis=1).astype(np.float64)
        noise, layer = weight - integers * wide, layers[stem]
        assert layer["elements"] == weight.size and layer["scales"] == scales.size
        assert np.isclose(layer["max_error"], np.abs(noise).max(), rtol=1e-5), layer
        assert np.isclose(layer["mean_square_error"], (noise**2).mean(), rtol=1e-5), layer
        sqnr = 10 * np.log10((weight.astype(np.float64) ** 2).sum() / (noise**2).sum())
        assert np.isclose(layer["sqnr_db"], sqnr, atol=1e-3), layer


def test_manifest_names_what_decided(quantfold, llama, tmp_path):
    """Patterns, config.json and given scales; two outputs of different requests differ in it."""
    scales = {n + "_scale": torch.tensor(0.01) for n in ck.read(llama) if ck.is_linear(n)}
    save_file(scales, tmp_path / "s.safetensors")
    given = ["--scales", tmp_path / "s.safetensors", "--include", "_proj", "--exclude", "up"]
    ck.run(quantfold, llama, tmp_path / "out", "w8a16", "--manifest", *given)
    manifest = json.loads((tmp_path / "out" / "quantfold.manifest.json").read_text())
    assert (manifest["include"], manifest["exclude"]) == ("_proj", "up")
    for key, file in (("config", llama / "config.json"), ("scales", tmp_path / "s.safetensors")):
        data = file.read_bytes()
        wanted = {"name": file.name, "bytes": len(data)}
        assert manifest[key] == wanted | {"hash": xxhash.xxh3_128_hexdigest(data)}
    copied = {p.name for p in llama.iterdir()} - {"config.json", "model.safetensors.index.json"}
    assert {i["name"] for i in manifest["inputs"]} == copied
