import numpy as np
import onnx
import pytest
from graphs import interface, model, run, shape, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import planned, quantized, samples, with_ranges

from onnxq.errors import EngineError
from onnxq.execution.session import Session
from onnxq.graph.simulate import simulated
from onnxq.numeric.quant import Grid, QuantParams, QuantSpec
from onnxq.passes.base import Context
from onnxq.passes.lower_to_qdq import LowerToQdq
from onnxq.pipeline.lower import lower
from onnxq.targets import ORT

MLP = """(float[N,3] x) => (float[N,?] y) <float[3,5] w, float[5] b, float[5,7] v, float[7] c>
    { a = Gemm(x, w, b) r = Relu(a) z = Gemm(r, v, c) s = Sigmoid(z) y = Mul(s, z) }"""


def lowered(proto, **options):
    """The model with its quantizers written into the graph, checked."""
    model_ = with_ranges(proto, **options)
    outcome = LowerToQdq().apply(model_, Context())
    written = model_.to_proto()
    onnx.checker.check_model(written, full_check=True)
    return written, outcome


def reading(proto, tensor):
    """Nodes that read the tensor."""
    return [n for n in proto.graph.node if tensor in n.input]


def producer(proto, tensor):
    return next(n for n in proto.graph.node if tensor in n.output)


# --- the form ---------------------------------------------------------------------------------------------------


def test_an_activation_passes_through_integers():
    proto, outcome = lowered(model(MLP))
    (quantize,) = reading(proto, "x")
    assert (quantize.op_type, quantize.output[0]) == ("QuantizeLinear", "x_quantized")
    (dequantize,) = reading(proto, "x_quantized")
    assert (dequantize.op_type, dequantize.output[0]) == ("DequantizeLinear", "x_dequantized")
    assert quantize.input[1:] == dequantize.input[1:]
    assert [n.op_type for n in reading(proto, "x_dequantized")] == ["Gemm"]
    assert outcome.notes == ("biases at 32 bits: 2",)


def test_weights_are_stored_as_integers_and_only_dequantized():
    proto, _ = lowered(model(MLP))
    found = weights(proto)
    assert {"w", "v", "b", "c"}.isdisjoint(found)
    assert found["w_quantized"].dtype == found["w_zero_point"].dtype == np.int8
    assert found["b_quantized"].dtype == found["b_zero_point"].dtype == np.int32
    assert np.abs(found["w_quantized"]).max() == 127
    for name in ("w", "v", "b", "c"):
        (reader,) = reading(proto, f"{name}_quantized")
        assert reader.op_type == "DequantizeLinear"
    constants = set(found)
    assert not [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants]


@pytest.mark.parametrize(("call", "dims", "axis"), [("Gemm(x, w)", "3,5", 1), ("Gemm<transB=1>(x, w)", "5,3", 0)])
def test_per_channel_weights_name_their_axis(call, dims, axis):
    proto, _ = lowered(model(f"(float[2,3] x) => (float[?,?] y) <float[{dims}] w> {{ y = {call} }}"))
    (node,) = reading(proto, "w_quantized")
    assert [(a.name, a.i) for a in node.attribute] == [("axis", axis)]
    assert weights(proto)["w_scale"].shape == (5,)


def test_per_tensor_weights_have_scalars():
    spec = QuantSpec(Grid(8, signed=True, narrow=True), symmetric=True)
    found = weights(lowered(model(MLP), weight=spec)[0])
    assert {found[f"w_{part}"].shape for part in ("scale", "zero_point")} == {()}
    assert found["b_scale"].shape == ()


def test_quantizers_are_consumed():
    model_ = with_ranges(model(MLP))
    LowerToQdq().apply(model_, Context())
    assert model_.quantizers == {}


def test_a_quantizer_without_params_is_a_bug():
    model_, _ = planned(model(MLP))
    with pytest.raises(ValueError, match="has no range yet"):
        LowerToQdq().apply(model_, Context())


def test_node_names_are_unique():
    proto, _ = lowered(model(MLP))
    names = [n.name for n in proto.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)


# --- inputs and outputs -----------------------------------------------------------------------------------------

