"""What bits cost, and in which order to take them away.

    size     sum over weights   |W| * (bits that store them) / 8          bytes
    BOPs     sum over products  MACs * b_a * b_b                          bit operations a sample
             (van Baalen et al. 2020, "Bayesian Bits", arXiv:2005.07093, and AIMET count so; float has 32 bits)
    N        sum over units u   N_u(b_u)                                  noise, taken as additive

A unit is whatever has bits of its own: weights, or the grid of an activation. The path goes from the most bits
everywhere to the fewest. Each step gives one unit fewer bits: the one, and so many, that

    (N_u(b') - N_u(b)) / (cost before - cost after)

is least, which follows the lower convex hull of N over cost, as a Lagrange multiplier would. An activation that no
product reads costs its elements times its bits in this: it has no bit operations, but fewer bits are better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx_graphsurgeon as gs

from ..execution.workload import Workload
from ..graph.model import Model, Quantizer, grid_root
from ..numeric.quant import Grid
from ..operators.linear import linear_layers
from ..operators.registry import operands

Bits = Mapping[str, int]
"""Unit -> bits. Units bear the name of the tensor whose quantizer decides their grid."""

Cost = Literal["bops", "size"]

FLOAT_BITS = 32


@dataclass(frozen=True)
class BitCosts:
    """products: multiplications a sample, and the units that they multiply, None for float.  weights: elements, and
    their unit.  idle: elements of activations that no product reads, by unit."""

    products: tuple[tuple[float, str | None, str | None], ...]
    weights: tuple[tuple[int, str | None], ...]
    idle: Mapping[str, float]

    @classmethod
    def of(cls, model: Model, quantizers: Mapping[str, Quantizer], work: Workload) -> BitCosts:
        """Of a float model on whose tensors the quantizers sit. work: of one run of it."""

        def unit(node: gs.Node, tensor: gs.Tensor) -> str | None:
            quantizer = quantizers.get(tensor.name)
            if quantizer is None or (isinstance(tensor, gs.Constant) and node.name not in quantizer.readers):
                return None
            return grid_root(quantizers, tensor.name)

        nodes = [node for node in model.graph.nodes if node.name in work.products]
        units = {node.name: [unit(node, node.inputs[index]) for index in operands(node)] for node in nodes}
        layers = linear_layers(nodes)
        weights = {id(layer.weight): (int(layer.weight.values.size), units[layer.node.name][1]) for layer in layers}
        busy = {name for pair in units.values() for name in pair}
        idle: dict[str, float] = {}
        for name in quantizers:
            if (root := grid_root(quantizers, name)) not in busy:
                idle[root] = idle.get(root, 0.0) + work.elements(name) / work.rows
        products = tuple((work.products[name] / work.rows, a, b) for name, (a, b) in units.items())
        return cls(products, tuple(weights.values()), idle)

    def bops(self, bits: Bits) -> float:
        """Bit operations a sample."""
        return sum(count * _width(bits, a) * _width(bits, b) for count, a, b in self.products)

    def size(self, bits: Bits) -> int:
        """Bytes of the weights of all linear layers."""
        return sum(_bytes(count, _width(bits, unit)) for count, unit in self.weights)

    def mean_bits(self, bits: Bits) -> str:
        """Of weights by their number, of activations by what multiplies them, as `w5.2 a8.0`."""
        held = sum(count for count, _ in self.weights) or 1
        weights = sum(count * _width(bits, unit) for count, unit in self.weights) / held
        done = sum(count for count, *_ in self.products) or 1
        activations = sum(count * _width(bits, a) for count, a, _ in self.products) / done
        return f"w{weights:.1f} a{activations:.1f}"

    def saved(self, cost: Cost, bits: Bits, unit: str, to: int) -> float:
        """What `cost` falls by when a unit goes to so many bits."""
        now = bits[unit]
        if cost == "size":
            return sum(_bytes(n, now) - _bytes(n, to) for n in self._held_by.get(unit, ()))
        idle = self.idle.get(unit, 0.0) * (now - to)
        changed = {**bits, unit: to} if unit in self._read_by else bits
        terms = self._read_by.get(unit, ())
        return idle + sum(n * (_product(bits, a, b) - _product(changed, a, b)) for n, a, b in terms)

    @cached_property
    def _read_by(self) -> dict[str, list[tuple[float, str | None, str | None]]]:
        found: dict[str, list[tuple[float, str | None, str | None]]] = {}
        for term in self.products:
            for unit in {term[1], term[2]} - {None}:
                found.setdefault(str(unit), []).append(term)
        return found

    @cached_property
    def _held_by(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for count, unit in self.weights:
            if unit is not None:
                found.setdefault(unit, []).append(count)
        return found


def _width(bits: Bits, unit: str | None) -> int:
    return FLOAT_BITS if unit is None else bits[unit]


def _product(bits: Bits, a: str | None, b: str | None) -> int:
    return _width(bits, a) * _width(bits, b)


def _bytes(count: int, width: int) -> int:
    return -(-count * Grid(width, signed=True).stored_bits // 8)


def path(noise: Mapping[str, Mapping[int, float]], costs: BitCosts, cost: Cost) -> list[Bits]:
    """From the most bits everywhere to the fewest that save something, one unit a step.

    noise: unit -> bits -> N_u, of all candidates.
    """
    bits: dict[str, int] = {unit: max(choices) for unit, choices in noise.items()}
    points: list[Bits] = [dict(bits)]
    while True:
        steps = [
            (_price(noise[unit], bits[unit], to, saved), unit, to)
            for unit, choices in noise.items()
            for to in choices
            if to < bits[unit] and (saved := costs.saved(cost, bits, unit, to)) > 0
        ]
        if not steps:
            return points
        _, unit, to = min(steps)
        bits[unit] = to
        points.append(dict(bits))


def _price(noise: Mapping[int, float], now: int, to: int, saved: float) -> float:
    """Noise added for what is saved; infinite where the fewer bits make the output infinite."""
    return math.inf if math.isinf(noise[to]) else (noise[to] - noise[now]) / saved
