"""Operators of users' own domains: one call says what they are, and everything that quantizes treats them so."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import assert_close, feeds, model, ops, run, weights, wrapped
from onnx import ModelProto
from quantized import PLAIN, planned, samples

import onnxq
from onnxq.checking import check
from onnxq.errors import UsageError
from onnxq.graph.import_model import import_model
from onnxq.graph.scaling_groups import find_groups
from onnxq.operators import register, registry
from onnxq.operators.linear import LinearLayer, linear_layer
from onnxq.targets import TARGETS, find_target


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone behind it."""
    monkeypatch.setattr(registry, "_OPERATORS", dict(registry._OPERATORS))


BODIES = {
    "MyLinear": "(x, w, b) => (y) { y = Gemm(x, w, b) }",
    "Turned": "(x, w) => (y) { v = Transpose(w) y = MatMul(x, v) }",
    "Middle": "(x, b, w) => (y) { t = Transpose<perm=[0,2,1]>(x) p = MatMul(t, w) s = Add(p, b)"
    " y = Transpose<perm=[0,2,1]>(s) }",
    "Double": "(x) => (y) { y = Add(x, x) }",
    "Shuffle": "(x) => (y) { s = Constant<value_ints=[0,2,2,8,8]>() r = Reshape(x, s)"
    " t = Transpose<perm=[0,2,1,3,4]>(r) u = Constant<value_ints=[0,4,8,8]>() y = Reshape(t, u) }",
}


def network(text: str, **arguments: Any) -> ModelProto:
    """A network of operators of the domain com.x, whose bodies ONNX Runtime runs."""
    used = [name for name in BODIES if f"com.x.{name}(" in text]
    functions = "".join(f'<domain: "com.x", opset_import: ["": 17]> {name} {BODIES[name]}' for name in used)
    proto = model(text, domains="com.x", functions=functions, check=False, **arguments)
    onnx.checker.check_model(proto, full_check=True)
    return proto


MLP = (
    "(float[N,16] x) => (float[N,3] y) <float[16,24] w, float[24] b, float[24,3] v, float[3] c>"
    " {{ a = {op}(x, w, b) r = Relu(a) y = {op}(r, v, c) }}"
)


@pytest.mark.parametrize("options", [{}, {"preset": "w4a8", "rounding": "gptq"}, {"rounding": "adaround"}], ids=str)
@pytest.mark.parametrize("target", ["ort", "qnn", "tensorrt", "vitis-ai"])
def test_a_registered_linear_operator_is_quantized_as_gemm_is(target: str, options: dict[str, str]) -> None:
    """Placement, equalization, bias absorption and correction, ranges, rounding and lowering: the same integers."""
    if target in ("tensorrt", "vitis-ai") and "preset" in options:
        pytest.skip("the tool-chain takes no 4-bit weights beside 8-bit activations")
    register("MyLinear", "com.x", "linear", weight=1, bias=2, output_axis=1)
    mine, gemm = network(MLP.format(op="com.x.MyLinear")), model(MLP.format(op="Gemm"))
    data = samples(gemm, 40)
    found, expected = (onnxq.quantize(proto, data, target=target, **options) for proto in (mine, gemm))
    assert [op.replace("MyLinear", "Gemm") for op in ops(found.model)] == ops(expected.model)
    constants, others = weights(found.model), weights(expected.model)
    assert list(constants) == list(others)
    for name, values in others.items():
        np.testing.assert_array_equal(constants[name], values, err_msg=name)
    assert constants["w_quantized"].dtype != np.float32
    assert [f.name for f in found.model.functions] == ["MyLinear"]
    assert not check(found.model, TARGETS[target]).violations
    onnx.checker.check_model(found.model, full_check=True)
    assert_close(run(found.model, data[0])["y"], run(mine, data[0])["y"], 0.2)


FORMS = {
    "Turned": (
        {"axis": 0},
        "(float[N,7,16] x) => (float[N,7,3] y) <float[24,16] w, float[3,24] v>"
        " { a = com.x.Turned(x, w) r = Relu(a) y = com.x.Turned(r, v) }",
    ),
    "Middle": (
        {"weight": 2, "bias": 1, "output_axis": 1},
        "(float[N,16,7] x) => (float[N,3,7] y) <float[16,24] w, float[24] b, float[24,3] v, float[3] c>"
        " { a = com.x.Middle(x, b, w) r = Relu(a) y = com.x.Middle(r, c, v) }",
    ),
}


