"""Targets that users write in TOML: what they change, what is asked of them afterwards, and what is refused."""

from dataclasses import fields
from types import UnionType
from typing import Literal, get_origin

import pytest
from families import FAMILIES
from quantized import PLAIN, samples

import onnxq
from onnxq import TARGETS
from onnxq.checking import check
from onnxq.errors import UsageError
from onnxq.options import Options
from onnxq.targets import OpRule, Target, find_target, read_toml

NPU = """
name = "npu5"
base = "generic-int8"
source = "npu5 data sheet, section 4"
max_opset = 17
bias = "int32"
activation_types = ["uint8"]
weight_types = ["int8"]
activation_zero_points = "any"
outputs = "float"

[activation]
signed = false
symmetric = false

[weight]
per_channel = false

[ops.Tanh]
float = true
[ops.Relu]
kind = "elementwise"
output = "grid"
[ops.Mul]
tie = "inputs"
[ops.Softmax]
fixed = [0.0, 2.0]

[requirements]
float-outputs = "npu5 data sheet, section 5"
same-grid = false
"""


def target_file(folder, text):
    path = folder / "npu5.toml"
    path.write_text(text)
    return str(path)


def test_what_a_file_says_is_in_the_target(tmp_path):
    target = find_target(target_file(tmp_path, NPU))
    assert (target.name, target.max_opset, target.outputs) == ("npu5", 17, "float")
    assert str(target.activation_of(8)) == "uint8 asymmetric per tensor"
    assert str(target.weight_of(8)) == "int8 narrow symmetric per tensor"
    assert "Tanh" not in target.rules
    assert (target.rules["Relu"].kind, target.rules["Mul"].tie, target.rules["Softmax"].fixed) == (
        "elementwise", "inputs", (0.0, 2.0)
    )  # fmt: skip
    assert target.rules["Conv"] is TARGETS["generic-int8"].rules["Conv"]


def test_what_a_file_says_is_what_is_asked_for_with_its_source(tmp_path):
    asked = find_target(target_file(tmp_path, NPU)).requirements
    stated = {id for id, source in asked.items() if source == "npu5 data sheet, section 4"}
    assert stated == {
        "opset", "bias", "activation-types", "weight-types", "activation-zero-point", "shared-grid",
        "weight-granularity",
    }  # fmt: skip
    assert asked["float-outputs"] == "npu5 data sheet, section 5"
    assert "same-grid" not in asked
    assert asked["weight-zero-point"] == TARGETS["generic-int8"].requirements["weight-zero-point"]


@pytest.mark.parametrize("family", ["Conv-Relu", "residual", "Sigmoid and Mul", "pooling", "Gemm", "attention"])
def test_models_keep_to_it(family, tmp_path):
    path = target_file(tmp_path, NPU)
    proto = FAMILIES[family]
    result = onnxq.quantize(proto, samples(proto), target=path, **{**PLAIN, "cle": "off"})
    assert not check(result.model, find_target(path)).violations
    assert check(result.model, TARGETS["generic-int8"]).violations


def test_files_can_say_all_that_a_target_holds():
    """But for conditions on nodes, which are functions, and encodings that a tool-chain insists on."""
    held = {*read_toml._FIELDS, *read_toml._TABLES} - {"ops", "operator"} | {"rules"}
    assert held == {field.name for field in fields(Target)}
    assert {field.name for field in fields(OpRule)} - {*read_toml._RULE_FIELDS} == {
        "encodings",
        "refuses",
        "slow",
        "caution",
    }
    assert {get_origin(hint) or hint for hint in read_toml._FIELDS.values()} == {
        str, bool, int, float, UnionType, Literal, tuple, frozenset,
    }  # fmt: skip


def test_each_base_serves(tmp_path):
    for name, base in TARGETS.items():
        target = find_target(target_file(tmp_path, f'base = "{name}"'))
        assert target.rules == base.rules
        assert target.requirements == base.requirements
        assert target.name.endswith("npu5.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bsae = 'ort'", "unknown key 'bsae'; did you mean 'base'"),
        ("base = 'openvno'", "base must be one of .* got 'openvno'; did you mean 'openvino'"),
        ("bias = 'int16'", "bias must be one of int32, float, int8, got 'int16'"),
        ("max_opset = '17'", "max_opset must be a number, got '17'"),
        ("max_opset = true", "max_opset must be a number, got True"),
        ("max_opset = 12", "max_opset 12 lies below min_opset 13"),
        ("min_opset = -1", "min_opset must not be negative"),
        ("weight_types = ['int7']", "weight_types must be one of int4, .* got 'int7'"),
        ("weight_types = 'int8'", "weight_types must be a list of strings, got 'int8'"),
        ("fused = ['Tan']", "fused must be one of Relu, Clip, .*, Swish, got 'Tan'; did you mean 'Tanh'"),
        ("reduced_weights = 1", "reduced_weights must be true or false, got 1"),
        ("name = 3", "name must be a string, got 3"),
        ("activation = 'int8'", r"'activation' must be a table, \[activation\], got 'int8'"),
        ("[weight]\nsymetric = true", r"\[weight\] unknown key 'symetric'; did you mean 'symmetric'"),
        ("[weight]\nsigned = 1", "weight.signed must be true or false, got 1"),
        ("[weight]\nsigned = false", r"weight\] is uint8 narrow, but weight_types has only int8, int16, int4"),
        ("[activation]\nsymmetric = false", 'whose zero points are not 0; .* activation_zero_points = "any"'),
        ("[activation]\npower_of_two = true", "power_of_two must be set for .activation. and .weight., or for neither"),
        ("[ops.Add]\nkinds = 'linear'", r"\[ops.Add\] unknown key 'kinds'; did you mean 'kind'"),
        ("[ops.Add]\nkind = 'liner'", "kind must be one of linear, .* got 'liner'; did you mean 'linear'"),
        ("[ops.Erf]\noutput = 'grid'", "generic-int8 has no rule for 'Erf': give its kind"),
        ("[ops.Softmax]\nfixed = [1, 0]", r"fixed must be \[lo, hi\] with lo < hi"),
        ("[shifts]\ncut = [0, 16]", r"\[shifts\] are for weights with one scale a tensor, a power of two"),
        ("[shifts]\nread = 1.5", "shifts.read must be a whole number, got 1.5"),
        ("[requirements]\nopsets = 'x'", "unknown key 'opsets'; did you mean 'opset'"),
        ("[requirements]\nopset = 3", r"requirements.opset must be a source \(a string\) or false, got 3"),
        ("= 3", "not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_refused(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as error:
        Options(target=target_file(tmp_path, text))
    assert "npu5.toml" in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UsageError, match=r"`target` nowhere.toml: No such file"):
        Options(target="nowhere.toml")


def test_an_unknown_name():
    with pytest.raises(UsageError, match=r"'tensorr' is unknown; expected one of .*; did you mean 'tensorrt'"):
        Options(target="tensorr")
