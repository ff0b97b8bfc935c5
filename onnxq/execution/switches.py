"""A planned model with a switch for every quantizer, and what it scores with some of them on (white paper, figure 9).

    switch  what is turned on together: the quantizers with the same parameters, and for weights the rounded values and
            the biases that were corrected for them
    state   the switches that are on, by name; all others are off, and what they replace is the float model's
    cut i   the tensors that nodes i, i + 1, ... read of what precedes them, of every sample, in some state (`partial`)

A quantizer acts where its tensor is read. So two states compute the same in front of the first node that reads a
switch which differs between them, and a state is scored by running the rest of the network, from the last cut in
front of that node. The cuts of two states are held: mostly all off, to turn single switches on, and all on, to
turn single switches off. Where memory does not hold all cuts, those stay that save most work for their bytes.

A score does not depend on where it started: ONNX Runtime, its optimisations off, computes every node alone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..data import Feed
from ..graph import large
from ..graph.model import Model, Quantizer, grid_root
from ..graph.serialized import unused_name
from ..graph.simulate import with_quantizers
from .compare_outputs import Score, outputs_of
from .layerwise import planned_layers
from .partial import Cuts, Network
from .session import Session, parallel_map
from .spill import Array, CachedArray, SpillCache
from .workload import Workload, workload

HELD_STATES = 2

ELEMENT_WORK = 10
"""Multiplications that take about as long as computing one element by an elementwise operator."""


@dataclass(frozen=True, eq=False)
class Switch:
    """name: the tensor whose quantizer decides the parameters.  quantizers: of activations and of constants that no
    linear layer multiplies with.  constants: rounded weights, and corrected biases, by name."""

    name: str
    quantizers: tuple[Quantizer, ...]
    constants: Mapping[str, TensorProto] = field(default_factory=dict)

    @property
    def tensors(self) -> set[str]:
        """What changes for its readers when the switch is turned."""
        return {*self.constants, *(q.tensor for q in self.quantizers)}


State = Mapping[str, Switch]


def switches_of(base: Model, planned: Model) -> dict[str, Switch]:
    """The switches of `planned`, by name, in the order of its quantizers.

    base: the float model as it was before weights and biases were changed, past `layerwise.isolate`. Its nodes have
    the names that they have in `planned`; constants may have others.
    """
    final = {layer.node.name: layer for layer in planned_layers(planned)}
    constants: dict[str, dict[str, TensorProto]] = {}
    rounded = set()
    for layer in planned_layers(base):
        quantized = final[layer.node.name]
        params = planned.quantizers[quantized.weight.name].params
        assert params is not None
        assert layer.bias is not None
        own = constants.setdefault(grid_root(planned.quantizers, quantized.weight.name), {})
        rounded.add(quantized.weight.name)
        if layer.weight.name not in own:
            values = params.fake(quantized.weight.values)
            own[layer.weight.name] = large.tensor(values, layer.weight.name, spilled=base.is_large)
        bias = np.asarray(quantized.bias_values, np.asarray(layer.bias.values).dtype)
        own[layer.bias.name] = large.tensor(bias, layer.bias.name, spilled=base.is_large)
    members: dict[str, list[Quantizer]] = {}
    for name, quantizer in planned.quantizers.items():
        followers = members.setdefault(grid_root(planned.quantizers, name), [])
        if name not in rounded:
            followers.append(quantizer)
    return {name: Switch(name, tuple(found), constants.get(name, {})) for name, found in members.items()}


Held = Sequence[Mapping[str, CachedArray]]
"""A cut: of each sample the tensors that pass it, but for the model's inputs."""


@dataclass(frozen=True)
class _ScoredState:
    """cuts: by the index of the node behind them; cut 0 are the feeds, and holds nothing."""

    state: State
    score: float
    cuts: Mapping[int, Held]


