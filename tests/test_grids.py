"""Every width and form of grid: written models run by ONNX Runtime against fake quantization in numpy, and what
degenerate data does to them."""

import numpy as np
import onnx
import pytest
from graphs import assert_close, model, run, weights
from quantized import PLAIN, samples

import onnxq
from onnxq.execution.session import Session
from onnxq.numeric.quant import Grid, QuantParams

GEMM = """(float[2,6] x) => (float[2,?] y) <float[6,5] w, float[5] b, float[7,5] v, float[7] c>
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, v, c) }"""
CONV = """(float[1,3,6,5] x) => (float[1,?,?,?] y) <float[4,3,3,3] w, float[4] b, float[2,4,3,3] v, float[2] c>
    { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, c) }"""
SIGNED = "(float[2,6] x) => (float[2,?] y) <float[6,5] w, float[5,7] v> { a = MatMul(x, w) y = MatMul(a, v) }"
TYPES = onnx.TensorProto


def quantize(proto, feeds=None, **options):
    """Every activation has the preset's width, the input as well."""
    options = {
        "weight_range": "minmax", "activation_range": "minmax", "force_int_kernels": True,
        "narrow_activations": "all", **PLAIN, **options,
    }  # fmt: skip
    return onnxq.quantize(proto, samples(proto) if feeds is None else feeds, **options)


def params_of(result):
    """Tensor -> its parameters, from the report and so from nothing that was written."""
    found = {}
    for t in result.report.tensors:
        kind, *narrow = t.grid.split()
        grid = Grid(int(kind.lstrip("uint")), signed=kind.startswith("int"), narrow=bool(narrow))
        shape = () if t.axis is None else (len(t.scale),)
        scale, zero_point = np.reshape(np.float32(t.scale), shape), np.reshape(np.int64(t.zero_point), shape)
        found[t.tensor] = QuantParams(grid, scale, zero_point, t.axis)
    return found


def faked(proto, result):
    """The float model with weights and biases on their grids, in float64, and a function that runs it in numpy."""
    params, found = params_of(result), weights(proto)
    written = weights(result.model)
    values = {name: np.float64(params[name].fake(found[name]) if name in params else found[name]) for name in found}
    for name in set("bc") & set(values):
        if f"{name}_quantized" in written:
            values[name] = np.float64(written[f"{name}_quantized"]) * np.float64(written[f"{name}_scale"])
            np.testing.assert_allclose(values[name], found[name], atol=written[f"{name}_scale"].max() * 0.501)

    def at(name, x):
        return np.float64(params[name].fake(np.float32(x))) if name in params else x

    def gemm(x):
        r = at("r", np.maximum(at("x", x) @ values["w"] + values["b"], 0))
        return r @ values["v"].T + values["c"]

    def chain(x):
        return at("a", at("x", x) @ values["w"]) @ values["v"]

    return gemm if "b" in values else chain


def types(proto):
    return {t.name: t.data_type for t in proto.graph.initializer}


# --- widths -----------------------------------------------------------------------------------------------------

WIDTHS = [(8, a) for a in range(2, 17)] + [(w, 8) for w in range(2, 17)] + [(2, 2), (4, 4), (5, 11), (16, 16)]


FORMS_OF_WIDTHS = [
    *((w, a, {}) for w, a in WIDTHS),
    *((w, a, {"symmetric_activations": True}) for w, a in WIDTHS if w == 8 and a in (2, 4, 5, 9, 16)),
    *((w, a, {"asymmetric_weights": True}) for w, a in WIDTHS if a == 8 and w in (2, 4, 5, 9, 16)),
]


@pytest.mark.parametrize(("weight", "activation", "form"), FORMS_OF_WIDTHS, ids=str)
def test_every_width_computes_what_its_grid_says(weight, activation, form):
    proto = model(GEMM if weight % 2 else SIGNED)
    feeds = samples(proto)
    result = quantize(proto, feeds, preset=f"w{weight}a{activation}", **form)
    reference = faked(proto, result)
    for feed in feeds:
        got = run(result.model, feed)["y"]
        tolerance = 1e-5 if activation < 12 else 1e-4  # where a sum in float32 may round to the next step
        assert_close(np.float64(got), np.float64(reference(feed["x"])), tolerance)
    found = params_of(result)
    assert {p.grid.bits for name, p in found.items() if name in "wv"} == {weight}
    assert {p.grid.bits for name, p in found.items() if name in "xar"} == {activation}


