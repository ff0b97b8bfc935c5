from dataclasses import replace

import numpy as np
import pytest
from graphs import model
from quantized import kernels, plan, planned, quantized, reasons

from onnxq.numeric.quant import Grid, QuantSpec

CONV = "<float[3,3,1,1] w, float[3,3,1,1] v, float[3,3,1,1] u{}>"


def conv(body, declared="", outputs="float[?,?,?,?] y", **values):
    """Graphs on x, 1 x 3 x 4 x 4, with three 1x1 weights w, v and u."""
    return model(f"(float[1,3,4,4] x) => ({outputs}) {CONV.format(declared)} {{ {body} }}", check=False, **values)


def activations(quantizers):
    return [name for name, q in quantizers.items() if not q.readers]


# --- linear layers and what is fused with them ------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Relu(a)", "Clip(a, lo, hi)"])
def test_no_quantizer_between_a_layer_and_its_activation(op):
    quantizers = plan(conv(f"a = Conv(x, w) b = {op} y = Conv(b, v)", ", float lo, float hi", lo=0, hi=6))
    assert activations(quantizers) == ["x", "b", "y"]


def test_a_clip_whose_bounds_are_computed_is_not_fused():
    quantizers = plan(conv("s = ReduceMax<keepdims=0>(x) a = Conv(x, w) b = Clip(a, , s) y = Conv(b, v)"))
    assert "a" in quantizers


def test_a_layer_whose_output_is_read_twice_is_quantized_there():
    quantizers = plan(conv("a = Conv(x, w) b = Relu(a) c = Sigmoid(a) d = Add(b, c) y = Conv(d, v)"))
    assert activations(quantizers) == ["x", "a", "b", "c", "d", "y"]


def test_a_layer_whose_output_leaves_the_model_is_quantized_there():
    quantizers = plan(conv("a = Conv(x, w) b = Relu(a) y = Conv(b, v)", outputs="float[?,?,?,?] a, float[?,?,?,?] y"))
    assert {"a", "b"} <= set(quantizers)


def test_an_activation_that_the_target_has_no_kernel_for_stands_between_two_quantizers():
    model_, outcome = planned(conv("a = Conv(x, w) b = Tanh(a) y = Conv(b, v)"))
    assert activations(model_.quantizers) == ["x", "a", "b", "y"]
    assert reasons(outcome) == {"Tanh_b": "ort has no integer kernel for Tanh"}


def test_residual_add():
    quantizers = plan(conv("a = Conv(x, w) b = Relu(a) c = Conv(b, v) d = Add(c, b) e = Relu(d) y = Conv(e, u)"))
    assert activations(quantizers) == ["x", "b", "c", "e", "y"]


def test_a_tensor_has_one_quantizer_however_many_nodes_read_it():
    proto = conv("a = Conv(x, w) b = Conv(a, v) c = Conv(a, u) d = Add(a, b) y = Add(c, d)")
    assert activations(plan(proto)) == ["x", "a", "b", "c", "d"]
    written = quantized(proto)
    assert len([n for n in written.graph.node if n.op_type == "QuantizeLinear"]) == len(activations(plan(proto)))


def test_a_graph_input_that_feeds_several_layers_has_one_quantizer():
    proto = conv("a = Conv(x, w) b = Conv(x, v) y = Concat<axis=1>(a, b)")
    assert activations(plan(proto)) == ["x", "a", "b"]
    assert [n.input[0] for n in quantized(proto).graph.node].count("x") == 1


@pytest.mark.parametrize(
    "tail", ["b = Softmax<axis=-1>(a) y = Identity(b)", "y = LayerNormalization(a, g)", "b = Tanh(a) y = Sub(b, g)"]
)
def test_a_matmul_read_in_float_alone_writes_float(tail):
    proto = model(f"(float[2,3] x) => (float[?,?] y) <float[3,5] w, float[5] g> {{ a = MatMul(x, w) {tail} }}")
    assert set(plan(proto)) == {"x", "w"}
    assert kernels(quantized(proto))["MatMulIntegerToFloat"] == 1


