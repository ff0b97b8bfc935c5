"""Exceptions from the preset as the last resort: the few weights and activations that carry the loss get wider formats.

    n_u      noise of the outputs, relative to their power, where unit u alone is quantized, rounded to nearest, and all
             else is in float
    c(E)     what a set of exceptions costs: of weights, their share of all weights, for they take more memory; of
             activations, the share of the multiplications in layers that read or write one of them, for these may lose
             an integer kernel
    E        of either kind, units, that of the largest   n_u / (c(E + u) - c(E))   first, as long as c(E) stays
             within the budget

Activations of fewer bits than 8 get 8, and cost the layers that read them alone: what these multiply with is no longer
of few bits, while those that write them lose nothing.

A unit is a weight of fewer bits than 8, which gets 8, or the activations that must have one width, which get what
`--fallback` gives them (`passes.wider_activations`), chosen by what will run the result (`measure`). Noises of units
add up, about: those that make less than `EXCEPTION_NOISE` of the sum are none of the few.

To round everything once more takes long, and what that will bring is predicted. By the noises m_u of these units in the
model that was rounded without exceptions, each what rounding has left of it, with all other quantizers as one unit:

    gain     -10 log10(1 - sum_(u in E) m_u / sum_u m_u), in dB        nothing is made below `EXCEPTION_PROMISE_DB`

    ResNet-20 w4a4 1.4, then it was 1.6; MobileNetV1 w4a8 2.2 and 1.4; FastestDet w4a8 0.5 and 0.4

Noises do not add up everywhere. Where weights are rounded to nearest, nothing is made either where outputs, all
quantized, come no nearer to the float ones with E in float (a pitch detector behind a logarithm at w8a8: 11 dB
predicted, 10 dB become 8). Of a model whose weights were rounded optimally that says nothing, since layers behind were
fitted to the errors of E: MobileNetV1 at w4a8 falls from 11.3 dB to 8.6 so, and gains 5 points with E and everything
rounded once more.

Weights are rounded behind this. It would not do to widen weights that were rounded before: those behind them make up
for their errors, and with one layer after another at 8 bits MobileNetV1 at w4a8 fell from 10.8 dB to 7.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from ..execution.layerwise import isolate, planned_layers
from ..execution.output_score import OutputScore
from ..execution.switches import Switch, Switchboard, switches_of
from ..execution.workload import workload
from ..graph.model import Model, grid_root
from ..numeric.quant import QuantParams, QuantSpec
from ..numeric.ranges import set_range
from ..numeric.samples import Samples
from ..thresholds import (
    EXCEPTION_NOISE,
    EXCEPTION_PASSES,
    EXCEPTION_PRICE,
    EXCEPTION_PROMISE_DB,
    FALLBACK_SAMPLES,
)  # fmt: skip
from .base import Context, Outcome
from .wider_activations import Together, narrow_activations, of_one_width, widen


@dataclass(frozen=True)
class MakeExceptions:
    """Give the units that carry the loss wider formats; weights have their ranges, and are not rounded yet.

    budget: a share of the weights, and of the multiplications. weight: what weights of fewer bits get, if anything.
    kinds: of `targets.contradictions.FALLBACKS`, or a8 alone, what activations may get. measure: dB of a planned model,
    which it may change, in what will run it. rounded: the model whose weights were rounded without exceptions; None
    where that is to nearest.
    """

    budget: float
    weight: QuantSpec | None
    kinds: tuple[str, ...]
    measure: Callable[[Model], float | None] = field(repr=False)
    rounded: Model | None = field(repr=False)
    title: ClassVar[str] = "Exceptions from the preset"
    preserves: ClassVar[bool | None] = None

    def apply(self, model: Model, context: Context) -> Outcome:
        units = self._units(model, context)
        most = min(max(2 * EXCEPTION_PASSES // max(len(units), 1), 1), FALLBACK_SAMPLES)  # half a pass each, about
        feeds = list(islice(context.choosing, most)) or list(islice(context.feeds, most))
        if not feeds or not units:
            return Outcome(notes=("nothing can get a wider format",))
        base = model.clone()
        isolate(base)
        proto = base.to_proto()
        score = OutputScore(proto, feeds, context.services)
        nearest = _Alone.of(base, base, score)
        alone = nearest.each(units, context)
        noise = {unit: _noise(db) for unit, db in alone.items()}
        loud = {u: n for u, n in noise.items() if n > 0 and n >= EXCEPTION_NOISE * sum(noise.values())}
        products = workload(proto, feeds[0], context.services.max_memory).products
        sizes = {layer.weight.name: int(layer.weight.values.size) for layer in planned_layers(base)}
        layers = {unit: _layers(base, unit, products, writers=self.kinds != ("a8",)) for unit in loud}
        weights = self._taken({u: n for u, n in loud.items() if u[0] in sizes}, {u: set(u) for u in loud}, sizes)
        others = self._taken({u: n for u, n in loud.items() if u[0] not in sizes}, layers, products)
        if not weights and not others:
            return Outcome(notes=("nothing within the budget carries a part of the noise that counts",))
        refusal = self._refusal(base, [*weights, *others], list(loud), nearest, score, context)
        if refusal is not None:
            return Outcome(notes=(refusal,))
        made = {name: give_bits(model, name, self.weight) for (name,) in weights if self.weight is not None}
        parts = []
        if made:
            share = sum(sizes[name] for name in made) / sum(sizes.values())
            parts.append(f"{_count(made, 'weight')} with 8 bits ({share:.1%} of all weights)")
        if others:
            activations = self._widened(model, [name for unit in others for name in unit], context)
            touched = {name for unit in others for name in layers[unit]}
            share = sum(products[name] for name in touched) / max(sum(products.values()), 1)
            parts.append(
                f"{_count(activations, 'activation')} changed (in layers of {share:.1%} of the multiplications)"
            )
            made |= activations
        dbs = {name: db for unit, db in alone.items() for name in unit}
        details = (f"{name}: outputs at {dbs[name]:.1f} dB with it alone; {text}" for name, text in made.items())
        return Outcome(len(made), notes=(", ".join(parts), *details))

    def _refusal(
        self,
        base: Model,
        taken: Sequence[Together],
        loud: Sequence[Together],
        nearest: _Alone,
        score: OutputScore,
        context: Context,
    ) -> str | None:
        """Why it is not worth while to round everything once more with E, `taken` of the `loud` units; None where it
        is."""
        rounded = nearest
        if self.rounded is not None:
            rounded = _Alone.of(base, self.rounded, score)
        else:
            excepted = {name for unit in taken for name in unit}
            together, without = nearest.db(nearest.names), nearest.db(nearest.names - excepted)
            if without <= together:
                return f"outputs at {together:.1f} dB are at {without:.1f} dB without the noise of what fits the budget"
        names = {name for unit in loud for name in unit}
        noise = {u: _noise(db) for u, db in rounded.each([*loud, tuple(rounded.names - names)], context).items()}
        gain = 10 * np.log10(sum(noise.values()) / max(sum(n for u, n in noise.items() if u not in taken), 1e-30))
        if gain < EXCEPTION_PROMISE_DB:
            return f"what fits the budget would bring about {gain:.1f} dB, which is too little"
        return None

    def _units(self, model: Model, context: Context) -> list[Together]:
        units: list[Together] = []
        if self.weight is not None:
            units += [(name,) for name in narrow_weights(model, self.weight)]
        if self.kinds:
            units += of_one_width(model, narrow_activations(model), context.target)
        return units

    def _taken(
        self, noise: Mapping[Together, float], parts: Mapping[Together, set[str]], costs: Mapping[str, int]
    ) -> list[Together]:
        """E. parts: what a unit pays for, by name; costs: of all names."""
        taken, paid, rest, total = list[Together](), set[str](), dict(noise), max(sum(costs.values()), 1)

        def share(names: set[str]) -> float:
            return sum(costs[name] for name in names) / total

        while rest:
            unit = max(rest, key=lambda u: (rest[u] / max(share(parts[u] - paid), EXCEPTION_PRICE), u))
            del rest[unit]
            if share(paid | parts[unit]) <= self.budget:
                taken.append(unit)
                paid |= parts[unit]
        return taken

    def _widened(self, model: Model, names: Sequence[str], context: Context) -> dict[str, str]:
        """Give activations the best that they may get; returns what that is, in words."""
        best, most = self.kinds[0], -np.inf
        for kind in self.kinds if len(self.kinds) > 1 else ():
            copy = model.clone()
            widen(copy, dict.fromkeys(names, kind), context)
            db = self.measure(copy)
            if db is not None and db > most:
                best, most = kind, db
        return widen(model, dict.fromkeys(names, best), context)


def _count(made: Mapping[str, str], what: str) -> str:
    return f"{len(made)} {what}{'s' * (len(made) != 1)}"


@dataclass(frozen=True)
class _Alone:
    """What the outputs are at with some of a planned model's quantizers on, and all else in float."""

    board: Switchboard
    switches: Mapping[str, Switch]

    @classmethod
    def of(cls, base: Model, planned: Model, score: OutputScore) -> _Alone:
        switches = switches_of(base, planned)
        board = score.board(base.to_proto(), switches.values())
        board.hold({})
        return cls(board, switches)

    @property
    def names(self) -> set[str]:
        """Of all there are."""
        return set(self.switches)

    def db(self, names: Iterable[str]) -> float:
        """With the quantizers of these names on."""
        return self.board.score({name: self.switches[name] for name in names})

    def each(self, units: Sequence[Together], context: Context) -> dict[Together, float]:
        """With one unit after another on."""
        found: dict[Together, float] = {}
        for done, unit in enumerate(units, 1):
            context.services.progress("looking for exceptions", done, len(units))
            found[unit] = self.db(unit)
        return found


