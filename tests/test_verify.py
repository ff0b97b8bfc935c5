import numpy as np
import onnx
import pytest
from graphs import model, weights
from onnx import numpy_helper
from quantized import quantized, samples

import onnxq
from onnxq import api
from onnxq.data import Feed
from onnxq.errors import EngineError, VerificationError
from onnxq.execution.services import Services
from onnxq.execution.session import Session
from onnxq.graph import storage
from onnxq.pipeline import verify

MLP = """(float[N,3] x) => (float[N,7] y) <float[3,5] w, float[5] b, float[5,7] v>
    { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }"""


def feeds(proto, count=4):
    return [Feed(feed, 1, "") for feed in samples(proto, count)]


def written(proto, folder):
    path = folder / "model.onnx"
    storage.write(proto, path)
    return path


def replace_weight(proto, name, values):
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@pytest.fixture
def pair():
    proto = model(MLP)
    return proto, quantized(proto)


def test_a_good_model_passes_with_its_figures(pair, tmp_path):
    proto, result = pair
    verdict = verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))
    (quality,) = verdict.quality
    assert quality.output == "y"
    assert 25 < quality.sqnr_db < 70
    assert quality.top1_agreement is not None
    assert verdict.operators["QGemm"] == 2
    assert verdict.warnings == ()


def test_identical_outputs_have_no_figure(pair, tmp_path):
    proto, _ = pair
    (quality,) = verify.verify(written(proto, tmp_path), proto, feeds(proto), Services(1)).quality
    assert (quality.sqnr_db, quality.runtime_sqnr_db, quality.top1_agreement) == (None, quality.runtime_sqnr_db, 1)


def test_figures_are_those_of_all_samples_together(pair, tmp_path):
    proto, result = pair
    path = written(result, tmp_path)
    (quality,) = verify.verify(path, proto, feeds(proto), Services(2)).quality
    float_model, integer_model = Session(proto), Session(path)
    pairs = [(float_model.run(f)["y"], integer_model.run(f)["y"]) for f in (given.arrays for given in feeds(proto))]
    signal = sum(np.square(np.float64(x)).sum() for x, _ in pairs)
    noise = sum(np.square(np.float64(x) - y).sum() for x, y in pairs)
    assert quality.sqnr_db == pytest.approx(10 * np.log10(signal / noise))
    assert quality.top1_agreement == np.mean([x.argmax() == y.argmax() for x, y in pairs])


def test_an_invalid_model_is_refused(pair, tmp_path):
    proto, result = pair
    result.graph.node[-1].output[0] = "elsewhere"
    with pytest.raises(VerificationError, match="not valid ONNX"):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


def test_shapes_that_do_not_fit_are_refused(pair, tmp_path):
    proto, result = pair
    result.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    with pytest.raises(VerificationError, match="shapes do not fit"):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


def test_wrong_shapes_that_the_float_model_declares_too_are_not_our_fault():
    proto = model(MLP, check=False)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    quantized(proto)


def test_a_model_that_does_not_load_is_refused(pair, tmp_path):
    proto, result = pair
    node = next(n for n in result.graph.node if n.op_type == "Gemm")
    node.domain = "unheard.of"
    result.opset_import.append(onnx.helper.make_opsetid("unheard.of", 1))
    with pytest.raises(VerificationError, match="does not run"):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


def test_a_float_model_that_does_not_load_is_not_a_fault_of_the_result(pair, tmp_path):
    proto, result = pair
    proto.graph.node[0].domain = "unheard.of"
    with pytest.raises(EngineError):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


def test_outputs_that_are_not_finite_are_refused(pair, tmp_path):
    proto, result = pair
    replace_weight(result, "v_scale", np.full_like(weights(result)["v_scale"], np.inf))
    with pytest.raises(VerificationError, match="'y' of the quantized model holds infinity or not-a-number"):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


def test_infinities_of_the_float_model_itself_are_accepted(tmp_path):
    proto = model("(float[N,3] x) => (float[N,?] y) <float[3,5] w> { a = MatMul(x, w) r = Relu(a) y = Log(r) }")
    verdict = verify.verify(written(quantized(proto), tmp_path), proto, feeds(proto), Services(1))
    assert verdict.quality[0].sqnr_db is not None