def test_a_matmul_that_makes_an_output_writes_float():
    proto = model("(float[2,3] x) => (float[?,?] y) <float[3,5] w, float[5] b> { a = MatMul(x, w) y = Add(a, b) }")
    assert set(plan(proto)) == {"x", "w"}


def test_a_matmul_with_an_activation_that_makes_an_output_writes_float():
    proto = model("(float[2,3] x) => (float[?,?] y) <float[3,5] w> { a = MatMul(x, w) y = Relu(a) }")
    assert set(plan(proto)) == {"x", "w"}


# --- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "shape", "axis"),
    [
        ("Gemm(x, w)", "3,5", 1),
        ("Gemm<transB=1>(x, w)", "5,3", 0),
        ("MatMul(x, w)", "3,5", 1),
    ],
)
def test_weights_are_quantized_along_their_output_channels(body, shape, axis):
    quantizer = plan(model(f"(float[2,3] x) => (float[?,?] y) <float[{shape}] w> {{ y = {body} }}"))["w"]
    assert (quantizer.axis, quantizer.spec.per_channel, quantizer.spec.symmetric) == (axis, True, True)
    assert str(quantizer.spec.grid) == "int8 narrow"


def test_convolutions_are_quantized_along_axis_0():
    assert plan(conv("y = Conv(x, w)"))["w"].axis == 0


def test_batched_weights_have_one_scale():
    proto = model("(float[4,2,3] x) => (float[?,?,?] y) <float[4,3,5] w> { y = MatMul(x, w) }")
    assert (plan(proto)["w"].axis, plan(proto)["w"].spec.per_channel) == (None, False)


def test_per_tensor_weights():
    spec = QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True)
    assert plan(conv("y = Conv(x, w)"), weight=spec)["w"].axis is None


def test_tied_weights_have_one_quantizer():
    proto = conv("a = Conv(x, w) y = Conv(a, w)")
    assert plan(proto)["w"].readers == ("Conv_a", "Conv_y")
    assert len([t for t in quantized(proto).graph.initializer if list(t.dims) == [3, 3, 1, 1]]) == 1


def test_tied_weights_with_channels_on_different_axes_have_one_scale():
    proto = model("(float[2,3] x) => (float[?,?] y) <float[3,3] w> { a = MatMul(x, w) y = Gemm<transB=1>(a, w) }")
    quantizer = plan(proto)["w"]
    assert (quantizer.axis, quantizer.spec.per_channel) == (None, False)
    quantized(proto)


def test_an_excluded_reader_of_tied_weights_keeps_the_floats():
    proto = conv("a = Conv(x, w) y = Conv(a, w)")
    assert plan(proto, exclude=("Conv_y",))["w"].readers == ("Conv_a",)
    written = quantized(proto, exclude=("Conv_y",))
    float_conv = next(n for n in written.graph.node if n.name == "Conv_y")
    assert float_conv.input[1] == "w"


def test_a_weight_that_a_float_operator_reads_too_is_kept_for_it():
    proto = model(
        "(float[2,3] x) => (float[?,?] y, float[?,?] z) <float[3,3] w, float[3] k>"
        " { y = MatMul(x, w) a = Tanh(y) b = ReduceMean<axes=[0]>(a) z = Sub(w, b) }"
    )
    written = quantized(proto)
    assert next(n for n in written.graph.node if n.op_type == "Sub").input[0] == "w"
    assert next(n for n in written.graph.node if n.op_type == "MatMul").input[1] == "w_dequantized"


def test_a_weight_that_is_also_added_keeps_its_grid():
    proto = model("(float[3,3] x) => (float[?,?] y) <float[3,3] w> { a = MatMul(x, w) b = Mul(a, w) y = MatMul(b, w) }")
    model_, outcome = planned(proto)
    assert model_.quantizers["w"].spec.symmetric
    assert reasons(outcome) == {"Mul_b": "'w' is the weight of a linear layer, which has a grid of its own"}


