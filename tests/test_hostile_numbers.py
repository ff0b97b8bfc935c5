"""Odd numbers, types and graphs: each model is quantized and verified, or refused with a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import feeds, interface, model, ops, run
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxq
from onnxq.errors import DataError, ModelError, NothingToQuantizeError, OnnxqError
from onnxq.graph import import_model

NET = "(float[N,3,4,4] x) => (float[N,5,4,4] y) <float[5,3,1,1] w, float[5] b> { a = Conv(x, w, b) y = Relu(a) }"
DENSE = "(float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }"
HALF = {"float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}


def quantized(proto: ModelProto, data: object = None, least_db: float = 20.0) -> ModelProto:
    """Quantized and verified; its outputs are at least so near the float model's, and its interface is the same."""
    if data is None:
        data = [feeds(proto, seed=seed) for seed in range(4)]
    result = onnxq.quantize(proto, data, threads=1)
    assert all(o.sqnr_db is None or o.sqnr_db >= least_db for o in result.report.quality), result.report.quality
    assert "QuantizeLinear" in ops(result.model)
    assert interface(result.model) == interface(proto)
    return result.model


def refused(proto: ModelProto, *words: str, data: object = None, error: type[OnnxqError] = ModelError) -> None:
    with pytest.raises(error) as caught:
        onnxq.quantize(proto, [feeds(proto)] if data is None else data, threads=1)
    for word in words:
        assert word in str(caught.value), caught.value


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite(value: float) -> None:
    w = np.ones((5, 3, 1, 1), np.float32)
    w[2, 1] = value
    refused(model(NET, w=w), "weight 'w'", "not-a-number or infinity")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite(value: float) -> None:
    refused(model(NET, b=np.float32([0, value, 0, 0, 0])), "'b'", "not-a-number or infinity")


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38])
def test_weights_that_are_all_zero_or_next_to_it(value: float) -> None:
    quantized(model(NET, w=np.float32(value)))


@pytest.mark.parametrize("value", [1e-30, 1e30])
def test_weights_that_are_tiny_or_huge(value: float) -> None:
    quantized(model(DENSE, w=value * np.random.default_rng(0).standard_normal((4, 3))))


def test_products_beyond_float32() -> None:
    """The float model gives infinity: there is nothing to compare with, and the report says so."""
    result = onnxq.quantize(model(DENSE, w=np.float32(3e38)), [{"x": np.full((1, 4), 1e3, np.float32)}], threads=1)
    assert "of the float model itself holds infinity" in " ".join(result.report.warnings)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-40, 1e30])
def test_activations_that_are_all_the_same(value: float) -> None:
    proto = model(NET, w=0.5, b=0.0)
    quantized(proto, [{"x": np.full((1, 3, 4, 4), value, np.float32)}], 0.0 if value == 1e-40 else 20.0)


