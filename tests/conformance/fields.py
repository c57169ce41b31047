# SPDX-License-Identifier: Apache-2.0
"""Tensors in each of the data fields that ONNX has: packed, as all writers write them, and with a tag
before each element, as proto2 wrote repeated fields. Readers must take both."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper


def varint(value: int) -> bytes:
    """As protobuf writes an int32, int64 or uint64."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


FIELDS = {"float_data": 4, "int32_data": 5, "int64_data": 7, "double_data": 10, "uint64_data": 11}

BY_DTYPE = {"float32": "float_data", "float64": "double_data", "int64": "int64_data"}
BY_DTYPE |= {"uint32": "uint64_data", "uint64": "uint64_data"}  # others: int32_data


def unpacked_bytes(tensor: TensorProto, field: str, values) -> bytes:
    """A serialized tensor with a tag before each element, as proto2 wrote repeated fields; the
    Python package reads that and never writes it."""
    bare = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    number, out = FIELDS[field], bare.SerializeToString()
    for v in values:
        if field == "float_data":
            out += varint(number << 3 | 5) + struct.pack("<f", v)
        elif field == "double_data":
            out += varint(number << 3 | 1) + struct.pack("<d", v)
        else:
            out += varint(number << 3) + varint(int(v))
    return out


def save_unpacked(model: onnx.ModelProto, path: Path, tensors: dict[str, bytes]) -> None:
    """The model with some initializers in that form."""
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    graph.initializer.extend(t for t in model.graph.initializer if t.name not in tensors)
    inside = graph.SerializeToString()
    for data in tensors.values():
        inside += b"\x2a" + varint(len(data)) + data
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    bare.ClearField("graph")
    path.write_bytes(bare.SerializeToString() + b"\x3a" + varint(len(inside)) + inside)
    assert onnx.load(path).graph.initializer  # the package can read what was made


def stored_values(tensor: TensorProto) -> tuple[str, list]:
    """The data field of a tensor's dtype, and its values as that field has them."""
    array = numpy_helper.to_array(tensor).reshape(-1)
    kind = tensor.data_type
    if kind in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return "int32_data", array.view(np.uint16).tolist()
    if kind in (TensorProto.INT4, TensorProto.UINT4):
        return "int32_data", list(numpy_helper.from_array(array).raw_data)
    if kind == TensorProto.BOOL:
        array = array.view(np.uint8)
    if array.dtype.kind == "c":  # the real part and the imaginary one
        array = array.view(array.real.dtype)
    return BY_DTYPE.get(array.dtype.name, "int32_data"), array.tolist()


def pack(tensor: TensorProto) -> TensorProto:
    """The tensor with its values in the field of its dtype in place of raw_data."""
    field, values = stored_values(tensor)
    tensor.ClearField("raw_data")
    getattr(tensor, field).extend(values)
    return tensor


def store(model: onnx.ModelProto, path: Path, form: str, names: tuple) -> None:
    """Saves a model with some tensors in raw_data, in a packed field, or in an unpacked one."""
    chosen = [t for t in model.graph.initializer if t.name in names]
    assert len(chosen) == len(names)
    if form == "unpacked":
        save_unpacked(model, path, {t.name: unpacked_bytes(t, *stored_values(t)) for t in chosen})
        return
    for t in chosen:
        if form == "packed":
            pack(t)
    path.write_bytes(model.SerializeToString())
