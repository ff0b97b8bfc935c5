"""Training: what is kept, that it goes on where it was, losses, and views of images."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import model, run
from onnx import ModelProto

torch = pytest.importorskip("torch")

from one_thread import one_thread  # noqa: E402, F401

from onnxq.errors import DataError, OnnxqError, UsageError  # noqa: E402
from onnxq.options import Options  # noqa: E402
from onnxq.pipeline.open_inputs import input_specs, open_data  # noqa: E402
from onnxq.qat import Recipe, train  # noqa: E402
from onnxq.qat import pipeline as qat_pipeline  # noqa: E402
from onnxq.qat.loss import CrossEntropy, Distillation, agreement, is_scores, load_loss  # noqa: E402
from onnxq.qat.samples import Augmentation, TrainingSamples, read_samples  # noqa: E402

NET = """(float[N,3,8,8] x) => (float[N,5] y) <float[6,3,3,3] w, float[6] b, float[6,6,3,3] v, float[6] c,
float[96,5] u> {
    h = Conv<pads=[1,1,1,1]>(x, w, b)
    r = Relu(h)
    k = Conv<strides=[2,2],pads=[0,0,1,1]>(r, v, c)
    s = Relu(k)
    f = Flatten(s)
    y = Gemm(f, u)
}"""
LAST = 0.02 * np.random.default_rng(7).standard_normal((96, 5))
"""Scores of a few units, so that probabilities are not all 0 or 1."""

SHORT = Recipe(steps=48, batch=16, evaluations=4, lr=1e-3, scale_lr=2e-2, augment=())
WIDE = {"cle": "off", "absorb": False, "dead_channels": False, "activation_range": "minmax"}
OPTIONS = Options(preset="w8a3", force_int_kernels=True, threads=1, **WIDE)
"""Ranges far too wide: what training finds out serves all samples, even of noise."""


def images(count: int = 320) -> np.ndarray:
    return np.asarray(np.random.default_rng(5).normal(0, 1, (count, 3, 8, 8)), np.float32)


def network(text: str = NET) -> ModelProto:
    return model(text, u=LAST)


def trained(recipe: Recipe = SHORT, options: Options = OPTIONS, **given):
    return train(network(), images(), recipe=recipe, options=options, **given)


def steps_of(result) -> list[str]:
    return list(next(s for s in result.report.steps if s.name == "Train").notes)


def training_of(recipe: Recipe = SHORT, samples: TrainingSamples | None = None, options: Options = OPTIONS):
    """A training before it runs."""
    task = qat_pipeline._open_task(network(), images(), options, None, None, None)
    return qat_pipeline._initialized(task, samples or TrainingSamples({"x": images()}), recipe, None)[0]


def test_training_brings_the_quantized_network_nearer() -> None:
    training = training_of(replace(SHORT, steps=96))
    training.run()
    start, best = training.history[0], training.best
    assert best.step > 0
    assert best.loss < 0.8 * start.loss
    assert best.same >= start.same


def test_the_result_is_verified_and_computes_what_was_trained() -> None:
    result = trained()
    assert result.same == 1
    assert result.sqnr_db > 40
    assert [s.name for s in result.report.steps][-4:] == ["Train", "SetBiasScales", "FuseActivation", "LowerToQdq"]
    assert run(result.model, {"x": images(2)})["y"].shape == (2, 5)


def test_two_runs_give_the_same_bytes() -> None:
    first, second = (trained().model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_what_is_worse_than_the_start_is_not_kept() -> None:
    result = trained(replace(SHORT, steps=4, evaluations=2, lr=1.0, scale_lr=1.0))  # wrecks the scales
    assert "at step 0, which is kept" in steps_of(result)[0]
    assert any("training made nothing better" in w for w in result.report.warnings)


def test_the_best_state_has_the_lowest_loss_and_agrees_no_less_than_the_start() -> None:
    training = training_of(replace(SHORT, batch=64))
    scores, others = torch.eye(5)[:2], torch.eye(5)[[0, 2]]  # `others` agrees with one of two
    scores_in_turn = iter([(3.0, scores), (2.0, scores), (2.5, scores), (1.0, others), (1.5, scores), (1.6, scores)])

    def compare(samples: TrainingSamples) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        loss, outputs = next(scores_in_turn)
        return torch.tensor(loss), {"y": outputs}, {"y": scores}

    training._compare = compare
    for step in range(6):
        training._evaluate(step)
        assert training.best.step == [0, 1, 1, 1, 4, 4][step]


def test_fixed_ranges_stay() -> None:
    training = training_of(replace(SHORT, learn_ranges=False))
    training.run()
    before, after = training.student.model.quantizers, training.student.written().quantizers
    for name, quantizer in before.items():
        np.testing.assert_array_equal(quantizer.params.scale, after[name].params.scale)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    options = replace(OPTIONS, checkpoint=str(tmp_path))
    whole = training_of()
    whole.run()

    class InterruptedTrainingError(Exception):
        pass

    def interrupt(label: str, done: int, total: int) -> None:
        if done == 30:
            raise InterruptedTrainingError

    first = training_of(options=options)
    first.progress = interrupt
    with pytest.raises(InterruptedTrainingError):
        first.run()
    second, seen = training_of(options=options), []
    second.progress = lambda label, done, total: seen.append(done)
    second.run()
    assert seen[0] == 25  # evaluated and saved every 12 steps
    assert second.history == whole.history
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, second.state[name]), name


def test_training_ends_where_nothing_gets_better() -> None:
    training = training_of(replace(SHORT, lr=1.0, patience=1))
    training.run()
    assert training.history[-1].step == 12


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    training = training_of()
    training.loss = lambda outputs, reference, labels: outputs["y"].sum() * math.nan
    with pytest.raises(OnnxqError, match="diverged"):
        training.run()


def test_inner_tensors_are_learned_too() -> None:
    training = training_of(replace(SHORT, distill=("r", "s")))
    training.run()
    assert training.inner == ("r", "s")
    assert training.best.step > 0
    with pytest.raises(UsageError, match="matches no inner float tensor"):
        training_of(replace(SHORT, distill=("nowhere*",)))


def test_labels_are_learned_where_there_are_any() -> None:
    labels = run(network(), {"x": images()})["y"].argmax(1)
    training = training_of(samples=TrainingSamples({"x": images()}, labels))
    assert training.loss == CrossEntropy()
    training.run()
    assert training.best.loss < training.history[0].loss


def test_cross_entropy_refuses_classes_that_are_not_there() -> None:
    scores = {"y": torch.zeros(2, 3)}
    with pytest.raises(DataError, match="classes 1 to 3"):
        CrossEntropy()(scores, scores, torch.tensor([1, 3]))


def test_distillation_is_zero_for_equal_outputs_and_kl_otherwise() -> None:
    t, y = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.5, 2.5, 0.0]])
    loss = Distillation(("y",), temperature=2.0)
    assert float(loss({"y": t}, {"y": t}, None)) == pytest.approx(0, abs=1e-7)
    p, q = ((x / 2).softmax(1) for x in (t, y))
    expected = 4 * float((p * (p.log() - q.log())).sum())
    assert float(loss({"y": y}, {"y": t}, None)) == pytest.approx(expected, rel=1e-5)
    soft = {"y": t.softmax(1)}  # probabilities: the same loss as of their logits
    assert float(loss({"y": y.softmax(1)}, soft, None)) == pytest.approx(expected, rel=1e-5)


def test_outputs_that_are_no_scores_are_compared_in_units_of_their_variance() -> None:
    t = torch.randn(4, 2, 7)
    assert not is_scores(t)
    assert float(Distillation(("y",))({"y": t + t.std(correction=0)}, {"y": t}, None)) == pytest.approx(1, rel=1e-5)
    assert agreement({"y": t}, {"y": t}) == (0, 0)


def test_a_loss_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def far(y, t, labels): return (y['y'] - t['y']).abs().mean()\ndef wrong(y, t, labels): return 1\n"
    (tmp_path / "my_losses.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = trained(replace(SHORT, loss="my_losses:far"))
    assert result.report.options["training"]["loss"] == "my_losses:far"
    with pytest.raises(UsageError, match="a tensor of one number, got 1"):
        load_loss("my_losses:wrong")({}, {}, None)
    with pytest.raises(UsageError, match="has no function 'missing'"):
        load_loss("my_losses:missing")


def test_models_of_a_fixed_batch_are_trained_in_parts() -> None:
    fixed = network(NET.replace("float[N,3,8,8]", "float[2,3,8,8]").replace("float[N,5]", "float[2,5]"))
    result = train(fixed, images(), recipe=replace(SHORT, steps=6, batch=6), options=OPTIONS)
    assert result.compared == 32
    assert result.same == 1


def test_every_sample_is_drawn_once_an_epoch() -> None:
    samples = TrainingSamples({"x": np.arange(12)})
    rows = np.concatenate([samples.drawn(step, 4, seed=0).arrays["x"] for step in range(3)])
    assert sorted(rows) == list(range(12))
    assert not np.array_equal(rows, np.concatenate([samples.drawn(s, 4, seed=0).arrays["x"] for s in range(3, 6)]))


def test_samples_held_out_are_not_trained_on() -> None:
    kept, held = TrainingSamples({"x": np.arange(100)}).split(1000)
    assert (len(kept), len(held)) == (90, 10)
    seen = [next(part.batches(100)).arrays["x"] for part in (kept, held)]
    assert not set(seen[0]) & set(seen[1])
    assert not set(kept.drawn(3, 20, seed=0).arrays["x"]) & set(seen[1])
    with pytest.raises(DataError, match="at least two samples"):
        TrainingSamples({"x": np.arange(1)}).split(5)


def test_images_are_mirrored_and_shifted_as_a_whole() -> None:
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32), (40, 3, 16, 16)).copy()
    augmentation = Augmentation.of(("flip", "crop"), input_specs(model(NET)))
    views = augmentation.apply(TrainingSamples({"x": ramp}), step=1, seed=0).arrays["x"]
    steps = np.diff(views[:, 0, 0, :], axis=1)
    mirrored = steps.sum(axis=1) < 0
    assert 5 < mirrored.sum() < 35
    assert np.abs(steps).max() == 1  # edges are repeated
    assert len({tuple(v) for v in views[:, 0, 0, :]}) > 4
    np.testing.assert_array_equal(augmentation.apply(TrainingSamples({"x": ramp}), 1, 0).arrays["x"], views)
    assert not Augmentation.of(("flip",), input_specs(model("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))).images


def test_samples_larger_than_memory_lie_in_a_file() -> None:
    specs = input_specs(model(NET))
    with ExitStack() as stack:
        data = open_data(images(), specs, Options(), None, None)
        samples = read_samples(data, None, 1000, stack)
        assert isinstance(samples.arrays["x"], np.memmap)
        np.testing.assert_array_equal(samples.arrays["x"], images())


def test_learning_rates_rise_and_fall() -> None:
    recipe = Recipe(steps=100, warmup=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert math.isclose(rates[99], 0, abs_tol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"steps": 0}, "steps"), ({"lr": 2.0}, "`lr` must be above 0, at most 1"), ({"augment": ("x",)}, "augment")],
)
def test_recipes_that_make_no_sense(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe(**wrong)