CONV = "<float[3,3,1,1] w, float[3,3,1,1] v>"


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[N,?,?,?] y", "a = Conv(x, w) y = Conv(a, v)"),
        ("float[N,?,?,?] a, float[N,?,?,?] y", "a = Conv(x, w) y = Conv(a, v)"),
        ("float[N,?,?,?] a, float[N,?,?,?] y", "a = Conv(x, w) b = Relu(a) y = Conv(b, v)"),
        ("float[N,?,?,?] y", "a = Conv(x, w) b = Conv(a, v) y = Relu(b)"),
        ("float[N,3,?,?] x, float[N,?,?,?] y", "y = Conv(x, w)"),
        ("float[N,?,?,?] p, float[N,?,?,?] q", "a = Conv(x, w) p, q = Split<axis=1>(a, s) c = Conv(q, u)"),
    ],
)
def test_names_of_inputs_and_outputs_stay(outputs, body):
    declared = CONV[:-1] + ", int64[2] s, float[1,2,1,1] u>"
    proto = model(f"(float[N,3,H,4] x) => ({outputs}) {declared} {{ {body} }}", s=[1, 2], check=False)
    written, _ = lowered(proto)
    assert interface(written) == interface(proto)
    feed = samples(proto)[0]
    expected, got = run(proto, feed), run(written, feed)
    for name, x in expected.items():
        assert got[name].shape == x.shape
        assert np.abs(got[name] - x).max() < 0.1 * np.abs(x).max()


def test_an_output_that_is_quantized_comes_from_its_dequantizer():
    proto = model(
        f"(float[N,3,4,4] x) => (float[N,?,?,?] a, float[N,?,?,?] y) {CONV} {{ a = Conv(x, w) y = Conv(a, v) }}"
    )
    written, _ = lowered(proto)
    assert producer(written, "a").op_type == "DequantizeLinear"
    assert [n.op_type for n in reading(written, "a")] == ["Conv"]


def test_an_input_that_is_an_output_too_leaves_the_model_as_it_came():
    proto = model("(float[N,3] x) => (float[N,?] y, float[N,3] x) <float[3,5] w> { y = MatMul(x, w) }", check=False)
    written, _ = lowered(proto)
    feed = samples(proto)[0]
    np.testing.assert_array_equal(run(written, feed)["x"], feed["x"])


def test_dimensions_metadata_and_documentation_survive():
    proto = model(MLP)
    proto.doc_string, proto.model_version, proto.domain = "what it is", 7, "org.example"
    onnx.helper.set_model_props(proto, {"labels": "a,b", "author": "me"})
    written = quantized(proto)
    assert {p.key: p.value for p in written.metadata_props}.items() >= {"labels": "a,b", "author": "me"}.items()
    assert (written.doc_string, written.model_version, written.domain) == ("what it is", 7, "org.example")
    for before, after in zip(proto.graph.input, written.graph.input, strict=True):
        assert before.type == after.type
    assert written.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert written.producer_name == "onnxq"


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 15, 19, 21, onnx.defs.onnx_opset_version()])
def test_every_operator_set_from_7_to_the_newest(opset):
    ir_version = 3 if opset < 9 else onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])
    proto = model(
        "(float[2,3] x) => (float[2,?] y) <float[3,5] w, float[5] b> { a = Gemm(x, w, b) r = Relu(a) y = Softmax(r) }",
        opset=opset,
        ir_version=ir_version,
        check=False,
    )
    onnx.helper.set_model_props(proto, {"author": "me"})
    onnx.checker.check_model(proto)
    try:
        Session(proto)
    except EngineError:
        pytest.skip("this ONNX Runtime is older than the operator set")
    written = quantized(proto)
    assert ("author", "me") in {(p.key, p.value) for p in written.metadata_props}
    assert [o.version for o in written.opset_import if o.domain == ""] == [min(max(opset, 13), ORT.max_opset)]
    assert interface(written) == (["x"], ["y"])


# --- the arithmetic ---------------------------------------------------------------------------------------------


