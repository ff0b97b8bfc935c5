"""Which channels share a scale: by operator, and on random networks that are scaled by random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_close, feeds, model, run, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnxq.graph.model import Model
from onnxq.graph.scaling_groups import ScalingGroups, find_groups
from onnxq.graph.shapes import infer_shapes
from onnxq.passes.equalize_layers import rescale


def shaped(proto: ModelProto) -> Model:
    """The model with shapes of inner tensors, as normalizing leaves it."""
    return wrapped(infer_shapes(proto))


def groups(text: str, opset: int = 17, **values: np.ndarray | float) -> ScalingGroups:
    return find_groups(shaped(model(text, opset=opset, **values)))


def reasons(found: ScalingGroups, layer: int = 0) -> set[str]:
    return {found.reasons[i] for i in found.layers[layer].outputs}


CONV = "<float[6,3,1,1] w, float[5,6,3,3] v{more}> {{ a = Conv(x, w) {between} y = Conv(b, v) }}"
HEAD = "(float[N,3,8,8] x) => (float[N,5,?,?] y) "


@pytest.mark.parametrize(
    ("between", "more"),
    [
        ("b = Relu(a)", ""),
        ("b = LeakyRelu<alpha=0.3>(a)", ""),
        ("b = PRelu(a, slope)", ", float[6,1,1] slope"),
        ("b = Identity(a)", ""),
        ("b = MaxPool<kernel_shape=[2,2]>(a)", ""),
        ("b = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(a)", ""),
        ("b = Pad(a, pads)", ", int64[8] pads = {0,0,1,1,0,0,1,1}"),
        ("c = Relu(a) d = Relu(c) b = Add(c, d)", ""),
        ("b = Clip(a, lo)", ", float lo = {0.0}"),
    ],
)
def test_scaling_passes(between: str, more: str) -> None:
    found = groups(HEAD + CONV.format(between=between, more=more))
    assert reasons(found) == {""}
    assert not found.bounds
    np.testing.assert_array_equal(found.layers[0].outputs, found.layers[1].inputs)


@pytest.mark.parametrize(
    ("between", "more", "reason"),
    [
        ("b = Sigmoid(a)", "", "Sigmoid does not commute"),
        ("b = Add(a, k)", ", float[1,6,1,1] k", "another term cannot be scaled"),
        ("b = Pad(a, pads, one)", ", int64[8] pads = {0,0,1,1,0,0,1,1}, float one = {1.0}", "another value than zero"),
        ("b = Softmax<axis=1>(a)", "", "Softmax does not commute"),
    ],
)
def test_scaling_stops(between: str, more: str, reason: str) -> None:
    (found,) = reasons(groups(HEAD + CONV.format(between=between, more=more)))
    assert reason in found


def test_outputs_and_shared_weights_keep_their_scale() -> None:
    found = groups("(float[N,3] x) => (float[N,3] y) <float[3,3] w> { a = Gemm(x, w) y = Gemm(a, w) }")
    assert "is shared" in next(iter(reasons(found)))
    found = groups("(float[N,3] x) => (float[N,5] y) <float[3,5] w> { y = Gemm(x, w) }")
    assert reasons(found) == {"it is an output of the model"}


def test_clip_is_kept_as_a_bound() -> None:
    text = HEAD + CONV.format(between="b = Clip(a, lo, hi)", more=", float lo = {0.0}, float hi = {6.0}")
    found = groups(text)
    (bound,) = found.bounds
    assert (bound.tensor, bound.axis, bound.lo, bound.hi) == ("a", 1, 0.0, 6.0)
    np.testing.assert_array_equal(bound.ids, found.layers[0].outputs)


def test_a_residual_joins_what_writes_it() -> None:
    found = groups(
        "(float[N,3,5,5] x) => (float[N,2,5,5] y) <float[4,3,1,1] u, float[4,4,1,1] v, float[2,4,1,1] w>"
        " { a = Conv(x, u) b = Relu(a) c = Conv(b, v) d = Add(b, c) y = Conv(d, w) }"
    )
    first, second, third = found.layers
    np.testing.assert_array_equal(first.outputs, second.outputs)
    np.testing.assert_array_equal(first.outputs, third.inputs)


def test_channels_are_followed_through_concat_split_and_flatten() -> None:
    found = groups(
        "(float[N,3,2,2] x) => (float[N,4] y)"
        " <float[2,3,1,1] u, float[4,3,1,1] v, int64[2] sizes = {3, 3}, float[12,4] w>"
        " { a = Conv(x, u) b = Conv(x, v) c = Concat<axis=1>(a, b) d, e = Split<axis=1>(c, sizes)"
        " f = Flatten(e) y = Gemm(f, w) z = Relu(d) }"
    )
    last = found.layers[2].inputs
    assert last is not None
    np.testing.assert_array_equal(last, np.repeat(found.layers[1].outputs[1:], 4))


@st.composite
def networks(draw: st.DrawFn) -> tuple[str, int]:
    """A random chain of layers with groups, pooling and residual connections, as text; and a seed."""
    channels, body, weights = 4, [], []
    current = "x"
    for i in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(["conv", "grouped", "depthwise", "transposed", "residual", "pool", "concat"]))
        out = draw(st.sampled_from([4, 8]))
        weight, bias, after = f"w{i}", f"b{i}", f"t{i}"
        shape = {"grouped": (out, channels // 2), "depthwise": (channels, 1), "transposed": (channels, out)}
        rows, columns = shape.get(kind, (out, channels))
        attributes = {
            "grouped": "group=2, pads=[1,1,1,1]",
            "depthwise": f"group={channels}, pads=[1,1,1,1]",
            "conv": "pads=[1,1,1,1]",
            "transposed": "pads=[1,1,1,1]",
        }
        if kind in attributes:
            op = "ConvTranspose" if kind == "transposed" else "Conv"
            channels = channels if kind == "depthwise" else out
            weights += [f"float[{rows},{columns},3,3] {weight}", f"float[{channels}] {bias}"]
            body.append(f"{after} = {op}<{attributes[kind]}>({current}, {weight}, {bias})")
        elif kind == "residual":
            weights.append(f"float[{channels},{channels},1,1] {weight}")
            body.append(f"r{i} = Conv({current}, {weight}) {after} = Add({current}, r{i})")
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            body.append(f"{after} = {op}<kernel_shape=[3,3], pads=[1,1,1,1]>({current})")
        else:
            weights.append(f"float[4,{channels},1,1] {weight}")
            body.append(f"r{i} = Conv({current}, {weight}) {after} = Concat<axis=1>({current}, r{i})")
            channels += 4
        current = after
        if draw(st.booleans()):
            op = draw(st.sampled_from(["Relu", "LeakyRelu"]))
            body.append(f"a{i} = {op}({current})")
            current = f"a{i}"
    weights += [f"float[{channels},3] wl"]
    body.append(f"g = GlobalAveragePool({current}) f = Flatten(g) y = Gemm(f, wl)")
    text = f"(float[N,4,6,6] x) => (float[N,3] y) <{', '.join(weights)}> {{ {' '.join(body)} }}"
    return text, draw(st.integers(0, 100))


@given(networks())
@settings(max_examples=60, deadline=None)
def test_random_networks_are_the_same_under_random_scales(network: tuple[str, int]) -> None:
    text, seed = network
    proto = model(text, seed=seed)
    scaled = shaped(proto)
    found = find_groups(scaled)
    u = np.where(found.free, np.random.default_rng(seed).normal(0, 1.5, len(found.reasons)), 0.0)
    rescale(scaled, found, u)
    expected, got = run(proto), run(scaled.to_proto(), feeds(proto))
    assert_close(got["y"], expected["y"], 1e-4)


def test_what_a_subgraph_reads_keeps_its_scale() -> None:
    found = groups(
        "(float[N,3] x, bool c) => (float[N,5] y) <float[3,4] w, float[4,5] v>"
        " { a = Gemm(x, w) b = If(c) <then_branch = t () => (float[N,4] p) { p = Relu(a) },"
        " else_branch = e () => (float[N,4] q) { q = Identity(a) }> d = Gemm(b, v) y = Identity(d) }"
    )
    assert all("a subgraph may read it" in reason for reason in reasons(found))
