"""The PyTorch network computes what ONNX Runtime does: operators in float, the planned model as it is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import feeds, model, run, weights, wrapped

torch = pytest.importorskip("torch")

from one_thread import one_thread  # noqa: E402, F401

from onnxq.errors import ModelError  # noqa: E402
from onnxq.execution.session import Session  # noqa: E402
from onnxq.numeric.metrics import sqnr  # noqa: E402
from onnxq.passes.base import Context  # noqa: E402
from onnxq.passes.set_bias_scales import SetBiasScales  # noqa: E402
from onnxq.pipeline.lower import lower  # noqa: E402
from onnxq.qat import finish, prepare  # noqa: E402
from onnxq.qat.network import TorchNetwork, key  # noqa: E402
from onnxq.targets import find_target  # noqa: E402

ORT = find_target("ort")


IMAGE = "(float[N,4,9,7] x) => (float[N,?,?,?] y) <{}> {{ {} }}"
SINGLE = {
    "strided, padded on one side": ("float[6,4,3,2] w", "y = Conv<pads=[1,0,2,1],strides=[2,1]>(x, w)"),
    "grouped, dilated": ("float[6,2,3,2] w, float[6] b", "y = Conv<group=2,dilations=[2,1],pads=[1,1,1,1]>(x, w, b)"),
    "same padding": ("float[6,4,3,2] w", 'y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w)'),
    "transposed": (
        "float[4,3,3,2] w, float[6] b",
        "y = ConvTranspose<group=2,strides=[2,2],pads=[1,0,1,1],output_padding=[1,0]>(x, w, b)",
    ),
    "max pool, rounded up": (
        "float[1] u",
        "y = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,0,1,1],ceil_mode=1>(x)",
    ),
    "average without padding": ("float[1] u", "y = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,0]>(x)"),
    "average with padding": (
        "float[1] u",
        "y = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,0],count_include_pad=1,ceil_mode=1>(x)",
    ),
    "edges": ("int64[8] p", 'y = Pad<mode="edge">(x, p)'),
    "constant": ("int64[8] p, float v", "y = Pad(x, p, v)"),
    "slices": ("int64[2] a, int64[2] b, int64[2] i, int64[2] s", "y = Slice(x, a, b, i, s)"),
    "nearest": ("float[4] up", 'y = Resize<mode="nearest">(x, , up)'),
    "bilinear": ("float[4] up", 'y = Resize<mode="linear">(x, , up)'),
    "depth to space": ("float[1] u", "y = DepthToSpace<blocksize=2>(x)"),
    "shape arithmetic": (
        "int64[1] first, int64[1] rest, int64[1] one",
        "s = Shape(x) b = Gather(s, first) t = Concat<axis=0>(b, rest, one, one) y = Reshape(x, t)",
    ),
    "normalization": ("float[7] g, float[7] b", "y = LayerNormalization<axis=-1>(x, g, b)"),
    "activations": (
        "float[4,1,1] slope, float lo",
        "a = PRelu(x, slope) b = HardSigmoid(a) c = Tanh(b) d = Clip(c, lo) e = HardSwish(d) y = Softmax<axis=1>(e)",
    ),
    "reductions": ("int64[1] i", "a = ReduceMean<keepdims=1,axes=[2]>(x) b = ReduceMax<axes=[3]>(a) y = Sub(x, b)"),
    "gather and split": (
        "int64[3] i",
        "g = Gather<axis=1>(x, i) a, b, c = Split<axis=1>(g) d = Mul(a, b) y = Max(d, c)",
    ),
    "transposed twice": (
        "float[1] u",
        "t = Transpose<perm=[0,2,3,1]>(x) z = Erf(t) y = Transpose<perm=[0,3,1,2]>(z)",
    ),
}
VALUES = {
    "edges": {"p": np.asarray([0, 0, 1, 2, 0, 0, 2, 1])},
    "constant": {"p": np.asarray([0, 1, 1, 2, 0, 0, 2, 1]), "v": 0.5},
    "slices": {"a": np.asarray([-1, 1]), "b": np.asarray([-9, 9]), "i": np.asarray([2, 3]), "s": np.asarray([-2, 3])},
    "nearest": {"up": np.float32([1, 1, 2, 3])},
    "bilinear": {"up": np.float32([1, 1, 2, 2])},
    "shape arithmetic": {"first": 0, "rest": -1, "one": 1},
    "gather and split": {"i": np.asarray([3, 0, -2])},
    "activations": {"lo": -0.2},
}


@pytest.mark.parametrize("name", SINGLE)
def test_operators_compute_what_onnx_runtime_does(name: str) -> None:
    declared, nodes = SINGLE[name]
    proto = model(IMAGE.format(declared, nodes), opset=17, **VALUES.get(name, {}))
    given = feeds(proto)
    found = TorchNetwork(wrapped(proto), ORT)(torch.from_numpy(given["x"]))
    expected = run(proto, given)["y"]
    assert tuple(found.shape) == expected.shape
    assert sqnr(expected, found.detach().numpy()) > 100


RESIDUAL = """(float[N,3,6,6] x) => (float[N,5] y) <float[6,3,3,3] w, float[6] b, float[6,6,1,1] v, float[6] c,
float[6,5] u, float[5] d> {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(h)
    k = Conv(r, v, c)
    s = Add(k, r)
    p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(s)
    g = GlobalAveragePool(p)
    f = Flatten(g)
    y = Gemm(f, u, d)
}"""


def images(count: int = 12, seed: int = 5) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(0, 1, (count, 3, 6, 6)), np.float32)


@pytest.mark.parametrize("settings", [
    {"preset": "w4a4"}, {"preset": "w8a8", "per_channel": False}, {"preset": "w4a8", "target": "generic-int8"},
    {"preset": "w8a8", "target": "tensorrt"}, {"preset": "w4", "block_size": 2},
    {"preset": "w8a8", "target": "vitis-ai"},
])  # fmt: skip
def test_the_planned_network_is_the_written_model(settings: dict[str, object]) -> None:
    """Scales of vitis-ai are powers of two, so that ties are common, and its biases, of 8 bits, stay in float here."""
    network = prepare(model(RESIDUAL), images(), force_int_kernels=True, **settings)
    found = network(torch.from_numpy(images())).detach().numpy()
    written = finish(network)
    onnx.checker.check_model(written, full_check=True)
    expected = run(written, {"x": images()})["y"]
    assert sqnr(expected, found) > (15 if settings.get("target") == "vitis-ai" else 90)


AVERAGED = """(float[N,3,8,8] x) => (float[N,5] y) <float[6,3,3,3] w, float[6] b, float[6,6,1,1] v, float[6] c,
float[6,5] u> {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(h)
    p = AveragePool<kernel_shape=[2,2],strides=[2,2]>(r)
    k = Conv(p, v, c)
    s = Relu(k)
    g = GlobalAveragePool(s)
    f = Flatten(g)
    y = Gemm(f, u)
}"""


@pytest.mark.parametrize("preset", ["w4a4", "w8a8"])
@pytest.mark.parametrize("target", ["ort", "generic-int8"])
def test_means_in_the_middle_of_two_integers_are_rounded_as_onnx_runtime_does(preset: str, target: str) -> None:
    """Of 4 integers, one mean in four is a tie; they stay on their grid, whose scale training moves."""
    x = np.asarray(np.random.default_rng(5).normal(0, 1, (64, 3, 8, 8)), np.float32)
    network = prepare(model(AVERAGED), x, force_int_kernels=True, preset=preset, target=target)
    with torch.no_grad():
        for quantizer in network.quantizers.values():
            quantizer.growth += 0.0123
    expected = run(finish(network), {"x": x})["y"]
    assert sqnr(expected, network(torch.from_numpy(x)).detach().numpy()) > 100


@pytest.mark.parametrize("preset", ["w4a4", "w8a8"])
def test_a_trained_mobilenet_is_the_written_model(preset: str) -> None:
    folder = Path(__file__).parents[1] / "models" / "mobilenet_digits"
    images = np.concatenate([np.load(path) for path in sorted((folder / "calib").iterdir())[:3]])
    off = {"rounding": "nearest", "cle": "off", "absorb": False, "bias_correction": "off", "dead_channels": False}
    coarse = {"weight_range": "minmax", "activation_range": "minmax", "logits_range": "minmax"}
    proto = onnx.load(folder / "model.onnx")
    network = prepare(proto, images, force_int_kernels=True, preset=preset, **off, **coarse)
    wanted = torch.from_numpy(run(proto, {"image": images})["logits"])
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        (network(torch.from_numpy(images)) - wanted).square().mean().backward()
        optimizer.step()
    found = network(torch.from_numpy(images)).detach().numpy()
    written = finish(network)
    for optimize in (False, True):
        expected = Session(written, optimize=optimize).run({"image": images})["logits"]
        assert sqnr(expected, found) > 40
        np.testing.assert_array_equal(expected.argmax(1), found.argmax(1))


def test_changes_count_in_steps_of_the_grids() -> None:
    network = prepare(model(RESIDUAL), images(), force_int_kernels=True, preset="w4a8")
    units, weight, bias = network.units(), network.weights[key("w")].detach(), network.weights[key("b")].detach()
    assert set(units) == set(network.weights)
    steps = network.quantizers[key("w")].scale().detach()
    assert torch.equal(units[key("w")], steps.reshape(6, 1, 1, 1))
    relative = steps.square().mean().sqrt() / weight.square().mean().sqrt()
    torch.testing.assert_close(units[key("b")] / bias.square().mean().sqrt(), relative)


def test_what_is_trained_goes_back_by_name() -> None:
    network = prepare(model(RESIDUAL), images(), force_int_kernels=True, preset="w8a8", rounding="nearest")
    with torch.no_grad():
        network.weights[key("u")] += 0.5
        bias = next(name for name in network.weights if name.startswith(key("d")))  # corrected, under another name
        network.weights[bias].fill_(2.0)
        for quantizer in network.quantizers.values():
            quantizer.growth += 0.1
    written = finish(network)
    found = {n: a for n, a in weights(written).items() if n.startswith("d_")}
    integers = next(a for n, a in found.items() if n.endswith("_quantized"))
    np.testing.assert_allclose(integers * next(a for n, a in found.items() if n.endswith("_scale")), 2.0, rtol=1e-3)
    expected = run(written, {"x": images()})["y"]
    assert sqnr(expected, network(torch.from_numpy(images())).detach().numpy()) > 60


def test_tensors_that_share_a_grid_share_its_parameters() -> None:
    network = prepare(model(RESIDUAL), images(), force_int_kernels=True, preset="w8a8", tie=("Add",))
    shared = network.model.quantizers
    assert any(q.grid_of is not None for q in shared.values())
    assert {key(n) for n, q in shared.items() if q.grid_of is None} == set(network.quantizers)


def test_every_parameter_gets_a_gradient() -> None:
    network = prepare(model(RESIDUAL), images(), force_int_kernels=True, preset="w4a4")
    network(torch.from_numpy(images())).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle


def test_the_start_rounds_to_what_post_training_quantization_rounds_to() -> None:
    from onnxq import Options
    from onnxq.api import input_specs, open_data
    from onnxq.pipeline.pipeline import make_plan
    from onnxq.pipeline.task import Task
    from onnxq.qat.initialize import start_of

    options, proto = Options(preset="w4a4", force_int_kernels=True), model(RESIDUAL)
    task = Task(proto, "x", open_data(images(), input_specs(proto), options, None, None), options)
    plan = make_plan(task)
    _, start = start_of(plan, task.context)
    planned = plan.model.clone()
    SetBiasScales().apply(planned, task.context)
    moved = 0.0
    for name, quantizer in start.quantizers.items():
        a, b = start.graph.tensors()[name], planned.graph.tensors()[name]
        if quantizer.axis is not None:
            np.testing.assert_array_equal(quantizer.params.quantize(a.values), quantizer.params.quantize(b.values))
            moved += float(np.abs(a.values - b.values).max())
    assert moved > 0
    first, second = (lower(model_, Context(target=ORT))[0] for model_ in (start, planned))
    np.testing.assert_array_equal(run(first, {"x": images()})["y"], run(second, {"x": images()})["y"])


def test_operators_without_a_counterpart_are_named_before_anything_else() -> None:
    proto = model(
        "(float[N,6] x) => (float[N,6] y) <float[6,6] w> { h = MatMul(x, w) k = Shrink<lambd=0.1>(h) y = Hardmax(k) }",
        opset=17,
    )
    with pytest.raises(ModelError, match=r"Shrink \(1 nodes.*Hardmax \(1 nodes"):
        TorchNetwork(wrapped(proto), ORT)
