"""Weights that stay in files: the same result as in memory, with less of it. Limits are lowered to small models."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import model, run

import onnxq
from onnxq.errors import OutputError
from onnxq.execution import session as runtime
from onnxq.execution.session import Session
from onnxq.graph import edit, external_data, large, storage
from onnxq.graph.model import Model
from onnxq.operators.linear import LinearLayer, linear_layer

NET = (
    "(float[N,30] x) => (float[N,?] y) <float[30,40] u, float[40] b, float[40,50] v, float[50,20] w>"
    " { a = MatMul(x, u) c = Add(a, b) d = Relu(c) e = MatMul(d, v) f = Relu(e) y = MatMul(f, w) }"
)
DATA = np.random.default_rng(0).standard_normal((8, 30)).astype(np.float32)


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "LARGE", 1000)
    monkeypatch.setattr(large, "SMALLEST", 1000)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    options: dict[str, Any] = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save_model(model(NET), tmp_path / "net.onnx", **options)
    return tmp_path / "net.onnx"


@pytest.mark.usefixtures("low_limits")
def test_weights_stay_where_they_are(net: Path) -> None:
    proto = storage.read(net)
    assert [t.name for t in large.references(proto)] == ["u", "v", "w"]
    assert proto.ByteSize() < 1500
    assert large.nbytes(proto) > 4 * 30 * 40
    mapped = large.array(proto.graph.initializer[0])
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, large.array(model(NET).graph.initializer[0]))


@pytest.mark.usefixtures("low_limits")
def test_a_session_runs_on_mapped_weights(net: Path) -> None:
    expected = run(model(NET), {"x": DATA})["y"]
    for optimize in (False, True):
        session = Session(storage.read(net), optimize=optimize)
        np.testing.assert_allclose(session.run({"x": DATA})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["w8a8", "w8a16", "w16a16"])
@pytest.mark.usefixtures("low_limits")
def test_the_optimiser_sees_weights_and_not_holes(net: Path, preset: str) -> None:
    """ONNX Runtime's optimiser dequantizes weights by itself, with what a data file says."""
    output = net.with_name("out.onnx")
    onnxq.quantize(net, DATA, output=output, preset=preset)
    expected = Session(output, optimize=True).run({"x": DATA})["y"]
    proto = storage.read(output, quantized=True)
    assert large.references(proto)
    np.testing.assert_array_equal(Session(proto, optimize=True).run({"x": DATA})["y"], expected)