@pytest.mark.parametrize("preset", ["w4a4", "w6a5", "w2a16", "w11a8", "w8", "a8"])
def test_convolutions_compute_what_their_grids_say(preset):
    """Against ONNX Runtime's float Conv of weights and activations that numpy put on their grids."""
    proto = model(CONV)
    feeds = samples(proto)
    result = quantize(proto, feeds, preset=preset)
    params, written = params_of(result), weights(result.model)
    values = {n: params[n].fake(v) if n in params else v for n, v in weights(proto).items()}
    for name in "bc":
        if f"{name}_quantized" in written:
            values[name] = np.float32(written[f"{name}_quantized"] * np.float64(written[f"{name}_scale"]))

    def at(name, x):
        return params[name].fake(x) if name in params else x

    layers = [
        model(f"(float[?,?,?,?] x) => (float[?,?,?,?] y) <float[{dims}] w, float[{n}] b> {{ y = Conv(x, w, b) }}",
              check=False, w=values[w], b=values[b])
        for dims, n, w, b in (("4,3,3,3", 4, "w", "b"), ("2,4,3,3", 2, "v", "c"))
    ]  # fmt: skip
    for feed in feeds:
        a = run(layers[0], {"x": at("x", feed["x"])})["y"]
        y = run(layers[1], {"x": at("r", np.maximum(a, 0))})["y"]
        got, step = run(result.model, feed)["y"], float(params["y"].scale) * 1.001 if "y" in params else 0.0
        np.testing.assert_allclose(got, at("y", y), rtol=1e-5, atol=step + 1e-5)
        assert np.mean(np.isclose(got, at("y", y), rtol=1e-5, atol=1e-5)) > 0.9  # ties may round the other way


@pytest.mark.parametrize("form", [{}, {"symmetric_activations": True}], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 7, 8, 9, 12, 15, 16])
def test_values_around_and_beyond_the_ends_of_a_grid_clip_exactly(bits, form):
    proto = model("(float[N,1] x) => (float[N,1] y) <float[1,1] w> { y = MatMul(x, w) }", w=1)
    feeds = [{"x": np.float32([[-0.7], [1.3]])}]
    result = quantize(proto, feeds, preset=f"a{bits}", **form)
    params = params_of(result)["x"]
    q = np.arange(params.grid.qmin - 5, params.grid.qmax + 6) - float(params.zero_point)
    x = np.float32(np.concatenate([q, q - 0.5, q + 0.5, q + 0.499, q - 0.499, [-1e30, 1e30, 0]]) * params.scale)
    got = run(result.model, {"x": x[:, None]})["y"][:, 0]
    np.testing.assert_array_equal(got, params.fake(x))
    ends = (np.float32(params.scale) * np.float32(e - params.zero_point) for e in (params.grid.qmin, params.grid.qmax))
    assert (got.min(), got.max()) == tuple(ends)
    assert np.unique(got).size == 2**bits


@pytest.mark.parametrize(
    ("bits", "asymmetric"), [*((b, False) for b in range(2, 17)), (3, True), (8, True), (16, True)]
)
def test_types_that_store_a_grid(bits, asymmetric):
    proto = model(GEMM)
    result = quantize(proto, preset=f"w{bits}a{bits}", asymmetric_weights=asymmetric, store_4bit="int4")
    found = types(result.model)
    weight = TYPES.INT4 if bits <= 4 else TYPES.INT8 if bits <= 8 else TYPES.INT16
    activation = TYPES.UINT8 if bits <= 8 else TYPES.UINT16  # never 4 bits
    assert (found["w_quantized"], found["w_zero_point"]) == (weight, weight)
    assert (found["x_zero_point"], found["r_zero_point"]) == (activation, activation)
    assert found["b_quantized"] == TYPES.INT32
    integers = weights(result.model)["v_quantized"].astype(int)
    grid = Grid(bits, signed=True, narrow=not asymmetric)
    assert integers.min() >= grid.qmin
    assert integers.max() <= grid.qmax
    assert max(-integers.min(), integers.max()) >= grid.qmax


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_asymmetric_weights_span_each_channel(bits):
    proto = model(GEMM, w=np.random.default_rng(0).uniform(-0.2, 1, (6, 5)))
    result = quantize(proto, preset=f"w{bits}a8", asymmetric_weights=True)
    found, values = params_of(result)["w"], weights(proto)["w"]
    lo, hi = np.minimum(values.min(0), 0), np.maximum(values.max(0), 0)
    np.testing.assert_allclose(found.scale, (hi - lo) / (2**bits - 1), rtol=1e-6)
    assert np.any(found.zero_point != 0)
    assert np.all(np.abs(found.fake(values) - values) <= found.scale * 1.001)


