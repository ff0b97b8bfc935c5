"""Folding keeps the function to rounding; where it would not, the model stays as it is and the reason is reported."""

from __future__ import annotations

import numpy as np
import pytest
from folding import BEFORE, BN, BN5, LAYERS, TOLERANCE, assert_folds, before, folded, heart, layer, norm
from graphs import assert_same_function, model, ops, weights
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_behind(name: str) -> None:
    after = assert_folds(layer(name, BN5, f"y = {BN}(l, g, b, m, var)"), heart(name))
    assert after.graph.nodes[-1].outputs[0].name == "y"


@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_keeps_the_names_of_what_follows(name: str) -> None:
    after = assert_folds(layer(name, BN5, f"n = {BN}(l, g, b, m, var) y = Relu(n)"), f"{heart(name)} Relu")
    assert after.graph.nodes[-1].inputs[0].name == "n"
    assert after.graph.nodes[0].name == "layer"


@pytest.mark.parametrize("name", LAYERS)
def test_moments_are_beta_and_gamma_but_for_epsilon(name: str) -> None:
    proto = model(layer(name, BN5, f"n = {BN}(l, g, b, m, var) y = Relu(n)"))
    after, _ = folded(proto)
    parameters = weights(proto)
    assert set(after.moments) == {"n"}
    np.testing.assert_allclose(after.moments["n"].mean, parameters["b"])
    np.testing.assert_allclose(after.moments["n"].std, gamma_behind(parameters))


def gamma_behind(parameters: dict[str, np.ndarray], g: str = "g", var: str = "var") -> np.ndarray:
    """Standard deviation behind BatchNorm: |gamma|, less what epsilon takes where the variance is small."""
    variance = parameters[var].astype(np.float64)
    return np.abs(parameters[g]) * np.sqrt(variance / (variance + 0.001))


def test_moments_follow_later_maps() -> None:
    text = layer("Conv", f"{BN5}, float[5,1,1] s, float[1,5,1,1] t", "n = " + BN + "(l, g, b, m, var) o = Mul(n, s)"
                 " p = Sub(t, o) y = Relu(p)")  # fmt: skip
    proto = model(text)
    after, outcome = folded(proto)
    assert (ops(after), outcome.changed, set(after.moments)) == (["Conv", "Relu"], 3, {"p"})
    p = {k: v.ravel() for k, v in weights(proto).items()}
    np.testing.assert_allclose(after.moments["p"].mean, p["t"] - p["s"] * p["b"], rtol=1e-6)
    np.testing.assert_allclose(after.moments["p"].std, np.abs(p["s"]) * gamma_behind(p), rtol=1e-6)


def test_without_batchnorm_there_are_no_moments() -> None:
    after = assert_folds(layer("Conv", "float s", "n = Mul(l, s) y = Relu(n)"), "Conv Relu")
    assert not after.moments


CONSTANTS = ["float s", "float[1] s", "float[1,1,1,1] s", "float[5,1,1] s", "float[1,5,1,1] s"]


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["Conv with bias", "ConvTranspose"])
def test_constants_behind_convolutions(name: str, op: str, constant: str, first: bool) -> None:
    text = layer(name, constant, f"y = {op}({'s, l' if first else 'l, s'})")
    if op == "Div" and first:
        after, outcome = folded(model(text))
        assert (ops(after), outcome.changed) == ([*heart(name).split(), "Div"], 0)
    else:
        assert_folds(text, heart(name))


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("constant", ["float s", "float[1,1] s", "float[5] s", "float[1,5] s"])
@pytest.mark.parametrize("name", ["Gemm", "Gemm transposed", "MatMul"])
def test_constants_behind_matrices(name: str, op: str, constant: str) -> None:
    if name == "MatMul" and op == "Add" and constant == "float[5] s":
        return  # that is the layer's bias already
    expected = heart(name, shifted=op in ("Add", "Sub"))
    assert_folds(layer(name, constant, f"h = {op}(l, s) y = Relu(h)"), f"{expected} Relu")


@pytest.mark.parametrize("constant", ["float s", "float[5] s", "float[1,5] s", "float[1,1,5] s"])
@pytest.mark.parametrize("bias", ["", "a = Add(l, c)", "a = Add(c, l)"])
def test_constants_behind_stacked_matrices(constant: str, bias: str) -> None:
    text = (
        f"(float[N,7,3] x) => (float[N,7,5] y) <float[3,5] w, float[5] c, {constant}, float[5] t>"
        f" {{ l = MatMul(x, w) {bias} h = Mul({'a' if bias else 'l'}, s) y = Add(t, h) }}"
    )
    after, outcome = folded(proto := model(text))
    # Without a bias the first Add becomes the layer's bias when the scale is folded: nothing is left to do.
    assert ops(after) == ["MatMul", "Add"]
    assert outcome.changed == (2 if bias else 1)
    assert_same_function(proto, after.to_proto(), TOLERANCE)


def test_stacked_weights() -> None:
    text = "(float[N,4,7,3] x) => (float[N,4,7,5] y) <float[4,3,5] w, float[5] s, float[1,5] t> {body}"
    assert_folds(text.replace("{body}", "{ l = MatMul(x, w) h = Mul(l, s) y = Sub(h, t) }"), "MatMul Add")


def test_chains() -> None:
    text = layer(
        "Conv with pads",
        f"{BN5}, float[5,1,1] s, float t, {norm('2', 5)}",
        f"n = {BN}(l, g, b, m, var) o = Mul(n, s) p = Add(t, o) q = Div(p, s) y = {BN}(q, g2, b2, m2, var2)",
    )
    after = assert_folds(text, "Conv")
    np.testing.assert_allclose(after.moments["y"].std, gamma_behind(weights(model(text)), "g2", "var2"))


