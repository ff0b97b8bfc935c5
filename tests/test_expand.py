"""Operators that an older operator set lacks are written as those that ONNX's specification composes them of."""

import numpy as np
import onnx
import pytest
from graphs import model, run
from quantized import PLAIN, samples

import onnxq
from onnxq.errors import ModelError
from onnxq.graph.expand import expand_newer
from onnxq.graph.opset import convert_opset, opset_of
from onnxq.graph.serialized import nodes_of

NEWER = {
    "Gelu": ("(float[N,4,8] x) => (float[N,4,8] y) { y = Gelu(x) }", 20),
    "Gelu, tanh": ('(float[N,4,8] x) => (float[N,4,8] y) { y = Gelu <approximate = "tanh"> (x) }', 20),
    "GroupNormalization": (
        "(float[N,4,8] x) => (float[N,4,8] y) <float[4] s, float[4] b> {"
        " y = GroupNormalization <num_groups=2>(x,s,b) }",
        21,
    ),
    "GroupNormalization, image": (
        "(float[N,4,3,2] x) => (float[N,4,3,2] y) <float[4] s, float[4] b> {"
        " y = GroupNormalization <num_groups=2>(x,s,b) }",
        21,
    ),
    "RMSNormalization": (
        "(float[N,4,8] x) => (float[N,4,8] y) <float[8] s> { y = RMSNormalization <epsilon=0.001>(x, s) }", 23
    ),
    "Swish": ("(float[N,4,8] x) => (float[N,4,8] y) { y = Swish(x) }", 24),
    "Swish, alpha": ("(float[N,4,8] x) => (float[N,4,8] y) { y = Swish <alpha = 1.702> (x) }", 24),
    "Attention": ("(float[1,2,4,8] q, float[1,2,4,8] k) => (float[1,2,4,8] y) { y = Attention(q, k, k) }", 23),
    "RotaryEmbedding": (
        "(float[1,2,4,8] x) => (float[1,2,4,8] y) <float[1,4,4] c, float[1,4,4] s> { y = RotaryEmbedding(x, c, s) }", 23
    ),
    "Mish": ("(float[N,4,8] x) => (float[N,4,8] y) { y = Mish(x) }", 22),
    "HardSwish": ("(float[N,4,8] x) => (float[N,4,8] y) { y = HardSwish(x) }", 22),
    "inside of If": (
        """(bool c, float[2,4] x) => (float[2,4] y) {
        y = If (c) <then_branch = t () => (float[2,4] z) { z = Gelu(x) }, else_branch = e () => (float[2,4] z)
        { z = Swish(x) }> }""",
        24,
    ),
    "next to what only takes more types": (
        "(float[2,4] x) => (float[4,2] y) <int64[2] s> { g = Gelu(x) h = Mul(g, g) y = Reshape(h, s) }", 24
    ),
}  # fmt: skip


def inputs(proto):
    random = np.random.default_rng(0)
    found = {}
    for value in proto.graph.input:
        kind = value.type.tensor_type
        shape = [d.dim_value or 2 for d in kind.shape.dim]
        is_bool = kind.elem_type == onnx.TensorProto.BOOL
        found[value.name] = np.array(True) if is_bool else random.normal(size=shape).astype(np.float32)
    return found


@pytest.mark.parametrize("wanted", [20, 19, 18])
@pytest.mark.parametrize("case", NEWER)
def test_computes_the_same_in_an_older_operator_set(case, wanted):
    text, opset = NEWER[case]
    values = {"s": np.array([4, 2])} if "int64" in text else {}
    proto = model(text, opset=opset, ir_version=10, **values)
    before = proto.SerializeToString()
    lowered = convert_opset(proto, 13, "m", wanted)
    assert proto.SerializeToString() == before
    assert opset_of(lowered) == min(wanted, opset)
    onnx.checker.check_model(lowered, full_check=True)
    for name, expected in run(proto, inputs(proto)).items():
        np.testing.assert_allclose(run(lowered, inputs(proto))[name], expected, rtol=1e-5, atol=1e-6)


def test_what_the_older_set_has_stays():
    proto = model("(float[2,4] x) => (float[2,4] y) { g = HardSwish(x) y = Gelu(g) }", opset=20)
    assert [n.op_type for n in nodes_of(expand_newer(proto, 20, 19).graph)].count("HardSwish") == 1
    assert expand_newer(proto, 20, 20) is proto


def test_what_is_not_composed_of_others_is_refused_with_its_name():
    proto = model(
        "(float[1,1,4,4] x, float[1,4,4,2] g) => (float[1,1,4,4] y) { y = GridSample(x, g) }", opset=22, ir_version=10
    )
    with pytest.raises(ModelError, match=r"cannot be converted to 19.*GridSample"):
        convert_opset(proto, 13, "m", 19)


@pytest.mark.parametrize("op", ["Gelu(a)", 'Gelu <approximate = "tanh"> (a)', "RMSNormalization(a, s)"])
def test_no_quantizer_is_placed_inside_of_what_was_expanded(tmp_path, op):
    proto = model(
        f"""(float[N,3,8] x) => (float[N,3,5] y) <float[8,8] w, float[8] s, float[8,5] v> {{
        a = MatMul(x, w) b = {op} y = MatMul(b, v) }}""",
        opset=24, ir_version=10,
    )  # fmt: skip
    (tmp_path / "t.toml").write_text("max_opset = 19")
    found = onnxq.quantize(proto, samples(proto), target=str(tmp_path / "t.toml"), **PLAIN)
    assert opset_of(found.model) == 19
    made = {name for node in found.model.graph.node for name in node.output} | {"x"}
    quantized = {n.input[0] for n in found.model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in made}
    assert quantized <= {"x", "a", "b", "y", "y_float"}
    assert found.report.quality[0].sqnr_db > 25
