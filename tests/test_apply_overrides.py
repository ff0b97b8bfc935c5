"""Exceptions for single tensors: who is matched, what each field does, what is refused, and configuration files."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model, ops, weights
from quantized import PLAIN, planned, samples

import onnxq
from onnxq import Override, cli
from onnxq.errors import UsageError
from onnxq.graph import storage
from onnxq.passes.apply_overrides import ApplyOverrides
from onnxq.passes.base import Context

NET = """(float[1,3,6,6] x) => (float[?,?,?,?] y) <float[4,3,3,3] w, float[4] b, float[2,4,1,1] v>
    { a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) y = Conv(p, v) }"""
MATRIX = """(float[2,3] x) => (float[2,?] y) <float[3,5] w, float[5] b, float[5,7] v, float[5] k>
    { m = MatMul(x, w) a = Add(m, b) r = Relu(a) s = Mul(r, k) y = MatMul(s, v) }"""


def overridden(*overrides, text=NET, **options):
    """Planned quantizers after the overrides."""
    model_, _ = planned(model(text), **options)
    ApplyOverrides(overrides).apply(model_, Context())
    return model_.quantizers


def changed(*overrides, text=NET):
    """Names of the tensors whose quantizer is no longer what it was."""
    before, after = planned(model(text))[0].quantizers, overridden(*overrides, text=text)
    return {name for name in before if after.get(name) != before[name]}


def quantize(proto, *overrides, **options):
    return onnxq.quantize(proto, samples(proto), force_int_kernels=True, overrides=overrides, **PLAIN, **options)


# --- who is matched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ({"tensor": "w"}, "w"),
        ({"tensor": "[wv]"}, "wv"),
        ({"tensor": "*"}, "xwryv"),
        ({"node": "Conv_a"}, "wr"),
        ({"node": "Conv_y"}, "vy"),
        ({"node": "Conv"}, "wrvy"),
    ],
    ids=str,
)
def test_matched_by_name_pattern_or_operator(place, names):
    assert changed(Override(**place, bits=6)) == set(names)


def test_a_node_means_the_output_of_its_bias_and_activation():
    assert changed(Override(node="MatMul_m", bits=6), text=MATRIX) == {"w", "r"}
    assert changed(Override(node="Mul", bits=6), text=MATRIX) == {"k", "s"}


def test_later_overrides_win_field_by_field():
    found = overridden(
        Override(tensor="*", bits=6), Override(tensor="w", bits=4), Override(tensor="w", method="minmax")
    )
    assert {name: q.spec.grid.bits for name, q in found.items() if q.grid_of is None} == {
        "x": 6, "w": 4, "r": 6, "v": 6, "y": 6,
    }  # fmt: skip
    assert (found["w"].method, found["v"].method) == ("minmax", None)
    reverse = overridden(Override(tensor="w", bits=4), Override(tensor="*", bits=6))
    assert reverse["w"].spec.grid.bits == 6


# --- what each field does ---------------------------------------------------------------------------------------


def test_fields_of_weights():
    def spec(**fields):
        found = overridden(Override(tensor="w", **fields))["w"]
        return str(found.spec), found.axis

    assert spec(bits=3) == ("int3 symmetric per channel", 0)
    assert spec(symmetric=False) == ("int8 asymmetric per channel", 0)
    assert spec(per_channel=False) == ("int8 narrow symmetric per tensor", None)
    assert spec(power_of_two=True) == ("int8 narrow symmetric per channel power of two", 0)
    assert spec(block=2) == ("int8 narrow symmetric blocks of 2", 1)


def test_fields_of_activations():
    def spec(**fields):
        return str(overridden(Override(tensor="x", **fields))["x"].spec)

    assert spec(bits=12) == "uint12 asymmetric per tensor"
    assert spec(symmetric=True) == "int8 symmetric per tensor"
    assert spec(power_of_two=True) == "uint8 asymmetric per tensor power of two"
    assert overridden(Override(tensor="x", symmetric=True))["x"].spec.one_tailed


def test_per_channel_where_all_else_is_per_tensor():
    per_tensor = onnxq.Options(per_channel=False).weight
    found = overridden(Override(tensor="v", per_channel=True), weight=per_tensor)
    assert (found["w"].axis, found["v"].axis) == (None, 0)


def test_a_range_is_taken_as_it_is():
    found = weights(quantize(model(NET), Override(tensor="[xw]", range=(-1, 2))).model)
    assert found["x_scale"] == np.float32(3 / 255)
    assert found["x_zero_point"] == 85
    np.testing.assert_array_equal(found["w_scale"], np.full(4, 2 / 127, np.float32))
    assert np.abs(found["w_quantized"]).max() == 127  # what lies beyond 2 is clipped


POOLED = """(float[1,3,6,6] x) => (float[1,5] y) <float[4,3,3,3] w, float[36,5] v>
    { a = Conv(x, w) r = Relu(a) p = MaxPool<kernel_shape=[2,2]>(r) f = Flatten(p) y = MatMul(f, v) }"""


def test_a_range_of_blocks_and_of_followers():
    overrides = Override(tensor="v", block=9, range=(-1, 1)), Override(tensor="r", range=(0, 4))
    found = weights(quantize(model(POOLED), *overrides).model)
    np.testing.assert_array_equal(found["v_scale"], np.full((4, 5), 1 / 127, np.float32))
    assert found["r_scale"] == found["p_scale"] == np.float32(4 / 255)


@pytest.mark.parametrize(
    ("target", "override", "why"),
    [
        ("ort", {"tensor": "w", "block": 3}, "convolutions have none, got blocks of 3"),
        ("ort", {"tensor": "v", "block": 8}, "they do not divide 36 input channels, got blocks of 8"),
        ("qnn", {"tensor": "v", "block": 9}, "qnn has one weight scale a tensor, or one a channel"),
        ("tensorrt", {"tensor": "v", "block": 9}, "tensorrt takes blocks only of int4 weights, and these are int8"),
    ],
)
def test_blocks_that_no_weight_of_the_target_has_are_refused_before_any_work(target, override, why, monkeypatch):
    monkeypatch.setattr(onnxq.pipeline.pipeline, "equalize", None)
    with pytest.raises(UsageError, match=f"`overrides` contradict {target}: weight-granularity: .*{why}"):
        quantize(model(POOLED), Override(**override), target=target)


def test_a_range_that_was_known_gives_way_to_a_method():
    text = """(float[2,3] x) => (float[2,?] y) <float[3,5] w, float[5,7] v>
        { a = MatMul(x, w) s = Sigmoid(a) y = MatMul(s, v) }"""
    known = weights(quantize(model(text), Override(tensor="x", bits=8)).model)["s_scale"]
    measured = weights(quantize(model(text), Override(tensor="s", method="minmax")).model)["s_scale"]
    assert known == np.float32(1 / 255) > measured


def test_a_method_of_one_tensor():
    proto = model(NET)
    mixed = weights(quantize(proto, Override(tensor="[rw]", method="minmax"), preset="w4a4").model)
    mse, minmax = (
        weights(quantize(proto, preset="w4a4", weight_range=m, activation_range=m).model) for m in ("mse", "minmax")
    )
    for name in ("r_scale", "w_scale"):
        np.testing.assert_array_equal(mixed[name], minmax[name])
        assert np.any(mixed[name] != mse[name])
    for name in ("x_scale", "v_scale"):
        np.testing.assert_array_equal(mixed[name], mse[name])


def test_keep_float_takes_the_followers_along():
    found = overridden(Override(tensor="r", keep_float=True))
    assert set(found) == {"x", "w", "y", "v"}  # p, the pooled r, too
    written = quantize(model(NET), Override(tensor="r", keep_float=True)).model
    assert "r_quantized" not in {o for n in written.graph.node for o in n.output}


def test_keep_float_of_a_weight_leaves_its_bias_alone():
    proto = model(NET)
    written = quantize(proto, Override(tensor="w", keep_float=True)).model
    conv = next(n for n in written.graph.node if n.name == "Conv_a")
    assert list(conv.input[1:]) == ["w", "b"]
    np.testing.assert_array_equal(weights(written)["w"], weights(proto)["w"])


def test_everything_in_float_by_override_is_refused():
    with pytest.raises(onnxq.OnnxqError, match="nothing to quantize"):
        quantize(model(NET), Override(tensor="*", keep_float=True))


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 8}, "either a `tensor` or a `node`"),
        ({"tensor": "a", "node": "b", "bits": 8}, "either a `tensor` or a `node`"),
        ({"tensor": "w"}, "the override of tensor 'w' changes nothing"),
        ({"node": "Conv"}, "the override of node 'Conv' changes nothing"),
        ({"tensor": "w", "bits": 1}, "`bits` must be 2 to 16, got 1"),
        ({"tensor": "w", "bits": 17}, "`bits` must be 2 to 16, got 17"),
        ({"tensor": "w", "bits": 4.5}, "`bits` must be a whole number, got 4.5"),
        ({"tensor": "w", "bits": "4"}, "`bits` must be a whole number, got '4'"),
        ({"tensor": "w", "bits": True}, "`bits` must be a whole number, got True"),
        ({"tensor": 3, "bits": 4}, "`tensor` must be a string, got 3"),
        ({"tensor": "w", "method": 3}, "`method` must be a string, got 3"),
        ({"tensor": "w", "method": "mze"}, "did you mean 'mse'"),
        ({"tensor": "w", "symmetric": "no"}, "`symmetric` must be true or false, got 'no'"),
        ({"tensor": "w", "block": 0}, "`block` must be at least 1, got 0"),
        ({"tensor": "w", "range": (1, 1)}, "`range` must be .lo, hi. with lo < hi"),
        ({"tensor": "w", "range": (0, float("inf"))}, "`range` must be"),
        ({"tensor": "w", "range": ("a", "b")}, "`range` must be"),
        ({"tensor": "w", "range": 3}, "`range` must be"),
        ({"tensor": "w", "range": (1,)}, "`range` must be"),
    ],
    ids=str,
)
def test_overrides_that_make_no_sense(fields, message):
    with pytest.raises(UsageError, match=message):
        Override(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensor": "nothing", "bits": 4}, "override of tensor 'nothing' matches no quantized tensor.*inspect -v"),
        ({"node": "Gemm", "bits": 4}, "override of node 'Gemm' matches no quantized tensor"),
        ({"tensor": "p", "bits": 4}, "'p' keeps the grid of 'r': override that one"),
        ({"tensor": "x", "per_channel": True}, "activations have one scale a tensor"),
        ({"tensor": "x", "block": 2}, "only weights can be quantized in blocks"),
        ({"tensor": "w", "method": "bn"}, "method 'bn' is for activations"),
        ({"tensor": "w", "method": "cross-entropy"}, "method 'cross-entropy' is for activations"),
    ],
    ids=str,
)
def test_overrides_that_do_not_fit_the_model(fields, message):
    with pytest.raises(UsageError, match=message):
        overridden(Override(**fields))


@pytest.mark.parametrize("fields", [{"block": 2}, {"per_channel": True}])
def test_constants_of_elementwise_operators_have_no_channels(fields):
    with pytest.raises(UsageError, match="'k' is no weight of a linear layer"):
        overridden(Override(tensor="k", **fields), text=MATRIX)


# --- configuration files ----------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    proto = model(NET)
    storage.write(proto, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(proto)]))
    return tmp_path


def run_with(place, text):
    (place / "c.toml").write_text(text)
    command = ["quantize", place / "in.onnx", place / "out.onnx", "--calib", place / "calib.npy"]
    return CliRunner().invoke(cli.main, [str(a) for a in (*command, "--config", place / "c.toml")])


def test_mixed_precision_from_a_file_is_that_of_the_api(place):
    result = run_with(
        place,
        """preset = "w6a8"
        store-4bit = "int4"
        [[override]]
        tensor = "w"
        bits = 4
        per-channel = false
        [[override]]
        node = "Conv_y"
        power_of_two = true
        [[override]]
        tensor = "x"
        bits = 16
        range = [-3, 3.5]""",
    )
    assert result.exit_code == 0, result.output
    overrides = (
        Override(tensor="w", bits=4, per_channel=False),
        Override(node="Conv_y", power_of_two=True),
        Override(tensor="x", bits=16, range=(-3, 3.5)),
    )
    settings = {"preset": "w6a8", "store_4bit": "int4", "overrides": overrides}
    written = onnxq.quantize(place / "in.onnx", place / "calib.npy", **settings).model
    assert (place / "out.onnx").read_bytes() == written.SerializeToString(deterministic=True)
    kinds = {t.name: t.data_type for t in written.graph.initializer}
    assert kinds["w_quantized"] == onnx.TensorProto.INT4
    assert kinds["v_quantized"] == onnx.TensorProto.INT8
    assert kinds["x_zero_point"] == onnx.TensorProto.UINT16
    assert ops(written).count("Conv") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[override]]\ntensor = 'w'\nbitz = 4", "expected keys among tensor, node, bits"),
        ("[override]\ntensor = 'w'\nbits = 4", "must be written as tables, [[override]]"),
        ("override = 3", "must be written as tables, [[override]]"),
        ("[[override]]\ntensor = 'w'", "changes nothing"),
        ("[[override]]\ntensor = 'w'\nbits = 'four'", "`bits` must be a whole number, got 'four'"),
        ("[[override]]\ntensor = ['w']\nbits = 4", "`tensor` must be a string"),
        ("[[override]]\ntensor = 'w'\nrange = [0, inf]", "`range` must be [lo, hi]"),
        ("[[override]]\ntensor = 'q'\nbits = 4", "matches no quantized tensor"),
    ],
)
def test_files_that_make_no_sense(place, text, message):
    result = run_with(place, text)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (place / "out.onnx").exists()
