"""Which channels must share one scale for the model to stay what it is (white paper section 3.2, and beyond it).

Every output channel of every linear layer gets a scale s > 0 of its own: the layer computes W x / s, and whoever
reads the channel multiplies by s. Operators that commute with this, f(x / s) = f(x) / s, pass channels on:

    Relu, LeakyRelu, PRelu, pooling, Pad with zero, Resize      the channels of their input
    Reshape, Transpose, Flatten, Slice, Gather, Split, Concat   the same channels in another order
    Add, Sub, Max, Min, Sum                                     join: both terms must have one scale
    Mul, Div, MatMul of two activations                         the channels of one factor; the other one's are fixed

Channels joined, directly or not, form a group: one scale for all of them. That is how a residual connection is
equalized: its group has several layers that write and several that read it. Anything else fixes a group at s = 1: a
graph output, an operator that does not commute, a shared weight. Clip(a, b) commutes as long as a channel stays away
from its bounds, before the scaling and behind it: it is kept as a `Bound` for the caller to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from ..operators.elementwise import clip_bounds
from ..operators.linear import LinearLayer, linear_layer
from ..operators.registry import Scaling, operator_of
from .model import Model, tensor_names

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Bound:
    """A Clip onto [lo, hi], not Relu: `tensor` is its input, whose channels along `axis` are in groups `ids` (C,)."""

    tensor: str
    axis: int
    ids: Ids
    lo: float
    hi: float


@dataclass(frozen=True)
class Scalable:
    """A linear layer and the groups of its channels: `outputs` (Cout,); `inputs` (Cin,), None where they are fixed."""

    layer: LinearLayer
    outputs: Ids
    inputs: Ids | None


@dataclass(frozen=True)
class ScalingGroups:
    """layers: in graph order. bounds: the Clips. reasons: per group, (G,), why its scale is 1; empty where it is free.

    tensors: where the channels are: tensor name -> (axis, groups (C,)).
    """

    layers: tuple[Scalable, ...]
    bounds: tuple[Bound, ...]
    reasons: tuple[str, ...]
    tensors: Mapping[str, tuple[int, Ids]]

    @property
    def free(self) -> NDArray[np.bool_]:
        """(G,): whose scale may be chosen."""
        return np.array([not reason for reason in self.reasons], bool)


def find_groups(model: Model) -> ScalingGroups:
    """All scaling groups of the model, numbered from 0."""
    search = _Search(model)
    for node in model.graph.nodes:
        search.visit(node)
    for output in model.graph.outputs:
        search.fix(output, "it is an output of the model")
    return search.result()


@dataclass(frozen=True)
class _Layout:
    """Where a tensor's channels lie: `axis`, not negative, of a tensor with `ndim` dimensions, and their numbers."""

    axis: int
    ndim: int
    ids: Ids


_Known = list["_Layout | None"]
_Passed = list["_Layout"] | str


