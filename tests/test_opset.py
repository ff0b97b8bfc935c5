"""Conversion to a newer operator set keeps the function; what ONNX's converter gets wrong is put right or refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, feeds, interface, model, ops, run, weights
from onnx import ModelProto, helper

from onnxq.errors import ModelError
from onnxq.graph.opset import convert_opset
from onnxq.graph.serialized import nodes_of

TOLERANCE = 1e-6


def old(text: str, opset: int, **options: object) -> ModelProto:
    """A model as exporters of that time wrote it: initializers among the inputs before IR version 4."""
    return model(text, opset=opset, ir_version=3 if opset < 9 else 4 if opset < 13 else 10, **options)  # type: ignore[arg-type]


def assert_converts(proto: ModelProto, lowest: int = 13) -> ModelProto:
    before = proto.SerializeToString(deterministic=True)
    after = convert_opset(proto, lowest, "net")
    assert proto.SerializeToString(deterministic=True) == before, "the given model is left alone"
    assert next(o.version for o in after.opset_import if not o.domain) == lowest
    assert_same_function(proto, after, TOLERANCE)
    return after


IMAGE = "(float[N,3,6,6] x) => (float[N,3,?,?] y)"
RNN = "(float[7,2,3] x) => (float[7,?,2,5] y, float[?,2,5] h)"
NORM = "<float[3] g, float[3] b, float[3] m, float[3] var>"

CASES = {
    "BatchNormalization": (7, f"{IMAGE} {NORM} {{ y = BatchNormalization<epsilon=0.01>(x, g, b, m, var) }}"),
    "BatchNormalization spatial": (7, f"{IMAGE} {NORM} {{ y = BatchNormalization<spatial=1>(x, g, b, m, var) }}"),
    "Dropout 7": (7, f"{IMAGE} {{ y = Dropout<ratio=0.4>(x) }}"),
    "Dropout 10": (10, f"{IMAGE} {{ d, mask = Dropout<ratio=0.4>(x) y = Relu(d) }}"),
    "Clip": (7, f"{IMAGE} {{ y = Clip<min=-0.5, max=0.5>(x) }}"),
    "Clip below": (8, f"{IMAGE} {{ y = Clip<min=-0.5>(x) }}"),
    "Clip above": (9, f"{IMAGE} {{ y = Clip<max=0.5>(x) }}"),
    "Clip nothing": (10, f"{IMAGE} {{ y = Clip(x) }}"),
    "Pad": (7, f"{IMAGE} {{ y = Pad<pads=[0,0,1,0,0,0,2,1], value=1.5>(x) }}"),
    "Pad reflect": (10, f'{IMAGE} {{ y = Pad<pads=[0,0,1,0,0,0,2,1], mode="reflect">(x) }}'),
    "Squeeze": (9, "(float[N,1,3,1] x) => (float[N,3] y) { y = Squeeze<axes=[1,3]>(x) }"),
    "Squeeze all": (11, "(float[1,3,1] x) => (float[3] y) { y = Squeeze(x) }"),
    "Unsqueeze": (7, "(float[N,3] x) => (float[N,1,3,1] y) { y = Unsqueeze<axes=[1,3]>(x) }"),
    "ReduceSum": (9, "(float[N,3,5] x) => (float[N,5] y) { y = ReduceSum<axes=[1], keepdims=0>(x) }"),
    "ReduceSum all": (11, "(float[N,3,5] x) => (float[1,1,1] y) { y = ReduceSum(x) }"),
    "ReduceMean": (7, "(float[N,3,5] x) => (float[N,3,1] y) { y = ReduceMean<axes=[2]>(x) }"),
    "Split": (9, "(float[N,5] x) => (float[N,2] y, float[N,3] z) { y, z = Split<axis=1, split=[2,3]>(x) }"),
    "Split evenly": (7, "(float[N,6] x) => (float[N,3] y, float[N,3] z) { y, z = Split<axis=1>(x) }"),
    "Slice": (9, "(float[N,5,7] x) => (float[N,3,5] y) { y = Slice<axes=[1,2], starts=[1,2], ends=[4,1000]>(x) }"),
    "Slice leading": (7, "(float[2,5,7] x) => (float[1,3,7] y) { y = Slice<starts=[1,1], ends=[2,4]>(x) }"),
    "TopK 7": (7, "(float[N,7] x) => (float[N,3] y, int64[N,3] i) { y, i = TopK<k=3>(x) }"),
    "TopK 10": (10, "(float[N,7] x) => (float[N,3] y, int64[N,3] i) <int64[1] k={3}> { y, i = TopK(x, k) }"),
    "Gemm": (7, "(float[N,3] x) => (float[N,5] y) <float[5,3] w, float[5] b>"
                " { y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b) }"),
    "Flatten": (7, "(float[N,3,2,2] x) => (float[?,?] y) { y = Flatten<axis=2>(x) }"),
    "AveragePool": (7, f"{IMAGE} {{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }}"),
    "AveragePool ceil": (10, f"{IMAGE} {{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }}"),
    "AveragePool counting": (10, f"{IMAGE} {{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1,"
                             " pads=[1,1,1,1], count_include_pad=1>(x) }"),
    "AveragePool same": (7, f'{IMAGE} {{ y = AveragePool<kernel_shape=[3,3], strides=[2,2],'
                         ' auto_pad="SAME_LOWER">(x) }'),
    "MaxPool same": (7, f'{IMAGE} {{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(x) }}'),
    "MaxPool ceil": (10, f"{IMAGE} {{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }}"),
    "LSTM": (7, f"{RNN} <float[1,20,3] w, float[1,20,5] r, float[1,40] b>"
                " { y, h = LSTM<hidden_size=5>(x, w, r, b) }"),
    "GRU": (7, f"{RNN} <float[2,15,3] w, float[2,15,5] r, float[2,30] b>"
               ' { y, h = GRU<hidden_size=5, direction="bidirectional", linear_before_reset=1>(x, w, r, b) }'),
    "constant weights": (7, "(float[N,3] x) => (float[N,2] y)"
                            " { w = Constant<value = float[3,2] {1,2,3,4,5,6}>() y = MatMul(x, w) }"),
    "n-ary": (7, "(float[N,3] x) => (float[N,3] y) { a = Elu(x) s = Sum(a, x, a) t = Max(s, x) y = Mean(t, x) }"),
    "PRelu": (7, "(float[N,3,4] x) => (float[N,3,4] y) <float[3,1] s> { y = PRelu(x, s) }"),
    "Scatter": (9, "(float[3,3] x, float[1,3] u) => (float[3,3] y) <int64[1,3] i={1,0,2}> { y = Scatter(x, i, u) }"),
    "shape arithmetic": (9, "(float[N,3,4] x) => (float[?,12] y) <int64 i={0}, int64[1] m={-1}> {"
                            " s = Shape(x) n = Gather(s, i) u = Unsqueeze<axes=[0]>(n) c = Concat<axis=0>(u, m)"
                            " y = Reshape(x, c) }"),
    "IR 3": (8, "(float[N,3] x) => (float[N,3] y) <float[3] k> { h = Add(x, k) y = Clip<min=0.0>(h) }"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_old_operators(name: str) -> None:
    opset, text = CASES[name]
    assert_converts(old(text, opset))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", ["", "<axis=0>", "<axis=1>", "<axis=2>", "<axis=3>", "<axis=-1>", "<axis=-2>"])
def test_softmax_over_all_trailing_axes(op: str, axis: str) -> None:
    assert_converts(old(f"(float[N,3,5,4] x) => (float[N,3,5,4] y) {{ y = {op}{axis}(x) }}", 11))


def test_softmax_of_unknown_shape() -> None:
    text = """(float[3,4,5] x, float[3] s) => (float[?,?,?] y) {
        q = NonZero(s) f = Squeeze<axes=[0]>(q) z = Gather(x, f) y = Softmax<axis=1>(z)
    }"""
    assert_converts(old(text, 9))


FACTORS = ["2.0, 2.0", "1.5, 1.7", "2.0, 1.0", "3.0, 2.5"]
SAMPLED = "(float[N,3,5,7] x) => (float[N,3,?,?] y)"


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factors", FACTORS)
def test_upsample(mode: str, factors: str) -> None:
    assert_converts(old(f'{SAMPLED} {{ y = Upsample<mode="{mode}", scales=[1.0, 1.0, {factors}]>(x) }}', 7))
    initializer = f"<float[4] s = {{1, 1, {factors}}}>"
    assert_converts(old(f'{SAMPLED} {initializer} {{ y = Upsample<mode="{mode}">(x, s) }}', 9))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factors", [*FACTORS, "0.5, 0.6", "0.33, 0.4", "1.0, 0.7"])
def test_resize_before_coordinate_modes(mode: str, factors: str) -> None:
    initializer = f"<float[4] s = {{1, 1, {factors}}}>"
    assert_converts(old(f'{SAMPLED} {initializer} {{ y = Resize<mode="{mode}">(x, s) }}', 10))
    constant = f"s = Constant<value = float[4] {{1, 1, {factors}}}>()"
    assert_converts(old(f'{SAMPLED} {{ {constant} y = Resize<mode="{mode}">(x, s) }}', 10))


def test_linear_resize_may_grow_and_shrink_and_compute_its_scales() -> None:
    assert_converts(old(f'{SAMPLED} <float[4] s = {{1, 1, 0.7, 1.3}}> {{ y = Resize<mode="linear">(x, s) }}', 10))
    computed = f'{SAMPLED} <float[4] s = {{1, 1, 0.7, 1.3}}> {{ t = Abs(s) y = Resize<mode="linear">(x, t) }}'
    assert_converts(old(computed, 10))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("transform", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
def test_resize_with_coordinate_modes(mode: str, transform: str) -> None:
    attributes = f'mode="{mode}", coordinate_transformation_mode="{transform}"'
    initializers = "<float[0] roi = {}, float[4] s = {1, 1, 1.5, 0.7}>"
    proto = old(f"{SAMPLED} {initializers} {{ y = Resize<{attributes}>(x, roi, s) }}", 11)
    assert_converts(proto)
    assert_converts(proto, 21)


def test_upsample_within_a_branch() -> None:
    proto = old(
        """(float[1,1,4,4] x, bool c) => (float[1,1,?,?] y) <float[4] s = {1, 1, 1.5, 1.7}> {
            y = If(c) <
                then_branch = t () => (float[1,1,?,?] a) { a = Upsample(x, s) },
                else_branch = e () => (float[1,1,?,?] b) { b = Upsample<mode="linear">(x, s) }
            >
        }""",
        9,
    )
    after = convert_opset(proto, 13, "net")
    for taken in (True, False):
        assert_same_function(proto, after, TOLERANCE, {**feeds(proto), "c": np.array(taken)})


@pytest.mark.parametrize("taken", [True, False])
def test_old_operators_in_branches(taken: bool) -> None:
    proto = old(
        """(float[N,3] x, bool c) => (float[N,3] y) {
            y = If(c) <
                then_branch = t () => (float[N,3] a) { a = Clip<min=-0.5, max=0.5>(x) },
                else_branch = e () => (float[N,3] b) { u = Unsqueeze<axes=[0]>(x) b = Squeeze<axes=[0]>(u) }
            >
        }""",
        9,
    )
    after = convert_opset(proto, 13, "net")
    assert_same_function(proto, after, TOLERANCE, {**feeds(proto), "c": np.array(taken)})


def test_old_operators_in_loops() -> None:
    proto = old(
        """(float[3] x, int64 n, bool go) => (float[3] y) {
            y = Loop(n, go, x) <body = b (int64 i, bool ci, float[3] s) => (bool co, float[3] so) {
                co = Identity(ci) d = Add(s, s) so = Clip<max=1.5>(d)
            }>
        }""",
        9,
    )
    arrays = {"x": np.float32([0.1, 0.2, -0.3]), "n": np.array(4), "go": np.array(True)}
    assert_same_function(proto, convert_opset(proto, 13, "net"), TOLERANCE, arrays)


NEWER = {
    "ReduceMean": "(float[N,3,5] x) => (float[N,5] y) { y = ReduceMean<axes=[1], keepdims=0>(x) }",
    "ReduceMax all": "(float[N,3,5] x) => (float[1,1,1] y) { y = ReduceMax(x) }",
    "Split": "(float[N,6] x) => (float[N,3] y, float[N,3] z) { y, z = Split<axis=1>(x) }",
    "BatchNormalization": f"{IMAGE} {NORM} {{ y = BatchNormalization(x, g, b, m, var) }}",
    "RoiAlign": "(float[1,2,8,8] x) => (float[1,2,3,3] y) <float[1,4] r={1,1,6,6}, int64[1] b={0}>"
                " { y = RoiAlign<output_height=3, output_width=3>(x, r, b) }",
    "Resize sizes": '(float[1,3,5,7] x) => (float[1,3,?,?] y) <int64[4] s={1,3,9,4}>'
                    ' { y = Resize<mode="linear">(x, , , s) }',
    "Pad": "(float[N,3,4,4] x) => (float[N,3,7,5] y) <int64[8] p={0,0,1,0,0,0,2,1}, float v> { y = Pad(x, p, v) }",
    "LSTM": CASES["LSTM"][1],
    "Reshape": "(float[N,3,4] x) => (float[?,12] y) <int64[2] m={0,-1}> { y = Reshape(x, m) }",
}  # fmt: skip


@pytest.mark.parametrize("name", NEWER)
def test_from_13_to_21(name: str) -> None:
    after = assert_converts(old(NEWER[name], 13), 21)
    assert after.ir_version >= 10


def test_grid_sample_changed_the_names_of_its_modes() -> None:
    text = '(float[1,2,5,5] x, float[1,3,3,2] g) => (float[1,2,3,3] y) { y = GridSample<mode="bicubic">(x, g) }'
    assert_converts(old(text, 16), 21)


def test_names_and_metadata_survive() -> None:
    proto = old(
        f"(float[batch,3,4,4] image) => (float[batch,3,4,4] scores) {NORM} {{"
        " [bn] h = BatchNormalization(image, g, b, m, var) [clip] c = Clip<min=0.0, max=6.0>(h)"
        " [soft] s = Softmax<axis=1>(c) [drop] d = Dropout(s) [last] scores = Relu(d) }",
        7,
    )
    proto.doc_string, proto.domain, proto.model_version = "doc", "org.example", 7
    proto.producer_name, proto.producer_version = "torch", "1.0"
    proto.graph.name, proto.graph.doc_string = "net", "graph doc"
    helper.set_model_props(proto, {"labels": "cat,dog"})
    after = assert_converts(proto)
    for field in ("doc_string", "domain", "model_version", "producer_name", "producer_version", "metadata_props"):
        assert getattr(after, field) == getattr(proto, field), field
    assert (after.graph.name, after.graph.doc_string) == ("net", "graph doc")
    assert [n.name for n in after.graph.node if n.name] == ["bn", "clip", "soft", "drop", "last"]
    assert {"h", "c", "s", "d", "scores"} <= {o for n in after.graph.node for o in n.output}
    assert interface(after) == (["image"], ["scores"])
    assert after.graph.input[0].type == proto.graph.input[0].type
    assert after.graph.output[0].type == proto.graph.output[0].type
    assert weights(after).keys() >= {"g", "b", "m", "var"}
    assert [i.name for i in after.graph.input] == ["image"], "no initializers among the inputs"
    assert after.ir_version >= 7


def test_nodes_of_other_domains_are_left_alone() -> None:
    proto = old(
        "(float[N,3] x) => (float[N,3] y) { h = Clip<min=-1.0>(x) [odd] t = my.domain.Resize<a=3>(h)"
        " g = com.microsoft.Gelu(t) y = Relu(g) }",
        9,
        domains="my.domain com.microsoft",
        check=False,
    )
    after = convert_opset(proto, 13, "net")
    kept = [n for n in after.graph.node if n.domain]
    assert kept == [n for n in proto.graph.node if n.domain]
    assert {(o.domain, o.version) for o in after.opset_import} == {("", 13), ("my.domain", 1), ("com.microsoft", 1)}


def test_functions_are_inlined() -> None:
    function = """<domain: "local", opset_import: ["": 11]> total <k: int = 1> (q) => (r) {
        s = ReduceSum<axes=[1]>(q) r = Clip(s)
    }"""
    proto = model(
        "(float[N,3] x) => (float[N,1] y) { [call] h = local.total(x) y = Relu(h) }",
        opset=11, ir_version=8, domains="local", functions=function,
    )  # fmt: skip
    after = convert_opset(proto, 13, "net")
    assert not after.functions
    assert [op for op in ops(after) if op != "Constant"] == ["ReduceSum", "Clip", "Relu"]
    assert_same_function(proto, after, TOLERANCE)


def test_new_enough_models_are_returned_as_they_are() -> None:
    proto = model("(float[3] x) => (float[3] y) { y = Relu(x) }", opset=17)
    assert convert_opset(proto, 13, "net") is proto


REFUSED = {
    "Hardmax of all trailing axes": (11, "(float[N,3,5] x) => (float[N,3,5] y) { y = Hardmax(x) }",
                                     "Hardmax 'y' takes the maximum over several axes"),
    "nearest neighbours up and down": (10, f"{SAMPLED} <float[4] s = {{1, 1, 0.7, 1.3}}> {{ y = Resize(x, s) }}",
                                       "Resize of 'x' to nearest neighbours has scales above and below 1"),
    "nearest neighbours, computed": (10, f"{SAMPLED} <float[4] s = {{1, 1, 2, 2}}> {{ t = Abs(s) y = Resize(x, t) }}",
                                     "Resize of 'x' to nearest neighbours has computed scales"),
    "BatchNormalization of each pixel": (7, "(float[N,3,4] x) => (float[N,3,4] y)"
                                         " <float[3,4] g, float[3,4] b, float[3,4] m, float[3,4] var>"
                                         " { y = BatchNormalization<spatial=0>(x, g, b, m, var) }", "spatial"),
    "Scan with batches": (8, """(float[2,4,3] x) => (float[2,3] y) <float[2,3] i> {
        y, z = Scan<num_scan_inputs=1, body = b (float[3] s, float[3] e) => (float[3] so, float[3] o) {
            so = Add(s, e) o = Identity(so)
        }>(, i, x)
    }""", "Scan 'y' has a batch axis"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused(name: str) -> None:
    opset, text, reason = REFUSED[name]
    with pytest.raises(ModelError, match=f"net: operator set {opset} cannot be converted to 13.*{reason}.*at opset 13"):
        convert_opset(old(text, opset, check=False), 13, "net")


def test_hardmax_of_the_last_axis() -> None:
    assert_converts(old("(float[N,3,5] x) => (float[N,3,5] y) { y = Hardmax<axis=-1>(x) }", 11))


@pytest.mark.parametrize("opset", [1, 5, 99])
def test_other_operator_sets_are_refused(opset: int) -> None:
    proto = model("(float[3] x) => (float[3] y) { y = Relu(x) }", check=False)
    proto.opset_import[0].version = opset
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(ModelError, match=f"net: operator set {opset} is not supported; expected 6 to {newest}"):
        convert_opset(proto, 13, "net")


def test_without_standard_operators_there_is_nothing_to_do() -> None:
    proto = model("(float[3] x) => (float[3] y) { y = Relu(x) }")
    proto.opset_import[0].domain = "ai.onnx.ml"
    with pytest.raises(ModelError, match=r"net: imports no ai\.onnx operator set"):
        convert_opset(proto, 13, "net")


def test_the_standard_domain_may_be_spelled_out() -> None:
    proto = old("(float[N,3] x) => (float[N,3] y) { y = Clip<min=-0.5>(x) }", 9)
    proto.opset_import[0].domain = "ai.onnx"
    after = convert_opset(proto, 13, "net")
    np.testing.assert_array_equal(run(after)["y"], run(proto)["y"])
    assert all(n.op_type in ("Constant", "Clip") for n in nodes_of(after.graph))
