import itertools
import json
import re
import threading

import numpy as np
import onnx
import pytest
from graphs import assert_same_function, model, run
from quantized import PLAIN, samples

import onnxq
from onnxq.data import Preprocess
from onnxq.errors import DataError, ModelError, UsageError
from onnxq.graph import storage
from onnxq.options import Options
from onnxq.passes.base import Context, Outcome
from onnxq.passes.normalize import Normalize
from onnxq.pipeline.open_inputs import input_specs
from onnxq.pipeline.prepare import load, prepare
from onnxq.pipeline.run_passes import run_passes

NET = """(float[N,3,H,W] x) => (float[N,?] y)
    <float[4,3,3,3] w, float[4] b, float[4] g, float[4] h, float[4] m, float[4] var, float[5,4] v, float[5] c> {
    a = Conv<pads=[1,1,1,1]>(x, w, b)  n = BatchNormalization(a, g, h, m, var)  r = Relu(n)
    p = GlobalAveragePool(r)  f = Flatten(p)  y = Gemm<transB=1>(f, v, c) }"""


@pytest.fixture(scope="module")
def net():
    return model(NET)


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).standard_normal((10, 3, 6, 5)).astype(np.float32)


def written_bytes(proto, calibration, **options):
    result = onnxq.quantize(proto, calibration, **options)
    return result.model.SerializeToString(deterministic=True)


# --- the same bytes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 3},
        {"batch_size": 10},
        {"threads": 1},
        {"threads": 2},
        {"threads": 4},
        {"max_memory": 1},
        {},
    ],
    ids=str,
)
def test_how_it_is_run_does_not_change_a_byte(net, data, options):
    assert written_bytes(net, data, **options) == written_bytes(net, data, threads=1, batch_size=2)


def test_chunks_do_not_change_a_byte(net):
    """1 MiB for four threads: the image, 196 KiB, and what the Conv computes of it, 262 KiB, do not fit together."""
    labels = set()
    data = np.random.default_rng(0).standard_normal((10, 3, 128, 128)).astype(np.float32)
    one_tensor_at_a_time = {"max_memory": 1, "threads": 4}
    progress = {"progress": lambda label, done, total: labels.add(label)}
    assert written_bytes(net, data, **one_tensor_at_a_time, **progress) == written_bytes(net, data)
    assert any("part 2 of" in label for label in labels)


def test_how_data_is_stored_does_not_change_a_byte(net, data, tmp_path):
    expected = written_bytes(net, data)
    cuts = {"one": [10], "each": [1] * 10, "some": [3, 3, 3, 1]}
    for name, sizes in cuts.items():
        folder = tmp_path / name
        folder.mkdir()
        edges = np.cumsum([0, *sizes])
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            np.save(folder / f"{number}.npy", data[start:stop])
        assert written_bytes(net, folder) == expected


def test_ranges_do_not_depend_on_the_order_of_samples(net, data):
    """Steps that are compared do: which samples they are compared on depends on their places."""
    expected = written_bytes(net, data, **PLAIN)
    assert written_bytes(net, data[::-1], **PLAIN) == expected
    assert written_bytes(net, data[np.random.default_rng(1).permutation(10)], **PLAIN) == expected


def test_the_seed_chooses_the_samples(net, data):
    assert written_bytes(net, data, samples=2, seed=3) == written_bytes(net, data, samples=2, seed=3)
    assert len({written_bytes(net, data, samples=2, seed=seed) for seed in range(4)}) > 1


def test_the_input_is_left_as_it_is(net, data):
    before, feed = net.SerializeToString(deterministic=True), data.copy()
    onnxq.quantize(net, feed)
    assert net.SerializeToString(deterministic=True) == before
    np.testing.assert_array_equal(feed, data)


