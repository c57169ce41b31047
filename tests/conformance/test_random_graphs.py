# SPDX-License-Identifier: Apache-2.0
"""Seeded random graphs: what one pass does beside what another did, in combinations nobody lists.

Layers of every kind hang on each other at random, share inputs, feed graph outputs and one another;
some have records and some do not. Both outputs must equal the numpy reference's in every name.
"""

from __future__ import annotations

import random

import nets
import numpy as np
import pytest
from nets import F32, Net, conv, export_text, gemm, save_net

import make_record

SHAPE = (2, 4, 6, 6)
KINDS = ["conv", "conv", "bn", "deconv", "gemm", "matmul", "bias", "bias first", "pool"]
FLOATS = ["Relu", "Sigmoid", "Add"]


class Maker:
    """Builds one graph; every tensor on the way has the same shape, so anything fits anywhere."""

    def __init__(self, seed: int):
        self.rng, self.net, self.records = random.Random(seed), Net(), []
        self.made = [self.net.input("x", nets.random(*SHAPE, seed=seed))]
        if self.rng.random() < 0.4:
            self.made.append(self.net.input("z", nets.random(*SHAPE, seed=seed + 1)))
        inputs = len(self.made)
        for i in range(self.rng.randrange(3, 14)):
            self.made.append(self.add(i))
        self.outputs(self.made[inputs:])

    def record(self, key: str, scales: int) -> None:
        pick = self.rng.choice
        if self.rng.random() < 0.2:
            return
        lines = ['fakequant_precision_mode: "FORCE_FP16_QUANT"'] * (self.rng.random() < 0.1)
        self.records.append(
            make_record.Record(
                key,
                pick([0.03, 0.03, 0.05]),
                pick([-3, -3, 0]),
                [0.005 + 0.001 * i for i in range(scales)],
                pick(["INT8", "INT8", "INT8", "INT16"]),
                pick(["INT8", "INT8", "INT7"]),
                lines,
            )
        )

    def add(self, i: int) -> str:
        x, name = self.rng.choice(self.made[-4:]), f"n{i}"
        if self.rng.random() < 0.2:
            name = f"/block/{name}/Op"
        kind = self.rng.choice(KINDS + FLOATS)
        if kind in FLOATS:
            more = [self.rng.choice(self.made)] if kind == "Add" else []
            return self.net.op(kind, [x, *more], name)
        make = {"conv": self.conv, "bn": self.conv, "deconv": self.conv, "gemm": self.gemm}
        return make.get(kind, self.pool if kind == "pool" else self.matmul)(kind, name, x, i)

    def conv(self, kind: str, name: str, x: str, i: int) -> str:
        group = self.rng.choice([1, 2] if kind == "deconv" else [1, 2, 4])
        op = "ConvTranspose" if kind == "deconv" else "Conv"
        w, b = nets.random(4, 4 // group, 3, 3, seed=i, scale=0.3), nets.random(4, seed=i)
        y = conv(self.net, x, w, self.rng.choice([b, None]), name, group, op)
        self.record(name, self.rng.choice([1, 4]))
        if kind != "bn":
            return y
        stats = [np.abs(nets.random(4, seed=i + j)) + F32(0.1) for j in range(4)]
        names = [self.net.weight(f"{name}.bn{j}", s) for j, s in enumerate(stats)]
        epsilon = self.rng.choice([1e-5, 1e-3])
        return self.net.op("BatchNormalization", [y, *names], f"{name}_bn", epsilon=epsilon)

    def gemm(self, kind: str, name: str, x: str, i: int) -> str:
        shapes = {"flat": [48, 6], "back": list(SHAPE)}
        flat, back = (
            self.net.weight(f"{name}.{k}", np.array(v, np.int64)) for k, v in shapes.items()
        )
        y = self.net.op("Reshape", [x, flat], f"{name}_flat")
        b = self.rng.choice([nets.random(6, seed=i), None])
        y = gemm(self.net, y, nets.random(6, 6, seed=i), b, name, transB=self.rng.choice([0, 1]))
        self.record(name, 1)
        return self.net.op("Reshape", [y, back], f"{name}_back")

    def matmul(self, kind: str, name: str, x: str, i: int) -> str:
        y = self.net.op(
            "MatMul", [x, self.net.weight(f"{name}.w", nets.random(6, 6, seed=i))], name
        )
        self.record(name, 1)
        if kind == "matmul":
            return y
        b = self.net.weight(f"{name}.b", nets.random(6, seed=i))
        return self.net.op("Add", [b, y] if kind == "bias first" else [y, b], f"{name}_add")

    def pool(self, kind: str, name: str, x: str, i: int) -> str:
        self.record(name, 1)
        return self.net.op("AveragePool", [x], name, kernel_shape=[3, 3], pads=[1] * 4)

    def outputs(self, made: list[str]) -> None:
        chosen = set(self.rng.sample(made, min(len(made), self.rng.choice([1, 1, 2, 3]))))
        for name in made:
            if name in chosen or name == made[-1]:
                self.net.output(name)


@pytest.mark.parametrize("seed", range(150))
def test_random_graph(quantfold, tmp_path, seed):
    maker = Maker(seed)
    maker.rng.shuffle(maker.records)
    path = save_net(maker.net, tmp_path)
    export = export_text(quantfold, tmp_path, path, make_record.record_text(maker.records))
    nets.check_export(export, maker.net, nets.Options(snr=None))