@pytest.mark.parametrize("bits", [4, 8, 11])
def test_symmetric_activations_are_unsigned_where_nothing_is_negative(bits):
    found = params_of(quantize(model(GEMM), preset=f"w8a{bits}", symmetric_activations=True))
    assert (str(found["x"].grid), str(found["r"].grid)) == (f"int{bits}", f"uint{bits}")
    assert (found["x"].zero_point, found["r"].zero_point) == (0, 0)


def test_constants_of_elementwise_operators_in_4_bits():
    proto = model(
        "(float[1,3] x) => (float[?,?] y) <float[3,3] w, float[3] k> { a = Gemm(x, w) s = Sigmoid(a) b = Mul(s, k)"
        " y = Gemm(b, w) }"
    )
    for symmetric in (False, True):
        result = quantize(proto, preset="w8a4", symmetric_activations=symmetric)
        params = params_of(result)["k"]
        stored = next(n for n in result.model.graph.node if n.output[0] == "k_dequantized")
        integers = weights(result.model)[stored.input[0]].astype(int)
        np.testing.assert_array_equal(integers, params.quantize(weights(proto)["k"]).astype(int))


# --- powers of two ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{}, {"preset": "w4a4"}, {"asymmetric_weights": True}, {"block_size": 2},
                                  {"symmetric_activations": True}, {"weight_range": "mse", "activation_range": "mse"}],
                         ids=str)  # fmt: skip
def test_all_scales_are_powers_of_two(form):
    proto = model(
        "(float[3,6] x) => (float[3,?] y) <float[6,5] w, float[5] b, float[3,5] k, float[7,5] v>"
        " { a = Gemm(x, w, b) s = Sigmoid(a) m = Mul(s, k) y = Gemm<transB=1>(m, v) }",
        w=np.float32([1, 3, 1e-11, 0, 5]),  # the bias raises the scales of channels 2 and 3
        b=np.float32([1, 0, 7, -100, 1]),
    )
    result = quantize(proto, power_of_two=True, **form)
    scales = {name: value for name, value in weights(result.model).items() if name.endswith("_scale")}
    assert {"x_scale", "w_scale", "v_scale", "s_scale", "k_scale", "m_scale"} <= set(scales)
    for name, value in scales.items():
        assert np.all(np.frexp(value)[0] == 0.5), name
    if "block_size" not in form:
        assert np.abs(weights(result.model)["b_quantized"].astype(float)).max() <= 2**30
        assert "raised" in str(result.report.steps)


def test_a_scale_that_is_a_power_of_two_already_stays():
    proto = model("(float[2,3] x) => (float[2,4] y) <float[3,4] w> { y = MatMul(x, w) }", w=127 / 8)
    found = weights(quantize(proto, [{"x": np.float32([[0, 0, 255 / 4]] * 2)}], power_of_two=True).model)
    np.testing.assert_array_equal(found["w_scale"], np.full(4, 1 / 8, np.float32))
    assert found["x_scale"] == 1 / 4


# --- blocks -----------------------------------------------------------------------------------------------------

