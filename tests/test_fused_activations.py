"""No grid stands between an operator and the activation that the target runs as its end, decomposed or not; and grids
stay away from where they would only cost."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model
from onnx import ModelProto
from quantized import PLAIN, reasons, samples

import onnxq
from onnxq.checking import check
from onnxq.graph.model import Model
from onnxq.options import Options
from onnxq.passes.add_quantizers import AddQuantizers
from onnxq.passes.base import Context, Outcome
from onnxq.pipeline.prepare import prepare
from onnxq.targets import TARGETS

HEAD = "(float[1,3,8,8] x) => ({}) <float[5,3,3,3] w, float[5,5,1,1] v, float three, float zero, float six>"
ACTIVATIONS = {
    "Swish": "s = Sigmoid(a)  r = Mul(a, s)",
    "HardSwish": "r = HardSwish(a)",
    "decomposed HardSwish": "b = Add(a, three)  c = Clip(b, zero, six)  m = Mul(a, c)  r = Div(m, six)",
    "half decomposed HardSwish": "h = HardSigmoid<alpha=0.16666667>(a)  r = Mul(a, h)",
    "Sigmoid": "r = Sigmoid(a)",
    "LeakyRelu": "r = LeakyRelu(a)",
    "Tanh": "r = Tanh(a)",
    "Elu": "r = Elu(a)",
}


def network(activation: str, tail: str = "y = Conv(r, v)", outputs: str = "float[?,?,?,?] y") -> ModelProto:
    body = f"a = Conv(x, w)  {activation}  {tail}"
    return model(f"{HEAD.format(outputs)} {{ {body} }}", check=False, three=3, zero=0, six=6)


def placed(proto: ModelProto, target: str, **fields: object) -> tuple[Model, Outcome]:
    context, options = Context(target=TARGETS[target]), Options(target=target)
    made, _ = prepare(proto, "model", options, context)
    return made, AddQuantizers(options.activation, options.weight, **fields).apply(made, context)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_openvino_fuses_activations(activation: str) -> None:
    proto = network(ACTIVATIONS[activation])
    made, outcome = placed(proto, "openvino")
    assert set(made.quantizers) == {"x", "w", "r", "v"}
    assert not reasons(outcome)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_add_behind_them_joins_the_integers(activation: str) -> None:
    made, _ = placed(network(ACTIVATIONS[activation], "d = Conv(r, v)  t = Add(d, r)  y = Conv(t, v)"), "openvino")
    assert {"r", "d", "t"} <= set(made.quantizers)


def test_what_others_read_before_the_activation_is_not_fused() -> None:
    activation = ACTIVATIONS["Swish"]
    made, _ = placed(network(activation, "t = Add(a, r)  y = Conv(t, v)"), "openvino")
    assert {"a", "r", "t"} <= set(made.quantizers)
    made, _ = placed(network(activation, outputs="float[?,?,?,?] y, float[?,?,?,?] a"), "openvino")
    assert "s" in made.quantizers


def test_an_excluded_activation_is_not_fused() -> None:
    made, _ = placed(network(ACTIVATIONS["Swish"]), "openvino", exclude=("Sigmoid",))
    assert "a" in made.quantizers


@pytest.mark.parametrize("target", ["ort", "qnn", "vitis-ai", "generic-int8"])
def test_targets_with_kernels_for_the_pieces_of_swish_quantize_them(target: str) -> None:
    made, _ = placed(network(ACTIVATIONS["Swish"]), target)
    assert {"a", "s", "r"} <= set(made.quantizers)


@pytest.mark.parametrize("target", ["qnn", "vitis-ai", "generic-int8"])
def test_decomposed_hard_swish_is_one_operator(target: str) -> None:
    made, outcome = placed(network(ACTIVATIONS["decomposed HardSwish"]), target)
    assert {"a", "r"} <= set(made.quantizers)
    assert not {"b", "c", "m"} & set(made.quantizers)
    assert not reasons(outcome)


def test_a_grid_between_is_flagged() -> None:
    proto = network("r = Tanh(a)")
    written = onnxq.quantize(proto, samples(proto), target="generic-int8", **PLAIN).model
    found = [v.requirement for v in check(written, TARGETS["openvino"]).violations]
    assert "fused-activation" in found


DETECTIONS = "b = Conv(a, v)  s = Sigmoid(b)  k = Mul(b, six)  c = Concat<axis=1>(s, k)"


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("tail", ["y = Identity(c)", "y = Transpose<perm=[0,2,3,1]>(c)"])
def test_wide_and_narrow_outputs_do_not_share_a_grid(target: str, tail: str) -> None:
    proto = network(DETECTIONS, tail)
    feeds = samples(proto)
    result = onnxq.quantize(proto, feeds, target=target, **PLAIN)
    assert "c" not in {tensor.tensor for tensor in result.report.tensors}
    assert not check(result.model, TARGETS[target]).violations


def test_what_computes_goes_on_behind_such_a_concat_is_quantized() -> None:
    text = HEAD.format("float[?,?,?,?] y").replace("float six", "float six, float[2,10,1,1] u")
    made, _ = placed(
        model(f"{text} {{ a = Conv(x, w)  {DETECTIONS}  y = Conv(c, u) }}", three=3, zero=0, six=6), "generic-int8"
    )
    assert "c" in made.quantizers


@pytest.mark.parametrize("target", ["qnn", "generic-int8"])
def test_movement_behind_a_float_operator(target: str) -> None:
    """Where all of the network is quantized, quantization comes in front of it, not behind."""
    proto = network("i = Softplus(a)  r = Transpose<perm=[0,1,3,2]>(i)")
    made, _ = placed(proto, target)
    assert ("i" in made.quantizers) == (target == "qnn")
    assert "r" in made.quantizers
    feeds = [{"x": np.asarray(np.random.default_rng(0).standard_normal((1, 3, 8, 8)), np.float32)}]
    assert onnxq.quantize(proto, feeds, target=target, **PLAIN).report.requirements
