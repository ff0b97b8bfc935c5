"""Which nodes run in integers: what users include and exclude, and what no target can take."""

import numpy as np
import onnx
import pytest
from graphs import model, ops
from quantized import plan, planned, quantized, reasons

from onnxq.errors import ModelError, UsageError
from onnxq.graph.edit import name_nodes
from onnxq.passes.add_quantizers import AddQuantizers

CONV = "<float[3,3,1,1] w, float[3,3,1,1] v, float[3,3,1,1] u{}>"


def conv(body, declared="", outputs="float[?,?,?,?] y", **values):
    """Graphs on x, 1 x 3 x 4 x 4, with three 1x1 weights w, v and u."""
    return model(f"(float[1,3,4,4] x) => ({outputs}) {CONV.format(declared)} {{ {body} }}", check=False, **values)


def activations(quantizers):
    return [name for name, q in quantizers.items() if not q.readers]


# --- include and exclude ----------------------------------------------------------------------------------------

TWO = "a = Conv(x, w) b = Sigmoid(a) y = Conv(b, v)"


@pytest.mark.parametrize("pattern", ["Conv_a", "*_a", "Con[v]_a"])
def test_excluded_by_name(pattern):
    model_, outcome = planned(conv(TWO), exclude=(pattern,))
    assert set(model_.quantizers) == {"b", "v", "y"}
    assert reasons(outcome)["Conv_a"] == f"excluded by {pattern!r}"


def test_excluded_by_operator():
    model_, outcome = planned(conv("a = Conv(x, w) b = Conv(a, v) c = Add(a, b) y = Conv(c, u)"), exclude=("Add",))
    assert reasons(outcome) == {"Add_c": "excluded by 'Add'"}
    assert "c" in model_.quantizers  # as the input of the layer behind it


def test_an_excluded_activation_is_not_fused():
    quantizers = plan(conv("a = Conv(x, w) b = Relu(a) y = Conv(b, v)"), exclude=("Relu",))
    assert activations(quantizers) == ["x", "a", "b", "y"]


def test_included_by_operator_with_the_activation_behind_it():
    model_, outcome = planned(conv("a = Conv(x, w) b = Relu(a) c = Add(b, b) y = Conv(c, v)"), include=("Conv",))
    assert activations(model_.quantizers) == ["x", "b", "c", "y"]
    assert reasons(outcome) == {"Add_c": "not included"}


def test_exclude_wins_over_include():
    assert set(plan(conv(TWO), include=("Conv",), exclude=("Conv_a",))) == {"b", "v", "y"}


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused(option):
    with pytest.raises(UsageError, match=f"`{option}` 'conv_\\*' matches no node name and no operator type"):
        plan(conv(TWO), **{option: ("Conv", "conv_*")})


# --- what is left untouched -------------------------------------------------------------------------------------


def test_control_flow_is_left_in_float():
    proto = conv("a = Conv(x, w) y = Identity(a)")
    then = onnx.parser.parse_graph("g () => (float[?,?,?,?] t) { t = Conv(a, w) }")
    other = onnx.parser.parse_graph("g () => (float[?,?,?,?] e) { e = Relu(a) }")
    branch = onnx.helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    proto.graph.node.pop()
    proto.graph.node.append(branch)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c0"))
    proto.graph.node.insert(0, onnx.helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0))
    proto.graph.node.insert(1, onnx.helper.make_node("Cast", ["m"], ["c"], to=onnx.TensorProto.BOOL))
    proto.graph.initializer.pop()
    onnx.checker.check_model(proto)
    model_, outcome = planned(proto)
    assert set(model_.quantizers) == {"x", "w", "a"}
    assert reasons(outcome)["If_y"].startswith("activations inside of control flow stay in float")
    written = quantized(proto)
    branch = next(n for n in written.graph.node if n.op_type == "If")
    inner = next(a.g for a in branch.attribute if a.name == "then_branch")
    assert (inner.node[0].op_type, inner.node[0].input[1]) == ("Conv", "w")


def test_operators_of_other_domains_are_left_in_float():
    proto = model(
        "(float[2,3] x) => (float[?,?] y) <float[3,5] w, float[5,7] v>"
        " { a = MatMul(x, w) b = com.microsoft.QuickGelu(a) y = MatMul(b, v) }",
        domains="com.microsoft",
        check=False,
    )
    _, outcome = planned(proto)
    unknown = "this model went through a runtime's optimiser: quantize the model before it"
    assert reasons(outcome) == {"QuickGelu_b": unknown}
    assert "QuickGelu" in ops(quantized(proto))


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="nothing to quantize: 1 Tanh: ort has no integer kernel"):
        quantized(model("(float[2,3] x) => (float[?,?] y) { y = Tanh(x) }"))


def test_the_pass_leaves_the_graph_alone():
    model_, _ = planned(conv(TWO))
    assert ops(model_) == ["Conv", "Sigmoid", "Conv"]
    assert AddQuantizers.preserves is None
    name_nodes(model_.graph.nodes)
    assert [n.name for n in model_.graph.nodes] == ["Conv_a", "Sigmoid_b", "Conv_y"]


# --- outputs ----------------------------------------------------------------------------------------------------

OUTPUT = "it computes an output of the model, which keeps float precision"
PARTS = "it puts outputs of the model together: narrow ones would be lost on the grid of wide ones"


@pytest.mark.parametrize(
    ("end", "in_float"),
    [
        ("y = Concat<axis=1>(a, s)", {"Sigmoid_s": OUTPUT, "Concat_y": PARTS}),
        ("r = Flatten(s) t = Flatten(a) y = Concat<axis=1>(r, t)", {"Sigmoid_s": OUTPUT, "Concat_y": PARTS}),
        (
            "i = Concat<axis=1>(a, s) y = Concat<axis=1>(i, s)",
            {"Sigmoid_s": OUTPUT, "Concat_i": PARTS, "Concat_y": "none of its inputs is computed in integers"},
        ),
        ("c = Concat<axis=1>(a, s) y = Conv(c, k)", {}),  # it is an input of a layer
        ("d = Conv(s, v) y = Concat<axis=1>(d, s)", {"Concat_y": PARTS}),  # of one as well
    ],
)
def test_what_a_concat_of_outputs_puts_together_keeps_float_precision(end, in_float):
    body = f"a = Conv(x, w) s = Sigmoid(a) {end}"
    shape = "float[?,?] y" if "Flatten" in end else "float[?,?,?,?] y"
    _, outcome = planned(conv(body, ", float[2,6,1,1] k", shape))
    assert reasons(outcome) == in_float
