"""The round trip through graph surgeon loses nothing, and parts of a model can be cut out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, interface, model, ops, run, weights, wrapped
from onnx import AttributeProto, ModelProto, TensorProto, helper

from onnxq.errors import ModelError
from onnxq.execution.partial import extract
from onnxq.graph.model import Model, Moments, Quantizer
from onnxq.numeric.quant import Grid, QuantSpec

IF = """(float[N,3] x, bool c) => (float[N,3] y) <float[3] k, float[3] only, float s> {
    h = Add(x, k)
    y = If(c) <
        then_branch = t () => (float[N,3] a) { a1 = Add(h, k) a = Mul(a1, only) },
        else_branch = e () => (float[N,3] b) { b = Mul(h, s) }
    >
}"""
LOOP = """(float[3] x, int64 n) => (float[3] y, float[K,3] ys) <float[3] k> {
    go = Constant<value = bool {1}>()
    h = Add(x, k)
    y, ys = Loop(n, go, h) <body = b (int64 i, bool ci, float[3] s) => (bool co, float[3] so, float[3] sc) {
        co = Identity(ci) so = Add(s, k) sc = Mul(s, h)
    }>
}"""
FUNCTION = """<domain: "local", opset_import: ["": 17]> twice <a: float = 1.5> (q) => (r) {
    k = Constant<value_float: float = @a>() r = Mul(q, k)
}"""


def branch(taken: bool) -> dict[str, np.ndarray]:
    return {"x": np.float32([[1, 2, 3], [-4, 5, 6]]), "c": np.array(taken)}


def round_trip(proto: ModelProto) -> ModelProto:
    return wrapped(proto).clone().to_proto()


def test_metadata_survives() -> None:
    proto = model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    proto.doc_string, proto.domain, proto.model_version = "doc", "org.example", 7
    proto.producer_name, proto.producer_version = "torch", "2.4"
    proto.graph.name, proto.graph.doc_string = "net", "graph doc"
    helper.set_model_props(proto, {"labels": "cat,dog", "empty": ""})
    assert round_trip(proto) == proto


def test_names_dynamic_dimensions_and_scalars_survive() -> None:
    proto = model(
        "(float[batch,3,?] x, float t) => (float[batch,3,?] y, float u)"
        " <float v, float[batch,3,?] h> { [first] h = Add(x, v) [second] y = Relu(h) [third] u = Abs(t) }"
    )
    assert round_trip(proto).graph == proto.graph


def test_a_scalar_output_keeps_its_shape_beside_a_shapeless_value_info() -> None:
    proto = model("(float x) => (float y) { y = Relu(x) }")
    proto.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    (output,) = round_trip(proto).graph.output
    assert output.type.tensor_type.HasField("shape")
    assert not output.type.tensor_type.shape.dim


@pytest.mark.parametrize("taken", [True, False])
def test_if_survives(taken: bool) -> None:
    proto = model(IF)
    assert_same_function(proto, round_trip(proto), 0, branch(taken))


def test_loop_survives() -> None:
    proto = model(LOOP)
    arrays = {"x": np.float32([1, 2, 3]), "n": np.array(4)}
    assert_same_function(proto, round_trip(proto), 0, arrays)


def test_functions_survive() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) { h = local.twice<a = 2.0>(x) y = local.twice(h) }",
        domains="local",
        functions=FUNCTION,
    )
    after = round_trip(proto)
    assert after.functions == proto.functions
    assert_same_function(proto, after, 0)


def test_initializers_that_are_inputs_become_constants() -> None:
    proto = model("(float[N,3] x) => (float[N,5] y) <float[3,5] w> { y = MatMul(x, w) }", ir_version=3)
    assert [i.name for i in proto.graph.input] == ["x", "w"]
    after = round_trip(proto)
    after.ir_version = 4  # version 3 wants them listed; conversion raises it
    assert [i.name for i in after.graph.input] == ["x"]
    assert_same_function(proto, after, 0)


STORED = {"BFLOAT16": 6, "FLOAT16": 6, "DOUBLE": 24, "FLOAT8E4M3FN": 3, "FLOAT8E5M2": 3, "INT4": 2, "UINT4": 2,
          "FLOAT4E2M1": 2, "BOOL": 3, "COMPLEX64": 24, "STRING": 0}  # fmt: skip
"""Type -> bytes of three elements."""


def stored(dtype: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.DataType.Value(dtype), dims=[3])
    if dtype == "STRING":
        tensor.string_data.extend([b"a", b"b", b"c"])
    else:
        tensor.raw_data = bytes(i % 2 for i in range(STORED[dtype]))
    return tensor


def holding(tensor: TensorProto, *nodes: onnx.NodeProto, initializer: bool) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", tensor.data_type, [3])],
        [tensor] if initializer else [],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(proto, full_check=True)
    return proto


@pytest.mark.parametrize("dtype", STORED)
def test_initializers_of_any_type_survive_bit_for_bit(dtype: str) -> None:
    proto = holding(stored(dtype), helper.make_node("Identity", ["w"], ["y"]), initializer=True)
    assert round_trip(proto).graph == proto.graph


@pytest.mark.parametrize("dtype", STORED)
def test_constant_nodes_of_any_type_survive_bit_for_bit(dtype: str) -> None:
    proto = holding(stored(dtype), helper.make_node("Constant", [], ["y"], value=stored(dtype)), initializer=False)
    assert round_trip(proto).graph == proto.graph


def test_unused_initializers_go() -> None:
    proto = model("(float[3] x) => (float[3] y) <float[3] k, float[3] unused> { y = Add(x, k) }")
    assert list(weights(round_trip(proto))) == ["k"]


def test_the_given_proto_is_left_alone() -> None:
    proto = model(IF)
    before = proto.SerializeToString(deterministic=True)
    copy = wrapped(proto)
    copy.graph.tensors()["k"].values = np.zeros(3, np.float32)
    copy.graph.nodes[0].name = "renamed"
    copy.to_proto()
    assert proto.SerializeToString(deterministic=True) == before


def test_clones_are_independent() -> None:
    first = wrapped(model("(float[3] x) => (float[3] y) <float[3] k> { [add] h = Add(x, k) y = Relu(h) }"))
    first.quantizers["h"] = Quantizer("h", QuantSpec(Grid(8, signed=False), symmetric=False))
    first.moments["h"] = Moments(np.zeros(3), np.ones(3))
    before = first.to_proto()
    second = first.clone()
    assert (second.quantizers, second.moments) == (first.quantizers, first.moments)
    second.graph.tensors()["k"].values = np.zeros(3, np.float32)
    second.graph.nodes[0].op = "Sub"
    second.graph.nodes[0].inputs.reverse()
    second.quantizers.clear()
    second.moments.clear()
    second.header.doc_string = "other"
    assert first.to_proto() == before
    assert list(first.quantizers) == list(first.moments) == ["h"]


def custom(**attributes: object) -> ModelProto:
    node = helper.make_node("Op", ["x"], ["y"], name="odd", domain="d")
    for name, value in attributes.items():
        attribute = value if isinstance(value, AttributeProto) else helper.make_attribute(name, value)
        attribute.name = name
        node.attribute.append(attribute)
    inputs, outputs = ([helper.make_tensor_value_info(n, TensorProto.FLOAT, [3])] for n in "xy")
    return helper.make_model(helper.make_graph([node], "g", inputs, outputs))


GRAPH = helper.make_graph([], "inner", [], [])


@pytest.mark.parametrize(
    "value",
    [
        helper.make_attribute("a", [GRAPH, GRAPH]),
        helper.make_attribute("a", [stored("FLOAT16")]),
        helper.make_attribute("a", helper.make_tensor_type_proto(1, [3])),
        AttributeProto(type=AttributeProto.INTS),
        AttributeProto(type=AttributeProto.STRING, s=b"\xff\xfe binary"),
        AttributeProto(type=AttributeProto.STRINGS, strings=[b"text", b"\xff\xfe"]),
    ],
    ids=["graphs", "tensors", "type", "empty list", "binary", "binaries"],
)
@pytest.mark.parametrize("nested", [False, True])
def test_attributes_that_would_be_lost_are_refused(value: AttributeProto, nested: bool) -> None:
    proto = custom(a=value)
    if nested:
        proto = custom(body=proto.graph)
    with pytest.raises(ModelError, match=r"net\.onnx: node 'odd' \(Op\) has attributes .*\(a\)"):
        Model.from_proto(proto, "net.onnx")


def test_attributes_of_other_kinds_survive() -> None:
    proto = custom(i=3, f=0.1, s="text", ints=[1, 2], floats=[0.5, 1e-3], strings=["a", "b"], t=stored("BFLOAT16"))
    assert round_trip(proto).graph.node == proto.graph.node


def test_tensors_of_other_kinds_are_refused() -> None:
    proto = custom(i=1)
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [3])
    for kind in (
        helper.make_optional_type_proto(tensor),
        helper.make_map_type_proto(TensorProto.INT64, tensor),
        helper.make_sequence_type_proto(helper.make_sequence_type_proto(tensor)),
    ):
        proto.graph.input[0].type.CopyFrom(kind)
        with pytest.raises(ModelError, match=f"tensor 'x' is of {kind.WhichOneof('value')}.*not supported"):
            wrapped(proto)


def test_sequences_of_tensors_survive() -> None:
    proto = model(
        "(float[N,3] x) => (float[M,3] y) { s = SequenceConstruct(x, x) y = ConcatFromSequence<axis = 0>(s) }"
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    assert any(v.type.HasField("sequence_type") for v in proto.graph.value_info)
    assert_same_function(proto, round_trip(proto), 0)


def test_names_are_unique_across_subgraphs() -> None:
    wrapper = wrapped(model(IF))
    assert wrapper.unique_name("fresh") == "fresh"
    assert wrapper.unique_name("fresh") == "fresh_1"
    assert wrapper.unique_name("x") == "x_1"
    assert wrapper.unique_name("a1") == "a1_1"


def test_the_middle_of_a_long_name_is_left_out() -> None:
    wrapper = wrapped(model(IF))
    stem = f"first;{'middle;' * 100}last_zero_point"
    name = wrapper.unique_name(stem)
    assert len(name) == 120
    assert name.startswith("first;")
    assert name.endswith("last_zero_point")
    assert wrapper.unique_name(stem) == f"{name}_1"
    assert wrapper.unique_name("n" * 120) == "n" * 120


def test_consumers_are_found_in_subgraphs() -> None:
    wrapper = wrapped(model(IF))
    tensors = wrapper.graph.tensors()
    assert [n.op for n in wrapper.consumers(tensors["h"])] == ["Add", "Mul"]
    assert wrapper.sole_consumer(tensors["k"]) is None
    assert wrapper.sole_consumer(tensors["c"]).op == "If"
    assert wrapper.sole_consumer(tensors["y"]) is None
    assert [t.name for t in wrapper.initializers()] == ["k"]


def test_a_tensor_read_twice_has_no_sole_consumer() -> None:
    wrapper = wrapped(model("(float[3] x) => (float[3] y) { h = Relu(x) y = Mul(h, h) }"))
    tensor = wrapper.graph.tensors()["h"]
    assert wrapper.sole_consumer(tensor) is None
    assert len(wrapper.consumers(tensor)) == 1


def test_a_graph_output_has_no_sole_consumer() -> None:
    wrapper = wrapped(model("(float[3] x) => (float[3] h, float[3] y) { h = Relu(x) y = Abs(h) }"))
    assert wrapper.sole_consumer(wrapper.graph.tensors()["h"]) is None


CHAIN = """(float[N,3] x, float[N,3] other) => (float[N,3] y) <float[3] k, float[3] m> {
    a = Add(x, k) b = Mul(a, m) c = Add(other, m) y = Sub(b, c)
}"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["a"], ["Add"]), (["b", "a"], ["Add", "Mul"]), (["c"], ["Add"]), (["y", "c"], ["Add", "Mul", "Add", "Sub"])],
)
def test_extract_takes_what_is_needed(names: list[str], expected: list[str]) -> None:
    proto = model(CHAIN)
    part = extract(proto, names)
    assert ops(part) == expected
    assert interface(part) == (["x", "other"], names)
    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    expected_values = run(whole, arrays := {"x": np.ones((2, 3), np.float32), "other": np.ones((2, 3), np.float32)})
    for name, value in run(part, arrays).items():
        np.testing.assert_array_equal(value, expected_values[name])
    used = {i for node in part.graph.node for i in node.input}
    assert set(weights(part)) <= used


