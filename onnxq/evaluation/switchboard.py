"""A planned model with a switch at every grid, and what it scores with some of them on (white paper, figure 9).

    group   what is switched together: the quantizers on one grid, and for weights the rounded values, and the biases
            that were corrected for them
    state   the groups that are on, by name; all others are off, and what they hold is the float model's
    cut i   the tensors that nodes i, i + 1, ... read and nodes 0 ... i - 1 compute, of every sample, in some state

A quantizer acts where its tensor is read. So two states compute the same in front of the first node that reads a
group which they hold differently, and a state is scored by running the rest of the network, from the last cut in
front of that node. The cuts of two states are held: mostly all off, to switch single groups on, and all on, to
switch single groups off. Where memory does not hold all cuts, those stay that save most work for their bytes.

A score does not depend on where it started: ONNX Runtime, its optimisations off, computes every node alone.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..data import Feed
from ..errors import UsageError
from ..execution.layerwise import planned_layers
from ..execution.session import Session, parallel_map
from ..graph import large
from ..graph.model import Model, Quantizer, captured, grid_root
from ..graph.simulate import with_quantizers
from .metric import Metric, Outputs, by_sample
from .workload import Workload, workload

HELD_STATES = 2

MOVED = 10
"""Multiplications that take about as long as computing one element by an elementwise operator."""


@dataclass(frozen=True, eq=False)
class Group:
    """One switch. name: the tensor whose quantizer decides the grid.  quantizers: of activations and of constants
    that no linear layer multiplies with.  constants: weights on their grid, and corrected biases, by name."""

    name: str
    quantizers: tuple[Quantizer, ...]
    constants: Mapping[str, TensorProto] = field(default_factory=dict)

    @property
    def tensors(self) -> set[str]:
        """What changes for its readers when the switch is turned."""
        return {*self.constants, *(q.tensor for q in self.quantizers)}


State = Mapping[str, Group]


def groups_of(base: Model, planned: Model) -> dict[str, Group]:
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
            own[layer.weight.name] = large.tensor(values, layer.weight.name, aside=base.is_large)
        bias = np.asarray(quantized.bias_values, np.asarray(layer.bias.values).dtype)
        own[layer.bias.name] = large.tensor(bias, layer.bias.name, aside=base.is_large)
    members: dict[str, list[Quantizer]] = {}
    for name, quantizer in planned.quantizers.items():
        followers = members.setdefault(grid_root(planned.quantizers, name), [])
        if name not in rounded:
            followers.append(quantizer)
    return {name: Group(name, tuple(found), constants.get(name, {})) for name, found in members.items()}


@dataclass(frozen=True)
class _Held:
    """A state, its score, and of each cut the tensors of every sample; cut 0 are the feeds."""

    state: State
    score: float
    cuts: Mapping[int, Sequence[Mapping[str, np.ndarray]]]


class Switchboard:
    """Scores states of one model, always on the same samples and by the same metric.

    proto: the float model, `base` of `groups_of`, which is changed.
    groups: all that will be switched, also several of one name.
    references: the original model's outputs for each feed, if the metric is relative (`metric.float_outputs`).
    max_memory: bytes of activations that may be held.
    """

    def __init__(
        self,
        proto: ModelProto,
        groups: Iterable[Group],
        feeds: Sequence[Feed],
        metric: Metric,
        references: Sequence[Outputs] | None,
        *,
        threads: int = 1,
        max_memory: int = 512 * 2**20,
    ) -> None:
        self.metric, self.threads = metric, threads
        self._feeds, self._references = feeds, references
        self._graph = _Graph(proto, feeds[0])
        starts = [self._graph.start(group) for group in groups]
        self._cuts = self._graph.cuts(starts, max_memory // (HELD_STATES * len(feeds)))
        self._held: deque[_Held] = deque(maxlen=HELD_STATES)

    def hold(self, state: State) -> float:
        """The state's score; states like this one will be scored faster. Only the last two are held."""
        fed = [dict(feed.arrays) for feed in self._feeds]
        cuts: dict[int, list[Mapping[str, np.ndarray]]] = {i: [] for i in self._cuts}
        held = _Held(state, self._run(state, 0, fed, cuts), {**cuts, 0: fed})
        self._held.append(held)
        return held.score

    def score(self, state: State) -> float:
        """What the metric says of the model with the groups of `state` on."""
        cut, held = self._start(state)
        if held is None:
            return self._run(state, 0, [dict(feed.arrays) for feed in self._feeds], {})
        return held.score if cut == len(self._graph.nodes) else self._run(state, cut, held.cuts[cut], {})

    def passes(self, state: State) -> float:
        """Runs of the whole network a sample that scoring a state is worth; 0 where its score is known."""
        return self._graph.share(self._start(state)[0])

    def _start(self, state: State) -> tuple[int, _Held | None]:
        """The cut to run from, and the state that holds it; behind the last node where that state is the same."""
        starts = [(self._shared(held, state), held) for held in self._held]
        begin, held = max(starts, key=lambda pair: pair[0], default=(0, None))
        if held is None or begin == len(self._graph.nodes):
            return begin, held
        return max(i for i in held.cuts if i <= begin), held

    def _shared(self, held: _Held, state: State) -> int:
        """The first node that computes something else in `state` than in a held one."""
        both = [(held.state.get(name), state.get(name)) for name in {*held.state, *state}]
        changed = [group for pair in both if pair[0] is not pair[1] for group in pair if group is not None]
        return min(map(self._graph.start, changed), default=len(self._graph.nodes))

    def _run(
        self,
        state: State,
        cut: int,
        values: Sequence[Mapping[str, np.ndarray]],
        keep: Mapping[int, list[Mapping[str, np.ndarray]]],
    ) -> float:
        """The score, running nodes `cut`, ... on the cut's tensors; `keep` takes in later cuts."""
        graph = self._graph
        made = {name for i in keep for name in graph.live(i)} - values[0].keys()
        session = Session(graph.part(cut, state, values[0], sorted(made)))

        def run(fed: Mapping[str, np.ndarray]) -> dict[str, Any]:
            return session.run({name: fed[name] for name in graph.live(cut)})

        tally, sample = self.metric.start(), 0
        for k, found in enumerate(parallel_map(run, values, self.threads)):
            feed = self._feeds[k]
            outputs = {name: by_sample(found[target], feed) for name, target in graph.outputs.items()}
            tally.update(sample, {} if self._references is None else self._references[k], outputs)
            sample += feed.rows or 1
            for i, samples in keep.items():
                samples.append({n: found[n] if n in found else values[k][n] for n in graph.live(i)})
        value = tally.value()
        if np.isnan(value):
            raise UsageError(f"{self.metric.name} cannot be measured: no output of the model is of that kind")
        return value