@pytest.mark.parametrize("op", FORMS)
def test_slots_and_axes_are_where_they_were_said_to_be(op: str) -> None:
    fields, text = FORMS[op]
    register(op, "com.x", "linear", **fields)
    proto = network(text)
    data = samples(proto, 8)
    found = onnxq.quantize(proto, data, preset="w4a8", rounding="gptq").model
    scales = {name: values.size for name, values in weights(found).items() if name in ("w_scale", "v_scale")}
    assert scales == {"w_scale": 24, "v_scale": 3}, "one an output channel"
    nearest = onnxq.quantize(proto, data, preset="w4a8", **PLAIN).model
    expected = run(proto, data[0])["y"]
    errors = [np.square(run(m, data[0])["y"] - expected).sum() for m in (found, nearest)]
    assert errors[0] < errors[1]


def test_a_bias_that_an_add_behind_adds_is_the_layers() -> None:
    register("Turned", "com.x", "linear", axis=0)
    proto = network(
        "(float[N,4] x) => (float[N,3] y) <float[3,4] w, float[3] b> { p = com.x.Turned(x, w) y = Add(p, b) }"
    )
    planned_model, _ = planned(proto)
    layer = linear_layer(planned_model.graph.nodes[0])
    assert isinstance(layer, LinearLayer)
    assert layer.bias is not None
    assert layer.output.name == "y"


CONVS = (
    "(float[N,3,8,8] x) => (float[N,5,8,8] y) <float[4,3,1,1] w, float[4] b, float[5,4,1,1] v>"
    " {{ a = Conv(x, w, b) r = Relu(a) z = com.x.{op}(r) y = Conv(z, v) }}"
)


@pytest.mark.parametrize("homogeneous", [False, True])
def test_an_elementwise_operator(homogeneous: bool) -> None:
    register("Double", "com.x", "elementwise", homogeneous=homogeneous)
    proto = network(CONVS.format(op="Double"))
    planned_model, _ = planned(proto)
    assert {"r", "z"} <= set(planned_model.quantizers)
    assert planned_model.quantizers["z"].grid_of is None
    assert find_groups(planned_model).free.any() == homogeneous
    found = onnxq.quantize(proto, samples(proto, 4), target="qnn").model
    assert not check(found, TARGETS["qnn"]).violations
    assert_close(run(found, feeds(proto))["y"], run(proto, feeds(proto))["y"], 0.2)


def _shuffled(node: Any, x: np.ndarray) -> list[np.ndarray]:
    shape = x.shape
    return [x.reshape(shape[0], 2, 2, *shape[2:]).swapaxes(1, 2).reshape(shape)]


@pytest.mark.parametrize("move", [None, _shuffled])
@pytest.mark.parametrize("target", ["ort", "qnn", "tensorrt", "openvino"])
def test_an_operator_that_moves_data(target: str, move: Any) -> None:
    register("Shuffle", "com.x", "movement", move=move)
    proto = network(CONVS.format(op="Shuffle"))
    planned_model, _ = planned(proto)
    assert planned_model.quantizers["z"].grid_of == "r"
    groups = find_groups(planned_model)
    assert groups.free.any() == (move is not None)
    if move is not None:
        np.testing.assert_array_equal(groups.tensors["z"][1], groups.tensors["r"][1][[0, 2, 1, 3]])
    found = onnxq.quantize(proto, samples(proto, 4), target=target).model
    assert not check(found, TARGETS[target]).violations
    assert_close(run(found, feeds(proto))["y"], run(proto, feeds(proto))["y"], 0.2)


@pytest.mark.parametrize("op", ["MyLinear", *FORMS])
def test_registered_linear_operators_can_be_trained(op: str) -> None:
    pytest.importorskip("torch")
    from onnxq.qat.network import TorchNetwork

    fields, text = FORMS.get(op, ({"bias": 2}, MLP.format(op="com.x.MyLinear")))
    register(op, "com.x", "linear", **fields)
    proto = network(text)
    x = feeds(proto)["x"]
    found = TorchNetwork(wrapped(proto), TARGETS["ort"])(torch_of(x))
    assert_close(found.detach().numpy(), run(proto, {"x": x})["y"], 1e-5)


