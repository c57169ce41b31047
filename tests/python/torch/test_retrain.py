# SPDX-License-Identifier: Apache-2.0
"""Training, restoring and saving with quantfold.torch: the documented flow, gradients, errors."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import onnx  # noqa: E402
import quantfold.torch as amct  # noqa: E402
from quantfold.torch import layers, quantizers, retrain, save  # noqa: E402
from torch import nn  # noqa: E402

from support import run_model, sqnr_db  # noqa: E402


class Net(nn.Module):
    """Two convolutions that read the same tensor, a batch norm, a transposed one, pooling, a linear
    layer; a weight that is used twice, and a conv that pads in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 1)
        self.round = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.up, self.pool = nn.ConvTranspose2d(8, 4, 2, stride=2, groups=2), nn.AvgPool2d(2)
        self.fc = nn.Linear(4 * 64, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.left(x)) + self.right(x)
        x = self.round(self.twice(torch.relu(self.twice(x))))
        return self.fc(self.pool(self.up(torch.relu(x))).flatten(1))


@pytest.fixture
def data() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def files(tmp_path) -> tuple[str, str, str]:
    return tuple(str(tmp_path / n) for n in ("config.json", "record.txt", "out/m"))


def edit(config: str, change) -> None:
    content = json.loads(Path(config).read_text())
    change(content)
    Path(config).write_text(json.dumps(content))


