"""What activation functions do not tell apart needs no part of a grid."""

from __future__ import annotations

import graphs
import numpy as np
import pytest
from quantized import samples, with_ranges

import onnxq
from onnxq.execution.session import Session
from onnxq.numeric.samples import Samples
from onnxq.operators.saturation import needed_interval

FUNCTIONS = {
    "y = Relu(x)": 0.0,
    "y = HardSwish(x)": 1e-6,
    "y = HardSigmoid(x)": 1e-6,
    "y = HardSigmoid<alpha = 0.166667, beta = 0.4>(x)": 1e-6,
    "y = Sigmoid(x)": 4e-4,
    "y = Tanh(x)": 7e-4,
    "s = Sigmoid(x) y = Mul(x, s)": 3e-3,
    "s = HardSigmoid(x) y = Mul(s, x)": 1e-6,
    "y = Gelu(x)": 2e-4,
    "y = Mish(x)": 3e-3,
}
"""Nodes, and how far outputs may be off where the input is cut."""


def interval(nodes: str, opset: int = 20) -> tuple[float, float]:
    model = graphs.wrapped(graphs.model(f"(float[N,101] x) => (float[N,101] y) {{ {nodes} }}", opset=opset))
    return needed_interval(model.graph.tensors()["x"])


@pytest.mark.parametrize(("nodes", "most"), FUNCTIONS.items())
def test_outputs_hardly_change_where_inputs_are_cut(nodes: str, most: float) -> None:
    lo, hi = interval(nodes)
    assert np.isfinite([lo, hi]).any()
    x = np.linspace(-50, 50, 101, dtype=np.float32)[None]
    session = Session(graphs.model(f"(float[N,101] x) => (float[N,101] y) {{ {nodes} }}", opset=20))
    whole, cut = (session.run({"x": each})["y"] for each in (x, np.clip(x, lo, hi).astype(np.float32)))
    assert np.abs(whole - cut).max() <= most


@pytest.mark.parametrize(
    "nodes",
    [
        "y = LeakyRelu(x)",
        "s = HardSwish(x) y = Add(s, x)",  # another reader
        "n = Neg(x) s = Sigmoid(n) y = Mul(x, s)",  # the gate of another tensor
        "y = HardSigmoid<alpha = -0.2>(x)",
    ],
)
def test_what_is_told_apart_stays(nodes: str) -> None:
    assert interval(nodes) == (-np.inf, np.inf)


def test_readers_together() -> None:
    assert interval("s = Sigmoid(x) t = HardSwish(x) y = Add(s, t)") == (-8.0, np.inf)


def test_cut_samples_are_at_the_ends() -> None:
    values, counts = np.array([[-9.0, -2.0, 1.0]]), np.array([[5.0, 1.0, 2.0]])
    whole = Samples(values, counts, np.array([-9.5]), np.array([1.5]), np.full((1, 3), 0.5))
    cut = whole.clipped(-3.0, np.inf)
    assert cut.values.tolist() == [[-3.0, -2.0, 1.0]]
    assert cut.widths is not None
    assert cut.widths.tolist() == [[0.0, 0.5, 0.5]]
    assert (cut.lo, cut.hi) == (-3.0, 1.5)
    assert whole.clipped(-10.0, 2.0) is whole


HARD = """(float[N,8,9,9] x) => (float[N,8,9,9] y) <float[8,8,3,3] w, float[8,8,1,1] v> {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = HardSwish(a)  y = Conv(b, v)
}"""


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_convolution_in_front_of_hardswish_has_a_grid_from_minus_three(method: str) -> None:
    random = np.random.default_rng(0)
    proto = graphs.model(HARD, w=random.normal(-0.15, 1, (8, 8, 3, 3)), v=random.normal(0, 0.3, (8, 8, 1, 1)))
    data = samples(proto, 32, free=2)
    result = onnxq.quantize(proto, data, activation_range=method, force_int_kernels=True)
    [found] = [t for t in result.report.tensors if t.tensor == "a"]
    lowest = -found.zero_point[0] * found.scale[0]
    assert lowest == pytest.approx(-3, abs=2 * found.scale[0])


def test_a_grid_that_others_have_too_holds_all_of_it() -> None:
    text = HARD.replace("b = HardSwish(a)", "r = MaxPool<kernel_shape = [1, 1]>(a)  b = HardSwish(r)")
    random = np.random.default_rng(0)
    proto = graphs.model(text, w=random.normal(0, 1, (8, 8, 3, 3)), v=random.normal(0, 0.3, (8, 8, 1, 1)))
    params = with_ranges(proto, samples(proto, 8)).quantizers["a"].params
    assert params is not None
    assert -float(params.zero_point) * float(params.scale) < -5