def test_the_file_written_is_the_model_returned(net, data, tmp_path):
    result = onnxq.quantize(net, data, output=tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == result.model.SerializeToString(deterministic=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_a_path_and_a_loaded_model_give_the_same(net, data, tmp_path):
    storage.write(net, tmp_path / "in.onnx")
    assert written_bytes(tmp_path / "in.onnx", data) == written_bytes(str(tmp_path / "in.onnx"), data)
    assert written_bytes(tmp_path / "in.onnx", data) == written_bytes(net, data)


# --- inputs of all kinds ----------------------------------------------------------------------------------------


def test_a_fixed_batch_with_a_number_of_samples_that_it_does_not_divide():
    proto = model("(float[4,3] x) => (float[4,?] y) <float[3,5] w, float[5] b> { y = Gemm(x, w, b) }")
    values = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    result = onnxq.quantize(proto, values)
    assert (result.report.samples.fitting, result.report.samples.reporting) == (10, 10)
    dynamic = model("(float[N,3] x) => (float[N,?] y) <float[3,5] w, float[5] b> { y = Gemm(x, w, b) }")
    grids = [[t.scale for t in r.report.tensors] for r in (result, onnxq.quantize(dynamic, values))]
    assert grids[0] == grids[1]


def test_several_inputs_one_of_them_integer():
    proto = model(
        """(float[N,4] x, int64[N,2] ids) => (float[N,?] y) <float[9,4] table, float[4,5] w, float[5] b, float[8,5] u> {
        e = Gather(table, ids)  f = Flatten(e)  p = MatMul(f, u)  q = Gemm(x, w, b)  y = Add(p, q) }"""
    )
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal((6, 4)).astype(np.float32), "ids": rng.integers(0, 9, (6, 2))}
    result = onnxq.quantize(proto, feeds)
    assert result.report.quality[0].sqnr_db > 25
    assert [i.type.tensor_type.elem_type for i in result.model.graph.input] == [1, 7]


def test_inputs_of_different_sizes(net):
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, h, w)).astype(np.float32)} for h, w in ((5, 7), (9, 4), (6, 6))]
    assert onnxq.quantize(net, feeds).report.samples.fitting == 3


def test_input_specs_tell_names_types_and_shapes():
    proto = model("(float[N,3,H] x, int64[2] i, float s) => (float[?] y) <float[3] w> { y = Mul(w, s) }", check=False)
    assert [str(s) for s in input_specs(proto)] == [
        "input x (float32, N x 3 x H)",
        "input i (int64, 2)",
        "input s (float32, scalar)",
    ]


def test_an_input_that_is_no_tensor_is_refused():
    proto = model("(seq(float[3]) x) => (float[?] y) { y = ConcatFromSequence<axis=0>(x) }", check=False)
    with pytest.raises(ModelError, match="input 'x' is no tensor"):
        input_specs(proto)


def test_a_model_without_inputs_is_refused():
    proto = model("() => (float[2,5] y) <float[2,3] x, float[3,5] w> { y = MatMul(x, w) }")
    with pytest.raises(ModelError, match="no inputs"):
        onnxq.quantize(proto, [{}])


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "tpu"}, "`target` 'tpu' is unknown; expected one of generic-int8, "),
        ({"preset": "w1a1"}, "`preset` 'w1a1' is unknown"),
        ({"tie": ("Mul",)}, "`tie` 'Mul' is unknown; expected one of Add, Concat"),
        ({"samples": 0}, "`samples` must be at least 1, got 0"),
        ({"batch_size": -1}, "`batch_size` must be at least 0"),
        ({"threads": -1}, "`threads` must be at least 0"),
        ({"max_memory": 0}, "`max_memory` must be at least 1"),
        ({"exclude": 3}, "`exclude` must be a list of strings, got 3"),
        ({"per_chanel": True}, "argument 'per_chanel' is unknown; did you mean 'per_channel'"),
    ],
)
def test_options_that_make_no_sense(net, data, settings, message):
    with pytest.raises(UsageError, match=message):
        onnxq.quantize(net, data, **settings)


def test_options_as_a_record_and_as_keywords(net, data):
    base = Options(per_channel=False)
    assert written_bytes(net, data, options=base) == written_bytes(net, data, per_channel=False)
    assert written_bytes(net, data, options=base, per_channel=True) == written_bytes(net, data)


def test_every_option_changes_what_it_says(net, data):
    def scales(result, tensor="w"):
        return next((len(t.scale) for t in result.report.tensors if t.tensor == tensor), 0)

    assert scales(onnxq.quantize(net, data)) == 4
    assert scales(onnxq.quantize(net, data, per_channel=False)) == 1
    assert scales(onnxq.quantize(net, data, exclude=["Conv"])) == 0
    assert scales(onnxq.quantize(net, data, include=["Gemm"])) == 0
    assert onnxq.quantize(net, data, samples=4).report.samples.fitting == 4
    keyed = onnxq.quantize(net, {"pixels": data}, input_keys={"x": "pixels"})
    assert keyed.report.options["input_keys"] == {"x": "pixels"}
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    bright, dark = (onnxq.quantize(net, images, preprocess=Preprocess(scale=s)) for s in (1, 0.1))
    assert bright.report.tensors[0].scale[0] == pytest.approx(10 * dark.report.tensors[0].scale[0])


