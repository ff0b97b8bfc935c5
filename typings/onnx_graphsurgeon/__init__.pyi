"""What onnxq uses of graph surgeon 0.6, with types: the package has none of its own, and all of it would be `Any`."""

from collections.abc import Iterable, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, OperatorSetIdProto

from . import logger as logger
from .ir.tensor import LazyValues

DType: TypeAlias = np.dtype[Any] | type[np.generic] | int
"""A number of onnx where numpy has no such type."""

Shape: TypeAlias = Sequence[int | str | None]

class Tensor:
    name: str
    inputs: list[Node]
    outputs: list[Node]
    dtype: DType | None
    shape: Shape | None

class Variable(Tensor):
    def __init__(
        self, name: str, dtype: DType | None = None, shape: Shape | None = None, type: str = "tensor_type"
    ) -> None: ...
    @staticmethod
    def empty() -> Variable: ...

    type: str

class Constant(Tensor):
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data_location: int | None
    _values: NDArray[Any] | LazyValues
    def __init__(self, name: str, values: NDArray[Any] | LazyValues, data_location: int | None = None) -> None: ...
    @property
    def values(self) -> NDArray[Any]: ...
    @values.setter
    def values(self, values: NDArray[Any] | LazyValues) -> None: ...

class Node:
    op: str
    name: str
    attrs: MutableMapping[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    domain: str | None
    in_subgraph: bool  # set by `graph.model.Model.from_proto`
    def __init__(
        self,
        op: str,
        name: str | None = None,
        attrs: MutableMapping[str, Any] | None = None,
        inputs: Sequence[Tensor] | None = None,
        outputs: Sequence[Tensor] | None = None,
        domain: str | None = None,
    ) -> None: ...

class Graph:
    nodes: list[Node]
    inputs: list[Tensor]
    outputs: list[Tensor]
    name: str
    opset: int
    producer_name: str
    producer_version: str
    import_domains: Sequence[OperatorSetIdProto] | None
    functions: list[Any]
    def __init__(self, nodes: Sequence[Node] | None = None) -> None: ...
    def tensors(self, check_duplicates: bool = False) -> dict[str, Tensor]: ...
    def subgraphs(self, recursive: bool = False) -> Iterable[Graph]: ...
    def cleanup(
        self,
        remove_unused_node_outputs: bool = False,
        recurse_subgraphs: bool = True,
        remove_unused_graph_inputs: bool = False,
    ) -> Graph: ...
    def toposort(self, recurse_subgraphs: bool = True) -> Graph: ...
    def copy(self) -> Graph: ...

def import_onnx(onnx_model: ModelProto) -> Graph: ...
def export_onnx(graph: Graph, do_type_check: bool = True) -> ModelProto: ...