def reference(proto, x):
    """MLP as the integers define it, in numpy, after FuseActivation; float32 sums but for ONNX Runtime's order."""
    found = weights(proto)

    def params(name):
        zero_point = found[f"{name}_zero_point"]
        grid = Grid(8, signed=zero_point.dtype.kind == "i")
        return QuantParams(grid, found[f"{name}_scale"], zero_point, 1 if zero_point.ndim else None)

    def layer(x, weight, bias):
        b = np.float32(found[f"{bias}_quantized"]) * found[f"{bias}_scale"]
        product = np.float64(x) @ np.float64(params(weight).dequantize(found[f"{weight}_quantized"]))
        return np.float32(product + b)

    r = params("r").fake(layer(params("x").fake(x), "w", "b"))
    z = params("z").fake(layer(r, "v", "c"))
    s = params("s").fake(1 / (1 + np.exp(-z, dtype=np.float32)))
    return s * z


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_the_model_computes_what_its_integers_say(seed):
    """Weights and biases in steps of 1/8 make sums exact in float32, so that not one bit may differ."""
    rng = np.random.default_rng(seed)

    def eighths(*dims):
        values = np.float32(rng.integers(-127, 128, dims)) / 8
        values.flat[: dims[-1] * (len(dims) > 1)] = 127 / 8
        return values

    proto = model(
        "(float[N,3] x) => (float[N,?] y) <float[3,5] w, float[5,7] v>"
        " { z = MatMul(x, w) r = Relu(z) y = MatMul(r, v) }",
        w=eighths(3, 5),
        v=eighths(5, 7),
    )
    feeds = [{"x": np.float32([[0, 255 / 4, 1]])}]
    model_ = with_ranges(proto, feeds)
    for name in ("x", "r"):
        exact = QuantParams(Grid(8, signed=False), np.float32(0.25), np.uint8(0))
        model_.quantizers[name] = model_.quantizers[name].with_params(exact)
    written, _ = lower(model_, Context())
    x = np.float32(rng.integers(-600, 600, (6, 3))) / 8
    grid = QuantParams(Grid(8, signed=False), np.float32(0.25), np.uint8(0))
    found = weights(proto)
    expected = grid.fake(grid.fake(x) @ found["w"]) @ found["v"]
    np.testing.assert_array_equal(run(written, {"x": x})["y"], expected)


def test_a_small_network_follows_its_integers():
    proto = model(MLP)
    model_ = with_ranges(proto)
    written, _ = lower(model_, Context())
    x = np.concatenate([feed["x"] for feed in samples(proto, 8)])
    found = weights(written)
    got, expected = run(written, {"x": x})["y"], reference(written, x)
    np.testing.assert_allclose(got, expected, rtol=0, atol=float(found["z_scale"]) * 1.01)
    assert np.mean(np.isclose(got, expected, rtol=1e-5, atol=1e-6)) > 0.95  # a sum may round to the next step


def test_shapes_stay_known():
    proto, _ = lowered(model(MLP))
    known = {v.name: shape(v) for v in proto.graph.value_info}
    assert known["w_dequantized"] == (3, 5)


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_the_simulation_is_one_lowering_away(bits):
    """It computes with the floats that the integers stand for, and leaves outputs of the model in float."""
    proto = model(
        "(float[N,3] x) => (float[N,?] y) <float[3,5] w, float[5,7] v>"
        " { a = MatMul(x, w) r = Sigmoid(a) y = MatMul(r, v) }",
        opset=21,
        ir_version=10,
    )
    model_ = with_ranges(proto, activation=QuantSpec(Grid(bits, signed=False), symmetric=False))
    simulation, params = simulated(model_), {name: q.params for name, q in model_.quantizers.items()}
    w, v = (params[name].fake(weights(proto)[name]) for name in ("w", "v"))
    LowerToQdq().apply(model_, Context())
    x = 1.5 * np.concatenate([feed["x"] for feed in samples(proto, 8)])  # some of it beyond the grid
    simulated_y, y = (Session(p).run({"x": x})["y"] for p in (simulation, model_.to_proto()))
    np.testing.assert_array_equal(simulated_y, y)
    a = params["a"].fake(params["x"].fake(x) @ w)
    np.testing.assert_allclose(y, params["r"].fake(1 / (1 + np.exp(-a))) @ v, rtol=1e-5, atol=1e-5)