def test_threads_and_batch_size_bound_what_runs_at_once(net, data, monkeypatch):
    running, most, lock = [0], [0], threading.Lock()
    run = onnxq.execution.session.Session.run

    def counted(self, feed):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            return run(self, feed)
        finally:
            with lock:
                running[0] -= 1

    monkeypatch.setattr(onnxq.execution.session.Session, "run", counted)
    onnxq.quantize(net, data, threads=1)
    assert most[0] == 1
    onnxq.quantize(net, data, threads=4, batch_size=1)
    assert most[0] <= 4


# --- the checks after each pass ---------------------------------------------------------------------------------


class Broken:
    """A pass that claims to preserve the function, and does not."""

    title = "Break"
    preserves = True

    def apply(self, model, context):
        conv = model.graph.nodes[0]
        conv.inputs[1].values = conv.inputs[1].values * np.float32(1.01)
        return Outcome(1)


class DoesNotRun:
    """Claims the same, and leaves a model that no runtime takes."""

    title = "Break"
    preserves = True

    def apply(self, model, context):
        model.graph.nodes[0].attrs["group"] = 7
        return Outcome(1)


@pytest.mark.parametrize(
    ("faulty", "note"),
    [
        (Broken, r"it changed the float model's output 'y' \(SQNR 4\d\.\d dB, expected at least 60\); .*unstable"),
        (DoesNotRun, "the float model does not run with it"),
    ],
)
def test_a_pass_that_changes_the_function_is_undone_and_left_out_with_a_note(net, data, faulty, note):
    before, context = load(net, "net", Options()), Context(feeds=feeds_of(net, data))
    work, (step, normalized) = run_passes((faulty(), Normalize()), before.clone(), context)
    assert work.to_proto() == run_passes((Normalize(),), before, context)[0].to_proto()
    assert (step.name, step.changed, step.kept, step.status) == (faulty.__name__, 0, False, "undone")
    assert re.match(f"undone: {note}", step.notes[0])
    assert re.match(f"Break was left out: {note}", step.warnings[0])
    assert normalized.kept


def test_preparation_keeps_the_function(net, data):
    work, _ = prepare(net, "net", Options(), Context(feeds=feeds_of(net, data)))
    assert_same_function(net, work.to_proto(), 1e-5, {"x": data[:1]})


def feeds_of(proto, arrays):
    return onnxq.CalibrationData(arrays, input_specs(proto))