def test_a_result_far_from_the_float_model_gets_a_warning(pair, tmp_path):
    proto, result = pair
    replace_weight(result, "v_scale", -weights(result)["v_scale"])
    verdict = verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))
    assert verdict.warnings[0].startswith("output 'y' is far from the float model's (SQNR -6.0 dB)")


def test_an_output_without_floats_is_compared_in_front_of_what_selects(tmp_path):
    proto = model("(float[N,3] x) => (int64[N] y) <float[3,5] w> { a = MatMul(x, w) y = ArgMax<keepdims=0,axis=1>(a) }")
    verdict = verify.verify(written(quantized(proto), tmp_path), proto, feeds(proto), Services(1))
    (quality,) = verdict.quality
    assert (quality.output, quality.compared_at, quality.in_front_of) == ("y", "a", "ArgMax")
    assert 25 < quality.sqnr_db < 70
    assert quality.top1_agreement is None
    assert verdict.warnings == ()


def test_an_output_of_which_nothing_can_be_compared_is_unknown(tmp_path):
    proto = model(
        "(float[N,3] x) => (float[N,5] y, int64[N,3] i) <float[3,5] w> { y = MatMul(x, w) i = Cast<to=7>(x) }"
    )
    verdict = verify.verify(written(quantized(proto), tmp_path), proto, feeds(proto), Services(1))
    known, unknown = verdict.quality
    assert (known.output, known.is_unknown) == ("y", False)
    assert (unknown.output, unknown.is_unknown, unknown.sqnr_db) == ("i", True, None)
    (warning,) = verdict.warnings
    assert warning.startswith("output 'i' was not compared")
    assert "its quality is unknown" in warning


def test_rows_that_fill_up_a_batch_do_not_count_but_an_output_without_batch_counts_in_full(tmp_path):
    proto = model("(float[4,3] x) => (float[4,?] y, float[?,4] z) <float[3,5] w> { y = MatMul(x, w) z = Transpose(y) }")
    result = quantized(proto, [{"x": np.ones((4, 3), np.float32)}])
    feed = {"x": np.float32([[1, 1, 1], [1, 0, 1], [9, 9, 9], [9, 9, 9]])}
    one = verify.verify(written(result, tmp_path), proto, [Feed(feed, 2, "")], Services(1)).quality
    all_rows = verify.verify(written(result, tmp_path), proto, [Feed(feed, None, "")], Services(1)).quality
    assert one[0].sqnr_db > all_rows[0].sqnr_db + 10  # 9 lies outside the calibrated range
    assert one[1].sqnr_db == all_rows[1].sqnr_db


@pytest.fixture(params=["quantized"])
def wrong_kernels(monkeypatch, request):
    """ONNX Runtime's optimised sessions negate what they compute: of quantized models, or of `all`."""
    start, run = Session.__init__, Session.run

    def init(self, source, *, optimize=False, **options):
        proto = source if isinstance(source, onnx.ModelProto) else onnx.load(source)
        is_quantized = any(node.op_type == "QuantizeLinear" for node in proto.graph.node)
        self.is_wrong = optimize and (is_quantized or request.param == "all")
        start(self, source, optimize=optimize, **options)

    def wrong(self, feed):
        outputs = run(self, feed)
        return {name: -x for name, x in outputs.items()} if self.is_wrong else outputs

    monkeypatch.setattr(Session, "__init__", init)
    monkeypatch.setattr(Session, "run", wrong)


def test_integer_kernels_that_compute_something_else_are_refused(pair, tmp_path, wrong_kernels):
    proto, result = pair
    with pytest.raises(VerificationError, match="optimised integer kernels do not agree"):
        verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))


@pytest.mark.parametrize("wrong_kernels", ["all"], indirect=True)
def test_what_a_default_session_changes_of_the_float_model_too_is_a_warning(pair, tmp_path, wrong_kernels):
    proto, result = pair
    verdict = verify.verify(written(result, tmp_path), proto, feeds(proto), Services(1))
    (said,) = (text for text in verdict.warnings if "float model, too" in text)
    assert "output 'y'" in said
    assert "graph_optimization_level = ORT_DISABLE_ALL" in said