def test_an_activation_that_becomes_infinite_inside() -> None:
    text = """(float[N,4] x) => (float[N,3] y) <float[4,3] w, float[3,3] v, float zero> {
        h = MatMul(x, w) z = Div(h, zero) c = Clip(z) m = Min(c, zero) k = MatMul(m, v) y = Relu(k) }"""
    result = onnxq.quantize(model(text, zero=0.0), [feeds(model(text))], threads=1)
    assert "of the float model itself holds infinity" in " ".join(result.report.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_data_that_is_not_finite(value: float) -> None:
    refused(model(DENSE), "input x has", data=[{"x": np.full((1, 4), value, np.float32)}], error=DataError)


def test_a_mask_of_infinity_whose_outputs_are_finite() -> None:
    text = """(float[N,4] x, float[N,4] mask) => (float[N,3] y) <float[4,4] w, float[4,3] v> {
        h = MatMul(x, w) a = Add(h, mask) p = Softmax(a) y = MatMul(p, v) }"""
    data = feeds(model(text))
    data["mask"] = np.float32([[0, 0, -np.inf, 0], [0, -np.inf, 0, 0]])
    quantized(model(text), [data])


def test_a_variance_that_is_negative() -> None:
    text = """(float[N,3,4,4] x) => (float[N,5,4,4] y) <float[5,3,1,1] w, float[5] s, float[5] t, float[5] m,
        float[5] variance> { a = Conv(x, w) y = BatchNormalization(a, s, t, m, variance) }"""
    proto = model(text, variance=-1.0)
    result = onnxq.quantize(proto, [feeds(proto)], threads=1)
    assert "of the float model itself holds infinity" in " ".join(result.report.warnings)


# --- types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HALF)
@pytest.mark.parametrize("text", [NET, DENSE], ids=["conv", "matmul"])
def test_other_float_types_are_brought_to_float32(kind: str, text: str) -> None:
    proto = model(text.replace("float[", f"{kind}["))
    result = quantized(proto)
    assert [v.type.tensor_type.elem_type for v in (*result.graph.input, *result.graph.output)] == 2 * [HALF[kind]]
    assert {t.data_type for t in result.graph.initializer if t.name == "w"} <= {TensorProto.INT8}
    made = {p.key: p.value for p in result.metadata_props if p.key != "onnxq.provenance"}
    assert made == {"onnxq.float32_from": kind}


def test_what_stays_in_float_is_stored_as_it_came() -> None:
    """No result is larger than its input: a large table in float16 that nothing quantizes takes no more room."""
    text = """(float16[N,64] x) => (float16[N,64] y) <float16[64,64] w, float16[64,64] v> {
        h = MatMul(x, w) a = Relu(h) [last] y = MatMul(a, v) }"""
    proto = model(text)
    result = onnxq.quantize(proto, [feeds(proto)] * 8, threads=1, exclude=("last",))
    kept = next(t for t in result.model.graph.initializer if t.data_type == TensorProto.FLOAT16)
    assert list(kept.dims) == [64, 64]
    assert result.model.ByteSize() < proto.ByteSize()
    assert not any(t.data_type == TensorProto.FLOAT and len(t.dims) == 2 for t in result.model.graph.initializer)


def test_half_precision_inside_of_float32_inputs_and_outputs() -> None:
    text = """(float[N,4] x) => (float[N,3] y) <float16[4,3] w> {
        h = Cast<to=10>(x) k = MatMul(h, w) y = Cast<to=1>(k) }"""
    result = quantized(model(text))
    assert "Cast" not in ops(result)


def test_half_precision_in_branches_of_if() -> None:
    text = """(float16[N,3] x, bool c) => (float16[N,3] y) <float16[3,3] w, float16[3] k, float16[3] o> {
        h = MatMul(x, w)
        y = If(c) <then_branch = t () => (float16[N,3] a) { a = Add(h, k) },
                   else_branch = e () => (float16[N,3] b) { b = Mul(x, o) }> }"""
    quantized(model(text))


def test_bfloat16_weights() -> None:
    text = """(float[N,4] x) => (float[N,3] y) <bfloat16[4,3] w> {
        h = Cast<to=16>(x) k = MatMul(h, w) y = Cast<to=1>(k) }"""
    w = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 3], np.linspace(-1, 1, 12))
    proto = model("(float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }", opset=22, ir_version=10)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(onnx.parser.parse_graph(f"g {text.replace('<bfloat16[4,3] w>', '')}").node)
    proto.graph.initializer.append(w)
    quantized(proto)


def test_bfloat16_inputs() -> None:
    proto = model("(bfloat16[N,4] x) => (bfloat16[N,3] y) <bfloat16[4,3] w> { y = MatMul(x, w) }", check=False)
    refused(proto, "'x' is bfloat16", "export the model with float32 inputs", data=[{"x": np.ones((1, 4), np.float32)}])


def test_doubles_beyond_float32() -> None:
    w = np.full((4, 3), 1e300)
    refused(model(DENSE.replace("float[", "double["), w=w), "'w'", "beyond the range of float32")


def test_integers_only() -> None:
    proto = model("(int64[N,4] x) => (int64[N,4] y) <int64[4] k> { y = Add(x, k) }")
    refused(proto, "nothing to quantize", error=NothingToQuantizeError)


# --- shapes -----------------------------------------------------------------------------------------------------


def test_scalars() -> None:
    text = "(float[N,4] x, float s) => (float[N,3] y, float t) <float[4,3] w>"
    text += " { h = MatMul(x, w) y = Mul(h, s) t = Abs(s) }"
    proto = model(text)
    quantized(proto, [{"x": np.ones((1, 4), np.float32), "s": np.array(v, np.float32)} for v in (1, 2, 3)])


def test_tensors_of_no_elements() -> None:
    text = """(float[N,4] x) => (float[N,3] y, float[N,0] z) <float[4,3] w, float[4,0] none> {
        y = MatMul(x, w) z = MatMul(x, none) }"""
    quantized(model(text))