def test_extract_follows_what_subgraphs_capture() -> None:
    proto = model(IF.replace("h = Add(x, k)", "g = Abs(x) h = Add(g, k) unused = Neg(x)"))
    part = extract(proto, ["y"])
    assert ops(part) == ["Abs", "Add", "If"]
    assert set(weights(part)) == {"k", "only", "s"}
    for taken in (True, False):
        assert_same_function(proto, part, 0, branch(taken))


def test_extract_keeps_functions() -> None:
    proto = model(
        "(float[N,3] x) => (float[N,3] y) { h = local.twice(x) y = Relu(h) }", domains="local", functions=FUNCTION
    )
    (value,) = run(extract(proto, ["h"]), {"x": np.ones((2, 3), np.float32)}).values()
    np.testing.assert_array_equal(value, np.full((2, 3), 1.5, np.float32))


def test_extract_gives_inputs_and_initializers_once_each() -> None:
    part = extract(model(CHAIN), ["x", "k", "a", "x", "a"])
    assert interface(part)[1] == ["x", "k", "a"]
    x = np.float32([[1, 2, 3]])
    values = run(part, {"x": x, "other": x})
    np.testing.assert_array_equal(values["x"], x)
    np.testing.assert_array_equal(values["a"], x + values["k"])


@pytest.mark.parametrize("known", [False, True])
def test_extract_refuses_names_that_nothing_produces(known: bool) -> None:
    proto = model(CHAIN)
    if known:
        proto.graph.value_info.append(helper.make_tensor_value_info("ghost", TensorProto.FLOAT, [3]))
    with pytest.raises(KeyError, match="ghost"):
        extract(proto, ["a", "ghost"])


def test_moments_of_an_affine_map() -> None:
    moments = Moments(np.array([1.0, 2.0]), np.array([3.0, 4.0])).affine(np.array([-2.0, 0.5]), np.array([1.0, 0.0]))
    np.testing.assert_array_equal(moments.mean, [-1, 1])
    np.testing.assert_array_equal(moments.std, [6, 2])
