# SPDX-License-Identifier: Apache-2.0
"""Each rule about parameters: the exception's type, and that its message names the parameter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import quantfold.torch as amct  # noqa: E402
from quantfold.torch import params  # noqa: E402


@params.typed(config_file=str, model=torch.nn.Module, names=list | None)
def sample(config_file, model, names=None, free=None):
    """Stands for the public functions; returns what it got."""
    return config_file, model, names, free


def test_right_types_pass_through():
    model = torch.nn.ReLU()
    assert sample("c", model, free=3) == ("c", model, None, 3)
    assert sample("c", model, names=["x"]) == ("c", model, ["x"], None)
    assert sample.__name__ == "sample"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"config_file": 1, "model": torch.nn.ReLU()}, "sample: argument 'config_file' must be str"),
        ({"config_file": None, "model": torch.nn.ReLU()}, "'config_file' must be str, not NoneType"),
        ({"config_file": "c", "model": torch.nn.ReLU}, "'model' must be Module, not type"),
        ({"config_file": "c", "model": torch.nn.ReLU(), "names": "x"}, "'names' must be list or None"),
        ({"config_file": 1, "model": 2}, "'config_file'"),
        ({"config_file": "c"}, "missing a required argument: 'model'"),
    ],
)  # fmt: skip
def test_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        sample(**arguments)


@pytest.mark.parametrize("path", ["", "folder/", "/", "n" * 255, "folder/" + "n" * 255])
def test_bad_file_name(path):
    with pytest.raises(ValueError, match="record_file"):
        params.check_file_name(path, "record_file")


@pytest.mark.parametrize("path", ["r.txt", "no/such/folder/r.txt", "n" * 254, "~", ".."])
def test_good_file_name(path):
    params.check_file_name(path, "record_file")


def test_save_path_prefix():
    for path in ("", "./", "./model", "folder/" + "p" * 241, "p" * 300 + "/"):
        params.check_save_path(path)
    with pytest.raises(ValueError, match="save_path"):
        params.check_save_path("folder/" + "p" * 242)


@pytest.mark.parametrize("data", [None, [torch.zeros(1)], {"x": torch.zeros(1)}, 3])
def test_bad_input_data(data):
    with pytest.raises(RuntimeError, match="input_data"):
        params.check_input_data(data)


def test_good_input_data():
    params.check_input_data(torch.zeros(1))
    params.check_input_data((torch.zeros(1), 3))


@pytest.mark.parametrize("parameter", ["input_names", "output_names"])
def test_tensor_names(parameter):
    params.check_tensor_names(None, parameter)
    params.check_tensor_names([], parameter)
    params.check_tensor_names(["x", "y"], parameter)
    with pytest.raises(RuntimeError, match=parameter):
        params.check_tensor_names(["x", 1], parameter)


@pytest.mark.parametrize(
    "axes",
    [
        None,
        {},
        {"x": {0: "batch", 2: "h"}},
        {"x": [0, 2], "y": []},
        {"x": [True], "y": {False: "b"}},  # bool is an int
    ],
)
def test_good_dynamic_axes(axes):
    params.check_dynamic_axes(axes)


@pytest.mark.parametrize(
    "axes",
    [
        {0: ["x"]},
        {"x": 0},
        {"x": (0,)},
        {"x": None},
        {"x": {"0": "batch"}},
        {"x": {0: 1}},
        {"x": {0: None}},
        {"x": ["0"]},
        {"x": [0.0]},
    ],
)
def test_bad_dynamic_axes(axes):
    with pytest.raises(RuntimeError, match="dynamic_axes"):
        params.check_dynamic_axes(axes)


@pytest.mark.parametrize("axes", [{"x": [-1]}, {"x": {-1: "batch"}}, {"x": [0, -2]}])
def test_negative_axis(axes):
    with pytest.raises(RuntimeError, match="dynamic_axes.*negative number"):
        params.check_dynamic_axes(axes)


GOOD = {
    "config_file": "c.json",
    "model": torch.nn.ReLU(),
    "record_file": "r.txt",
    "save_path": "out/m",
    "pth_file": "c.pth",
    "input_data": torch.zeros(1),
    "input_names": None,
    "output_names": None,
    "dynamic_axes": None,
    "config_defination": None,
    "state_dict_name": None,
}
FUNCTIONS = {
    amct.create_quant_retrain_config: "config_file model input_data config_defination",
    amct.create_quant_retrain_model: "config_file model record_file input_data",
    amct.restore_quant_retrain_model: (
        "config_file model record_file input_data pth_file state_dict_name"
    ),
    amct.save_quant_retrain_model: (
        "config_file model record_file save_path input_data input_names output_names dynamic_axes"
    ),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_functions(function):
    """Every parameter of the four, in the reference's order; a wrong type, and a wrong name."""
    names = FUNCTIONS[function].split()
    assert list(function.__wrapped__.__code__.co_varnames[: len(names)]) == names
    for name in names:
        if name == "input_data":
            continue
        with pytest.raises(TypeError, match=name):
            function(**{n: GOOD[n] for n in names} | {name: 3})
    for name in {"config_file", "record_file"} & set(names):
        for bad in ("", "folder/", "n" * 255):
            with pytest.raises(ValueError, match=name):
                function(**{n: GOOD[n] for n in names} | {name: bad})