@dataclass
class _Search:
    model: Model
    count: int = 0
    layouts: dict[str, _Layout] = field(default_factory=dict)
    layers: list[tuple[LinearLayer, Ids, Ids | None]] = field(default_factory=list)
    bounds: list[Bound] = field(default_factory=list)
    joins: list[tuple[Ids, Ids]] = field(default_factory=list)
    fixed: list[tuple[Ids, str]] = field(default_factory=list)
    biases: set[int] = field(default_factory=set)

    def visit(self, node: gs.Node) -> None:
        """Follow the channels of a node's inputs to its outputs, or fix them."""
        for graph in (v for v in node.attrs.values() if isinstance(v, gs.Graph)):
            for name in tensor_names(graph):
                self.fix(gs.Variable(name), f"{node.name or node.op}: a subgraph may read it")
        if id(node) in self.biases:
            return
        layer = linear_layer(node)
        if isinstance(layer, LinearLayer):
            self._layer(layer)
            return
        known = [self.layouts.get(t.name) for t in node.inputs]
        if not any(known):
            return
        out = self._follow(node, known)
        if isinstance(out, str):
            for tensor in node.inputs:
                self.fix(tensor, f"{node.name or node.op}: {out}")
        else:
            for tensor, layout in zip(node.outputs, out, strict=False):
                self.layouts[tensor.name] = layout

    def _follow(self, node: gs.Node, known: _Known) -> _Passed:
        operator = operator_of(node)
        if operator is None or operator.scaling is None:
            return f"{node.op} does not commute with scaling"
        if operator.scaling in _COMBINE:
            return _COMBINE[operator.scaling](self, node, known)
        if known[0] is None:
            return "its channels come in as a parameter"
        return _PASS_ON[operator.scaling](self, node, known[0])

    def _layer(self, layer: LinearLayer) -> None:
        shared = self.model.is_shared(layer)
        inputs = self.layouts.get(layer.input.name)
        axis = 1 if layer.output_axis == 1 or inputs is None else inputs.ndim - 1
        fits = inputs is not None and inputs.axis == axis and inputs.ids.size == layer.input_channels
        if shared or not fits:
            what = f"weight {layer.weight.name!r} is shared" if shared else "it reads the channels along another axis"
            self.fix(layer.input, f"{layer.node.name}: {what}")
        ids = self.new(layer.channels)
        if shared:
            self.fixed.append((ids, f"{layer.node.name}: weight {layer.weight.name!r} is shared"))
        self.layers.append((layer, ids, inputs.ids if inputs is not None and fits and not shared else None))
        ndim = layer.rank
        if ndim is None:
            self.fixed.append((ids, f"{layer.node.name}: the rank of its output is not known"))
            return
        layout = _Layout(1 if layer.output_axis == 1 else ndim - 1, ndim, ids)
        for tensor in {layer.node.outputs[0].name, layer.output.name}:
            self.layouts[tensor] = layout
        if layer.bias_node is not None and layer.bias_node is not layer.node:
            self.biases.add(id(layer.bias_node))

    def new(self, count: int) -> Ids:
        """Numbers for so many channels that nothing has been joined with yet."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def fix(self, tensor: gs.Tensor, reason: str) -> None:
        """Keep the scale of the tensor's channels at 1."""
        if tensor.name in self.layouts:
            self.fixed.append((self.layouts[tensor.name].ids, reason))

    def result(self) -> ScalingGroups:
        root = _components(self.count, self.joins)
        _, group = np.unique(root, return_inverse=True)
        reasons = [""] * (int(group.max(initial=-1)) + 1)
        for ids, reason in self.fixed:
            for index in np.unique(group[ids]):
                reasons[index] = reasons[index] or reason
        layers = (Scalable(layer, group[out], None if ins is None else group[ins]) for layer, out, ins in self.layers)
        bounds = (Bound(b.tensor, b.axis, group[b.ids], b.lo, b.hi) for b in self.bounds)
        tensors = {name: (layout.axis, group[layout.ids]) for name, layout in self.layouts.items()}
        return ScalingGroups(tuple(layers), tuple(bounds), tuple(reasons), tensors)


def _components(count: int, joins: Sequence[tuple[Ids, Ids]]) -> Ids:
    """The smallest number that each of `count` numbers is connected with, (count,)."""
    label = np.arange(count)
    while True:
        before = label.copy()
        for a, b in (*joins, *reversed(joins)):
            least = np.minimum(label[a], label[b])
            np.minimum.at(label, a, least)
            np.minimum.at(label, b, least)
        if np.array_equal(before, label):
            return label