def test_a_failure_in_the_middle_leaves_nothing_behind(net, data, tmp_path, monkeypatch):
    class Interrupted:
        title = "Interrupt"
        preserves = None

        def apply(self, model, context):
            raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.pipeline.lower.LOWERING", (Interrupted(),))
    (tmp_path / "out.onnx").write_bytes(b"precious")
    with pytest.raises(KeyboardInterrupt):
        onnxq.quantize(net, data, output=tmp_path / "out.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"precious"


# --- the report -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(net, data):
    return onnxq.quantize(net, data, exclude=["Gemm"]).report


def test_the_report_is_strict_json(report):
    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(report.to_json(), parse_constant=refuse)
    assert found["options"]["exclude"] == ["Gemm"]
    assert found["options"]["preprocess"]["layout"] == "auto"
    names = [step["name"] for step in found["steps"] if step["name"] != "CorrectBiasEmpirically"]  # where biases count
    assert names == [
        "Normalize", "RewriteEinsum", "MoveTransposes", "FuseDecomposedOperators", "FoldBatchNorm",
        "RemoveDeadChannels", "EqualizeLayers", "AbsorbBias", "AddQuantizers", "AddTableQuantizers", "SetWeightRanges",
        "SetActivationRanges", "ChooseStorage", "CorrectBias", "SetBiasScales",
        "FuseActivation", "LowerToQdq", "TabulateHardSwish",
    ]  # fmt: skip
    reason = {"reason": "excluded by 'Gemm'", "kind": "excluded", "cause": None}
    assert found["float_nodes"] == [{"node": "Gemm_y", "op": "Gemm", **reason}]
    status = {step["name"]: (step["title"], step["status"]) for step in found["steps"]}
    assert status["FuseDecomposedOperators"] == ("Fuse decomposed operators", "nothing to do")
    assert status["CorrectBias"] == ("Bias correction", "kept")
    assert status["LowerToQdq"] == ("Lower to QDQ", "done")
    skips = {step["name"]: step["skips"] for step in found["steps"]}
    assert skips["AddQuantizers"] == [["Gemm_y", "excluded by 'Gemm'"]]
    assert (found["integer_nodes"], found["samples"]["fitting"], found["samples"]["reporting"]) == (2, 10, 10)
    kinds = {t["tensor"]: (t["kind"], t["grid"], len(t["scale"]), t["axis"]) for t in found["tensors"]}
    assert kinds["x"] == ("activation", "uint8", 1, None)
    assert next(kinds[name] for name in kinds if name.startswith("w")) == ("constant", "int8 narrow", 4, 0)
    assert found["source"]["nodes"] == 6
    assert found["runtime_operators"]["QLinearConv"] == 1


def test_figures_that_are_not_finite_are_null(report):
    broken = onnxq.Report(**{**vars(report), "seconds": float("nan")})
    assert json.loads(broken.to_json())["seconds"] is None


def test_the_text_is_short_and_verbose_lists_everything(report):
    short, long = report.to_text(), report.to_text(verbose=True)
    assert "2 nodes in integers, 1 in float" in short
    assert "in float: 1 Gemm: excluded by 'Gemm'" in short
    assert "in float: Gemm_y (Gemm): excluded by 'Gemm'" in long
    assert "Lower to QDQ:" in long
    assert "Fuse decomposed operators: nothing to do" in long
    assert "ONNX Runtime runs: " in long
    assert "Lower to QDQ:" not in short


def test_names_cannot_reach_the_terminal_with_control_characters(data):
    proto = model(NET)
    proto.graph.node[-1].name = "evil\x1b[2J\nname"
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "out\x07\nput"
    left = {"exclude": ["Gemm"], "latency": "off"}  # whose lines depend on the machine
    report = onnxq.quantize(proto, data, **left).report
    text = report.to_text(verbose=True)
    assert "evil\\x1b[2J\\nname" in text
    assert all(c.isprintable() or c == "\n" for c in text)
    ordinary = onnxq.quantize(model(NET), data, **left).report.to_text(True)
    assert len(text.splitlines()) == len(ordinary.splitlines())
    json.loads(report.to_json())


def test_warnings_reach_the_report(data):
    proto = model(
        "(float[N,3] x) => (float[N,5] a, int64[N,3] y) <float[3,5] w> { a = MatMul(x, w) y = Cast<to=7>(x) }"
    )
    report = onnxq.quantize(proto, samples(proto)).report
    assert "warning: output 'y' was not compared" in report.to_text()


@pytest.mark.parametrize(("count", "warned"), [(1, True), (31, True), (32, False)])
def test_few_samples_are_enough_to_run_but_not_to_trust(count, warned):
    """With one row an MLP seemed to lose nothing, and failed on any other data: all its channels looked constant."""
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal((32, 32)) / 4 for i in range(3)}
    text = "h = MatMul(x, w0) r = Relu(h) i = MatMul(r, w1) s = Relu(i) y = MatMul(s, w2)"
    proto = model(
        f"(float[N,32] x) => (float[N,32] y) <{', '.join(f'float[32,32] {w}' for w in weights)}> {{ {text} }}",
        **weights,
    )
    result = onnxq.quantize(proto, rng.standard_normal((count, 32)).astype(np.float32))
    other = {"x": rng.standard_normal((100, 32)).astype(np.float32)}
    expected, found = run(proto, other)["y"], run(result.model, other)["y"]
    assert np.square(found - expected).mean() < np.square(expected).mean() / 4
    assert [w.startswith(f"{count} calibration samples are few") for w in result.report.warnings] == [True] * warned


def test_calibration_data_is_checked_before_anything_is_written(net, tmp_path):
    with pytest.raises(DataError, match="has nan"):
        onnxq.quantize(net, np.full((2, 3, 4, 4), np.nan, np.float32), output=tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_output_cannot_be_the_input(net, data, tmp_path):
    storage.write(net, tmp_path / "in.onnx")
    with pytest.raises(onnxq.OnnxqError, match="the output is the input model itself"):
        onnxq.quantize(tmp_path / "in.onnx", data, output=tmp_path / "in.onnx")
    assert onnx.load(tmp_path / "in.onnx") == net
