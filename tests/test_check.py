"""Each requirement, broken: the check names it, the place and the source. `test_target_models` has the clean side."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from families import FAMILIES
from graphs import model
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS, Override
from onnxq.checking import CHECKS, check
from onnxq.errors import ModelError, UsageError
from onnxq.pipeline import pipeline
from onnxq.targets import REMEDIES, REQUIREMENTS, OpRule


def written(family, target, **options):
    """The family's graph as `quantize` writes it for a target."""
    proto = FAMILIES[family]
    return onnxq.quantize(proto, samples(proto), target=target, **{**PLAIN, **options}).model


def changed(proto, **arrays):
    """A copy with other initializers in place of those of the same name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {t.name: t for t in copy.graph.initializer}
    for name, values in arrays.items():
        known[name].CopyFrom(numpy_helper.from_array(np.asarray(values), name))
    return copy


def array(proto, name):
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def found(proto, target):
    """Violations by requirement."""
    result = check(proto, TARGETS[target])
    ids = {}
    for violation in result.violations:
        ids.setdefault(violation.requirement, []).append(violation)
    return ids


def in_blocks(node, weight, scales, axis):
    """A layer whose int8 weight has blocks of 2."""
    text = f"(float[1,4,4,4] x) => (float[?,?,?,?] y) <int8[{weight}] w, float[{scales}] s> {{" + (
        f" d = DequantizeLinear<axis={axis}, block_size=2>(w, s) y = {node}(x, d) }}"
    )
    return model(text, opset=21, ir_version=10, check=False)


@pytest.mark.parametrize(
    ("proto", "target", "why"),
    [
        (in_blocks("MatMul", "4,6", "2,6", 0), "ort", ""),
        (in_blocks("MatMul", "4,6", "4,3", 1), "ort", "blocks along axis 0, the input channels"),
        (in_blocks("MatMul", "4,6", "2,6", 0), "qnn", "qnn has one weight scale a tensor"),
        (in_blocks("MatMul", "4,6", "2,6", 0), "tensorrt", "tensorrt takes blocks only of int4 weights"),
        (in_blocks("Conv", "6,4,1,1", "6,2,1,1", 1), "ort", "convolutions have none"),
    ],
    ids=["taken", "along the output channels", "no blocks", "other blocks", "convolution"],
)
def test_blocks_are_checked(proto, target, why):
    violations = found(proto, target).get("weight-granularity", [])
    assert [why in violation.expected for violation in violations] == [True] * bool(why)


VALUES = {
    "activation-types": ("generic-int8", lambda p: {"x_zero_point": np.uint8(0)}, "x", "uint8"),
    "activation-zero-point": ("tensorrt", lambda p: {"x_zero_point": np.int8(3)}, "x", "int8 with zero point 3"),
    "weight-zero-point": ("qnn", lambda p: {"w_zero_point": np.ones(6, np.int8)}, "w_quantized", "zero point 1"),
    "weight-types": (
        "tensorrt",
        lambda p: {n: np.abs(array(p, n)).astype(np.int16) for n in ("w_quantized", "w_zero_point")},
        "w_quantized",
        "int16",
    ),
    "weight-range": (
        "ort-no-vnni",
        lambda p: {"w_quantized": np.full(array(p, "w_quantized").shape, 65, np.int8)},
        "w_quantized",
        "65",
    ),
    "activation-granularity": (
        "generic-int8",
        lambda p: {"x_scale": np.full(4, 0.1, np.float32), "x_zero_point": np.zeros(4, np.int8)},
        "x",
        "4 scales",
    ),
    "power-of-two": ("vitis-ai", lambda p: {"x_scale": np.float32(0.3)}, "x", "0.3"),
    "smallest-range": ("qnn", lambda p: {"x_scale": np.float32(1e-8)}, "x", "2.55e-06"),
    "bias": ("ort", lambda p: {"b_scale": 2 * array(p, "b_scale")}, "b_quantized", "int32 with 6 scales along axis 0"),
    "shifts": ("vitis-ai", lambda p: {"w_scale": np.float32(2.0**-40)}, "a", ""),
}


@pytest.mark.parametrize("requirement", VALUES)
def test_a_value_that_breaks_a_requirement(requirement):
    target, change, tensor, got = VALUES[requirement]
    proto = written("Conv-Relu", target)
    violations = found(changed(proto, **change(proto)), target)[requirement]
    violation = next(v for v in violations if v.tensor == tensor)
    assert got in violation.got
    assert violation.source == TARGETS[target].requirements[requirement]
    assert violation.node
    assert violation.expected


def test_operator_sets_outside_the_bounds():
    for version in (12, 25):
        proto = written("Conv-Relu", "tensorrt")
        proto.opset_import[0].version = version
        (violation,) = found(proto, "tensorrt")["opset"]
        assert (violation.node, violation.expected, violation.got) == (
            "", "operator set 13 to 24", f"operator set {version}"
        )  # fmt: skip


def test_scales_along_the_wrong_axis_and_where_there_may_be_but_one():
    proto = written("Conv-Relu", "tensorrt")
    (node,) = [n for n in proto.graph.node if n.input[0] == "w_quantized"]
    node.attribute[0].i = 1
    (violation,) = found(proto, "tensorrt")["weight-granularity"]
    assert (violation.tensor, violation.got) == ("w_quantized", "along axis 1")
    (first, _) = found(written("Gemm", "ort"), "qnn")["weight-granularity"]
    assert first.expected == "one scale for the weight of Gemm"


ELSEWHERE = {
    "fused-activation": ("Conv-Relu", "generic-int8", {"fused": frozenset()}, {}),
    "same-grid": (
        "pooling",
        "generic-int8",
        {"MaxPool": OpRule("elementwise")},
        {"overrides": (Override(tensor="m", range=(0, 99)),)},
    ),
    "shared-grid": ("Concat", "generic-int8", {"Concat": OpRule("elementwise")}, {}),
    "fixed-encoding": ("Sigmoid and Mul", "qnn", {"Sigmoid": OpRule("elementwise")}, {"preset": "w8a16"}),
    "one-width": ("residual", "qnn", {}, {"overrides": (Override(tensor="r", bits=16),)}),
    "whole-operators": ("Conv-Relu", "generic-int8", {"Conv": OpRule("linear", "free")}, {}),
    "residual-add": ("residual", "tensorrt", {"Add": OpRule("elementwise", "free")}, {"force_int_kernels": True}),
}
"""Requirement -> what a placement that does not know of it writes: family, target, its other rules or fields."""


@pytest.mark.parametrize("requirement", ELSEWHERE)
def test_a_placement_that_breaks_a_requirement(requirement, monkeypatch):
    family, target, changes, options = ELSEWHERE[requirement]
    rules = {op: rule for op, rule in changes.items() if isinstance(rule, OpRule)}
    fields = {name: value for name, value in changes.items() if name not in rules}
    odd = replace(TARGETS[target], rules={**TARGETS[target].rules, **rules}, requirements={}, **fields)
    monkeypatch.setitem(TARGETS, "odd", odd)
    assert requirement in found(written(family, "odd", **options), target)


def test_tensorrt_wants_pairs_for_readers_of_integers_only():
    violations = found(written("output by Sigmoid", "generic-int8"), "tensorrt")
    assert [v.got for v in violations["integer-readers"]] == ["Sigmoid", "the output of the model"]
    assert [v.tensor for v in violations["float-outputs"]] == ["y_float"]
    assert violations["bias"][0].expected == "float"


def test_of_a_residual_add_one_input_is_quantized():
    both = found(written("residual", "generic-int8"), "tensorrt")["residual-add"]
    assert [v.expected for v in both] == ["the convolution's output unquantized"]
    two = found(written("residual of two convolutions", "generic-int8"), "tensorrt")["residual-add"]
    assert [v.got for v in two] == ["2 are"]
    proto = FAMILIES["residual"]
    none = found(onnxq.quantize(proto, samples(proto), exclude=("Add",), target="tensorrt", **PLAIN).model, "ort")
    assert "residual-add" not in none  # ONNX Runtime does not ask for it


def test_biases_by_form():
    proto = written("Conv-Relu", "ort")
    assert found(proto, "vitis-ai")["bias"][0].expected == "int8 with a scale of its own, zero point 0"
    float_biases = written("Conv-Relu", "tensorrt")
    (first, _) = found(float_biases, "ort")["bias"]
    assert (first.tensor, first.got) == ("b", "float")
    assert first.expected == "int32, zero point 0, scales s_x s_w"


def test_every_requirement_is_broken_here_and_has_a_check():
    broken = {*VALUES, *ELSEWHERE, "opset", "weight-granularity", "integer-readers", "float-outputs"}
    assert broken == set(REQUIREMENTS) == set(CHECKS) == set(REMEDIES)
    assert set().union(*(target.requirements for target in TARGETS.values())) == set(REQUIREMENTS)
    assert all(source for target in TARGETS.values() for source in target.requirements.values())


# --- models of other tools -----------------------------------------------------------------------------------------


def test_a_weight_may_be_float_behind_both_operators_and_readers_have_a_pair_each():
    proto = model(
        "(float[1,4] x) => (float[1,3] y, float[1,3] z) <float s, int8 o, float[4,3] w, float[3] t, int8[3] p> {"
        " q = QuantizeLinear(x, s, o) d = DequantizeLinear(q, s, o) e = DequantizeLinear(q, s, o)"
        " v = QuantizeLinear<axis=1>(w, t, p) u = DequantizeLinear<axis=1>(v, t, p) y = MatMul(d, u)"
        " z = MatMul(e, u) }",
        s=0.1, o=0, t=0.2, p=0,
    )  # fmt: skip
    assert not found(proto, "tensorrt")
    assert [v.got for v in found(changed(proto, o=np.int8(1)), "tensorrt")["activation-zero-point"]]
    assert {v.requirement for v in check(proto, TARGETS["qnn"]).violations} >= {"weight-granularity", "whole-operators"}
    limited = found(proto, "ort-no-vnni")
    assert ("weight-range" in limited) == bool(np.abs(array(proto, "w") / 0.2).max() > 64)


def test_sixteen_bits_in_the_microsoft_domain_and_without_zero_point():
    proto = model(
        "(float[1,4] x) => (float[1,4] y) <float s, uint16 o> {"
        " q = com.microsoft.QuantizeLinear(x, s, o) d = com.microsoft.DequantizeLinear(q, s, o)"
        " r = QuantizeLinear(d, s) y = DequantizeLinear(r, s) }",
        domains="com.microsoft",
        check=False,
        s=0.1,
        o=3,
    )
    assert [v.got for v in found(proto, "generic-int8")["activation-types"]] == ["uint16", "uint8"]


class Reader(CalibrationDataReader):
    """Random inputs, as ONNX Runtime's quantizer wants them."""

    def __init__(self, proto):
        self.feeds = iter(samples(proto))

    def get_next(self):
        return next(self.feeds, None)


