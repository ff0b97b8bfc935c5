"""Presets: which half is quantized, at which width and operator set, and that the other half stays as it was."""

import numpy as np
import pytest
from graphs import model, ops, weights
from quantized import quantized, samples

import onnxq
from onnxq import Override
from onnxq.errors import UsageError
from onnxq.options import Options, bits

NET = """(float[1,3,6,5] x) => (float[1,?,?,?] y) <float[4,3,3,3] w, float[4] b, float[2,4,3,3] v, float[2] c>
    { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v, c) }"""


@pytest.mark.parametrize(
    ("preset", "widths"),
    [("w8a8", (8, 8)), ("w6a16", (6, 16)), ("w16a2", (16, 2)), ("w4", (4, None)), ("a8", (None, 8))],
)
def test_presets_name_the_bits_of_weights_and_activations(preset, widths):
    options = Options(preset=preset)
    assert bits(preset) == widths
    assert tuple(spec and spec.grid.bits for spec in (options.weight, options.activation)) == widths


@pytest.mark.parametrize(("preset", "lowest"), [("w8", -127), ("w7", -64), ("w4a8", -8), ("w3a8", -4)])
def test_only_grids_of_8_bits_leave_out_their_lowest_integer(preset, lowest):
    weight = Options(preset=preset).weight
    assert weight is not None
    assert weight.grid.qmin == lowest


@pytest.mark.parametrize("preset", ["", "w", "w1", "a17", "w8w8", "8a8", "w99", "w8a", "w-4", "int"])
def test_presets_that_are_refused(preset):
    with pytest.raises(UsageError, match="is unknown; expected w8a8, w8a16"):
        Options(preset=preset)


@pytest.mark.parametrize("preset", ["fp16", "FP8", "bfloat16", "half", "nvfp4"])
def test_presets_that_are_no_integers(preset):
    with pytest.raises(UsageError, match="is no integer format; expected w8a8, w8a16"):
        Options(preset=preset)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("int8", "w8a8"), ("INT8", "w8a8"), ("W8A8", "w8a8"), ("w8a8 ", "w8a8"), ("a8w8", "w8a8"), ("A16W8", "w8a16"),
        ("w4_a8", "w4a8"), ("int4", "w4"), ("weight-only", "w8"), ("dynamic", "w8a8-dynamic"), ("a16", "a16"),
    ],
)  # fmt: skip
def test_names_that_people_have_for_presets(name, preset):
    """The options, and so the report and the configuration file, hold one spelling."""
    assert Options(preset=name).preset == preset


@pytest.mark.parametrize(
    ("settings", "opset"),
    [
        ({"preset": "w8a8"}, 13),
        ({"preset": "w6a5"}, 13),
        ({"preset": "w8"}, 13),
        ({"preset": "a8"}, 13),
        ({"preset": "w4a8"}, 13),  # stored in int8: there is no integer kernel for int4
        ({"preset": "w4a8", "store_4bit": "int4"}, 21),
        ({"preset": "w3a8", "store_4bit": "int4"}, 21),
        ({"preset": "w4", "store_4bit": "int8"}, 13),
        ({"preset": "w2"}, 21),
        ({"preset": "w8a9"}, 21),
        ({"preset": "a16"}, 21),
        ({"preset": "w12"}, 21),
        ({"block_size": 2}, 13),  # convolutions have none
        ({"overrides": (Override(tensor="x", bits=16),)}, 21),
        ({"overrides": (Override(tensor="w", bits=4),)}, 13),
        ({"overrides": (Override(tensor="w", bits=4),), "store_4bit": "int4"}, 21),
        ({"overrides": (Override(tensor="w", bits=7),)}, 13),
    ],
    ids=str,
)
def test_the_operator_set_is_raised_where_the_grids_need_it(settings, opset):
    for given in (13, 17, 22):
        written = quantized(model(NET, opset=given, ir_version=8 if given < 21 else 10), **settings)
        assert [o.version for o in written.opset_import] == [max(given, opset)]


