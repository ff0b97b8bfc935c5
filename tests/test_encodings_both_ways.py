"""From a float model to encodings and back: the same quantized model, whatever the schema."""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model, ops, weights
from quantized import PLAIN, samples

import onnxq
from onnxq import cli
from onnxq.encodings import VERSIONS
from onnxq.errors import UsageError
from onnxq.graph import storage

NET = """(float[1,3,6,6] x) => (float[1,7] y) <float[4,3,3,3] w, float[4] b, float[16,5] v, float[5] c, float[5,7] u>
    { a = Conv(x, w, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) f = Flatten(p)
      m = MatMul(f, v) n = Add(m, c) s = Relu(n) y = MatMul(s, u) }"""


def bytes_of(proto):
    return proto.SerializeToString(deterministic=True)


@pytest.fixture
def net():
    return model(NET)


def export(net, folder, **settings):
    """(quantized, float model, path of its encodings), for the same options."""
    path = folder / "m.encodings"
    settings = {**settings, "provenance": False}  # the models have other sources
    quantized = onnxq.quantize(net, samples(net), **settings).model
    floats = onnxq.quantize(net, samples(net), encodings=path, float_output=True, **settings).model
    return quantized, floats, path


@pytest.mark.parametrize("version", list(VERSIONS))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"per_channel": False},
        {"preset": "w4a16"},
        {"symmetric_activations": True},
        {"asymmetric_weights": True},
        {"power_of_two": True},
        {"preset": "w4", "exclude": ("Conv",), "block_size": 2},
    ],
    ids=str,
)
def test_the_quantized_model_comes_back_byte_by_byte(settings, version, net, tmp_path):
    if version == "0.6.1" and "block_size" in settings:
        pytest.skip("0.6.1 has no blocks")
    quantized, floats, path = export(net, tmp_path, encodings_version=version, **settings)
    again = onnxq.quantize(floats, from_encodings=str(path), provenance=False, **settings).model
    assert bytes_of(again) == bytes_of(quantized)


def test_the_float_model_is_that_which_was_quantized(net, tmp_path):
    """Steps that change weights are in it, and each encoding names one of its tensors."""
    uneven = weights(net)["w"] * np.float32([1, 9, 1, 1]).reshape(4, 1, 1, 1)
    net.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(uneven, "w"))
    _, floats, path = export(net, tmp_path, preset="w4a8", force_int_kernels=True)
    assert "QuantizeLinear" not in ops(floats)
    assert np.any(weights(floats)["w"] != weights(net)["w"])
    found = json.loads(path.read_text())
    tensors = {*weights(floats), *(o for n in floats.graph.node for o in n.output), "x"}
    names = {e["name"] for e in found["param_encodings"] + found["activation_encodings"]}
    assert names <= tensors
    assert {"w", "v", "u", "x", "r", "p", "f"} <= names
    assert {e["name"] for e in found["param_encodings"]} == {"w", "v", "u"}


def test_what_the_arguments_say(net, tmp_path):
    _, _, path = export(net, tmp_path, preset="w4a8", per_channel=False, activation_range="minmax")
    assert json.loads(path.read_text())["quantizer_args"] == {
        "activation_bitwidth": 8, "dtype": "int", "is_symmetric": True, "param_bitwidth": 4,
        "per_channel_quantization": False, "quant_scheme": "post_training_tf",
    }  # fmt: skip


def test_raised_weight_scales_are_written_as_they_end_up(tmp_path):
    net = model("(float[1,4] x) => (float[1,2] y) <float[4,2] w, float[2] b> { y = Gemm(x, w, b) }", w=1e-12, b=50.0)
    quantized, floats, path = export(net, tmp_path, force_int_kernels=True, **PLAIN)
    (entry,) = (e for e in json.loads(path.read_text())["param_encodings"] if e["name"] == "w")
    np.testing.assert_array_equal(np.float32(entry["scale"]), weights(quantized)["w_scale"])
    settings = {"force_int_kernels": True, "provenance": False}
    assert bytes_of(onnxq.quantize(floats, from_encodings=str(path), **settings).model) == bytes_of(quantized)


# --- files of others --------------------------------------------------------------------------------------------


def given(net, folder, entries, calibration=None, **settings):
    path = folder / "theirs.encodings"
    path.write_text(json.dumps({"version": "2.0.0", "encodings": entries}))
    return onnxq.quantize(net, calibration, from_encodings=str(path), **settings)


def enc(name, scale=0.5, dtype="uint8", **fields):
    return {"name": name, "output_dtype": dtype, "y_scale": scale, **fields}


def grids(result):
    return {t.tensor: (t.grid, t.scale[0], t.zero_point[0]) for t in result.report.tensors}


def test_tensors_that_the_file_does_not_name_stay_in_float_without_data(net, tmp_path):
    result = given(net, tmp_path, [enc("x", y_zero_point=7), enc("w", dtype="int8"), enc("r", 0.25), enc("a", 0.125)])
    found = grids(result)
    assert found["x"] == ("uint8", 0.5, 7)
    assert found["a"] == ("uint8", 0.125, 0)  # the target would have fused Conv and Relu; the file has both
    assert found["r"] == found["p"] == found["f"] == ("uint8", 0.25, 0)  # data movement keeps the grid
    assert set(found) == {"x", "w", "a", "r", "p", "f"}
    assert any("no data to range it" in w for w in result.report.warnings)
    assert ops(result.model).count("DequantizeLinear") == 1 + len(found)  # and the bias