LAYERS = {
    "Gemm": ("Gemm(x, w)", "float[2,6]", "float[6,4]", 0),
    "Gemm, transposed": ("Gemm<transB=1>(x, w)", "float[2,6]", "float[4,6]", 1),
    "MatMul": ("MatMul(x, w)", "float[2,6]", "float[6,4]", 0),
    "MatMul of a batch": ("MatMul(x, w)", "float[3,2,6]", "float[3,6,4]", 1),
}


@pytest.mark.parametrize("preset", ["w8a8", "w4a8", "w3a16", "w8"])
@pytest.mark.parametrize("block", [1, 2, 6])
@pytest.mark.parametrize("case", LAYERS)
def test_weights_in_blocks(case, block, preset):
    """The integers, their scales, and that both ONNX Runtime and the checker take them (`quantize` asks)."""
    call, x, w, axis = LAYERS[case]
    unknown = ",".join("?" * (x.count(",") + 1))
    proto = model(f"({x} x) => (float[{unknown}] y) <{w} w> {{ y = {call} }}")
    result = quantize(proto, preset=preset, block_size=block)
    found, values = weights(result.model), weights(proto)["w"]
    node = next(n for n in result.model.graph.node if n.output[0] == "w_dequantized")
    assert {a.name: a.i for a in node.attribute} == {"axis": axis, "block_size": block}
    blocks = [values.take(range(i, i + block), axis) for i in range(0, 6, block)]
    bits = int(preset[1])
    expected = np.stack([np.abs(b).max(axis) for b in blocks], axis) / np.float64(2 ** (bits - 1) - 1)
    np.testing.assert_allclose(found["w_scale"], expected, rtol=1e-6)
    scale = np.repeat(found["w_scale"], block, axis)
    np.testing.assert_array_equal(found["w_quantized"].astype(int), np.rint(values / scale))


@pytest.mark.parametrize("first", ["a = Conv(x, w)", "a = Conv(x, w, b)", "a = Conv<group=2>(x, g)"])
@pytest.mark.parametrize("preset", ["w8a8", "w4a8", "w8a16"])
def test_blocks_between_layers_agree_with_the_optimised_model(first, preset):
    proto = model(
        "(float[1,4,6,6] x) => (float[?,?,?,?] y) <float[4,4,3,3] w, float[4] b, float[4,2,3,3] g, float[2,4,1,1] v>"
        f" {{ {first} r = Relu(a) y = Conv(r, v) }}",
        check=False,
    )
    written = quantize(proto, preset=preset, block_size=3).model
    feed = samples(proto)[0]
    plain, optimised = run(written, feed)["y"], Session(written, optimize=True).run(feed)["y"]
    np.testing.assert_allclose(optimised, plain, atol=float(weights(written)["y_scale"]) * 1.01)


def test_a_bias_behind_blocks_stays_in_float():
    proto = model(GEMM)
    found = weights(quantize(proto, block_size=2).model)
    np.testing.assert_array_equal(found["b"], weights(proto)["b"])


# --- ties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"activation_range": "mse"}, {"preset": "w4a4"}, {"activation_range": "bn"}])
@pytest.mark.parametrize("op", ["Add(a, b)", "Concat<axis=1>(a, b)"])
def test_tied_tensors_share_one_grid_that_covers_all(op, options):
    proto = model(
        "(float[1,2,4,4] x) => (float[?,?,?,?] y) <float[3,2,1,1] w, float[3,2,1,1] v, float[1,3,1,1] u,"
        " float[1,6,1,1] t, float[3] g, float[3] h, float[3] m, float[3] var, float[3] k>"
        f" {{ d = Conv(x, w) a = BatchNormalization(d, g, h, m, var) e = Conv(x, v)"
        f" b = BatchNormalization(e, k, h, m, var) c = {op} y = Conv(c, {'u' if 'Add' in op else 't'}) }}",
        check=False, g=1, h=0, m=0, var=1, k=5,
    )  # fmt: skip
    kind = (proto.graph.node[-2].op_type,)
    result = quantize(proto, tie=kind, **options)
    tied = [(t.grid, t.scale, t.zero_point) for t in result.report.tensors if t.tensor in "abcde"]
    assert len(tied) == 3
    assert len(set(tied)) == 1
    one = next(t for t in result.report.tensors if t.tensor == "c")
    levels = 2 ** (8 if "preset" not in options else 4) - 1
    low, high = -one.zero_point[0] * one.scale[0], (levels - one.zero_point[0]) * one.scale[0]
    if "activation_range" in options:  # mse; bn gives way to it, for no moments are known of the sum
        data = quantize(proto, tie=kind, activation_range="mse").report.tensors
        assert one in data
    else:
        everything = np.concatenate([run_float(proto, feed).reshape(-1) for feed in samples(proto)])
        assert low - one.scale[0] / 2 <= everything.min()
        assert high + one.scale[0] / 2 >= everything.max()