def _ndim(tensor: gs.Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


# How operators pass channels on, by what their entry in the registry says: from the layout of their first input, or
# those of all, to those of their outputs, or why they do not.


def _same(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    """Works on each channel by itself and keeps the axes."""
    return [layout]


def _spatial(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    """Pooling: over axes 2 and up."""
    return [layout] if layout.axis == 1 else "it pools over channels"


def _clip(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    bounds = clip_bounds(node)
    if bounds is None:
        return "its bounds are not constant"
    if bounds[0] not in (0.0, -np.inf) or bounds[1] != np.inf:
        search.bounds.append(Bound(node.inputs[0].name, layout.axis, layout.ids, *bounds))
    return [layout]


def _join(search: _Search, node: gs.Node, known: _Known) -> _Passed:
    """All terms are in one scale; constants would have to be scaled, too."""
    terms = [layout for layout in known if layout is not None]
    if len(terms) != len(known):
        return "another term cannot be scaled"
    if any((t.axis, t.ndim, t.ids.size) != (terms[0].axis, terms[0].ndim, terms[0].ids.size) for t in terms):
        return "its terms have their channels in different places"
    search.joins += [(terms[0].ids, t.ids) for t in terms[1:]]
    return [terms[0]]


def _concat(search: _Search, node: gs.Node, known: _Known) -> _Passed:
    parts = [layout for layout in known if layout is not None]
    first = parts[0]
    if len(parts) != len(known):
        return "another part cannot be scaled"
    if node.attrs["axis"] % first.ndim != first.axis:
        return _join(search, node, known)
    if any((p.axis, p.ndim) != (first.axis, first.ndim) for p in parts):
        return "its parts have their channels in different places"
    return [_Layout(first.axis, first.ndim, np.concatenate([p.ids for p in parts]))]


def _multiply(search: _Search, node: gs.Node, known: _Known) -> _Passed:
    """A product is as homogeneous as one of its factors; the other one stays as it is."""
    ranks = [_ndim(t) for t in node.inputs]
    main = next((i for i, layout in enumerate(known) if layout and all(r and r <= layout.ndim for r in ranks)), None)
    if main is None or (node.op == "Div" and main == 1):
        return "no factor can be scaled"
    layout, other = known[main], node.inputs[1 - main]
    own, others = node.inputs[main].shape, other.shape
    assert layout is not None
    assert own is not None
    assert others is not None
    beside = (1,) * (layout.ndim - len(others)) + tuple(others)
    if beside[layout.axis] not in (1, layout.ids.size) or own[layout.axis] != layout.ids.size:
        return "its factors do not have the same channels"
    search.fix(other, f"{node.name or node.op}: the other factor is scaled")
    return [layout]


def _product(search: _Search, node: gs.Node, known: _Known) -> _Passed:
    """A V, as in attention: columns of V are columns of the product."""
    if known[1] is None or known[1].axis != known[1].ndim - 1 or _ndim(node.inputs[0]) != known[1].ndim:
        return "the rows that it sums over cannot be scaled"
    search.fix(node.inputs[0], f"{node.name or node.op}: it sums over these channels")
    return [known[1]]


def _transpose(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    order = node.attrs.get("perm", list(reversed(range(layout.ndim))))
    return [_Layout(list(order).index(layout.axis), layout.ndim, layout.ids)]


def _pad(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    amount = node.inputs[1]
    value = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if not isinstance(amount, gs.Constant) or len(node.inputs) > 3:
        return "what it pads is not constant"
    pads = np.asarray(amount.values).reshape(2, -1)
    if pads.shape[1] != layout.ndim or (pads < 0).any():
        return "it crops"
    zero = value is None or (isinstance(value, gs.Constant) and not np.any(value.values))
    front, behind = (int(n) for n in pads[:, layout.axis])
    if node.attrs.get("mode", "constant") != "constant":
        return "it mirrors channels" if front or behind else [layout]
    if not zero:
        return "it pads with another value than zero"
    return [_Layout(layout.axis, layout.ndim, np.concatenate([search.new(front), layout.ids, search.new(behind)]))]


def _reduce(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    axes = node.attrs.get("axes")
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        axes = [int(axis) for axis in np.ravel(node.inputs[1].values)]
    if not axes or layout.axis in (gone := {axis % layout.ndim for axis in axes}):
        return "it reduces channels"
    if node.attrs.get("keepdims", 1):
        return [layout]
    return [_Layout(layout.axis - sum(axis < layout.axis for axis in gone), layout.ndim - len(gone), layout.ids)]


def _resize(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    shapes = node.inputs[0].shape, node.outputs[0].shape
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it fills in a value of its own"
    same = all(shape is not None and shape[layout.axis] == layout.ids.size for shape in shapes)
    return [layout] if same else "it may resize channels"


def _moved(search: _Search, node: gs.Node, layout: _Layout) -> _Passed:
    """Reshape, Slice and the like, tried on an array of channel numbers; dimensions of unknown length stand still."""
    shape = node.inputs[0].shape
    if shape is None or any(not isinstance(d, int) for d in shape[1:]):
        return "the shape of its input is not known"
    numbers = np.arange(layout.ids.size).reshape([-1 if i == layout.axis else 1 for i in range(layout.ndim)])
    whole = [layout.ids.size if i == layout.axis else 1 if i == 0 else int(d or 0) for i, d in enumerate(shape)]
    operator = operator_of(node)
    if operator is None or operator.move is None:
        return "where it moves its channels is not known"
    try:
        moved = operator.move(node, np.broadcast_to(numbers, whole))
    except (ValueError, IndexError, KeyError, TypeError) as error:
        return f"its channels cannot be followed ({error})"
    layouts = [_layout_of(m, layout.ids) for m in moved]
    return "it mixes channels with other axes" if None in layouts else [x for x in layouts if x is not None]


def _layout_of(numbers: NDArray[np.int64], ids: Ids) -> _Layout | None:
    """The one axis along which channel numbers differ; None where there are several. Axis 0 is the batch."""
    if numbers.ndim < 2 or numbers.shape[0] != 1:
        return None
    axes = [i for i in range(numbers.ndim) if (np.diff(numbers, axis=i) != 0).any()]
    if len(axes) > 1 or not numbers.size:
        return None
    axis = axes[0] if axes else 1
    first = tuple(slice(None) if i == axis else 0 for i in range(numbers.ndim))
    return _Layout(axis, numbers.ndim, ids[numbers[first]])


_PASS_ON: Mapping[Scaling, Callable[[_Search, gs.Node, _Layout], _Passed]] = {
    "same": _same, "spatial": _spatial, "clip": _clip, "reduce": _reduce, "transpose": _transpose, "pad": _pad,
    "resize": _resize, "moved": _moved,
}  # fmt: skip

_COMBINE: Mapping[Scaling, Callable[[_Search, gs.Node, _Known], _Passed]] = {
    "join": _join, "concat": _concat, "multiply": _multiply, "product": _product,
}  # fmt: skip
