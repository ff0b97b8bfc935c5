"""Tensor by tensor: quantized models of several tools against the float model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model, weights
from onnx import ModelProto, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from quantized import quantized, samples

from onnxq import OnnxqError, cli
from onnxq.evaluation.compare import _jump, compare
from onnxq.evaluation.comparison import Comparison, Jump
from onnxq.graph import storage

NET = """(float[N,3,8,8] x) => (float[N,?] y)
    <float[4,3,3,3] w, float[6,4,3,3] u, float[6] g, float[6] h, float[6] m, float[6] var, float[10,6] v> {
    [first] a = Conv(x, w)  [relu] r = Relu(a)
    [second] b = Conv<pads=[1,1,1,1]>(r, u)  [norm] n = BatchNormalization(b, g, h, m, var)  [clip] s = Relu(n)
    [pool] p = GlobalAveragePool(s)  [flat] f = Flatten(p)  [head] y = Gemm<transB=1>(f, v) }"""


@pytest.fixture(scope="module")
def net() -> ModelProto:
    return model(NET)


def data(net: ModelProto) -> list[dict[str, np.ndarray]]:
    return samples(net, 8)


class Reader(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def by_runtime(net: ModelProto, folder: Path, **options: object) -> ModelProto:
    """What ONNX Runtime's own tool makes of it."""
    storage.write(net, folder / "float.onnx")
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **options}
    quantize_static(str(folder / "float.onnx"), str(folder / "out.onnx"), Reader(data(net)), **options)
    return onnx.load(folder / "out.onnx")


def figures(found: Comparison) -> dict[str, float]:
    return {t.tensor: np.inf if t.sqnr_db is None else t.sqnr_db for t in found.tensors}