def test_a_session_counts_what_a_file_keeps_beside_it(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large model would not run one tensor after the other: all its weights would be dequantized at once."""
    for limit, lean in ((30 * 40 + 40 * 50 + 50 * 20, True), (1 << 20, False)):
        monkeypatch.setattr(runtime, "LEAN_WEIGHTS", limit)
        assert isinstance(Session(net)._lock, contextlib.nullcontext) != lean


@pytest.mark.usefixtures("low_limits")
def test_new_values_are_spilled_once_and_removed(net: Path) -> None:
    with large.storing():
        copy = Model.from_proto(storage.read(net))
        assert copy.is_large
        weight = copy.graph.tensors()["u"]
        weight.values = np.asarray(weight.values) * 2
        first, second = copy.to_proto(), copy.clone().to_proto()
        places = [large.place(large.references(p)[0]) for p in (first, second)]
        assert places[0] == places[1]
        assert places[0].path.exists()
        assert type(copy.graph.tensors()["u"]._values) is large.StoredValues, "not held in memory"
        assert large.place(large.references(first)[1]).path == net.parent / "weights.bin", "not written again"
    assert not places[0].path.exists()
    with pytest.raises(KeyError):
        large.place(large.references(first)[0])


@pytest.mark.usefixtures("low_limits")
def test_a_layer_that_is_given_a_new_weight_holds_it_in_a_file(net: Path) -> None:
    """One that changes all layers has one of them in memory."""
    with large.storing():
        changed = Model.from_proto(storage.read(net))
        layer = linear_layer(changed.graph.nodes[0])
        assert isinstance(layer, LinearLayer)
        edit.set_weight(changed, layer, 2 * np.asarray(layer.weight.values, np.float64))
        assert type(changed.graph.tensors()["u"]._values) is large.StoredValues
        doubled = large.array(large.references(changed.to_proto())[0])
    np.testing.assert_array_equal(doubled, 2 * large.array(model(NET).graph.initializer[0]))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_channel": False},
    {"preset": "w4a8", "rounding": "coordinate-descent"},
    {
        "preset": "w8a16",
        "bias_correction": "off",
    },  # a default session, which chooses in memory, rounds activations here
    {"data_free": True, "input_ranges": (("x", -3.0, 3.0),)},
    {"bias_correction": "empirical"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_model_as_in_memory(net: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the last bits: ONNX Runtime adds in another order where it may not pack weights. And always the same.
    Biases that are fitted to the quantized network differ by more where an activation is rounded the other way: that
    changes a mean by up to 127 steps over the number of samples, so that there are many of these."""
    empirical = options.get("bias_correction") == "empirical"
    many = np.random.default_rng(0).standard_normal((512 if empirical else len(DATA), 30)).astype(np.float32)
    data, outputs = None if options.get("data_free") else many, []
    for limit, threads in ((large.LARGE, 1), (1000, 1), (1000, 3)):
        monkeypatch.setattr(large, "LARGE", limit)
        monkeypatch.setattr(large, "SMALLEST", limit)
        outputs.append(net.with_name(f"{len(outputs)}.onnx"))
        report = onnxq.quantize(net, data, output=outputs[-1], threads=threads, **options).report
        assert report.source.bytes > 15_000
    memory, files = (onnx.load(path) for path in outputs[:2])
    one, other = (onnx.load(path).SerializeToString(deterministic=True) for path in outputs[1:])
    assert one == other
    assert memory.graph.node == files.graph.node
    for one, other in zip(memory.graph.initializer, files.graph.initializer, strict=True):
        a, b = (np.asarray(large.array(t), np.float64) for t in (one, other))
        assert one.name == other.name
        integers = one.data_type != onnx.TensorProto.FLOAT
        flips = 4.0 if empirical else 1.0
        np.testing.assert_allclose(a, b, rtol=3e-3, atol=flips if integers else 1e-6, err_msg=one.name)


def test_statistics_and_checkpoints_know_large_models_by_content(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "LARGE", 1000)
    monkeypatch.setattr(large, "SMALLEST", 1000)
    onnxq.calibrate(net, DATA, tmp_path / "s.npz")
    (tmp_path / "moved").mkdir()
    for name in ("net.onnx", "weights.bin"):
        os.rename(tmp_path / name, tmp_path / "moved" / name)
    onnxq.quantize(tmp_path / "moved" / "net.onnx", statistics=[tmp_path / "s.npz"], output=tmp_path / "out.onnx")


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize("preset", ["w8a8", "w16a16"])
def test_an_output_with_a_file_beside_it(net: Path, preset: str) -> None:
    """As are all that come from models whose weights stayed in files."""
    output = net.with_name("out.onnx")
    onnxq.quantize(net, DATA, output=output, preset=preset)
    _, _, data, _ = names = sorted(os.listdir(net.parent))
    assert names == ["net.onnx", "out.onnx", data, "weights.bin"]
    light = onnx.load(output, load_external_data=False)
    external = [t for t in light.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {t.external_data[0].value for t in external} == {data}
    assert all(int(t.external_data[1].value) % external_data.PAGE == 0 for t in external)
    expected = run(model(NET), {"x": DATA})["y"]
    got = Session(output).run({"x": DATA})["y"]
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    again = net.with_name("again.onnx")
    onnxq.quantize(net, DATA, output=again, preset=preset)
    assert (net.parent / data.replace("out", "again")).read_bytes() == (net.parent / data).read_bytes()


@pytest.mark.usefixtures("low_limits")
def test_an_old_model_keeps_its_data_until_the_new_one_is_there(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = net.with_name("out.onnx")
    onnxq.quantize(net, DATA, output=output)
    before, replace, moved = {f: f.read_bytes() for f in net.parent.iterdir()}, os.replace, []

    def fail(source: Any, target: Any) -> None:
        moved.append(Path(target).name)
        if moved[-1] == "out.onnx":
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="Input/output error"):
        onnxq.quantize(net, DATA, output=output, preset="w16a16")
    assert len(set(moved)) == 2
    assert {f: f.read_bytes() for f in net.parent.iterdir()} == before
