"""Calibration data against what BatchNorm remembers of training, and what can be seen without any network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from graphs import model
from PIL import Image

from onnxq import quantize
from onnxq.calibration.check_data import DataCheck, check_data
from onnxq.calibration.context import Context
from onnxq.calibration.preprocessing import CONVENTIONS
from onnxq.cli import main
from onnxq.data import CalibrationData, Preprocess
from onnxq.errors import DataError
from onnxq.options import Options
from onnxq.pipeline.open_inputs import input_specs
from onnxq.pipeline.prepare import prepare
from onnxq.thresholds import FEWEST_OF_ONE_CLASS

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SYMMETRIC = {"scale": 1.0, "mean": (127.5,), "std": (127.5,)}
RAW = {"scale": 1.0}
FORMS: dict[str, dict[str, object]] = {
    "0 to 255": RAW,
    "0 to 1": {},
    "-1 to 1": SYMMETRIC,
    CONVENTIONS[3].name: IMAGENET,
}
SIZE = 16


def pixels(count: int = 24, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Smooth images, redder than they are blue, N x H x W x C."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1, (count, 4, 4, channels))
    fine = coarse.repeat(4, 1).repeat(4, 2) + 0.05 * rng.standard_normal((count, SIZE, SIZE, channels))
    tint = np.array([1.0, 0.8, 0.6])[:channels]
    return np.clip(255 * fine * tint, 0, 255).astype(np.uint8)


def inputs_of(images: np.ndarray, form: dict[str, object]) -> np.ndarray:
    """Finished inputs, N x C x H x W."""
    scale, mean, std = (np.asarray(form.get(k, v)) for k, v in (("scale", 1 / 255), ("mean", 0.0), ("std", 1.0)))
    return np.ascontiguousarray(((images * scale - mean) / std).transpose(0, 3, 1, 2), np.float32)


def trained_on(
    images: np.ndarray, form: dict[str, object], *, folds: bool = True, channels: int = 3
) -> onnx.ModelProto:
    """A Conv with a BatchNorm that remembers these images in this form; behind a Relu it cannot be folded."""
    shape = f"{channels},{SIZE},{SIZE}"
    between = "r = Relu(c) n = BatchNormalization(r, g, o, mean0, var0)"
    first = "n = BatchNormalization(c, g, o, mean0, var0)" if folds else between
    text = (
        f"(float[N,{shape}] x) => (float[N,12,{SIZE},{SIZE}] y, float[N,12,{SIZE},{SIZE}] c)"
        f"<float[12,{channels},3,3] w, float[12] g, float[12] o, float[12] mean0, float[12] var0>"
        f"{{ c = Conv<pads=[1,1,1,1]>(x, w) {first} y = Relu(n) }}"
    )
    probe = model(text, seed=3)
    session = ort.InferenceSession(probe.SerializeToString())
    seen = session.run(["c"], {"x": inputs_of(images, form)})[0]
    seen = np.maximum(seen, 0) if not folds else seen
    proto = model(text, seed=3, mean0=seen.mean((0, 2, 3)), var0=seen.var((0, 2, 3)))
    del proto.graph.output[1]
    return proto


def checked(proto: onnx.ModelProto, source: object, **form: object) -> DataCheck:
    prepared, _ = prepare(proto, "model", Options(), Context())
    data = CalibrationData(source, input_specs(proto), preprocess=Preprocess(**form))  # type: ignore[arg-type]
    return check_data(prepared, data)


@pytest.mark.parametrize("folds", [True, False])
@pytest.mark.parametrize("right", FORMS)
@pytest.mark.parametrize("given", FORMS)
def test_the_right_form_of_pixels_is_named(right: str, given: str, folds: bool) -> None:
    proto = trained_on(pixels(seed=1), FORMS[right], folds=folds)
    for source, form in ((pixels(), FORMS[given]), (inputs_of(pixels(), FORMS[given]), {})):
        check = checked(proto, source, **form)
        if given == right:
            assert check.findings == ()
            assert check.fit.layers == 1
            assert "fit what BatchNorm remembers" in check.fit.verdict
        else:
            (finding,) = check.findings
            assert (check.fit.better or "").startswith(right), finding
            assert check.fit.given == given
            assert ("give `scale`" if source.dtype == np.uint8 else "save the arrays") in finding


@pytest.mark.parametrize("form", [SYMMETRIC, IMAGENET])
def test_swapped_colours_are_named(form: dict[str, object]) -> None:
    proto = trained_on(pixels(seed=1), form)
    (finding,) = checked(proto, pixels(), color="bgr", **form).findings
    assert "red and blue swapped" in finding
    assert "give `color` rgb" in finding
    (finding,) = checked(proto, inputs_of(pixels()[..., ::-1], form)).findings
    assert "reverse the order of the channels" in finding
    assert checked(proto, pixels(), **form).findings == ()


def test_gray_inputs_have_no_order() -> None:
    proto = trained_on(pixels(seed=1, channels=1), {}, channels=1)
    assert checked(proto, pixels(channels=1)).findings == ()
    assert checked(proto, pixels(channels=1), **RAW).fit.better is not None


def test_other_images_in_the_right_form_are_not_reported() -> None:
    """Darker ones, as of another camera: no usual form of the pixels fits twice as well."""
    proto = trained_on(pixels(seed=1), SYMMETRIC)
    assert checked(proto, (pixels() * 0.9).astype(np.uint8), **SYMMETRIC).findings == ()


def test_data_that_no_form_repairs() -> None:
    proto = trained_on(pixels(seed=1), SYMMETRIC)
    noise = np.random.default_rng(0).integers(0, 2, (16, SIZE, SIZE, 3)).astype(np.uint8) * 255
    (finding,) = checked(proto, noise, **SYMMETRIC).findings
    assert "whether it is the right data" in finding


def test_a_network_without_batchnorm_remembers_nothing() -> None:
    proto = model("(float[N,3,16,16] x) => (float[N,4,14,14] y) <float[4,3,3,3] w> { y = Conv(x, w) }")
    check = checked(proto, pixels())
    assert (check.fit.layers, check.findings) == (0, ())
    assert "no BatchNorm" in check.fit.verdict


def test_pixels_scaled_twice_are_named_without_batchnorm() -> None:
    proto = model("(float[N,3,16,16] x) => (float[N,4,14,14] y) <float[4,3,3,3] w> { y = Conv(x, w) }")
    findings = checked(proto, pixels(), mean=(127.5,), std=(127.5,)).findings
    assert "`mean` 127.5 is meant for pixels from 0 to 255" in findings[0]
    assert "hardly varies" in findings[1]
    (finding,) = checked(proto, inputs_of(pixels(), {"mean": 127.5, "std": 127.5})).findings
    assert "hardly varies" in finding
    assert checked(proto, pixels(), **SYMMETRIC).findings == ()


def test_constant_and_repeated_samples() -> None:
    proto = model("(float[N,3,16,16] x) => (float[N,4,14,14] y) <float[4,3,3,3] w> { y = Conv(x, w) }")
    arrays = inputs_of(pixels(4), {})
    arrays[1], arrays[3] = 0.5, arrays[0]
    first, second = checked(proto, arrays).findings
    assert "one value everywhere in 1 of 4" in first
    assert "1 of 4 samples looked at repeat another one" in second


def test_a_constant_mask_beside_other_inputs_is_normal() -> None:
    proto = model("(float[N,4] x, float[N,4] mask) => (float[N,4] y) { y = Add(x, mask) }")
    rng = np.random.default_rng(0)
    samples = [{"x": rng.standard_normal((1, 4)).astype(np.float32), "mask": np.zeros((1, 4), np.float32)}] * 1
    assert checked(proto, samples).findings == ()


def test_holds_images(tmp_path: Path) -> None:
    proto = trained_on(pixels(seed=1), {})
    Image.fromarray(pixels(1)[0]).save(tmp_path / "0.png")
    for source, expected in ((tmp_path, True), (pixels(2), True), (inputs_of(pixels(2), {}), False)):
        assert CalibrationData(source, input_specs(proto)).holds_images is expected


def test_small_and_gray_images(tmp_path: Path) -> None:
    proto = model("(float[N,3,16,16] x) => (float[N,4,14,14] y) <float[4,3,3,3] w> { y = Conv(x, w) }")
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (5, 5), np.uint8)).save(tmp_path / f"{number}.png")
    small, gray = checked(proto, tmp_path).findings
    assert "3 of 3 images looked at are enlarged more than 2 times, from 5 x 5 to 16 x 16" in small
    assert "all 3 images looked at are gray" in gray
    Image.fromarray(pixels(1)[0]).save(tmp_path / "0.png")
    (small,) = checked(proto, tmp_path).findings
    assert "2 of 3" in small


def test_quantize_warns_and_strict_refuses(tmp_path: Path) -> None:
    proto = trained_on(pixels(seed=1), SYMMETRIC)
    report = quantize(proto, pixels(), preprocess=Preprocess(), rounding="nearest").report
    assert [w for w in report.warnings if "-1 to 1 (misfit" in w]
    right = quantize(proto, pixels(), preprocess=Preprocess(**SYMMETRIC), rounding="nearest", strict=True).report  # type: ignore[arg-type]
    assert not [w for w in right.warnings if "misfit" in w]
    output = tmp_path / "out.onnx"
    with pytest.raises(DataError, match=r"-1 to 1 \(misfit.*`strict` refuses"):
        quantize(proto, pixels(), preprocess=Preprocess(), output=output, strict=True)
    assert not output.exists()


def test_inspect_shows_a_verdict_on_data(tmp_path: Path) -> None:
    onnx.save(trained_on(pixels(seed=1), SYMMETRIC), tmp_path / "model.onnx")
    np.save(tmp_path / "calib.npy", pixels())
    command = ["inspect", str(tmp_path / "model.onnx"), "--calib", str(tmp_path / "calib.npy")]
    wrong = CliRunner().invoke(main, command)
    assert "give --scale 1 --mean 127.5 --std 127.5" in wrong.output, wrong.output
    right = CliRunner().invoke(main, [*command, "--scale", "1", "--mean", "127.5", "--std", "127.5", "--json"])
    assert json.loads(right.output)["data"]["findings"] == []
    assert json.loads(CliRunner().invoke(main, [*command[:2], "--json"]).output)["data"] is None


@pytest.mark.parametrize("count", [6, 24])
def test_samples_of_one_class_are_no_proof(count: int) -> None:
    """As with images far too bright: one class wins everywhere, and agreement of classes says nothing."""
    text = "(float[N,4] x) => (float[N,3] y) <float[4,3] w, float[3] b> { m = MatMul(x, w) y = Add(m, b) }"
    proto = model(text, b=np.float32([0, 90, 0]))
    data = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    report = quantize(proto, data, rounding="nearest").report
    (quality,) = report.quality
    assert (quality.top1_agreement, quality.classes) == (1.0, 1)
    for form in (report.to_text(), report.to_markdown(), report.to_html()):
        assert "all of one class" in form
    warned = [w for w in report.warnings if "into class 1" in w]
    assert len(warned) == (report.samples.reporting >= FEWEST_OF_ONE_CLASS)
    mixed = quantize(model(text), data, rounding="nearest").report
    assert mixed.quality[0].classes in (2, 3)
    assert "all of one class" not in mixed.to_text()