def test_an_input_of_no_elements() -> None:
    proto = model("(float[N,4] x, float[M,4] past) => (float[K,3] y) <float[4,3] w>"
                  " { c = Concat<axis=0>(past, x) y = MatMul(c, w) }")  # fmt: skip
    quantized(proto, [{"x": np.float32([[1, -2, 3, v]]), "past": np.zeros((0, 4), np.float32)} for v in range(4)])


def test_only_empty_inputs() -> None:
    refused(model(DENSE), "is empty", data=[{"x": np.zeros((0, 4), np.float32)}], error=DataError)


def test_dimensions_of_minus_one() -> None:
    """As old exporters write what is dynamic."""
    proto = model(NET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    quantized(proto, [{"x": np.random.default_rng(i).standard_normal((1, 3, 4, 4)).astype("f")} for i in range(3)])


def test_an_absurd_input() -> None:
    proto = model(NET.replace("float[N,3,4,4] x", "float[4611686018427387904,3,4,4] x"), check=False)
    refused(proto, "input 'x' takes", data=[{"x": np.ones((1, 3, 4, 4), np.float32)}])


def test_a_vector_times_a_matrix() -> None:
    refused(model("(float[4] x) => (float[3] y) <float[4,3] w> { y = MatMul(x, w) }"), "is a vector, without a batch")


def test_weights_of_several_matrices_below_8_bits() -> None:
    text = "(float[N,2,3,4] x) => (float[N,2,3,5] y) <float[2,4,5] w, float[5] b> { h = MatMul(x, w) y = Add(h, b) }"
    proto = model(text)
    result = onnxq.quantize(proto, [feeds(proto, seed=s) for s in range(8)], preset="w4a8", threads=1)
    assert "several matrices" in result.report.to_text(verbose=True)


# --- graphs -----------------------------------------------------------------------------------------------------


def test_an_empty_graph() -> None:
    proto = model("(float[N,4] x) => (float[N,4] x) { }", check=False)
    refused(proto, data=[{"x": np.ones((1, 4), np.float32)}])


def test_an_output_that_is_an_input() -> None:
    proto = model("(float[N,4] x) => (float[N,3] y, float[N,4] x) <float[4,3] w> { y = MatMul(x, w) }", check=False)
    quantized(proto)


def test_an_output_that_is_a_weight() -> None:
    quantized(model("(float[N,4] x) => (float[N,3] y, float[4,3] w) <float[4,3] w> { y = MatMul(x, w) }", check=False))


def test_a_model_of_constants() -> None:
    proto = model("() => (float[2,3] y) <float[2,4] a, float[4,3] b> { y = MatMul(a, b) }")
    refused(proto, "no inputs", data=[{}])


def test_outputs_that_nobody_reads() -> None:
    text = """(float[N,3,4,4] x) => (float[N,3,3,3] y) <float[3,3,1,1] w> {
        a = Conv(x, w) y, indices = MaxPool<kernel_shape=[2,2]>(a) spare = Exp(a) }"""
    quantized(model(text))


def test_nodes_that_share_a_name() -> None:
    proto = model("(float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v>"
                  " { [same] h = MatMul(x, w) [same] r = Relu(h) [same] y = MatMul(r, v) }")  # fmt: skip
    quantized(proto)


@pytest.mark.parametrize("name", ["", "ü✓ 漢字", "a b\tc", "x" * 5000, "/layer.0/conv::1"])
def test_odd_names(name: str) -> None:
    proto = model(NET)
    for node in proto.graph.node:
        node.name = name
    for node in proto.graph.node:
        node.input[:] = [name or "a" if n == "a" else n for n in node.input]
        node.output[:] = [name or "a" if n == "a" else n for n in node.output]
    proto.graph.name = name or "g"
    quantized(proto)


def test_optional_inputs_that_are_left_out_by_an_empty_name() -> None:
    """ONNX Runtime 1.32 ends the process (SIGSEGV) where it fuses this Add with this LayerNormalization."""
    text = (
        "(float[N,3,8] x) => (float[N,3,8] y) <float[8,8] w, float[8] s>"
        " { a = MatMul(x, w) r = Add(a, x) y = LayerNormalization<axis=-1>(r, s) }"
    )
    proto = model(text)
    proto.graph.node[-1].input.append("")
    found = quantized(proto)
    assert [len(n.input) for n in found.graph.node if n.op_type == "LayerNormalization"] == [2]
    assert len(proto.graph.node[-1].input) == 3, "the given model stays as it is"


def test_required_inputs_keep_their_empty_names() -> None:
    """Loop must have two, which may be empty both."""
    proto, loop = model(DENSE), helper.make_node("Loop", ["", ""], [], "loop")
    assert import_model._inputs_to_drop(loop, proto) == 0
    loop.input.append("")
    assert import_model._inputs_to_drop(loop, proto) == 1
    loop.input[2] = "x"
    assert import_model._inputs_to_drop(loop, proto) == 0


def test_tensors_that_share_a_name() -> None:
    proto = model("(float[N,4] x) => (float[N,4] y) <float[4,4] w> { y = MatMul(x, w) y = Relu(x) }", check=False)
    refused(proto, "not a valid ONNX model")


def test_functions() -> None:
    functions = """<domain: "local", opset_import: ["": 17]> dense (q, k) => (r) { h = MatMul(q, k) r = Relu(h) }"""
    text = (
        "(float[N,4] x) => (float[N,3] y) <float[4,4] w, float[4,3] v> { h = local.dense(x, w) y = local.dense(h, v) }"
    )
    result = quantized(model(text, domains="local", functions=functions))
    assert ops(result).count("MatMul") == 2


def test_sequences() -> None:
    text = """(float[N,4] x) => (float[N,3] y, float[N,3] last) <float[4,3] w, int64 zero> {
        y = MatMul(x, w) r = Relu(y) s = SequenceConstruct(y, r) last = SequenceAt(s, zero) }"""
    quantized(model(text, zero=np.array(1)))


def test_optional_values() -> None:
    text = """(float[N,4] x) => (float[N,3] y, float[N,3] z) <float[4,3] w> {
        y = MatMul(x, w) o = Optional(y) z = OptionalGetElement(o) }"""
    quantized(model(text, opset=18))


def test_sequences_as_inputs() -> None:
    proto = model("(float[N,4] x) => (float[N,3] y) <float[4,3] w> { y = MatMul(x, w) }")
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [2]))
    proto.graph.output.append(helper.make_tensor_sequence_value_info("t", TensorProto.FLOAT, [2]))
    proto.graph.node.append(helper.make_node("Identity", ["s"], ["t"]))
    refused(proto, "'s' is no tensor", data=[{"x": np.ones((1, 4), np.float32)}])