def test_a_product_of_two_activations_quantizes_both():
    proto = model("(float[2,3] x, float[3,5] v) => (float[?,?] y) { y = MatMul(x, v) }")
    assert activations(plan(proto)) == ["x", "v"]


def test_a_computed_weight_keeps_the_layer_in_float():
    proto = model("(float[1,3,4,4] x, float[5,3,1,1] w) => (float[?,?,?,?] y) { y = Conv(x, w) }")
    assert reasons(planned(proto)[1]) == {"Conv_y": "weight 'w' is not constant"}


# --- elementwise operators --------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_constants_of_elementwise_operators_have_a_grid(op):
    proto = conv(f"a = Conv(x, w) s = Sigmoid(a) b = {op}(s, k) y = Conv(b, v)", ", float[3,4,4] k")
    assert (plan(proto)["k"].readers, plan(proto)["k"].spec.symmetric) == ((f"{op}_b",), False)
    assert kernels(quantized(proto))[f"QLinear{op}"] == 1


def test_elementwise_operators_among_float_ones_stay_in_float():
    proto = conv("a = Conv(x, w) b = Tanh(a) c = Tanh(b) d = Add(b, c) y = Conv(d, v)")
    assert reasons(planned(proto)[1])["Add_d"] == "none of its inputs is computed in integers"


def test_preprocessing_inside_the_model_stays_in_float():
    proto = conv("a = Transpose<perm=[0,1,3,2]>(x) b = Add(a, k) y = Conv<pads=[1,1,1,1]>(b, v)", ", float[3,4,4] k")
    assert activations(plan(proto)) == ["b", "y"]


def test_a_decomposed_layer_normalization_stays_in_float():
    proto = model(
        """(float[2,5] x) => (float[?,?] y)
        <float[5,7] w, float[7,7] v, float two, float eps, float[7] g, float[7] h> {
            a = MatMul(x, w)  m = ReduceMean<axes=[-1]>(a)  d = Sub(a, m)  p = Pow(d, two)
            q = ReduceMean<axes=[-1]>(p)  e = Add(q, eps)  r = Sqrt(e)  n = Div(d, r)
            s = Mul(n, g)  t = Add(s, h)  u = Tanh(t) y = MatMul(u, v) }""",
        two=2,
        eps=1e-5,
    )
    model_, outcome = planned(proto)
    assert activations(model_.quantizers) == ["x", "u"]
    assert len(reasons(outcome)) == 10


def test_softmax_and_sigmoid_have_a_range_without_data():
    quantizers = plan(conv("a = Conv(x, w) b = Sigmoid(a) c = Softmax(b) y = Conv(c, v)"))
    assert (quantizers["b"].fixed, quantizers["c"].fixed, quantizers["a"].fixed) == ((0, 1), (0, 1), None)


def test_the_softmax_that_makes_an_output_stays_in_float():
    _, outcome = planned(conv("a = Conv(x, w) y = Softmax(a)"))
    assert reasons(outcome) == {"Softmax_y": "it computes an output of the model, which keeps float precision"}


@pytest.mark.parametrize("mask", ["Add(a, k)", "Where(c, a, k)"])
def test_attention_masks_stay_in_float(mask):
    proto = conv(
        f"a = Conv(x, w) b = {mask} s = Softmax(b) y = Conv(s, v)", ", float[4,4] k, bool[4,4] c", k=-np.inf, c=True
    )
    model_, outcome = planned(proto)
    assert "k" not in model_.quantizers
    assert "masks" in next(iter(reasons(outcome).values()))
    assert np.isfinite(quantized(conv("y = Conv(x, w)")).ByteSize())


def test_a_constant_that_is_not_finite_keeps_its_reader_in_float():
    proto = conv(
        "a = Conv(x, w) b = Concat<axis=2>(a, k) y = MaxPool<kernel_shape=[2,1]>(b)", ", float[1,3,4,4] k", k=-np.inf
    )
    model_, outcome = planned(proto)
    assert "k" not in model_.quantizers
    assert reasons(outcome)["Concat_b"] == "constant 'k' holds infinity or not-a-number"


