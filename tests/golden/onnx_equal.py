#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compare two ONNX models by meaning: onnx_equal.py OURS EXPECTED [-q]

Equal means: the same graph inputs and outputs (name, dtype, dims, in order), the same opset
imports, the same nodes by name (op_type, domain, inputs, outputs, attributes bit for bit), and the
same initializers by name (dtype, dims, bytes, wherever they are stored: raw, typed or external).
Also that OURS lists its nodes in an order in which every input is defined before it is used.
Ignored: node, attribute and initializer order, value_info, doc_string, producer, ir_version,
metadata. Exit status 0 equal, 1 different (each difference on a line), 2 unreadable.
"""

import argparse
import os
import struct
import sys

import numpy as np
import onnx

T = onnx.TensorProto
# typed field and the numpy type its elements take as raw little-endian bytes
TYPED = {
    T.FLOAT: ("float_data", "<f4"),
    T.DOUBLE: ("double_data", "<f8"),
    T.INT32: ("int32_data", "<i4"),
    T.INT64: ("int64_data", "<i8"),
    T.UINT64: ("uint64_data", "<u8"),
    T.UINT32: ("uint64_data", "<u4"),
    T.INT8: ("int32_data", "<i1"),
    T.UINT8: ("int32_data", "<u1"),
    T.INT16: ("int32_data", "<i2"),
    T.UINT16: ("int32_data", "<u2"),
    T.BOOL: ("int32_data", "<u1"),
    T.FLOAT16: ("int32_data", "<u2"),
    T.BFLOAT16: ("int32_data", "<u2"),
}


def payload(t, folder):
    """Bytes of a tensor as raw_data would hold them."""
    if t.data_location == T.EXTERNAL:
        e = {x.key: x.value for x in t.external_data}
        loc = e["location"]
        if os.path.isabs(loc) or ".." in loc.split("/"):
            raise ValueError(f"tensor {t.name}: external location leaves the folder: {loc}")
        with open(os.path.join(folder, loc), "rb") as f:
            f.seek(int(e.get("offset", 0)))
            n = int(e["length"]) if "length" in e else -1
            data = f.read(n)
        if n >= 0 and len(data) != n:
            raise ValueError(f"tensor {t.name}: {loc} is short, {len(data)} of {n} bytes")
        return data
    if t.data_type == T.STRING:
        return b"\0".join(t.string_data)
    if t.HasField("raw_data"):
        return t.raw_data
    if t.data_type not in TYPED:
        return b""
    field, np_type = TYPED[t.data_type]
    values = list(getattr(t, field))
    wide = {"<f4": "<f4", "<f8": "<f8", "<u8": "<u8", "<u4": "<u8"}.get(np_type, "<i8")
    return np.array(values, dtype=wide).astype(np_type).tobytes()


def tensor_key(t, folder):
    return (t.data_type, tuple(t.dims), payload(t, folder))


def attr_value(a, folder):
    A = onnx.AttributeProto
    if a.type == A.TENSOR:
        return ("tensor",) + tensor_key(a.t, folder)
    if a.type == A.FLOAT:
        return ("float", struct.pack("<f", a.f))
    if a.type == A.INT:
        return ("int", a.i)
    if a.type == A.STRING:
        return ("string", a.s)
    if a.type == A.FLOATS:
        return ("floats", tuple(struct.pack("<f", x) for x in a.floats))
    if a.type == A.INTS:
        return ("ints", tuple(a.ints))
    if a.type == A.STRINGS:
        return ("strings", tuple(a.strings))
    if a.type == A.GRAPH:
        return ("graph", a.g.SerializeToString(deterministic=True))
    return ("other", a.SerializeToString(deterministic=True))


def io_key(v):
    t = v.type.tensor_type
    dims = tuple(
        (
            d.dim_param
            if d.HasField("dim_param")
            else (d.dim_value if d.HasField("dim_value") else None)
        )
        for d in t.shape.dim
    )
    return (v.name, t.elem_type, dims)


def show(v, n=160):
    s = repr(v)
    return s if len(s) <= n else s[:n] + "..."


def compare(ours, want, out):
    models = []
    for path in (ours, want):
        models.append(
            (onnx.load(path, load_external_data=False), os.path.dirname(os.path.abspath(path)))
        )
    (a, fa), (b, fb) = models
    if {(o.domain, o.version) for o in a.opset_import} != {
        (o.domain, o.version) for o in b.opset_import
    }:
        out(
            f"opset_import: {[(o.domain, o.version) for o in a.opset_import]} != {[(o.domain, o.version) for o in b.opset_import]}"
        )
    for what in ("input", "output"):
        names = set(i.name for i in b.graph.initializer)
        va = [
            io_key(v)
            for v in getattr(a.graph, what)
            if what == "output" or v.name not in set(i.name for i in a.graph.initializer)
        ]
        vb = [io_key(v) for v in getattr(b.graph, what) if what == "output" or v.name not in names]
        if va != vb:
            out(f"graph {what}s: {show(va)} != {show(vb)}")
    ta = {t.name: t for t in a.graph.initializer}
    tb = {t.name: t for t in b.graph.initializer}
    for n in sorted(ta.keys() - tb.keys()):
        out(f"initializer only in ours: {n}")
    for n in sorted(tb.keys() - ta.keys()):
        out(f"initializer missing: {n}")
    for n in sorted(ta.keys() & tb.keys()):
        ka, kb = tensor_key(ta[n], fa), tensor_key(tb[n], fb)
        if ka[:2] != kb[:2]:
            out(f"initializer {n}: dtype, dims {ka[:2]} != {kb[:2]}")
        elif ka[2] != kb[2]:
            bad = [i for i, (x, y) in enumerate(zip(ka[2], kb[2])) if x != y]
            out(
                f"initializer {n}: {len(bad)} of {len(kb[2])} bytes differ, first at {bad[:1]}, lengths {len(ka[2])}, {len(kb[2])}"
            )
    na = {n.name: n for n in a.graph.node}
    nb = {n.name: n for n in b.graph.node}
    if len(na) != len(a.graph.node):
        out("ours has nodes that share a name, or have none")
    for n in sorted(na.keys() - nb.keys()):
        out(f"node only in ours: {n} ({na[n].op_type})")
    for n in sorted(nb.keys() - na.keys()):
        out(f"node missing: {n} ({nb[n].op_type})")
    for n in sorted(na.keys() & nb.keys()):
        x, y = na[n], nb[n]
        for f in ("op_type", "domain"):
            if getattr(x, f) != getattr(y, f):
                out(f"node {n}: {f} {getattr(x, f)!r} != {getattr(y, f)!r}")
        for f in ("input", "output"):
            if list(getattr(x, f)) != list(getattr(y, f)):
                out(f"node {n}: {f}s {list(getattr(x, f))} != {list(getattr(y, f))}")
        aa = {q.name: attr_value(q, fa) for q in x.attribute}
        ab = {q.name: attr_value(q, fb) for q in y.attribute}
        for k in sorted(aa.keys() | ab.keys()):
            if aa.get(k) != ab.get(k):
                out(f"node {n}: attribute {k} {show(aa.get(k))} != {show(ab.get(k))}")
    known = {v.name for v in a.graph.input} | set(ta) | {""}
    for n in a.graph.node:
        for i in n.input:
            if i not in known:
                out(f"node {n.name}: input {i} is used before it is defined")
        known.update(n.output)
    for v in a.graph.output:
        if v.name not in known:
            out(f"graph output {v.name} has no producer")


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("ours")
    p.add_argument("expected")
    p.add_argument("-q", action="store_true", help="print the count alone")
    args = p.parse_args()
    found = []
    try:
        compare(args.ours, args.expected, found.append)
    except Exception as e:  # noqa: BLE001 - anything unreadable is the answer
        print(f"unreadable: {e}")
        return 2
    if not args.q:
        for line in found[:200]:
            print(line)
    print(f"{'equal' if not found else f'{len(found)} differences'}: {args.ours}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
