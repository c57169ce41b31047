#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint quantized by compressed-tensors and PyTorch: `llm_peer.py FOLDER OUT SCHEME`.

    python bench/llm_peer.py FOLDER OUT w8a16|w8a8|w4a16[:group=N] [--float32]
    python bench/llm_peer.py --compare OURS THEIRS

The peer of bench/llm_bench.py: the weights that `quantfold checkpoint` chooses by default, the same
scheme, the same files. It goes shard by shard, so that it holds one shard and what becomes of it, as
one would write it who has less memory than the model needs: the package finds the scales,
quantizes and packs, safetensors reads and writes. Every file is synced, as quantfold's are. It
calculates in the dtype of the weights, as llmcompressor does; with --float32 the quotients are
float32, and integers are then the same as quantfold's. Prints the seconds of the work alone,
without those that Python takes to start and to import.

--compare reads two folders and prints how many integers and scales differ, and by how much.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
)
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors import safe_open
from safetensors.torch import save_file

STAY = ("embed", "norm", "lm_head")


def read_scheme(text: str) -> tuple[QuantizationScheme, str]:
    """The package's scheme, and the name of its format."""
    form, _, group = text.partition(":group=")
    weights = QuantizationArgs(
        num_bits=int(form[1]),
        type="int",
        symmetric=True,
        strategy="group" if group else "channel",
        group_size=int(group) if group else None,
    )
    if form != "w8a8":
        return QuantizationScheme(targets=["Linear"], weights=weights), "pack-quantized"
    token = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=token)
    return scheme, "int-quantized"


def is_linear(name: str, shape: list[int]) -> bool:
    return name.endswith(".weight") and len(shape) == 2 and not any(s in name for s in STAY)


def compress(
    weight: torch.Tensor, scheme: QuantizationScheme, format: str, wide: bool
) -> dict[str, torch.Tensor]:
    """What becomes of a weight, by local names."""
    groups = weight.unflatten(1, (-1, scheme.weights.group_size or weight.shape[1]))
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
    state = {"weight": weight, "weight_scale": scale}
    if wide:
        state = {"weight": weight.float(), "weight_scale": scale.float()}
    made = BaseCompressor.get_value_from_registry(format).compress(state, scheme)
    made["weight_scale"] = scale
    return made


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def quantize_shard(source: Path, target: Path, scheme, format: str, wide: bool) -> list[str]:
    """Writes a shard; returns the names of its tensors."""
    made: dict[str, torch.Tensor] = {}
    with safe_open(source, "pt") as f:
        for name in f.keys():
            tensor = f.get_tensor(name)
            if not is_linear(name, list(tensor.shape)):
                made[name] = tensor
                continue
            stem = name.removesuffix("weight")
            for local, value in compress(tensor, scheme, format, wide).items():
                made[stem + local] = value
    save_file(made, target, metadata={"format": "pt"})
    sync(target)
    return list(made)


def quantize(folder: Path, out: Path, text: str, wide: bool) -> None:
    scheme, format = read_scheme(text)
    out.mkdir(parents=True, exist_ok=True)
    shards = sorted(folder.glob("*.safetensors"))
    weight_map = {}
    for shard in shards:
        for name in quantize_shard(shard, out / shard.name, scheme, format, wide):
            weight_map[name] = shard.name
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, out / file.name)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    quantization = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=["lm_head"],
    )
    config["quantization_config"] = {
        **quantization.to_dict(),
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    for file in [*out.glob("*.json"), out]:
        sync(file)


# ---- comparing


def tensors(folder: Path) -> dict[str, Path]:
    found = {}
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, "pt") as f:
            found |= {name: shard for name in f.keys()}
    return found


def get(places: dict[str, Path], name: str) -> torch.Tensor:
    with safe_open(places[name], "pt") as f:
        return f.get_tensor(name)


def integers(places: dict[str, Path], name: str) -> torch.Tensor:
    tensor = get(places, name)
    if not name.endswith("_packed"):
        return tensor
    shape = get(places, name.removesuffix("packed") + "shape").tolist()
    bits = 8 if tensor.shape[1] == -(-shape[1] // 4) else 4
    return unpack_from_int32(tensor, bits, shape)


def compare(ours: Path, theirs: Path) -> dict[str, float]:
    """Of all that quantized weights have: how many differ and the largest difference."""
    a, b = tensors(ours), tensors(theirs)
    if a.keys() != b.keys():
        sys.exit(f"names differ: {sorted(a.keys() ^ b.keys())[:5]}")
    result = {"integers": 0, "different": 0, "largest": 0, "scales": 0, "different_scales": 0}
    for name in a:
        if name.endswith(".weight_scale"):
            x, y = get(a, name), get(b, name)
            result["scales"] += x.numel()
            result["different_scales"] += int((x != y.reshape(x.shape)).sum())
            stem = name.removesuffix("_scale")
            of = stem if stem in a else stem + "_packed"
            apart = (integers(a, of).int() - integers(b, of).int()).abs()
            result["integers"] += apart.numel()
            result["different"] += int((apart > 0).sum())
            result["largest"] = max(result["largest"], int(apart.max()))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("scheme", nargs="?")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--compare", action="store_true")
    args = parser.parse_args()
    if args.compare:
        print(json.dumps(compare(args.folder, args.out)))
    elif args.scheme:
        begun = time.perf_counter()
        quantize(args.folder, args.out, args.scheme, args.float32)
        print(json.dumps({"seconds": time.perf_counter() - begun}))
    else:
        parser.error("a scheme is needed")


if __name__ == "__main__":
    main()