def test_two_layers_in_a_row() -> None:
    assert_folds(
        f"(float[N,3,7,7] x) => (float[N,5,?,?] y) <float[5,3,3,3] w, float[5,5,1,1] v, {BN5}, {norm('2', 5)}>"
        f" {{ l = Conv<pads=[1,1,1,1]>(x, w) n = {BN}(l, g, b, m, var) r = Relu(n) k = Conv(r, v)"
        f" y = {BN}(k, g2, b2, m2, var2) }}",
        "Conv Relu Conv",
    )


@pytest.mark.parametrize("name", BEFORE)
def test_batchnorm_before(name: str) -> None:
    channels = 6 if name == "Conv grouped" else 3
    after = assert_folds(before(name, norm("", channels), f"{BN}(x, g, b, m, var)"), heart(name))
    assert not after.moments, "they are those of the input, not of the layer"


@pytest.mark.parametrize("op", ["Mul(x, s)", "Add(s, x)", "Sub(x, s)", "Sub(s, x)", "Div(x, s)"])
@pytest.mark.parametrize("name", BEFORE)
def test_constants_before(name: str, op: str) -> None:
    channels = 6 if name == "Conv grouped" else 3
    spatial = BEFORE[name][0].count(",") - 1
    constant = f"float[{','.join([str(channels)] + ['1'] * spatial)}] s"
    assert_folds(before(name, constant, op), heart(name, shifted="Add" in op or "Sub" in op))


def test_batchnorm_before_a_matrix_with_bias() -> None:
    text = before("MatMul", f"{norm('', 3)}, float[5] c", f"{BN}(x, g, b, m, var)")
    text = text.replace("[layer] y = MatMul(n, w)", "p = MatMul(n, w) y = Add(p, c)")
    assert_folds(text, "MatMul Add")


@pytest.mark.parametrize("transpose", ["ConvTranspose<group=2>(n, w)", "ConvTranspose<group=2, pads=[1,1,1,1]>(n, w)"])
def test_a_scale_before_a_transposed_convolution(transpose: str) -> None:
    constants = "<float[6,2,3,3] w, float[6,1,1] s>"
    text = f"(float[N,6,4,4] x) => (float[N,4,?,?] y) {constants} {{ n = Mul(x, s) y = {transpose} }}"
    assert_folds(text, "ConvTranspose")


def test_a_scale_before_a_padded_convolution() -> None:
    text = before("Conv", "float[3,1,1] s", "Mul(x, s)").replace("Conv(", "Conv<pads=[1,1,1,1]>(")
    assert_folds(text, "Conv")


def test_batchnorm_without_shift_before_a_padded_convolution() -> None:
    text = before("Conv", norm("", 3), f"{BN}(x, g, b, m, var)").replace("Conv(n", "Conv<pads=[1,1,1,1]>(n")
    assert_folds(text, "Conv", b=0.0, m=0.0)


def test_grouped_transposed_convolutions() -> None:
    text = (
        f"(float[N,6,4,4] x) => (float[N,4,?,?] y) <float[6,2,3,3] w, {norm('', 4)}>"
        f" {{ l = ConvTranspose<group=2, output_padding=[1,0], strides=[2,2]>(x, w) y = {BN}(l, g, b, m, var) }}"
    )
    assert_folds(text, "ConvTranspose")


def test_grouped_convolutions() -> None:
    text = (
        f"(float[N,6,4,4] x) => (float[N,9,?,?] y) <float[9,2,3,3] w, {norm('', 9)}>"
        f" {{ l = Conv<group=3>(x, w) y = {BN}(l, g, b, m, var) }}"
    )
    assert_folds(text, "Conv")


MAPS = ["BatchNormalization(h{i}, g{i}, b{i}, m{i}, var{i})", "Mul(h{i}, s{i})", "Mul(s{i}, h{i})", "Add(h{i}, s{i})",
        "Sub(h{i}, s{i})", "Sub(s{i}, h{i})", "Relu(h{i})"]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(MAPS), max_size=5),
    st.lists(st.sampled_from(["Conv", "Conv with bias", "Conv with pads", "ConvTranspose"]), min_size=1, max_size=2),
    st.integers(0, 5),
    st.integers(0, 2**16),
)
def test_random_chains_keep_their_function(maps: list[str], layers: list[str], split: int, seed: int) -> None:
    """Maps, a layer, maps, perhaps a second layer: whatever is folded, the function stays."""
    steps: list[str] = [*maps[:split], layers[0], *maps[split:], *layers[1:]]
    nodes, parameters, channels = ["h0 = Identity(x)"], [], 3
    for i, step in enumerate(steps):
        if step in LAYERS:
            call = LAYERS[step][2].replace("x", f"h{i}").replace("w", f"w{i}").replace("c)", f"c{i})")
            shape = f"{channels},5" if step == "ConvTranspose" else f"5,{channels}"
            parameters += [f"float[{shape},3,3] w{i}"] + [f"float[5] c{i}"] * ("bias" in step)
            channels = 5
        else:
            call = step.format(i=i)
            parameters += [norm(str(i), channels)] * ("Batch" in step) + [f"float[{channels},1,1] s{i}"] * (
                "s{" in step
            )
        nodes.append(f"h{i + 1} = {call}")
    text = f"(float[N,3,9,9] x) => (float[N,5,?,?] h{len(steps)}) <{', '.join(parameters)}> {{ {' '.join(nodes)} }}"
    proto = model(text, seed=seed)
    after, outcome = folded(proto)
    assert len(ops(after)) == len(nodes) - outcome.changed
    assert_same_function(proto, after.to_proto(), TOLERANCE)