def steps(model: nn.Module, data: torch.Tensor, n: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for _ in range(n):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()


def make(files, data, change=None, net: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    net = net or Net()
    amct.create_quant_retrain_config(files[0], net, data)
    if change:
        edit(files[0], change)
    return amct.create_quant_retrain_model(files[0], net, files[1], data)


def test_documented_flow(files, data):
    """create, train, infer, save; the fake_quant model gives what the QAT model gives."""
    net = Net()
    before = copy.deepcopy(net.state_dict())
    model = make(files, data, net=net)
    assert list(retrain.quantized_layers(model)) == ["stem", "left", "right", "up", "fc"]
    assert Path(files[1]).read_text() == ""
    steps(model, data)
    assert Path(files[1]).read_text() == ""  # training writes none
    model.eval()
    with torch.no_grad():
        wanted = model(data).numpy()
    assert Path(files[1]).read_text().count("record {") == 5
    amct.save_quant_retrain_model(*files[:1], model, files[1], files[2], data)
    (ours,) = run_model(Path(files[2] + "_fake_quant_model.onnx"), [data.numpy()])
    assert sqnr_db(wanted, ours) >= 40
    kinds = [n.op_type for n in onnx.load(files[2] + "_deploy_model.onnx").graph.node]
    assert kinds.count("AscendDequant") == 5 and kinds.count("AscendQuant") == 4
    assert "BatchNormalization" not in kinds
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())  # a copy is trained


def test_more_modules(files, data):
    """AvgPool, and a transposed convolution of three dimensions, where a config lists them."""

    class More(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.up = nn.AvgPool2d(2), nn.ConvTranspose3d(1, 2, 2)

        def forward(self, x):
            return self.up(self.pool(x).unsqueeze(1))

    torch.manual_seed(2)
    net = More()
    Path(files[0]).write_text(json.dumps({"version": 1, "batch_num": 1, "pool": {}, "up": {}}))
    model = amct.create_quant_retrain_model(files[0], net, files[1], data)
    steps(model, data)
    model.eval()
    wanted = model(data).detach().numpy()
    amct.save_quant_retrain_model(files[0], model, files[1], files[2], data)
    (ours,) = run_model(Path(files[2] + "_fake_quant_model.onnx"), [data.numpy()])
    assert sqnr_db(wanted, ours) >= 40


def test_names_and_axes(files, data):
    model = make(files, data)
    model.eval()(data)
    axes = {"image": {0: "n"}, "scores": [0]}
    amct.save_quant_retrain_model(
        files[0], model, files[1], files[2], data, ["image"], ["scores"], axes
    )
    graph = onnx.load(files[2] + "_deploy_model.onnx").graph
    dims = {
        v.name: v.type.tensor_type.shape.dim[0].dim_param for v in [*graph.input, *graph.output]
    }
    assert dims == {"image": "n", "scores": "scores_dynamic_axes_1"}
    (many,) = run_model(
        Path(files[2] + "_fake_quant_model.onnx"), [np.zeros((9, 3, 8, 8), np.float32)]
    )
    assert many.shape == (9, 10)


@pytest.mark.parametrize("name", [None, "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_restore(files, data, tmp_path, name, prefix):
    """A checkpoint gives the same output and record; a missing name is a KeyError."""
    model = make(files, data)
    steps(model, data)
    model.eval()
    wanted, record = model(data), Path(files[1]).read_text()
    state = {prefix + k: v for k, v in model.state_dict().items()}
    pth = str(tmp_path / "c.pth")
    torch.save({name: state} if name else state, pth)
    again = amct.restore_quant_retrain_model(files[0], Net(), files[1], data, pth, name)
    again.eval()
    assert torch.equal(again(data), wanted) and Path(files[1]).read_text() == record
    with pytest.raises(KeyError, match="state_dict_name"):
        amct.restore_quant_retrain_model(files[0], Net(), files[1], data, pth, "nothing")


def test_copies(files, data):
    """A QAT model can be copied and pickled, and a copy saved."""
    model = make(files, data)
    model.eval()
    wanted = model(data)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.DataParallel(model)):
        assert torch.equal(twin(data), wanted)
        amct.save_quant_retrain_model(files[0], twin, files[1], files[2], data)


def test_saving_changes_nothing(files, data):
    model = make(files, data)
    steps(model, data)
    model.eval()
    before, names = model(data), [n for n, _ in model.named_modules()]
    for bad in (files[2], "/dev/null/no/m"):
        try:
            amct.save_quant_retrain_model(files[0], model, files[1], bad, data)
        except OSError:
            assert bad != files[2]
    assert [n for n, _ in model.named_modules()] == names and torch.equal(model(data), before)
    steps(model, data)
    model.eval()(data)  # the record is written anew


class Stacked(nn.Module):
    """What a function makes between the layers is gone by the time that the next one runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.fc = nn.Linear(32 * 4, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 2)
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


def test_batch_norms_are_found(data):
    """Again and again: what a conv makes must not be taken for a tensor that is gone."""
    for _ in range(100):
        found = layers.look_at(Stacked(), data)
        assert found.batch_norm == {"conv1": "bn1", "conv2": "bn2"}


def test_batch_num(files, data):
    """Clips are found once there were so many batches; there is no record before."""
    model = make(files, data, lambda c: c.update(batch_num=3))
    model.eval()
    for i in range(3):
        assert Path(files[1]).read_text() == "" and not model.stem.activation.ready
        model(data * (i + 1))
    assert Path(files[1]).read_text().count("record {") == 5
    assert model.stem.activation.clip_max.item() == pytest.approx(
        float((3 * data).abs().max()), rel=0.31
    )


# ---- arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("low, high", [(-0.7, 2.0), (0.0, 1.0), (0.3, 1.5), (-2.0, -0.5), (0, 0)])
def test_activation_scale(low, high, bits):
    """Against numpy: the range holds 0, and has 2^bits - 1 steps."""
    scale, offset = quantizers.activation_scale(torch.tensor(high), torch.tensor(low), bits)
    most, least = np.float32(max(high, 0)), np.float32(min(low, 0))
    wanted = (most - least) / np.float32(2**bits - 1)
    if wanted < np.finfo(np.float32).eps:
        assert (float(scale), float(offset)) == (1.0, -(2 ** (bits - 1)))
        return
    assert np.float32(scale) == wanted
    assert float(offset) == np.rint(np.float32(-(2 ** (bits - 1))) - least / wanted)


def test_fake_quantization_is_the_exports():
    """Values on ties, beyond the range and in it, as AscendQuant and its expansion have them."""
    x = torch.linspace(-3, 3, 20001)
    high, low = torch.tensor(1.27), torch.tensor(-1.28)
    scale, offset = (v.numpy() for v in quantizers.activation_scale(high, low, 8))
    q = np.clip(np.rint(x.numpy() * (np.float32(1) / scale)) + offset, -128, 127)
    ours = quantizers.UlqActivation.apply(x, high, low, 8)
    assert np.array_equal(ours.numpy(), ((q - offset) * scale).astype(np.float32))


def test_gradients():
    """Of the input: 1 inside the range, 0 outside. Of a clip: 1 for each value beyond it, and what a
    change of the scale does to the rounding error of those inside, by hand."""
    x = torch.tensor([-5.0, -0.33, 0.1, 0.77, 9.0], requires_grad=True)
    high, low = torch.tensor(2.0, requires_grad=True), torch.tensor(-1.0, requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (quantizers.UlqActivation.apply(x, high, low, 8) * weights).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 0.0]))
    scale = np.float32(3) / np.float32(255)
    clipped = np.array([-1.0, -0.33, 0.1, 0.77, 2.0], np.float32) / scale
    error = (np.rint(clipped) - clipped) / 255 * weights.numpy()
    assert float(high.grad) == pytest.approx(error.sum() + 5.0, rel=1e-5)
    assert float(low.grad) == pytest.approx(1.0 - error.sum(), rel=1e-5)


def test_weight_scale_gradient():
    """By hand: the rounding error inside the range, the bound beyond it, over sqrt(n * 127)."""
    rows = torch.tensor([[0.13, -0.52, 3.0], [0.07, -3.0, 0.2]], requires_grad=True)
    scale = torch.tensor([0.02, 0.02], requires_grad=True)
    grad = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    (quantizers.UlqWeight.apply(rows, scale, 8) * grad).sum().backward()
    steps = rows.detach().numpy() / np.float32(0.02)
    moved = np.where(steps > 127, 127, np.where(steps < -128, -128, np.rint(steps) - steps))
    wanted = (moved * grad.numpy()).sum(1) / np.sqrt(3 * 127)
    assert np.allclose(scale.grad.numpy(), wanted, rtol=1e-5) and torch.equal(rows.grad, grad)


def learned(config: dict) -> None:
    for layer in config.values():
        if isinstance(layer, dict):
            layer["retrain_weight_config"]["algo"] = "ulq_retrain"


def test_learned_weight_scales(files, data):
    """ulq_retrain: scales begin as ARQ's, move with training, and are those of the record."""
    model = make(files, data, learned)
    steps(model, data, 1)
    first = model.left.weight.scale.detach().clone()
    assert first.shape == (8,) and model.fc.weight.scale.shape == (1,)
    steps(model, data, 3)
    assert not torch.equal(model.left.weight.scale, first)
    model.eval()
    with torch.no_grad():
        wanted = model(data).numpy()
    scale = model.fc.weight.scale.item()
    assert f"scale_w: {np.float32(scale)!s}" in Path(files[1]).read_text()
    amct.save_quant_retrain_model(files[0], model, files[1], files[2], data)
    (ours,) = run_model(Path(files[2] + "_fake_quant_model.onnx"), [data.numpy()])
    assert sqnr_db(wanted, ours) >= 40


def test_fixed_min(files, data):
    """The least value stays 0 whatever is learned."""
    part = {"clip_max": 2.0, "clip_min": -0.5, "fixed_min": True}
    model = make(files, data, lambda c: c["left"]["retrain_data_config"].update(part))
    steps(model, data)
    model.eval()(data)
    scale, offset = model.left.activation.factors()
    assert offset == -128 and scale == pytest.approx(model.left.activation.clip_max.item() / 255)


def test_same_input_same_scale(files, data):
    """Layers that read one tensor share its quantizer, if they are configured alike."""
    model = make(files, data)
    assert model.left.activation is model.right.activation
    other = make(files, data, lambda c: c["right"]["retrain_data_config"].update(fixed_min=True))
    assert other.left.activation is not other.right.activation


# ---- what is refused ---------------------------------------------------------------------------

WRONG_CONFIGS = {
    "version missing": (lambda c: c.pop("version"), ValueError, "version"),
    "version 2": (lambda c: c.update(version=2), ValueError, "version"),
    "batch_num 0": (lambda c: c.update(batch_num=0), ValueError, "batch_num"),
    "batch_num text": (lambda c: c.update(batch_num="1"), TypeError, "batch_num"),
    "mode": (lambda c: c.update(fakequant_precision_mode="X"), ValueError, "fakequant_precision"),
    "layer": (lambda c: c.update(stemm={}), ValueError, "unsupported layer 'stemm'"),
    "reused": (lambda c: c.update(twice={}), ValueError, "not called exactly once"),
    "padding": (lambda c: c.update(round={}), ValueError, "padding mode is circular"),
    "no dict": (lambda c: c.update(stem=1), ValueError, "should be a dict"),
    "enable": (lambda c: c["stem"].update(retrain_enable=1), TypeError, "retrain_enable"),
    "algo": (lambda c: c["stem"]["retrain_data_config"].update(algo="x"), ValueError, "algo"),
    "one clip": (lambda c: data_of(c).update(clip_max=1.0), ValueError, "Invalid keys in data"),
    "clip int": (lambda c: data_of(c).update(clip_max=1, clip_min=-1.0), ValueError, "clip_max"),
    "clip sign": (lambda c: data_of(c).update(clip_max=1.0, clip_min=1.0), ValueError, "clip_min"),
    "type": (lambda c: data_of(c).update(dst_type="INT5"), ValueError, "dst_type"),
    "types": (lambda c: data_of(c).update(dst_type="INT4"), ValueError, "do not go together"),
    "channels": (
        lambda c: c["fc"]["retrain_weight_config"].update(channel_wise=True),
        ValueError,
        "can not be channewised",
    ),
    "prune": (lambda c: c["stem"].update(regular_prune_enable=True), ValueError, "prun"),
    "none": (
        lambda c: [v.update(retrain_enable=False) for v in c.values() if isinstance(v, dict)],
        ValueError,
        "No layer retrain enabled",
    ),
}


def data_of(config: dict) -> dict:
    return config["stem"]["retrain_data_config"]


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_wrong_config(files, data, name):
    change, kind, words = WRONG_CONFIGS[name]
    with pytest.raises(kind, match=words):
        make(files, data, change)


def test_config_text(files, data):
    make(files, data)
    Path(files[0]).write_text('{"version": 1, "version": 1}')
    with pytest.raises(ValueError, match="repeated"):
        amct.create_quant_retrain_model(files[0], Net(), files[1], data)
    Path(files[0]).write_text("{")
    with pytest.raises(json.JSONDecodeError):
        amct.create_quant_retrain_model(files[0], Net(), files[1], data)
    with pytest.raises(FileNotFoundError):
        amct.create_quant_retrain_model(files[0] + "x", Net(), files[1], data)


def test_definition_errors(files, data, tmp_path):
    definition = tmp_path / "d.cfg"
    for text, kind in (("batch_nom: 1", RuntimeError), ('skip_layers: "no"', ValueError)):
        definition.write_text(text)
        with pytest.raises(kind, match="config_defination"):
            amct.create_quant_retrain_config(files[0], Net(), data, str(definition))


def test_saving_errors(files, data):
    with pytest.raises(RuntimeError, match="not a model after quantitative retraining"):
        amct.save_quant_retrain_model(files[0], Net(), files[1], files[2], data)
    model = make(files, data)
    with pytest.raises(RuntimeError, match="record_file is empty"):
        amct.save_quant_retrain_model(files[0], model, files[1], files[2], data)
    model.eval()(data)
    with pytest.raises(FileNotFoundError):
        amct.save_quant_retrain_model(files[0], model, files[1] + "x", files[2], data)
    with pytest.raises(RuntimeError, match="input_data"):
        amct.save_quant_retrain_model(files[0], model, files[1], files[2], [data])
    with pytest.raises(ValueError, match="save_path"):
        amct.save_quant_retrain_model(files[0], model, files[1], "x" * 242, data)
    text = Path(files[1]).read_text()
    Path(files[1]).write_text(text.replace("offset_w: 0", "offset_w: 1", 1))
    with pytest.raises(RuntimeError, match="weight offsets must be 0"):
        amct.save_quant_retrain_model(files[0], model, files[1], files[2], data)
    Path(files[1]).write_text(text)
    edit(files[0], lambda c: c.update(batch_num=2))
    with pytest.raises(RuntimeError, match="inconsistent"):
        amct.save_quant_retrain_model(files[0], model, files[1], files[2], data)
    with pytest.raises(RuntimeError, match="already"):
        amct.create_quant_retrain_model(files[0], model, files[1], data)


def test_digits(tmp_path, repo):
    """The example: as right after as before, within half a point."""
    env = {**__import__("os").environ, "PYTHONPATH": str(repo / "python")}
    run = subprocess.run(
        [sys.executable, repo / "datasets" / "qat_digits.py", tmp_path],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    right = json.loads((tmp_path / "accuracy.json").read_text())
    assert right["QAT"] >= 0.97 and abs(right["fake_quant"] - right["QAT"]) <= 0.005
    assert [line.split()[0] for line in run.stdout.splitlines()] == ["float", "QAT", "fake_quant"]


def test_float_view(files, data):
    """Inside, the network is the float one; outside, all is as it was, also after an exception."""
    model = make(files, data)
    with pytest.raises(LookupError):
        with save.float_view(model) as network:
            assert not retrain.quantized_layers(network)
            assert isinstance(network.bn, nn.BatchNorm2d) and not network.training
            raise LookupError
    assert len(retrain.quantized_layers(model)) == 5 and isinstance(model.bn, nn.Identity)
