"""How each node computes, as reports say it: from the plan that was lowered, and from what ONNX Runtime makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import model
from quantized import PLAIN, kernels, samples

import onnxq
from onnxq import Options, Override, Report
from onnxq.evaluation.inspect import inspect

NET = """(float[1,3,6,6] x) => (float[?,?,?,?] y)
    <float[4,3,3,3] w, float[4] b, float[4,4,3,3] v, float[2,4,1,1] u>
    { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, v) s = Add(c, r)
      p = MaxPool<kernel_shape=[2,2]>(s) y = Conv(p, u) }"""
KEEP_CONV = Override(node="Conv", keep_float=True)


def report(text: str = NET, **options: Any) -> Report:
    proto = model(text)
    return onnxq.quantize(proto, samples(proto), **{"force_int_kernels": True, **PLAIN, **options}).report


def in_float(found: Report) -> dict[str, tuple[str, str | None]]:
    return {n.node: (n.kind, n.cause) for n in found.float_nodes}


def counts(found: Report) -> tuple[int, int, int, int]:
    return found.integer_nodes, found.simulated_nodes, found.weights_only_nodes, len(found.float_nodes)


# --- who keeps a node in float ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ort", "qnn"])
def test_an_override_keeps_nodes_in_float_as_exclude_does(target: str) -> None:
    text = "(float[1,3,6,6] x) => (float[?,?] y) <float[4,3,3,3] w, float[4,2] k>"
    text += "{ a = Conv(x, w) g = GlobalAveragePool(a) f = Flatten(g) y = Gemm(f, k) }"
    proto = model(text)
    by = {"exclude": {"exclude": ("Conv",)}, "override": {"overrides": (KEEP_CONV,)}}
    plain = {**PLAIN, "target": target, "force_int_kernels": True, "provenance": False}  # which names options
    found = {name: onnxq.quantize(proto, samples(proto), **plain, **options) for name, options in by.items()}
    same = [result.model.SerializeToString(deterministic=True) for result in found.values()]
    assert same[0] == same[1]
    kinds = {name: in_float(result.report)["Conv_a"] for name, result in found.items()}
    assert kinds == {"exclude": ("excluded", None), "override": ("override", None)}


def test_what_an_override_keeps_in_float_is_reported_in_float() -> None:
    found = report(overrides=(Override(node="Conv_[ac]", keep_float=True),))
    assert {name for name, (kind, _) in in_float(found).items() if kind == "override"} == {"Conv_a", "Conv_c"}
    assert found.runtime_operators["Conv"] == 2
    proto = model(NET)
    seen = inspect(proto, "net", Options(force_int_kernels=True, overrides=(KEEP_CONV,)))
    assert {n.op for n in seen.float_nodes} >= {"Conv"}
    assert sum(n.op == "Conv" for n in seen.float_nodes) == 3


def test_an_activation_names_the_layer_that_it_stays_in_float_for() -> None:
    found = report(exclude=("Conv_a",))
    relu = next(n for n in found.float_nodes if n.node == "Relu_r")
    assert (relu.kind, relu.cause) == ("inputs", "Conv_a")
    assert relu.reason == "it follows its Conv, which stays in float: excluded by 'Conv_a'"
    assert "(because of 'Conv_a')" in found.to_text(verbose=True)
    assert "(because of" not in found.to_text()


def test_a_tensor_without_a_quantizer_leaves_its_readers_in_float() -> None:
    found = report(overrides=(Override(tensor="r", keep_float=True),))
    states = in_float(found)
    assert states["Add_s"] == ("override", "r")
    assert found.weights_only_nodes == 1  # Conv_c, whose weight is still quantized
    assert "1 in float with quantized weights only" in found.to_text()


# --- what presets leave ----------------------------------------------------------------------------------------------


def test_with_quantized_weights_alone_nothing_computes_in_integers() -> None:
    found = report(preset="w8")
    assert counts(found) == (0, 0, 3, 1)
    assert set(in_float(found).values()) == {("preset", None)}
    assert found.to_text().startswith("0 nodes in integers, 1 in float, 3 in float with quantized weights only; ")
    assert "3 with quantized weights" in found.to_html()
    seen = inspect(model(NET), "net", Options(preset="w8"))
    assert (seen.integer_nodes, seen.weights_only_nodes) == (0, 3)
    assert "could be quantized: 0 nodes and the weights alone of 3" in seen.to_text()


def test_nodes_with_float_weights_are_not_integer_nodes() -> None:
    found = report(preset="a8")
    layers = {name: kind for name, (kind, _) in in_float(found).items() if name.startswith("Conv")}
    assert layers == dict.fromkeys(("Conv_a", "Conv_c", "Conv_y"), "preset")


def test_where_onnx_runtime_has_no_integer_kernel_it_is_said_to_compute_in_float() -> None:
    found = report(preset="w8a16")
    assert counts(found)[:3] == (0, 5, 0)
    assert "5 quantized but computed in float" in found.to_text()
    assert report(preset="w8a16", target="qnn").integer_nodes == 5  # not run by ONNX Runtime, which says nothing of it


# --- what ONNX Runtime does by itself --------------------------------------------------------------------------------


def test_a_layer_with_a_computed_weight_that_onnx_runtime_quantizes_is_an_integer_node() -> None:
    text = """(float[1,3,6,6] x, float[4,3,1,1] k) => (float[?,?,?,?] y) <float[3,3,1,1] w, float[2,4,1,1] v>
        { a = Conv(x, w) t = Conv(k, w) b = Conv(a, t) y = Conv(b, v) }"""
    proto = model(text)
    result = onnxq.quantize(proto, samples(proto), force_int_kernels=True, **PLAIN)
    integer = kernels(result.model)["QLinearConv"]
    assert integer == result.report.integer_nodes
    assert ("Conv_b" in in_float(result.report)) == (integer < 4)


def test_every_node_in_integers_is_one_that_onnx_runtime_computes_so() -> None:
    """No false alarm either: with all of a network quantized, none is said to be simulated."""
    for text in (NET, "(float[2,6] x) => (float[?,?] y) <float[6,6] w, float[6] b, float[6,4] v> "
                      "{ m = MatMul(x, w) a = Add(m, b) r = Sigmoid(a) y = MatMul(r, v) }"):  # fmt: skip
        assert counts(report(text))[1:3] == (0, 0)


# --- options that did nothing ----------------------------------------------------------------------------------------


TANH = NET.replace("y = Conv(p, u)", "z = Conv(p, u) y = Tanh(z)")


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"tie": ("Concat",)}, "`tie` Concat did nothing"),
        ({"smoothquant": 0.5}, "`smoothquant` 0.5 did nothing"),
        ({"exclude": ("Tanh",)}, "`exclude` 'Tanh' did nothing"),
        ({"overrides": (Override(node="Tanh_y", keep_float=True),)}, "the override of node 'Tanh_y' (keep-float) did"),
        ({"exclude": ("Relu", "MaxPool_p"), "tie": ("Add",)}, None),
    ],
    ids=str,
)
def test_an_option_that_did_nothing_says_so(options: dict[str, Any], warning: str | None) -> None:
    found = report(TANH, **options)
    said = [text for text in found.warnings if "did nothing" in text]
    assert len(said) == (warning is not None), said
    assert warning is None or said[0].startswith(warning)
    assert ("did nothing" in found.to_text()) == (warning is not None)


def test_methods_of_rounding_carry_their_own_names() -> None:
    titles = {"gptq": "GPTQ", "coordinate-descent": "Coordinate descent", "adaround": "AdaRound"}
    for rounding, title in titles.items():
        found = report(rounding=rounding, effort="fast")
        assert next(s.title for s in found.steps if s.name == "RoundWeights") == title
        assert np.any([title in form for form in (found.to_text(verbose=True), found.to_markdown(), found.to_html())])