class _Graph:
    """The float model, which parts of it run from a cut, and how much work and memory that is."""

    def __init__(self, proto: ModelProto, feed: Feed) -> None:
        self._proto = proto
        self.outputs = _read_outputs(proto)
        self.nodes: Sequence[NodeProto] = list(proto.graph.node)
        self._constants = {t.name: t for t in proto.graph.initializer}
        self._reads = [{*node.input, *captured(node)} - {""} for node in self.nodes]
        self._first: dict[str, int] = {}  # tensor -> the first node that reads it
        last: dict[str, int] = {}
        for i, names in enumerate(self._reads):
            for name in names:
                self._first.setdefault(name, i)
                last[name] = i
        made = {name: -1 for name in (v.name for v in proto.graph.input) if name not in self._constants}
        made |= {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self._alive = {name: (made[name], last[name]) for name in last if name in made}
        self._work = workload(proto, feed)
        costs = [_cost(node, self._work) for node in self.nodes]
        self._rest = [*itertools.accumulate(reversed(costs), initial=0)][::-1]  # work of nodes i, i + 1, ...

    def start(self, group: Group) -> int:
        """The first node that computes something else when the group is switched."""
        return min((self._first[name] for name in group.tensors if name in self._first), default=len(self.nodes))

    def live(self, cut: int) -> list[str]:
        """The tensors of a cut, constants left out."""
        return [name for name, (made, last) in self._alive.items() if made < cut <= last]

    def share(self, cut: int) -> float:
        """The work behind a cut, 1 for all."""
        return self._rest[cut] / self._rest[0]

    def cuts(self, starts: Sequence[int], limit: int) -> list[int]:
        """Where to cut so that least is computed again, given `limit` bytes a sample; 0 is not among them.

        starts: where the states that are going to be scored begin to differ, one a state.
        """
        chosen, held, size = [0], set[str](), 0
        candidates = {
            i: names for i in set(starts) if 0 < i < len(self.nodes) and self._can_pass(names := self.live(i))
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

    def part(self, cut: int, state: State, fed: Mapping[str, np.ndarray], kept: Collection[str]) -> ModelProto:
        """The model from `cut` on with the groups of `state` on; it makes `kept` beside the outputs."""
        proto, constants = self._proto, dict(self._constants)
        for group in state.values():
            constants.update(group.constants)
        read = set().union(*self._reads[cut:])
        model = ModelProto(ir_version=proto.ir_version, graph=onnx.GraphProto(name="part"))
        model.opset_import.extend(proto.opset_import)
        model.functions.extend(proto.functions)
        model.graph.node.extend(self.nodes[cut:])
        model.graph.input.extend(_value(name, fed[name]) for name in self.live(cut))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (*self.outputs.values(), *kept))
        model.graph.initializer.extend(constants[name] for name in self._constants if name in read)
        quantizers = {q.tensor: q for group in state.values() for q in group.quantizers if q.tensor in read}
        return with_quantizers(model, quantizers, _namer({*self._alive, *constants, *self._work.arrays}))


def _read_outputs(proto: ModelProto) -> dict[str, str]:
    """Let an Identity read each output of the model, so that its quantizer acts; output -> what the Identity makes."""
    new_name = _namer({name for node in proto.graph.node for name in node.output})
    targets = {value.name: new_name(f"{value.name}_read") for value in proto.graph.output}
    for name, target in targets.items():
        proto.graph.node.append(helper.make_node("Identity", [name], [target], name=target))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=target) for target in targets.values())
    return targets


def _namer(taken: set[str]) -> Callable[[str], str]:
    """stem -> a name that is not taken."""

    def name(stem: str) -> str:
        candidates = itertools.chain([stem], (f"{stem}_{i}" for i in itertools.count(1)))
        found = next(c for c in candidates if c not in taken)
        taken.add(found)
        return found

    return name


def _value(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.ValueInfoProto(name=name, type=helper.make_tensor_type_proto(kind, None))


def _cost(node: NodeProto, work: Workload) -> int:
    return work.products.get(node.name, 0) + MOVED * sum(map(work.elements, node.output))
