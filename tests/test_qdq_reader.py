"""What is read of a QDQ model: which nodes compute with integers, what lies behind a grid, what tensors are called."""

from __future__ import annotations

import pytest
from families import FAMILIES
from graphs import model
from onnx import ModelProto
from quantized import PLAIN, quantized, samples

import onnxq
from onnxq.checking.integer_operators import with_dequantizers
from onnxq.checking.qdq_reader import QdqGraph, without_suffix
from onnxq.graph.model import Model

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[4,3,3,3] w, float[5,4] v, int64[2] s> {
    [conv] a = Conv(x, w)  [relu] r = Relu(a)  [pool] p = GlobalAveragePool(r)  [flat] f = Reshape(p, s)
    [head] y = Gemm<transB=1>(f, v) }"""


def read(proto: ModelProto) -> QdqGraph:
    return QdqGraph(Model.from_proto(proto))


def arithmetic(proto: ModelProto, **options: object) -> dict[str, str]:
    """By node: what it computes with once `proto` is quantized with these options."""
    graph = read(quantized(proto, samples(proto, 4), **options))
    return {node.name: graph.arithmetic(node) for node in graph.nodes if node.op != "Identity"}


@pytest.fixture(scope="module")
def net() -> ModelProto:
    return model(NET, s=[0, -1])


def test_everything_computes_with_integers_by_default(net):
    assert set(arithmetic(net).values()) == {"integers"}


def test_weights_alone_leave_the_arithmetic_in_float(net):
    found = arithmetic(net, preset="w8")
    assert (found["conv"], found["head"]) == ("weights only", "weights only")
    assert {found["pool"], found["flat"]} == {"float"}


def test_float_weights_leave_the_arithmetic_in_float(net):
    found = arithmetic(net, preset="a8")
    assert (found["conv"], found["head"]) == ("float", "float")
    assert (found["pool"], found["flat"]) == ("integers", "integers")


def test_a_node_that_was_excluded_computes_in_float(net):
    found = arithmetic(net, exclude=("conv",))
    assert (found["conv"], found["head"]) == ("float", "integers")


def test_parts_of_a_decomposed_operator_compute_in_float():
    gelu = model(
        """(float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v, float c, float one, float half> {
        [first] a = MatMul(x, w)  [div] d = Div(a, c)  [erf] e = Erf(d)  [add] g = Add(e, one)  [mul] h = Mul(a, g)
        [scale] k = Mul(h, half)  [second] y = MatMul(k, v) }""",
        c=1.4142135,
        one=1.0,
        half=0.5,
    )
    graph = read(quantized(gelu, samples(gelu, 4)))
    found = {node.name: graph.arithmetic(node) for node in graph.nodes}
    assert (found["first"], found["second"]) == ("integers", "integers")
    assert {kind for name, kind in found.items() if name not in ("first", "second")} == {"float"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_counts_in_integers_what_the_file_has_in_integers(family):
    proto = FAMILIES[family]
    result = onnxq.quantize(proto, samples(proto), target="qnn", **PLAIN)
    graph = read(result.model)
    found = {node.name for node in graph.nodes if graph.arithmetic(node) == "integers"}
    assert len(found) == result.report.integer_nodes
    assert not found & {node.node for node in result.report.float_nodes}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("[node] y = Sigmoid(d)", "float"),  # what it computes is not quantized
        ("[node] b = Sigmoid(d)  j = QuantizeLinear(b, s, z)  y = DequantizeLinear(j, s, z)", "integers"),
        ("[node] b = Clip(d, s)  j = QuantizeLinear(b, s, z)  y = DequantizeLinear(j, s, z)", "integers"),
        ("[node] b = Add(d, s)  j = QuantizeLinear(b, s, z)  y = DequantizeLinear(j, s, z)", "float"),
    ],
)
def test_a_node_computes_with_integers_where_all_its_operands_and_its_output_are_quantized(body, expected):
    proto = f"""(float[N,3] x) => (float[N,3] y) <float s, uint8 z> {{
        i = QuantizeLinear(x, s, z)  d = DequantizeLinear(i, s, z)  {body} }}"""
    graph = read(model(proto, s=0.1, z=3))
    assert [graph.arithmetic(node) for node in graph.nodes] == [expected]


QDQ = """(float[N,3] x) => (float[N,4] y) <float[3,4] w, float s, uint8 z> {
    i = QuantizeLinear(x, s, z)  d = DequantizeLinear(i, s, z)  t = Identity(d)  [product] y = MatMul(t, w) }"""


def test_what_lies_behind_a_grid(net):
    graph = read(model(QDQ, s=0.1, z=3))
    (product,) = graph.nodes
    assert graph.root(product.inputs[0]).name == "x"
    assert graph.as_read(graph.tensors["x"]).name == "d"
    grid = graph.read(product, 0)
    assert grid is not None
    assert (grid.type, grid.bits, grid.limits, grid.zero_point.item(), grid.axis) == ("uint8", 8, (0, 255), 3, None)
    assert graph.read(product, 1) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [("r", "r"), ("r_DequantizeLinear_Output", "r"), ("r_quantized", "r"), ("r_clipped_q", "r"), ("_q", None),
     ("other_quantized", None)],
)  # fmt: skip
def test_names_without_what_tools_append(name, expected):
    assert without_suffix(name, {"r"}) == expected


def test_tensors_are_named_as_in_the_float_model(net):
    graph = read(quantized(net, samples(net, 4)))
    assert {name: t.name for name, t in graph.named({"x", "r", "y"}).items()} == {
        "x": "x_dequantized", "r": "r_dequantized", "y": "y"
    }  # fmt: skip


def test_integer_operators_are_read_as_qdq():
    proto = model(
        """(float[N,3,4,4] x) => (float[N,5,4,4] y)
        <float s, uint8 z, int8[5,3,1,1] w, float[5] t, int8[5] k, float u, uint8 m> {
        i = QuantizeLinear(x, s, z)  [conv] j = QLinearConv(i, s, z, w, t, k, u, m)
        r = MaxPool<kernel_shape=[1,1]>(j)  y = DequantizeLinear(r, u, m) }""",
        s=0.1,
        z=3,
        t=[0.1] * 5,
        k=[0] * 5,
        u=0.2,
        m=5,
    )
    graph = read(with_dequantizers(proto))
    conv = next(node for node in graph.nodes if node.op == "QLinearConv")
    weight = graph.stored_weight(conv)
    assert weight is not None
    assert (weight.inputs[0].op, weight.inputs[0].attrs["axis"]) == ("DequantizeLinear", 0)
    behind = {tensor.inputs[0].inputs[0].name for tensor in graph.tensors.values()
              if tensor.inputs and tensor.inputs[0].op == "DequantizeLinear"}  # fmt: skip
    assert behind == {"i", "w", "j", "r"}
    assert len(proto.graph.node) == 4  # the given model is not changed