def run_float(proto, feed):
    """All of a, b and c."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    for name in "abc":
        probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    found = run(probe, feed)
    return np.concatenate([found[name].reshape(-1) for name in "abc"])


# --- degenerate data --------------------------------------------------------------------------------------------

BAD = {
    "constant": (3.0, {}),
    "zero": (0.0, {}),
    "huge": (1e30, {}),
    "tiny": (1e-35, {}),
    "subnormal": (1e-42, {}),
    "zero weights": (1.0, {"w": 0.0, "b": 0.0}),
    "a zero channel": (1.0, {"w": np.float32([1, 0, 2, 3, 4])}),
    "a zero channel with a bias": (1.0, {"w": np.float32([1, 0, 2, 3, 4]), "b": 1e4}),
    "huge weights": (1.0, {"w": 1e30, "v": 1e-30}),
    "subnormal weights": (1.0, {"w": 1e-42}),
    "tiny everything": (1e-30, {"w": 1e-30, "b": 0.0, "v": 1e-30}),
    "weights at the end of float32": (1e-3, {"w": 3.4e38, "b": 0.0, "v": 1e-38}),
}
FORMS = [{}, {"preset": "w4a4"}, {"preset": "w16a16", "symmetric_activations": True}, {"power_of_two": True},
         {"asymmetric_weights": True, "preset": "w5a7"}, {"block_size": 2}]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("case", BAD)
def test_degenerate_data_goes_through(case, form):
    value, given = BAD[case]
    proto = model(GEMM, **given)
    options = {"weight_range": "mse", "activation_range": "mse", **form}
    written = quantize(proto, [{"x": np.full((2, 6), value, np.float32)}], **options).model
    for name, scale in weights(written).items():
        if name.endswith("_scale"):
            assert np.all((scale > 0) & np.isfinite(scale)), name
    for x in (value, 0.0, -1.0):
        got = run(written, {"x": np.full((2, 6), x, np.float32)})["y"]
        assert np.isfinite(got).all()


@pytest.mark.parametrize("method", ["minmax", "mse", "percentile", "entropy"])
@pytest.mark.parametrize("case", ["constant", "zero", "subnormal", "huge", "zero weights", "a zero channel"])
def test_degenerate_data_under_every_method(case, method):
    value, given = BAD[case]
    feeds = [{"x": np.full((2, 6), value, np.float32)}]
    result = quantize(model(GEMM, **given), feeds, weight_range=method, activation_range=method)
    assert all(0 < s < np.inf for t in result.report.tensors for s in t.scale)
    if case == "constant":
        params = params_of(result)["x"]
        assert abs(params.fake(np.float32(3)) - 3) < 0.01


def test_masks_of_infinities_go_through_the_whole_command():
    proto = model(
        """(float[1,4,3] x, bool[1,4,4] m) => (float[?,?,?] y) <float[3,3] w, float[3,3] v, float low> {
        q = MatMul(x, w)  k = Transpose<perm=[0,2,1]>(q)  s = MatMul(q, k)  t = Where(m, s, low)
        p = Softmax<axis=-1>(t)  o = MatMul(p, q)  y = MatMul(o, v) }""",
        low=-np.inf,
    )
    feeds = [{**feed, "m": np.tril(np.ones((1, 4, 4), bool))} for feed in samples(proto)]
    for preset in ("w8a8", "w4a16"):
        written = quantize(proto, feeds, preset=preset, activation_range="mse").model
        assert np.isfinite(run(written, feeds[0])["y"]).all()
        assert "t_quantized" not in {o for n in written.graph.node for o in n.output}
