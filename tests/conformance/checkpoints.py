# SPDX-License-Identifier: Apache-2.0
"""Small Hugging Face folders, and what `quantfold checkpoint` must make of them: its arithmetic in
NumPy, written from docs/checkpoint.md."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import ml_dtypes
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support import Quantfold, Result

FLOATS = {
    "bf16": (torch.bfloat16, ml_dtypes.bfloat16, 2.0**-7),
    "fp16": (torch.float16, np.float16, 2.0**-10),
    "fp32": (torch.float32, np.float32, 2.0**-23),
}
TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def normal(rows: int, cols: int, seed: int) -> torch.Tensor:
    """Weights with a few outliers, a row of zeros, and one row whose largest is negative."""
    values = np.random.default_rng(seed).normal(0, 0.02, (rows, cols)).astype(np.float32)
    values[seed % rows] = 0
    values[(seed + 1) % rows, cols // 2] = -0.5
    values[(seed + 2) % rows, 1] = 0.25
    return torch.from_numpy(values)


def model(dtype: str = "bf16", layers: int = 2, tied: bool = False) -> dict[str, torch.Tensor]:
    """Tensors as a Llama has them: linear weights of several shapes, norms, an embedding."""
    out = {"model.embed_tokens.weight": normal(128, 64, 900)}
    for i in range(layers):
        at = f"model.layers.{i}."
        out[at + "input_layernorm.weight"] = torch.ones(64)
        out[at + "self_attn.q_proj.weight"] = normal(64, 64, 10 * i)
        out[at + "self_attn.k_proj.weight"] = normal(32, 64, 10 * i + 1)
        out[at + "self_attn.v_proj.weight"] = normal(32, 64, 10 * i + 2)
        out[at + "self_attn.o_proj.weight"] = normal(64, 64, 10 * i + 3)
        out[at + "mlp.gate_proj.weight"] = normal(96, 64, 10 * i + 4)
        out[at + "mlp.up_proj.weight"] = normal(96, 64, 10 * i + 5)
        out[at + "mlp.down_proj.weight"] = normal(64, 96, 10 * i + 6)
    out["model.norm.weight"] = torch.ones(64)
    if not tied:
        out["lm_head.weight"] = normal(128, 64, 901)
    return {name: t.to(FLOATS[dtype][0]) for name, t in out.items()}


def config(dtype: str = "bf16", **more) -> dict:
    """A config.json; its numbers are of kinds that must stay as they are written."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": TORCH_NAMES[dtype],
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-05,
        **more,
    }


def write(
    folder: Path, tensors: dict[str, torch.Tensor], shards: int = 1, settings: dict | None = None
) -> Path:
    """A checkpoint in one file, or in several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings or config(), indent=2))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[k::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= {n: file for n in part}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, by the safetensors package; in the file that the index names."""
    found: dict[str, torch.Tensor] = {}
    place: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for name in f.keys():
                assert name not in found, name
                found[name], place[name] = f.get_tensor(name), file.name
    index = folder / "model.safetensors.index.json"
    if index.exists():
        stated = json.loads(index.read_text())
        assert stated["weight_map"] == place
        bytes_of = (t.numel() * t.element_size() for t in found.values())
        assert stated["metadata"]["total_size"] == sum(bytes_of)
    return found


def quantization(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def run(
    quantfold: Quantfold, source: Path, out: Path, scheme: str, *extra, code: int = 0
) -> Result:
    command = ["checkpoint", "--model", source, "--out", out, "--scheme", scheme]
    result = quantfold(*command, *extra, "--no-fsync")
    assert result.code == code, f"exit {result.code}, not {code}:\n{result.err[-3000:]}"
    return result


# ---- the arithmetic


def bits_of(scheme: str) -> int:
    return 4 if scheme.startswith("w4") else 8


def group_of(scheme: str) -> int:
    return int(scheme.partition("=")[2] or 0)


def scales_of(weight: np.ndarray, dtype: str, bits: int, group: int) -> np.ndarray:
    """[rows, groups]: values of the scales' dtype, as float32."""
    _, rounded, epsilon = FLOATS[dtype]
    rows, cols = weight.shape
    largest = np.abs(weight).reshape(rows, -1, group or cols).max(-1)
    scales = (largest / np.float32(2 ** (bits - 1) - 0.5)).astype(rounded).astype(np.float32)
    return np.where(scales == 0, np.float32(epsilon), scales)


def integers_of(weight: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    most = 2 ** (bits - 1)
    wide = np.repeat(scales, weight.shape[1] // scales.shape[1], axis=1)
    return np.clip(np.rint(weight / wide), -most, most - 1).astype(np.int8)


def words_of(integers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned by an offset, the first element lowest in its word, the last word filled with 0."""
    rows, cols = integers.shape
    each = 32 // bits
    padded = np.zeros((rows, -(-cols // each) * each), np.uint32)
    padded[:, :cols] = integers.astype(np.int32) + (1 << (bits - 1))
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    return (
        (padded.reshape(rows, -1, each) << shifts)
        .sum(-1, dtype=np.uint64)
        .astype(np.uint32)
        .view(np.int32)
    )


def assert_quantized(
    written: dict[str, torch.Tensor],
    name: str,
    weight: torch.Tensor,
    scheme: str,
    scales: np.ndarray | None = None,
    dtype: str | None = None,
) -> None:
    """What was written for weight `name` equals the arithmetic bit for bit; `scales`: given ones."""
    stem, bits, group = name.removesuffix(".weight"), bits_of(scheme), group_of(scheme)
    dtype = dtype or next(d for d, (t, _, _) in FLOATS.items() if t == weight.dtype)
    values = weight.float().numpy()
    if scales is None:
        scales = scales_of(values, dtype, bits, group)
    integers = integers_of(values, scales, bits)
    stored = written[stem + ".weight_scale"]
    assert stored.dtype == FLOATS[dtype][0], stem
    assert stored.shape == scales.shape, stem
    assert np.array_equal(stored.float().numpy(), scales), stem
    if scheme == "w8a8":
        ours = written[name]
        assert ours.dtype == torch.int8 and stem + ".weight_packed" not in written
        assert np.array_equal(ours.numpy(), integers), stem
        return
    ours = written[stem + ".weight_packed"]
    assert ours.dtype == torch.int32 and name not in written
    assert np.array_equal(ours.numpy(), words_of(integers, bits)), stem
    shape = written[stem + ".weight_shape"]
    assert shape.dtype == torch.int64 and shape.tolist() == list(weight.shape)


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")