def renamed(proto: ModelProto, nodes: bool) -> ModelProto:
    """Inner tensors under other names; nodes, too, if asked for."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    kept = {v.name for v in (*proto.graph.input, *proto.graph.output)} | {""}
    names = {n: f"t{i}" for i, n in enumerate(n for node in proto.graph.node for n in node.output) if n not in kept}
    for index, node in enumerate(copy.graph.node):
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        node.name = f"n{index}" if nodes else node.name
    del copy.graph.value_info[:]
    return copy


def test_a_model_equals_itself(net):
    found = compare(net, net, data(net))
    assert [t.tensor for t in found.tensors] == ["x", "a", "r", "b", "n", "s", "p", "y"]
    assert {t.sqnr_db for t in found.tensors} == {None}
    assert found.jump is None
    assert (found.unmatched, found.inside) == ({}, {})


def test_what_only_moves_values_is_not_compared_again():
    moving = model("""(float[N,3,8,8] x) => (float[N,3,4,4] y) <float[4,3,3,3] w, float[3,1,1,1] v> {
        a = Conv<pads=[1,1,1,1]>(x, w)  d = DepthToSpace<blocksize=2>(a)  t = Transpose<perm=[0,1,3,2]>(d)
        m = MaxPool<kernel_shape=[4,4], strides=[4,4]>(t)  y = Conv(m, v) }""")
    assert [t.tensor for t in compare(moving, moving, data(moving)).tensors] == ["x", "a", "m", "y"]


def test_one_of_ours_is_compared_behind_what_it_fuses(net):
    found = compare(net, quantized(net, data(net)), data(net))
    assert list(figures(found)) == ["x", "r", "s", "p", "y"]
    assert min(figures(found).values()) > 25
    assert found.inside == {"a": "r", "b": "s", "n": "s"}
    second = next(t for t in found.tensors if t.tensor == "s")
    assert (second.node, second.op, second.weight, second.absorbed) == ("second", "Conv", "u", ("norm", "clip"))
    assert second.weight_sqnr_db > 35  # against the folded weight


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_one_of_onnx_runtime_is_compared(net, tmp_path, form, per_channel):
    found = compare(net, by_runtime(net, tmp_path, quant_format=form, per_channel=per_channel), data(net))
    assert min(figures(found).values()) > 20
    assert {t.matched_by for t in found.tensors} == {"name"}
    assert {"x", "r", "s", "y"} <= set(figures(found))
    assert found.inside.get("a") == "r"  # fused: what is called `a` there is what comes out of Relu
    assert not found.unmatched
    assert sum(t.weight_sqnr_db is not None and t.weight_sqnr_db > 35 for t in found.tensors) >= 2


@pytest.mark.parametrize(("nodes", "by"), [(False, "node"), (True, "position")])
def test_other_names_give_the_same_figures(net, nodes, by):
    ours = quantized(net, data(net))
    by_name, found = compare(net, ours, data(net)), compare(net, renamed(ours, nodes), data(net))
    linear = {t.tensor: t for t in found.tensors if t.op in ("Conv", "Gemm")}
    assert [linear[name].matched_by for name in ("r", "s")] == [by, by]
    assert {name: figures(by_name)[name] for name in linear} == {name: figures(found)[name] for name in linear}
    assert [t.weight_sqnr_db for t in by_name.tensors if t.tensor in linear] == [
        t.weight_sqnr_db for t in linear.values()
    ]


def test_what_has_no_partner_is_said(net):
    found = compare(net, renamed(quantized(net, data(net)), True), data(net))
    assert found.unmatched == {"p": "nothing in the quantized model stands for it"}
    assert "not compared: p: nothing in the quantized model" in found.to_text(verbose=True)


def changed(proto: ModelProto, name: str, function) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(function(numpy_helper.to_array(tensor)), np.float32), name))
    return copy


def test_the_error_jumps_where_it_was_planted(net):
    broken = changed(quantized(net, data(net)), "u_scale", lambda scale: scale * np.array([1, 1, 9, 1, 1, 1]))
    found = compare(net, broken, data(net))
    assert (found.jump.tensor, found.jump.drop_db > 15) == ("s", True)
    weights = {t.tensor: t.weight_sqnr_db for t in found.tensors if t.weight}
    assert weights["s"] < 5 < 30 < min(weights["r"], weights["y"])
    assert "the error jumps at s (second)" in found.to_text()


def test_an_error_that_is_gone_behind_is_no_jump():
    figures = {"a": (40.0, False), "b": (5.0, True), "c": (38.0, False), "d": (20.0, False), "e": (19.0, False)}
    assert _jump({"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"]}, figures) == Jump("d", 18.0)
    assert _jump({"a": [], "c": ["a"]}, {"a": (40.0, False), "c": (55.0, False)}) is None


def test_integers_that_are_moved_keep_their_scale(tmp_path):
    net = model("""(float[N,3,8,8] x) => (float[N,5,2,2] y) <float[4,3,3,3] w, float[5,4,2,2] v>
        { a = Conv(x, w)  m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)  y = Conv(m, v) }""")
    pooled = by_runtime(net, tmp_path, quant_format=QuantFormat.QOperator)
    assert [n.op_type for n in pooled.graph.node if n.input[0] == "a_quantized"] == ["MaxPool"]
    found = compare(net, pooled, data(net))
    assert list(figures(found)) == ["x", "a", "m", "y"]
    assert min(figures(found).values()) > 20


def equalized(net: ModelProto, factors: np.ndarray) -> ModelProto:
    """Channels of `r` times factors, which the second layer takes back."""
    scaled = changed(net, "w", lambda w: w * factors[:, None, None, None])
    return changed(scaled, "u", lambda u: u / factors[None, :, None, None])


def test_equalized_channels_are_compared_up_to_their_scale(net):
    other = quantized(equalized(net, np.float32([1, 2, 0.5, 3])), data(net))
    found = {t.tensor: t for t in compare(net, other, data(net)).tensors}
    assert found["r"].adjusted
    assert found["r"].sqnr_db > 25
    assert (found["s"].weight_sqnr_db, found["r"].weight_sqnr_db) == (None, None)
    assert not found["y"].adjusted


def test_scales_that_no_layer_takes_back_are_an_error(net):
    damaged = changed(net, "w", lambda w: w * np.float32([1, 1.5, 0.7, 1.3])[:, None, None, None])
    found = {t.tensor: t for t in compare(net, damaged, data(net)).tensors}
    assert not found["r"].adjusted
    assert found["r"].sqnr_db < 15


def test_a_wrong_scale_of_a_whole_tensor_is_an_error(net):
    wrong = changed(net, "w", lambda w: 1.5 * w)
    found = {t.tensor: t for t in compare(net, wrong, data(net)).tensors}
    assert not found["r"].adjusted
    assert found["r"].sqnr_db == pytest.approx(20 * np.log10(2), abs=0.01)


@pytest.mark.parametrize("settings", [{"threads": 2}, {"threads": 1, "max_memory": 1, "batch_size": 2000}])
def test_neither_threads_nor_memory_change_the_result(net, settings):
    ours = quantized(net, data(net))
    seen = []
    found = compare(net, ours, data(net), progress=lambda label, done, total: seen.append(label), **settings)
    assert found == compare(net, ours, data(net), threads=1)
    assert ("comparing, part 2 of" in " ".join(seen)) == ("max_memory" in settings)


def test_models_with_other_inputs_are_refused(net):
    other = model("(float[N,4] z) => (float[N,2] y) <float[4,2] w> { y = MatMul(z, w) }")
    with pytest.raises(OnnxqError, match="different inputs: model has 'x', model has 'z'"):
        compare(net, other, data(net))
    wide = model(NET.replace("float[N,3,8,8]", "float[N,3,9,9]"))
    with pytest.raises(OnnxqError, match=r"different inputs.*9 x 9"):
        compare(net, wide, data(net))


def test_the_command(net, tmp_path):
    storage.write(net, tmp_path / "float.onnx")
    storage.write(quantized(net, data(net)), tmp_path / "out.onnx")
    np.save(tmp_path / "x.npy", np.concatenate([feed["x"] for feed in data(net)]))
    command = ["compare", tmp_path / "float.onnx", tmp_path / "out.onnx", "--calib", tmp_path / "x.npy"]
    text = CliRunner().invoke(cli.main, [str(c) for c in command])
    assert text.exit_code == 0, text.output
    assert "8 samples" in text.output
    assert "3 tensors inside of others" in text.output
    found = CliRunner().invoke(cli.main, [str(c) for c in [*command, "--json", "--samples", 2]])
    assert json.loads(found.output)["samples"] == 2
    swapped = CliRunner().invoke(cli.main, [str(c) for c in ["compare", "none.onnx", *command[2:]]])
    assert (swapped.exit_code, "none.onnx: no such file" in swapped.output) == (3, True)


ACTIVATED = """(float[N,3,8,8] x) => (float[N,4,1,1] y) <float[4,3,3,3] w, float zero, float s, uint8 z>
    {{ a = Conv(x, w)  {0}  y = GlobalAveragePool(q) }}"""


@pytest.mark.parametrize(("behind", "partner"), [("Clip(d, zero)", "a"), ("Identity(d)", "q")])
def test_an_activation_is_inside_only_where_no_node_does_it(behind, partner):
    net = model(ACTIVATED.format("q = Relu(a)"))
    nodes = f"i = QuantizeLinear(a, s, z)  d = DequantizeLinear(i, s, z)  q = {behind}"
    other = renamed(model(ACTIVATED.format(nodes), zero=0.0, s=0.05, z=0.0), True)
    found = {t.tensor: t.matched_by for t in compare(net, other, data(net)).tensors}
    assert found == {"x": "name", partner: "position", "y": "name"}


def test_a_folded_batchnorm_before_a_sum(tmp_path):
    net = model("""(float[N,4,6,6] x) => (float[N,4,6,6] y)
        <float[4,4,3,3] w, float[4] g, float[4] h, float[4] m, float[4] var, float[4,4,1,1] v>
        { a = Conv<pads=[1,1,1,1]>(x, w)  b = BatchNormalization(a, g, h, m, var)  s = Add(b, x)  y = Conv(s, v) }""")
    folded = model("""(float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,3,3] w, float[4] c, float[4,4,1,1] v>
        { a = Conv<pads=[1,1,1,1]>(x, w, c)  s = Add(a, x)  y = Conv(s, v) }""")
    values = weights(net)
    scale = values["g"] / np.sqrt(values["var"] + 1e-5)
    folded = changed(changed(folded, "v", lambda _: values["v"]), "c", lambda _: values["h"] - values["m"] * scale)
    folded = changed(folded, "w", lambda _: values["w"] * scale[:, None, None, None])
    for form in (QuantFormat.QDQ, QuantFormat.QOperator):
        found = compare(net, by_runtime(folded, tmp_path, quant_format=form), data(net))
        assert found.inside == {"a": "b"}
        assert min(figures(found).values()) > 20