def test_an_override_of_blocks_raises_it_for_a_matrix_and_contradicts_a_convolution():
    matrix = "(float[N,6] x) => (float[N,4] y) <float[6,4] w> { y = MatMul(x, w) }"
    blocks = {"overrides": (Override(tensor="w", block=2),)}
    written = quantized(model(matrix, opset=13, ir_version=8), **blocks)
    assert [o.version for o in written.opset_import] == [21]
    with pytest.raises(UsageError, match=r"Conv_a: .* expected no blocks: convolutions have none, got blocks of 2"):
        quantized(model(NET), **blocks)


def test_an_option_of_blocks_must_be_positive():
    with pytest.raises(UsageError, match="`block_size` must be at least 1, got 0"):
        Options(block_size=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_range": "bn"}, "`weight_range` 'bn' is for activations"),
        ({"weight_range": "cross-entropy"}, "`weight_range` 'cross-entropy' is for activations"),
        ({"activation_range": "cross-entropy"}, "is for logits; give it as `logits_range`"),
        ({"activation_range": "mes"}, "did you mean 'mse'"),
        ({"logits_range": "percentile:0"}, "expected percentile:P with 0 < P <= 100"),
        ({"activation_range": "mse:3"}, "expected percentile:P"),
    ],
)
def test_range_methods_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Options(**settings)


def test_weights_alone():
    proto = model(NET)
    written = quantized(proto, preset="w8")
    assert sorted(ops(written)) == ["Conv", "Conv", "DequantizeLinear", "DequantizeLinear", "Relu"]
    before, after = weights(proto), weights(written)
    assert {after[name].dtype.name for name in ("w_quantized", "v_quantized")} == {"int8"}
    for bias in "bc":
        np.testing.assert_array_equal(after[bias], before[bias])
    for name in "wv":
        shape = (-1, 1, 1, 1)
        got = after[f"{name}_quantized"] * after[f"{name}_scale"].reshape(shape)
        assert np.all(np.abs(got - before[name]) <= after[f"{name}_scale"].reshape(shape) * 0.5001)


def test_activations_alone():
    proto = model(NET)
    written = quantized(proto, preset="a8")
    kinds = ops(written)
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (
        3,
        3,
    )  # x, r and y, which Conv must write in integers
    after = weights(written)
    for name, values in weights(proto).items():
        np.testing.assert_array_equal(after[name], values)


def test_half_a_preset_changes_nothing_in_the_other_half():
    """The grids of weights and activations are those of the full preset."""
    proto = model(NET)
    both, left, right = (quantized(proto, preset=p) for p in ("w5a7", "w5", "a7"))
    found = weights(both)
    for name, values in weights(left).items():
        if name not in "bc":
            np.testing.assert_array_equal(values, found[name])
    for name in ("x_scale", "x_zero_point", "r_scale", "r_zero_point"):
        np.testing.assert_array_equal(weights(right)[name], found[name])


@pytest.mark.parametrize("preset", ["w8", "a8", "w8a7", "w4a16"])
def test_other_presets_use_every_kernel(preset):
    """What is only simulated does not care which kernels are slow."""
    proto = model("(float[1,4,3] x, float[1,3,5] z) => (float[?,?,?] y) { y = MatMul(x, z) }")
    if preset == "w8":
        with pytest.raises(onnxq.OnnxqError, match="nothing to quantize"):
            onnxq.quantize(proto, samples(proto), preset=preset)
        return
    assert "QuantizeLinear" in ops(onnxq.quantize(proto, samples(proto), preset=preset).model)
    with pytest.raises(onnxq.OnnxqError, match="faster in float"):
        onnxq.quantize(proto, samples(proto))


def test_blocks_of_4_bits_have_zero_points_where_the_target_takes_them():
    def symmetric(**settings):
        return onnxq.Options(**settings).weight.symmetric

    blocks = {"preset": "w4", "block_size": 32}
    assert not symmetric(**blocks)
    assert symmetric(**blocks, asymmetric_weights=False)
    assert symmetric(**blocks, power_of_two=True)
    assert symmetric(**blocks, target="tensorrt")
    assert symmetric(preset="w4")
    assert symmetric(preset="w8", block_size=32)
    assert symmetric(preset="w4a8", block_size=32)
    assert not symmetric(preset="w8", asymmetric_weights=True)