# --- data movement ----------------------------------------------------------------------------------------------

MOVES = {
    "MaxPool": "MaxPool<kernel_shape=[2,2]>(a)",
    "Reshape": "Reshape(a, shape)",
    "Transpose": "Transpose<perm=[0,1,3,2]>(a)",
    "Slice": "Slice(a, from, to)",
    "Pad": "Pad(a, pads)",
    "Resize": 'Resize<mode="nearest">(a, , scales)',
}
ARGUMENTS = ", int64[4] shape, int64[4] from, int64[4] to, int64[8] pads, float[4] scales"
VALUES = {
    "shape": [1, 3, 2, 8],
    "from": [0, 0, 1, 1],
    "to": [1, 3, 4, 4],
    "pads": [0, 0, 1, 1] * 2,
    "scales": [1, 1, 2, 2],
}


@pytest.mark.parametrize("op", MOVES)
def test_movement_keeps_the_grid_of_its_input(op):
    quantizers = plan(conv(f"a = Conv(x, w) b = {MOVES[op]} y = Conv(b, v)", ARGUMENTS, **VALUES))
    assert quantizers["b"].grid_of == "a"
    assert quantizers["a"].grid_of is None


@pytest.mark.parametrize("pool", ["AveragePool<kernel_shape=[2,2]>(a)", "GlobalAveragePool(a)"])
def test_averages_which_vary_less_than_what_they_average_have_grids_of_their_own(pool):
    assert plan(conv(f"a = Conv(x, w) b = {pool} y = Conv(b, v)"))["b"].grid_of is None


def test_a_chain_of_movement_has_the_grid_of_its_first_tensor():
    body = f"a = Conv(x, w) b = {MOVES['MaxPool']} c = Transpose(b) d = Transpose(c) y = Conv(d, v)"
    model_, outcome = planned(conv(body))
    assert [model_.quantizers[n].grid_of for n in "abcd"] == [None, "a", "b", "c"]
    assert outcome.changed == 5


def test_split_gives_all_its_outputs_the_grid():
    quantizers = plan(
        conv("a = Conv(x, w) b, c = Split<axis=2>(a, s) d = Add(b, c) y = Conv(d, v)", ", int64[2] s", s=[2, 2])
    )
    assert {n: quantizers[n].grid_of for n in "bcd"} == {"b": "a", "c": "a", "d": None}


@pytest.mark.parametrize("op", ['Resize<mode="linear">(a, , scales)', "Pad(a, pads, one)"])
def test_what_computes_new_values_is_no_movement(op):
    body = f"a = Conv(x, w) b = {op} y = Conv(b, v)"
    model_, outcome = planned(conv(body, ARGUMENTS + ", float one", one=1, **VALUES))
    assert model_.quantizers["b"].grid_of is None
    assert "computes new values" in next(iter(reasons(outcome).values()))


def test_movement_between_float_operators_is_left_alone():
    model_, outcome = planned(conv("a = Conv(x, w) b = Tanh(a) c = Transpose(b) y = Tanh(c)"))
    assert activations(model_.quantizers) == ["x", "a"]
    assert outcome.changed == 1


def test_movement_behind_a_float_operator_is_not_pulled_onto_a_grid():
    quantizers = plan(conv("a = Conv(x, w) b = Tanh(a) c = Transpose(b) d = Transpose(c) y = Conv(d, v)"))
    assert activations(quantizers) == ["x", "a", "d", "y"]
    assert quantizers["d"].grid_of is None


def test_movement_that_is_only_read_in_float_does_not_count_as_integer():
    model_, outcome = planned(conv("a = Conv(x, w) b = Transpose(a) y = Tanh(b)"))
    assert activations(model_.quantizers) == ["x", "a"]
    assert outcome.changed == 1


# --- few bits are for products ----------------------------------------------------------------------------------


FOUR = QuantSpec(Grid(4, signed=False), symmetric=False)
RESIDUAL = "a = Conv(x, w) r = Relu(a) b = Conv(r, v) c = Add(b, r) s = Relu(c) y = Conv(s, u)"


