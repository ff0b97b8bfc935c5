"""The one place that says what an operator is to quantization; everything else in the package looks it up here.

    kind        linear: y = W x + b with constant W and b      elementwise: computes new values, element by element
                pooling: averages or sums over positions       movement: every output value is an input value, or zero
                selection: chooses by comparing values, see `selection`
    linear      of linear operators: where weight, bias and channels lie, the weight as a matrix, multiplications
    scaling     how channels that are divided by s > 0 come out divided by s, if they do (`graph.scaling_groups`)
    statistics  how mean and standard deviation of channels pass (`graph.batchnorm_statistics`)
    keeps_grid  of data movement: whether this very node moves values only
    move        of data movement: where the elements go
    selects     what the least change of an input may change: positions, or values at a threshold (`graph.comparable`)

An operator of another domain gets an entry with `register`, from Python or from a target's TOML file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from .node import ONNX_DOMAINS

if TYPE_CHECKING:
    from .linear import LinearForm

Kind = Literal["linear", "elementwise", "pooling", "movement", "selection"]

Selects = Literal["positions", "threshold"]

Scaling = Literal[
    "same",  # f(x / s) = f(x) / s in each channel by itself; the axes stay
    "spatial",  # likewise, over axes 2 and up
    "clip",  # likewise, where no channel meets a bound
    "reduce",  # likewise, over axes that a parameter or attribute names
    "transpose",
    "pad",
    "resize",
    "moved",  # the same channels in another order, as `move` shows
    "join",  # of several inputs, which must have one scale
    "concat",  # one input behind the other
    "multiply",  # of one factor, where the others are fixed
    "product",  # of the second factor of a product of matrices
]

Statistics = Literal["clip", "add", "concat", "average", "largest", "same"]

Move = Callable[[gs.Node, NDArray[np.int64]], list[NDArray[np.int64]]]
"""From a node, and an array in place of its first input, with a batch of 1, to its outputs. ValueError where parameters
are computed at run time, or where the batch, axis 0, does not stand still."""


def _always(node: gs.Node) -> bool:
    return True


@dataclass(frozen=True)
class Operator:
    """One entry, see above. domain: empty for ONNX's own. depends_on_values: of data movement, whether it chooses by
    comparing values (the largest, say), and not by position alone."""

    op: str
    kind: Kind
    domain: str = ""
    linear: LinearForm | None = None
    scaling: Scaling | None = None
    statistics: Statistics | None = None
    keeps_grid: Callable[[gs.Node], bool] = _always
    move: Move | None = None
    depends_on_values: bool = False
    selects: Selects | None = None

    @property
    def key(self) -> str:
        """What targets and messages call it: `MatMul`, or `com.x.MyLinear`."""
        return f"{self.domain}.{self.op}" if self.domain else self.op


_OPERATORS: dict[tuple[str, str], Operator] = {}


def add(*operators: Operator) -> None:
    """Put entries in; an entry that is there already must be the same. Raises KeyError with its key."""
    for operator in operators:
        known = _OPERATORS.setdefault((operator.domain, operator.op), operator)
        if known != operator:
            raise KeyError(operator.key)


def find(op: str, domain: str | None = "") -> Operator | None:
    """The entry of an operator; None where nothing is known of it."""
    return _OPERATORS.get(("" if domain in ONNX_DOMAINS else str(domain), op))


def operator_of(node: gs.Node) -> Operator | None:
    """The entry of a node's operator."""
    return find(node.op, node.domain)


def linear_form(op: str, domain: str | None = "") -> LinearForm | None:
    """How a linear operator's tensors lie; None for other operators."""
    operator = find(op, domain)
    return None if operator is None else operator.linear


def operands(node: gs.Node) -> tuple[int, ...]:
    """Which inputs of a node are multiplied with each other: x and the weight of a linear one; none of others."""
    form = linear_form(node.op, node.domain)
    return () if form is None else (0, form.weight)


def is_convolution(node: gs.Node) -> bool:
    """Whether a node slides weights over positions, so that what follows may run as the end of it."""
    operator = operator_of(node)
    return operator is not None and operator.linear is not None and operator.linear.is_convolution


def names(kind: Kind) -> tuple[str, ...]:
    """ONNX's own operators of one kind, in the order in which they were put in."""
    return tuple(o.op for o in _OPERATORS.values() if o.kind == kind and not o.domain)


def registered() -> Iterator[tuple[str, str]]:
    """(domain, name) of the operators of other domains than ONNX's."""
    return ((domain, op) for domain, op in _OPERATORS if domain)


def preserves_grid(node: gs.Node) -> bool:
    """Whether every value of the outputs is a value of the first input, or zero: its grid serves both.

    `Tile`, `Gather` and the like read their indices from further inputs, which are never quantized.
    """
    operator = operator_of(node)
    return operator is not None and operator.kind == "movement" and operator.keeps_grid(node)
