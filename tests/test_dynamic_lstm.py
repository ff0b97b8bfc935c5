"""LSTMs with activations quantized at run time: ONNX Runtime's DynamicQuantizeLSTM, by the preset w8a8-dynamic."""

from __future__ import annotations

import pytest
from graphs import feeds
from onnx import ModelProto, helper
from test_inner_constants import detector
from test_inner_constants import samples as detected
from test_stored_weights import db, recurrent

import onnxq
from onnxq.graph.serialized import nodes_of


def dynamic(proto: ModelProto, **settings: object) -> onnxq.Result:
    data = [feeds(proto, seed=seed, free=6) for seed in range(8)]
    return onnxq.quantize(proto, data, threads=1, preset="w8a8-dynamic", latency="off", **settings)


@pytest.mark.parametrize("directions", [1, 2])
def test_an_lstm_computes_in_integers(directions: int) -> None:
    proto = recurrent("LSTM", directions)
    result = dynamic(proto)
    (node,) = result.model.graph.node
    assert (node.op_type, node.domain) == ("DynamicQuantizeLSTM", "com.microsoft")
    assert result.report.dynamic_nodes == ("LSTM_y",)
    assert result.report.runtime_operators == {"DynamicQuantizeLSTM": 1}
    arrays = feeds(proto, seed=20, free=6)
    assert db(proto, result.model, arrays) > 33
    assert db(proto, result.model, arrays, optimized=True) > 33
    assert result.model.ByteSize() < 0.33 * proto.ByteSize()
    assert not onnxq.check(result.model, "ort").violations


def test_attributes_and_further_inputs_are_kept() -> None:
    proto = recurrent("LSTM", 2)
    node = proto.graph.node[0]
    functions = ["HardSigmoid", "Tanh", "Softsign", "Sigmoid", "Tanh", "Tanh"]
    node.attribute.append(helper.make_attribute("activations", functions))
    for name, shape in (("h0", (2, 1, 48)), ("c0", (2, 1, 48))):
        proto.graph.input.append(helper.make_tensor_value_info(name, 1, shape))
    node.input.extend(["", "h0", "c0"])
    result = dynamic(proto)
    (after,) = result.model.graph.node
    assert list(after.input)[4:8] == ["", "h0", "c0", ""]
    assert next(list(a.strings) for a in after.attribute if a.name == "activations") == [f.encode() for f in functions]
    assert db(proto, result.model, feeds(proto, seed=20, free=6)) > 30


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_others_keep_activations_in_float(op: str) -> None:
    result = dynamic(recurrent(op, 1))
    assert [n.op_type for n in result.model.graph.node] == ["DequantizeLinear", "Reshape"] * 2 + [op]
    assert (result.report.dynamic_nodes, result.report.weights_only_nodes) == ((), 1)


def test_an_lstm_that_the_user_keeps_in_float_stays() -> None:
    with pytest.raises(onnxq.errors.NothingToQuantizeError):
        dynamic(recurrent("LSTM", 1), exclude=("LSTM",))


def test_inside_of_branches() -> None:
    proto = detector()
    result = onnxq.quantize(proto, detected() * 8, threads=1, preset="w8a8-dynamic", latency="off")
    found = [node.op_type for node in nodes_of(result.model.graph)]
    assert (found.count("DynamicQuantizeLSTM"), found.count("LSTM")) == (4, 0)
    assert all(quality.sqnr_db is not None and quality.sqnr_db > 30 for quality in result.report.quality)


def test_presets_of_weights_alone_stay_in_standard_operators() -> None:
    result = onnxq.quantize(recurrent("LSTM", 1), threads=1, preset="w8", latency="off")
    assert {node.domain for node in result.model.graph.node} == {""}