def test_sparse_initializers() -> None:
    proto = model(DENSE)
    del proto.graph.initializer[:]
    values = numpy_helper.from_array(np.float32([1, -2, 3]), "w")
    indices = numpy_helper.from_array(np.int64([0, 5, 11]), "w_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    quantized(proto, [{"x": np.float32([[1, 2, 3, v]])} for v in range(4)])


@pytest.mark.parametrize(
    "opset", [*range(7, onnx.defs.onnx_opset_version() + 1, 4), 12, onnx.defs.onnx_opset_version()]
)
def test_every_operator_set(opset: int) -> None:
    ir_version = {7: 3, 11: 6}.get(opset, 8 if opset < 20 else 10)
    proto = model(NET, opset=opset, ir_version=ir_version, check=False)
    proto.ir_version = ir_version
    try:
        run(proto, feeds(proto))
    except Exception:
        pytest.skip(f"this ONNX Runtime does not know operator set {opset}")
    quantized(proto)


def test_operator_set_6() -> None:
    """Older than anything that ONNX Runtime runs."""
    quantized(model(NET.replace("N,", "2,"), opset=6, ir_version=3, check=False))


@pytest.mark.parametrize("ir_version", [3, 4, 7, 10])
def test_old_and_new_files(ir_version: int) -> None:
    quantized(model(NET, ir_version=ir_version, opset=11 if ir_version < 4 else 17))


def test_nodes_out_of_order() -> None:
    """As onnxruntime's converter to float16 leaves them."""
    proto = model(NET)
    nodes = list(reversed(proto.graph.node))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    quantized(proto)


def test_nodes_that_wait_for_each_other() -> None:
    proto = model("(float[N,4] x) => (float[N,4] y) { a = Add(x, y) y = Relu(a) }", check=False)
    refused(proto, "not a valid ONNX model", data=[{"x": np.ones((1, 4), np.float32)}])