def test_with_data_the_rest_is_ranged(net, tmp_path):
    result = given(net, tmp_path, [enc("r", 0.25)], samples(net), activation_range="minmax", force_int_kernels=True)
    found, plain = (
        grids(result),
        grids(onnxq.quantize(net, samples(net), activation_range="minmax", force_int_kernels=True, **PLAIN)),
    )
    assert found["r"] == ("uint8", 0.25, 0)
    assert set(found) == set(plain)
    assert {n for n in found if found[n] != plain[n]} == {"r", "p", "f"}


def test_float_entries_keep_a_tensor_in_float(net, tmp_path):
    path = tmp_path / "theirs.encodings"
    path.write_text(json.dumps({"param_encodings": {"w": [{"bitwidth": 16, "dtype": "float"}]}}))
    result = onnxq.quantize(net, samples(net), from_encodings=str(path))
    assert "w" not in grids(result)
    assert "v" in grids(result)


def test_steps_that_would_change_the_network_do_not_run(net, tmp_path):
    result = given(net, tmp_path, [enc("w", dtype="int8"), enc("x")], samples(net), preset="w4a8")
    notes = {s.name: s.notes for s in result.report.steps}
    for step in ("EqualizeLayers", "AbsorbBias", "RemoveDeadChannels", "RoundWeights"):
        assert "not run" in notes[step][0], step


def test_unknown_names_are_reported(net, tmp_path):
    report = given(net, tmp_path, [enc("x"), enc("w", dtype="int8"), enc("elsewhere")]).report
    assert any(
        "1 of 3 encodings name tensors that the prepared model does not have ('elsewhere')" in w
        for w in report.warnings
    )


def test_biases_follow_from_the_other_scales(net, tmp_path):
    entries = [enc("x"), enc("w", dtype="int8"), enc("r"), enc("b", 123.0, "int32")]
    result = given(net, tmp_path, entries)
    assert weights(result.model)["b_scale"] == np.float32(0.25)
    assert any("1 encodings of 32-bit biases" in note for s in result.report.steps for note in s.notes)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([enc("elsewhere")], "none of the 1 encodings, of 'elsewhere' for one, is of a tensor of"),
        ([enc("x", [1, 2, 3], axis=1)], "'x' has 3 scales, but activations have one a tensor"),
        ([enc("w", [1, 2, 3], "int8", axis=0)], "has 4 channels on axis 0"),
    ],
)
def test_encodings_that_do_not_fit_the_model(entries, message, net, tmp_path):
    with pytest.raises(UsageError, match=message):
        given(net, tmp_path, entries)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"float_output": True}, "name a file for them"),
        ({"encodings_version": "3.0"}, "`encodings_version` '3.0' is unknown"),
        ({"from_encodings": "x", "rounding": "adaround"}, "takes weights and biases as they are"),
        ({"from_encodings": "x", "bias_correction": "empirical"}, "takes weights and biases as they are"),
    ],
)
def test_options_that_make_no_sense(settings, message, net):
    with pytest.raises(UsageError, match=message):
        onnxq.quantize(net, samples(net), **settings)


# --- command line -----------------------------------------------------------------------------------------------


@pytest.fixture
def place(net, tmp_path):
    storage.write(net, tmp_path / "in.onnx")
    np.save(tmp_path / "calib.npy", np.concatenate([feed["x"] for feed in samples(net)]))
    return tmp_path


def invoke(place, *arguments):
    paths = [str(place / a) if "." in a and not a.startswith("-") and a[0].isalpha() else a for a in arguments]
    return CliRunner().invoke(cli.main, ["quantize", *paths])


def test_both_ways_on_the_command_line(place):
    (place / "c.toml").write_text('encodings-version = "2.0.0"\nfloat-output = true')
    result = invoke(place, "in.onnx", "f.onnx", "--calib", "calib.npy", "--encodings", "e.json", "--config", "c.toml")
    assert result.exit_code == 0, result.output
    assert "encodings" in json.loads((place / "e.json").read_text())
    assert invoke(place, "in.onnx", "q.onnx", "--calib", "calib.npy", "--no-provenance").exit_code == 0
    result = invoke(place, "f.onnx", "again.onnx", "--from-encodings", "e.json", "--no-provenance")
    assert result.exit_code == 0, result.output
    assert (place / "again.onnx").read_bytes() == (place / "q.onnx").read_bytes()


def test_a_bad_file_is_one_message_and_no_output(place):
    (place / "e.json").write_text("{}")
    result = invoke(place, "in.onnx", "q.onnx", "--from-encodings", "e.json")
    assert result.exit_code == 2
    assert "e.json: not an encodings file" in result.output
    assert not (place / "q.onnx").exists()


def test_encodings_overwrite_nothing_else(place):
    result = invoke(place, "in.onnx", "q.onnx", "--calib", "calib.npy", "--encodings", "in.onnx")
    assert result.exit_code == 6
    assert "choose another name" in result.output