def widths(proto, **options):
    found, outcome = planned(proto, **{"activation": FOUR, **options})
    return {name: q.spec.grid.bits for name, q in found.quantizers.items() if name not in "wvu"}, outcome


def test_activations_that_no_product_reads_and_inputs_have_8_bits():
    found, outcome = widths(conv(RESIDUAL))
    assert found == {"x": 8, "r": 4, "b": 8, "s": 4, "y": 8}
    assert "3 of them with 8 bits: no product reads them, or they are inputs" in outcome.notes
    assert set(widths(conv(RESIDUAL), narrow="all")[0].values()) == {4}


@pytest.mark.parametrize("bits", [8, 11])
def test_widths_of_8_bits_and_more_stay(bits):
    assert set(widths(conv(RESIDUAL), activation=replace(FOUR, grid=Grid(bits, signed=False)))[0].values()) == {bits}


def test_what_a_product_reads_behind_data_movement_has_few_bits_all_the_way():
    proto = conv(
        "a = Conv(x, w) b = Reshape(a, s) c = Conv(b, v) d = Transpose<perm=[0,1,3,2]>(c) e = Add(d, k) y = Conv(e, u)",
        ", int64[4] s = {1, 3, 2, 8}, float[3,8,2] k",
    )
    found, _ = widths(proto)
    assert {name: found[name] for name in "xabcdke"} == {"x": 8, "a": 4, "b": 4, "c": 8, "d": 8, "k": 8, "e": 4}


def test_both_inputs_of_a_product_of_activations_have_few_bits():
    proto = model(
        "(float[2,3,4] x) => (float[?,?,?] y) { p = Relu(x) q = Transpose<perm=[0,2,1]>(x) y = MatMul(p, q) }"
    )
    found, _ = widths(proto)
    assert found["p"] == 4
    assert found["q"] == found["x"] == 8, "the input's own grid, moved"


def test_what_shares_a_grid_has_one_width():
    proto = conv("a = Conv(x, w) b = Conv(x, v) c = Add(a, b) d = Add(c, k) y = Conv(a, u)", ", float[3,4,4] k",
                 "float[?,?,?,?] y, float[?,?,?,?] d")  # fmt: skip
    assert {n: bits for n, bits in widths(proto)[0].items() if n in "abc"} == {"a": 4, "b": 8, "c": 8}
    assert {n: bits for n, bits in widths(proto, tie=("Add",))[0].items() if n in "abc"} == {"a": 4, "b": 4, "c": 4}


# --- tied inputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Add", "Concat"])
def test_tied_inputs_share_one_grid_with_the_output(op):
    call = "Add(a, b)" if op == "Add" else "Concat<axis=2>(a, b)"
    proto = conv(f"a = Conv(x, w) b = Conv(x, v) c = {call} y = Conv(c, u)")
    quantizers = plan(proto, tie=(op,))
    assert {n: quantizers[n].grid_of for n in "abc"} == {"a": None, "b": "a", "c": "a"}
    assert quantizers["a"].widened_by == ("b", "c")
    assert {plan(proto)[n].grid_of for n in "abc"} == {None}


def test_tied_chains_end_in_one_grid():
    proto = conv("a = Conv(x, w) b = Conv(x, v) c = Add(a, b) d = Conv(x, u) e = Add(c, d) y = Conv(e, w)")
    quantizers = plan(proto, tie=("Add",))
    assert set(quantizers["a"].widened_by) == set("bcde")
    assert all(quantizers[n].grid_of == "a" for n in "bcde")


def test_a_tied_constant_keeps_a_grid_of_its_own():
    proto = conv("a = Conv(x, w) s = Sigmoid(a) b = Add(k, s) y = Conv(b, v)", ", float[3,4,4] k")
    quantizers = plan(proto, tie=("Add",))
    assert quantizers["k"].grid_of is None
    assert (quantizers["b"].grid_of, quantizers["s"].widened_by) == ("s", ("b",))
    quantized(proto, tie=("Add",))