@pytest.mark.usefixtures("wrong_kernels")
def test_nothing_is_written_where_verification_fails(tmp_path):
    output = tmp_path / "out.onnx"
    output.write_bytes(b"precious")
    proto = model(MLP)
    with pytest.raises(VerificationError):
        onnxq.quantize(proto, samples(proto), output=output)
    assert output.read_bytes() == b"precious"
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_a_corrupted_file_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    def corrupt(proto, path):
        proto.graph.node[-1].input[0] = "nothing"
        storage_write(proto, path)

    storage_write = storage.write
    monkeypatch.setattr(api.storage, "write", corrupt)
    proto = model(MLP)
    with pytest.raises(VerificationError, match="not valid ONNX"):
        onnxq.quantize(proto, samples(proto), output=tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


# --- what will run ---------------------------------------------------------------------------------------------------

PRODUCTS = "(float[N,64] x) => (float[N,48] y) <float[64,64] w, float[64,48] v> { a = MatMul(x, w) y = MatMul(a, v) }"


def outlying(proto, count=16):
    """Samples of which some features are far larger than the others of their block."""
    found = samples(proto, count, free=4)
    for feed in found:
        feed["x"][:, ::16] *= 300
    return found


def test_what_onnx_runtime_does_to_activations_is_measured_and_said():
    weight = np.random.default_rng(0).standard_normal((64, 64)) * (np.arange(64)[:, None] % 16 > 0)
    proto = model(PRODUCTS, w=weight)  # which reads none of the large features
    result = onnxq.quantize(proto, outlying(proto), preset="w8", block_size=16, rounding="nearest")
    (quality,) = result.report.quality
    assert result.report.runtime_operators["MatMulNBits"] == 2
    (said,) = (text for text in result.report.warnings if "MatMulNBits" in text)
    assert "session.qdq_matmulnbits_accuracy_level = 1" in said
    assert f"leaves {quality.sqnr_db:.1f} dB of the" in said  # the figure is that of a default session
    exact = Session(result.model, optimize=True, exact_products=True)
    default, plain = Session(result.model, optimize=True), Session(result.model)
    feed = outlying(proto)[0]
    np.testing.assert_allclose(exact.run(feed)["y"], plain.run(feed)["y"], rtol=1e-3, atol=1)
    assert np.abs(default.run(feed)["y"] - plain.run(feed)["y"]).max() > 1


def failing(model, **options):
    raise EngineError("no kernel")


@pytest.mark.parametrize("target", ["ort", "qnn"])
def test_a_runtime_that_fails_on_its_own_rewriting_is_a_warning(target, monkeypatch):
    monkeypatch.setattr(verify, "optimized_graph", failing)
    proto = model(MLP)
    result = onnxq.quantize(proto, samples(proto), target=target)
    (said,) = (text for text in result.report.warnings if "own rewriting" in text)
    assert "graph_optimization_level = ORT_DISABLE_ALL" in said
    assert "identical" not in result.report.to_text()
    assert "(computed as written)" in result.report.to_text()


def test_a_model_for_another_tool_chain_is_verified_as_written(monkeypatch):
    proto = model(MLP)
    result = onnxq.quantize(proto, samples(proto), target="qnn")
    (quality,) = result.report.quality
    assert not quality.runs_in_default_session
    assert result.report.runtime_operators == {}


def test_where_a_session_option_changes_the_quality_both_figures_are_said(tmp_path):
    """ONNX Runtime rounds activations to 8 bits beside 8-bit weights, unless it is told not to."""
    w = np.random.default_rng(5).normal(0, 1, (64, 48))
    proto = model("(float[N,64] x) => (float[N,48] y) <float[64,48] w> { y = MatMul(x, w) }", w=w)
    report = onnxq.quantize(proto, samples(proto, 12), preset="w8", rounding="nearest").report
    (quality,) = report.quality
    assert quality.option == "session.qdq_matmulnbits_accuracy_level = 1"
    assert quality.option_sqnr_db > quality.sqnr_db + 0.5
    assert "dB with the session option session.qdq_matmulnbits_accuracy_level = 1" in report.to_text()
    unlike = onnxq.quantize(proto, samples(proto, 12), preset="w16", rounding="nearest").report.quality[0]
    assert unlike.option is None
