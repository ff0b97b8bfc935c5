"""`freeze`: dynamic dimensions of a model become static, before anything else is done with it."""

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model, run
from quantized import PLAIN, samples

import onnxq
from onnxq.cli import main
from onnxq.errors import UsageError
from onnxq.graph.freeze import frozen, parse_freeze

NAMED = model("(float[N,3,8,8] x) => (float[N,4,8,8] y) <float[4,3,3,3] w> { y = Conv <pads = [1,1,1,1]> (x, w) }")
UNNAMED = model("(float[?,3,?,8] x) => (float[?,4,?,8] y) <float[4,3,3,3] w> { y = Conv <pads = [1,1,1,1]> (x, w) }")
TWO = model(
    """(float[N,L,4] a, float[N,M,4] b) => (float[N,K,5] y) <float[4,5] w> {
    c = Concat <axis = 1> (a, b) y = MatMul(c, w) }"""
)
SHAPED = model(
    """(float[N,6] x) => (float[N,5] y) <int64[1] zero = {0}, int64[1] rest = {-1}, float[6,5] w> {
    s = Shape(x) n = Gather <axis = 0> (s, zero) t = Concat <axis = 0> (n, rest) f = Reshape(x, t)
    y = MatMul(f, w) }""",
    zero=np.zeros(1), rest=-np.ones(1),
)  # fmt: skip


def shapes(proto):
    """Of inputs and outputs, by name."""
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims(value)]
        for value in (*proto.graph.input, *proto.graph.output)
    }


def dims(value):
    return value.type.tensor_type.shape.dim


def test_a_shape_of_an_input():
    assert shapes(frozen(NAMED, ["x=2x3x8x8"], "m")) == {"x": [2, 3, 8, 8], "y": [2, 4, 8, 8]}
    assert shapes(NAMED)["x"] == ["N", 3, 8, 8]


def test_a_named_dimension():
    assert shapes(frozen(NAMED, ["N=1"], "m")) == {"x": [1, 3, 8, 8], "y": [1, 4, 8, 8]}


def test_dimensions_without_names():
    assert shapes(frozen(UNNAMED, ["x=1x3x5x8"], "m")) == {"x": [1, 3, 5, 8], "y": [1, 4, 5, 8]}


def test_a_name_is_the_same_length_everywhere():
    found = shapes(frozen(TWO, ["a=1x7x4", "M=2"], "m"))
    assert found == {"a": [1, 7, 4], "b": [1, 2, 4], "y": [1, 9, 5]}
    assert shapes(frozen(TWO, ["N=1"], "m")) == {"a": [1, "L", 4], "b": [1, "M", 4], "y": [1, "K", 5]}


REFUSED = {
    "batch=1": "neither an input of m (x) nor the name of a dynamic dimension of one (N)",
    "n=1": "did you mean 'N'?",
    "x=1x3x8": "has the shape (N, 3, 8, 8)",
    "x=1x4x8x8": "of which only dynamic dimensions can be chosen",
    "x=0x3x8x8": "is not of the form",
    "x": "is not of the form",
    "x=": "is not of the form",
    "=1": "is not of the form",
    "x=1x-1": "is not of the form",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_fit_is_refused(text):
    with pytest.raises(UsageError) as error:
        frozen(NAMED, [text], "m")
    assert REFUSED[text] in str(error.value)


def test_two_lengths_of_one_name_are_refused():
    with pytest.raises(UsageError, match=r"'N' of m 1 as well as 2"):
        frozen(TWO, ["N=1", "a=2x7x4"], "m")


def test_shapes_that_the_model_cannot_take_are_refused():
    proto = model("(float[N,L] x) => (float[N,2] y) <float[6,2] w> { y = MatMul(x, w) }")
    with pytest.raises(UsageError, match="m does not take such inputs"):
        frozen(proto, ["x=1x5"], "m")
    assert shapes(frozen(proto, ["x=1x6"], "m"))["y"] == [1, 2]


def test_a_name_may_hold_an_equals_sign():
    assert parse_freeze(["a=b=1X2"]) == [("a=b", (1, 2))]


@pytest.mark.parametrize("target", ["ort", "qnn"])
def test_the_result_is_static_and_computes_the_same(target):
    feeds = samples(NAMED)
    free = onnxq.quantize(NAMED, feeds, target=target, **PLAIN).model
    fixed = onnxq.quantize(NAMED, feeds, target=target, freeze=("N=1",), **PLAIN).model
    assert shapes(fixed) == {"x": [1, 3, 8, 8], "y": [1, 4, 8, 8]}
    inner = {v.name: [d.dim_value for d in dims(v)] for v in onnx.shape_inference.infer_shapes(fixed).graph.value_info}
    assert all(0 not in shape for shape in inner.values())
    np.testing.assert_array_equal(run(free, feeds[0])["y"], run(fixed, feeds[0])["y"])


def test_what_is_computed_from_shapes_becomes_constant():
    feeds = [{"x": np.random.default_rng(n).normal(size=(1, 6)).astype(np.float32)} for n in range(8)]
    ops = [n.op_type for n in onnxq.quantize(SHAPED, feeds, target="qnn", freeze=["x=1x6"], **PLAIN).model.graph.node]
    assert "Shape" not in ops
    assert "Gather" not in ops


def test_samples_of_another_size_are_refused():
    with pytest.raises(onnxq.OnnxqError, match="shape"):
        onnxq.quantize(UNNAMED, [{"x": np.zeros((1, 3, 6, 8), np.float32)}] * 2, freeze=["x=1x3x5x8"])


def test_statistics_and_inspect_know_it(tmp_path):
    onnxq.calibrate(NAMED, samples(NAMED), tmp_path / "s.npz", freeze=("N=1",))
    result = onnxq.quantize(NAMED, statistics=[tmp_path / "s.npz"], freeze=("N=1",), **PLAIN)
    assert shapes(result.model)["x"] == [1, 3, 8, 8]
    assert "1 x 3 x 8 x 8" in onnxq.inspect(NAMED, freeze=("N=1",)).to_text()


def test_targets_that_need_static_shapes_say_so_with_the_option():
    warning = "qnn runs nothing of a model with dynamic shapes, and input 'x' (N, 3, 8, 8) has dynamic dimensions: "
    warning += "`freeze` x=1x3x8x8 makes them static"
    assert warning in onnxq.quantize(NAMED, samples(NAMED), target="qnn", **PLAIN).report.warnings
    for target, more in (("qnn", {"freeze": ("N=1",)}), ("openvino", {})):
        report = onnxq.quantize(NAMED, samples(NAMED), target=target, **more, **PLAIN).report
        assert not [w for w in report.warnings if "dynamic" in w]


def test_the_command_line_names_the_flag_that_works(tmp_path):
    onnx.save(NAMED, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.concatenate([feed["x"] for feed in samples(NAMED)]))
    arguments = ["quantize", *(str(tmp_path / n) for n in ("m.onnx", "q.onnx")), "--calib", str(tmp_path / "x.npy")]
    said = CliRunner().invoke(main, [*arguments, "--target", "qnn"]).output
    flag, value = said.split("has dynamic dimensions: ")[1].split()[:2]
    assert (flag, value) == ("--freeze", "x=1x3x8x8")
    result = CliRunner().invoke(main, [*arguments, "--target", "qnn", flag, value])
    assert result.exit_code == 0
    assert "dynamic" not in result.output
    assert shapes(onnx.load(tmp_path / "q.onnx"))["y"] == [1, 4, 8, 8]