class Switchboard:
    """Scores states of one model, always on the same samples and in the same way.

    proto: the float model, `base` of `switches_of`, which is changed.
    switches: all that will be turned, also several of one name.
    score: what to make of the outputs, as `compare_outputs.Score`.
    max_memory: bytes of activations that may be held.
    outputs_quantized: whether quantizers of the model's outputs act, too.
    """

    def __init__(
        self,
        proto: ModelProto,
        switches: Iterable[Switch],
        feeds: Sequence[Feed],
        score: Score,
        *,
        threads: int = 1,
        max_memory: int = 512 * 2**20,
        outputs_quantized: bool = True,
    ) -> None:
        self._feeds, self._score, self._threads = feeds, score, threads
        self._graph = _Graph(proto, feeds[0], outputs_quantized)
        starts = [self._graph.start(switch) for switch in switches]
        self._cuts = self._graph.cuts(starts, max_memory // (HELD_STATES * len(feeds)))
        self._cache = SpillCache(max_memory)
        self._held: deque[_ScoredState] = deque(maxlen=HELD_STATES)

    def hold(self, state: State) -> float:
        """The state's score; states like this one will be scored faster. Only the last two are held."""
        if len(self._held) == HELD_STATES:
            self._held.popleft()  # its memory is needed
        cuts: dict[int, list[Mapping[str, CachedArray]]] = {i: [] for i in self._cuts}
        start = [dict[str, CachedArray]() for _ in self._feeds]
        score = self._run(state, 0, start, cuts)
        self._held.append(_ScoredState(state, score, {**cuts, 0: start}))
        return score

    def score(self, state: State) -> float:
        """The score of the model with the switches of `state` on."""
        cut, held = self._start(state)
        if held is None:
            return self._run(state, 0, [{} for _ in self._feeds], {})
        return held.score if cut == len(self._graph.nodes) else self._run(state, cut, held.cuts[cut], {})

    def passes(self, state: State) -> float:
        """Runs of the whole network a sample that scoring a state is worth; 0 where its score is known."""
        return self._graph.share(self._start(state)[0])

    def _start(self, state: State) -> tuple[int, _ScoredState | None]:
        """The cut to run from, and the state that holds it; behind the last node where that state is the same."""
        starts = [(self._shared(held, state), held) for held in self._held]
        begin, held = max(starts, key=lambda pair: pair[0], default=(0, None))
        if held is None or begin == len(self._graph.nodes):
            return begin, held
        return max(i for i in held.cuts if i <= begin), held

    def _shared(self, held: _ScoredState, state: State) -> int:
        """The first node that computes something else in `state` than in a held one."""
        both = [(held.state.get(name), state.get(name)) for name in {*held.state, *state}]
        changed = [switch for pair in both if pair[0] is not pair[1] for switch in pair if switch is not None]
        return min(map(self._graph.start, changed), default=len(self._graph.nodes))

    def _run(self, state: State, cut: int, held: Held, keep: Mapping[int, list[Mapping[str, CachedArray]]]) -> float:
        """The score, running nodes `cut`, ... on the cut's tensors; `keep` takes in later cuts."""
        graph, inputs = self._graph, self._feeds[0].arrays.keys()
        given: Mapping[str, Array | CachedArray] = {**self._feeds[0].arrays, **held[0]}
        made = {name for i in keep for name in graph.live[i]} - given.keys()
        session = Session(graph.part(cut, state, {n: given[n].dtype for n in graph.live[cut]}, sorted(made)))

        def run(sample: int) -> dict[str, Any]:
            fed, known = self._feeds[sample].arrays, held[sample]
            return session.run({n: fed[n] if n in inputs else known[n].array() for n in graph.live[cut]})

        def outputs() -> Iterator[tuple[Feed, dict[str, Any]]]:
            for sample, found in enumerate(parallel_map(run, range(len(self._feeds)), self._threads)):
                feed = self._feeds[sample]
                cached = {name: self._cache.put(found[name]) for name in made}
                for i, samples in keep.items():
                    samples.append({n: cached.get(n) or held[sample][n] for n in graph.live[i] if n not in inputs})
                yield feed, outputs_of({name: found[target] for name, target in graph.outputs.items()}, feed)

        return self._score(outputs())


class _Graph:
    """The float model, which parts of it run from a cut, and how much work and memory that is."""

    def __init__(self, proto: ModelProto, feed: Feed, outputs_quantized: bool) -> None:
        self.outputs = _read_outputs(proto) if outputs_quantized else {v.name: v.name for v in proto.graph.output}
        self._network = Network(proto)
        self.nodes: Sequence[NodeProto] = self._network.nodes
        wanted: list[list[str]] = [[] for _ in self.nodes]
        wanted[-1] += self.outputs.values()
        self.live = Cuts(self._network, range(1, len(self.nodes) + 1), wanted).live
        self._first: dict[str, int] = {}  # tensor -> the first node that reads it
        for i, names in enumerate(self._network.reads):
            for name in names:
                self._first.setdefault(name, i)
        self._work = workload(proto, feed)
        costs = [_cost(node, self._work) for node in self.nodes]
        self._rest = [*itertools.accumulate(reversed(costs), initial=0)][::-1]  # work of nodes i, i + 1, ...

    def start(self, switch: Switch) -> int:
        """The first node that computes something else when the switch is turned."""
        return min((self._first[name] for name in switch.tensors if name in self._first), default=len(self.nodes))

    def share(self, cut: int) -> float:
        """The work behind a cut, 1 for all."""
        return self._rest[cut] / self._rest[0]

    def cuts(self, starts: Sequence[int], limit: int) -> list[int]:
        """Where to cut so that least is computed again, given `limit` bytes a sample; 0 is not among them.

        starts: where the states that are going to be scored begin to differ, one a state.
        """
        chosen, held, size = [0], set[str](), 0
        candidates = {
            i: names for i in set(starts) if 0 < i < len(self.nodes) and self._can_pass(names := self.live[i])
        }
        while True:
            best: tuple[float, int, int] | None = None
            for i, names in candidates.items():
                extra = sum(self._work.bytes(name) for name in names if name not in held)
                before = max(c for c in chosen if c < i)
                behind = min((c for c in chosen if c > i), default=len(self.nodes))
                served = sum(i <= start < behind for start in starts)
                gain = served * (self._rest[before] - self._rest[i]) / max(extra, 1)
                if size + extra <= limit and gain > 0 and (best is None or (gain, -i) > (best[0], -best[1])):
                    best = gain, i, extra
            if best is None:
                return sorted(chosen[1:])
            _, i, extra = best
            chosen.append(i)
            held.update(candidates.pop(i))
            size += extra

    def _can_pass(self, names: Iterable[str]) -> bool:
        """Sequences cannot be held."""
        return all(name in self._work.arrays for name in names)

    def part(self, cut: int, state: State, given: Mapping[str, np.dtype[Any]], kept: Sequence[str]) -> ModelProto:
        """The model from `cut` on with the switches of `state` on; it makes `kept` beside the outputs."""
        constants = {name: tensor for switch in state.values() for name, tensor in switch.constants.items()}
        part = self._network.part((*self.outputs.values(), *kept), given, constants)
        read = {name for node in part.graph.node for name in node.input}
        quantizers = {q.tensor: q for switch in state.values() for q in switch.quantizers if q.tensor in read}
        taken = {*self._network.maker, *self._network.inputs, *self._network.constants}
        return with_quantizers(part, quantizers, partial(unused_name, taken=taken))


def _read_outputs(proto: ModelProto) -> dict[str, str]:
    """Let an Identity read each output of the model, so that its quantizer acts; output -> what the Identity makes."""
    new_name = partial(unused_name, taken={name for node in proto.graph.node for name in node.output})
    targets = {value.name: new_name(f"{value.name}_read") for value in proto.graph.output}
    for name, target in targets.items():
        proto.graph.node.append(helper.make_node("Identity", [name], [target], name=target))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=target) for target in targets.values())
    return targets


def _cost(node: NodeProto, work: Workload) -> int:
    return work.products.get(node.name, 0) + ELEMENT_WORK * sum(map(work.elements, node.output))