@pytest.mark.parametrize("family", ["Conv-Relu", "residual", "pooling", "Sigmoid and Mul", "Gemm"])
def test_what_the_vendors_own_recipe_writes_is_clean(family, tmp_path):
    """ONNX Runtime's for QNN, 16-bit activations."""
    proto = FAMILIES[family]
    onnx.save(proto, tmp_path / "float.onnx")
    config = get_qnn_qdq_config(tmp_path / "float.onnx", Reader(proto), activation_type=QuantType.QUInt16)
    quantize(str(tmp_path / "float.onnx"), str(tmp_path / "qnn.onnx"), config)
    result = onnx.load(tmp_path / "qnn.onnx")
    assert not check(result, TARGETS["qnn"]).violations
    assert found(result, "tensorrt").keys() >= {"activation-types", "bias", "integer-readers"}


def test_a_float_model_is_refused():
    with pytest.raises(ModelError, match="holds no QuantizeLinear, DequantizeLinear or MatMulInteger"):
        check(FAMILIES["Conv-Relu"], TARGETS["ort"])


# --- quantize asks too ---------------------------------------------------------------------------------------------


def test_options_that_contradict_the_target_are_refused(tmp_path):
    proto = FAMILIES["Conv-Relu"]
    path = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match="tensorrt takes weights with zero point 0: leave `asymmetric_weights` out"):
        onnxq.quantize(proto, samples(proto), target="tensorrt", asymmetric_weights=True, output=path, **PLAIN)
    assert not path.exists()


@pytest.mark.parametrize("target", ["qnn", "vitis-ai", "generic-int8"])
def test_a_tensor_kept_in_float_that_a_whole_operator_needs_is_refused_before_any_work(target, monkeypatch):
    proto = FAMILIES["residual"]
    monkeypatch.setattr(pipeline, "equalize", None)  # the first step of the work
    keep = (Override(tensor="r", keep_float=True),)
    with pytest.raises(UsageError, match=rf"`overrides` contradict {target}: .*'r': expected quantized"):
        onnxq.quantize(proto, samples(proto), target=target, overrides=keep, **PLAIN)


def test_mixed_widths_are_refused_where_inputs_have_one_width():
    proto = FAMILIES["residual"]
    with pytest.raises(UsageError, match=r"contradict qnn: one-width: Add_s"):
        onnxq.quantize(proto, samples(proto), target="qnn", overrides=(Override(tensor="r", bits=16),), **PLAIN)


def test_the_report_lists_what_was_asked_for():
    proto = FAMILIES["Conv-Relu"]
    report = onnxq.quantize(proto, samples(proto), target="tensorrt", **PLAIN).report
    assert "bias: biases stay in float" in report.requirements
    assert json.loads(report.to_json())["requirements"] == list(report.requirements)