def _noise(db: float) -> float:
    return float(10 ** (-db / 10))


def narrow_weights(model: Model, wider: QuantSpec) -> list[str]:
    """Weights of layers that may get the bits of `wider`, and have fewer."""
    narrow = []
    for name in dict.fromkeys(layer.weight.name for layer in planned_layers(model)):
        quantizer = model.quantizers[name]
        has_fewer = quantizer.spec.grid.bits < wider.grid.bits and quantizer.spec.block is None
        if has_fewer and not quantizer.given and quantizer.grid_of is None:
            narrow.append(name)
    return narrow


def give_bits(model: Model, name: str, wider: QuantSpec) -> str:
    """Give a weight a wider grid; returns it."""
    quantizer = model.quantizers[name]
    spec = replace(quantizer.spec, grid=wider.grid)
    constant = model.graph.tensors()[name]
    assert isinstance(constant, gs.Constant)
    ends = set_range("mse", Samples.of_weights(np.asarray(constant.values), quantizer.axis), spec)
    lo, hi = (end.reshape(() if quantizer.axis is None else end.shape) for end in ends)
    params = QuantParams.from_range(lo, hi, spec, quantizer.axis)
    model.quantizers[name] = replace(quantizer, spec=spec).with_params(params)
    return f"now {params.grid}"


def _layers(model: Model, unit: Together, products: Mapping[str, int], *, writers: bool = True) -> set[str]:
    """Layers that read a grid of the unit, or write one of its activations, unless their writers do not count."""
    tensors, found = model.graph.tensors(), set[str]()
    for name in model.quantizers:
        if grid_root(model.quantizers, name) in unit:
            tensor = tensors[name]
            found |= {node.name for node in model.consumers(tensor) if node.name in products}
            if writers and not isinstance(tensor, gs.Constant):
                found |= _writers(tensor, model, products)
    return found


def _writers(tensor: gs.Tensor, model: Model, products: Mapping[str, int]) -> set[str]:
    """Layers whose output this is, behind their activation functions."""
    found: set[str] = set()
    for node in tensor.inputs:
        if node.name in products:
            found.add(node.name)
            continue
        for source in node.inputs:
            if not isinstance(source, gs.Constant) and source.name not in model.quantizers:
                found |= _writers(source, model, products)
    return found