def torch_of(x: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(x)


def test_functions_of_other_operators_are_inlined() -> None:
    register("MyLinear", "com.x", "linear", bias=2)
    text = MLP.format(op="com.x.MyLinear").replace("r = Relu(a)", "r = com.x.Double(a)")
    proto = import_model(network(text), "m")
    assert ops(proto) == ["MyLinear", "Add", "MyLinear"]
    assert [f.name for f in proto.functions] == ["MyLinear"]


def test_without_an_entry_an_operator_is_left_alone() -> None:
    proto = network(MLP.format(op="com.x.MyLinear"))
    assert ops(import_model(proto, "m")) == ["Gemm", "Relu", "Gemm"]
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    del bare.functions[:]
    _, outcome = planned(bare)
    assert "register it" in outcome.skips[0].reason


REFUSED = {
    "domain must be another than ONNX's own": {"domain": "ai.onnx"},
    "op must be the name": {"op": ""},
    "kind must be one of": {"kind": "affine"},
    "weight must be the number of an input": {"weight": "w"},
    "input 0 is x": {"weight": 0},
    "weight and bias are both input 1": {"bias": 1},
    "axis must be 0 or 1": {"axis": 2},
    "axis and reduction_axis of the weight are the same": {"axis": 0, "reduction_axis": 0},
    "output_axis must be 1 or -1": {"output_axis": 2},
    "homogeneous is for operators of another kind": {"homogeneous": True},
    "weight is for operators of another kind": {"kind": "movement", "weight": 1},
    "move is for operators of another kind": {"kind": "elementwise", "move": _shuffled},
    "homogeneous is said already by move": {"kind": "movement", "homogeneous": True, "move": _shuffled},
}


@pytest.mark.parametrize("message", REFUSED)
def test_nonsense_is_refused(message: str) -> None:
    arguments: dict[str, Any] = {"op": "MyLinear", "domain": "com.x", "kind": "linear", **REFUSED[message]}
    with pytest.raises(UsageError, match=message):
        register(**arguments)
    assert registry.find("MyLinear", "com.x") is None


def test_an_operator_is_registered_once_or_in_the_same_way() -> None:
    assert register("MyLinear", "com.x", "linear", bias=2) == register("MyLinear", "com.x", "linear", bias=2)
    with pytest.raises(UsageError, match=r"com\.x\.MyLinear is registered already"):
        register("MyLinear", "com.x", "elementwise")


TOML = """
[[operator]]
domain = "com.x"
op = "MyLinear"
kind = "linear"
bias = 2
output_axis = 1

[[operator]]
domain = "com.x"
op = "Double"
kind = "elementwise"

[ops."com.x.MyLinear"]
per_channel = "never"
"""


def test_a_target_file_registers_operators_and_has_rules_for_them(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "qnn"' + TOML)
    target = find_target(str(path))
    assert target.rules["com.x.MyLinear"].per_channel == "never"
    assert target.rules["com.x.Double"].kind == "elementwise"
    proto = network(MLP.format(op="com.x.MyLinear"))
    found = onnxq.quantize(proto, samples(proto, 8), target=str(path)).model
    assert ops(found).count("MyLinear") == 2
    assert weights(found)["w_scale"].size == 1
    assert not check(found, target).violations


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[operator]]\ndomain = "com.x"\nop = "A"\nkind = "movement"\naxes = 1', "did you mean 'axis'"),
        ('[[operator]]\ndomain = "com.x"\nop = "A"\nkind = "affine"', "kind must be one of linear, elementwise, move"),
        ('[[operator]]\ndomain = "com.x"\nkind = "linear"', "op must be the name of an operator"),
        ('operator = "A"', r"must be a list of tables, \[\[operator\]\]"),
        ('operator = ["A"]', "'operator' must be a table"),
    ],
)
def test_mistakes_in_a_target_file_say_what_was_expected(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        find_target(str(path))


KEPT_APART = {
    "evaluation/matching.py": "integer operators by the float ones that they stand for",
    "graph/dynamic_writer.py": "what quantizes activations at run time",
    "passes/fuse_decomposed.py": "Pad in front of Conv",
    "passes/move_transposes.py": "Pad in front of Conv",
    "passes/rewrite_einsum.py": "the MatMul that it writes",
    "pipeline/measure_latency.py": "operators of ONNX Runtime by those of the model",
    "toolchains/adapters/run_openvino.py": "operators of OpenVINO",
    "passes/normalize.py": "alpha and beta of Gemm",
    "qat/layers.py": "what PyTorch computes",
}


def test_no_other_file_has_a_list_of_operators_with_weights() -> None:
    """They are entries of `operators/`, and targets say which of them their tool-chain has a kernel for."""
    root = Path(onnxq.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in registry.names("linear")
    }
    assert {name for name in found if name.split("/")[0] not in ("operators", "targets")} <= set(KEPT_APART)


def test_models_in_half_precision_keep_their_functions() -> None:
    register("Double", "com.x", "elementwise")
    text = (
        "(float16[N,4] x) => (float16[N,3] y) <float16[4,4] w, float16[4,3] v>"
        " { a = MatMul(x, w) r = com.x.Double(a) y = MatMul(r, v) }"
    )
    proto = import_model(network(text), "m")
    assert ops(proto) == ["Cast", "MatMul", "Double", "MatMul", "Cast"]
    x = feeds(proto)
    assert_close(run(proto, x)["y"], run(network(text), x)["y"], 0.01)
