"""The pictures of docs/images/, drawn anew: `python docs/make_figures.py`. A test holds them current.

figure5.svg    ranges of a depthwise layer's output channels, BatchNorm folded: the bundled MobileNetV2
figure8.svg    the pipeline of post-training quantization, as onnxq runs it
figure9.svg    the debugging workflow, as `onnxq debug` runs it

The numbers are those of the white paper's figures (arXiv:2106.08295), which show the same of other networks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "paper"))

from drawing import COLOURS, WIDTH, Picture, arrow, box, boxplots, text

IMAGES = Path(__file__).parent / "images"
MODEL = Path(__file__).parents[1] / "models" / "mobilenet_digits" / "model.onnx"
LAYER = "5.body.3.weight"

REQUIRED, OPTIONAL, ASK, RESULT = COLOURS[0], COLOURS[2], COLOURS[3], "#5a6472"


def figure5() -> Picture:
    """Quartiles of each output channel of a depthwise layer; W gamma / sigma folds BatchNorm into the weights."""
    graph = onnx.load(MODEL).graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    conv = next(node for node in graph.node if LAYER in node.input)
    norm = next(node for node in graph.node if node.op_type == "BatchNormalization" and node.input[0] == conv.output[0])
    gamma, variance = constants[norm.input[1]], constants[norm.input[4]]
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    folded = constants[LAYER].reshape(len(gamma), -1) * (gamma / np.sqrt(variance + epsilon))[:, None]
    shown = folded[:48]
    boxes = [tuple(float(q) for q in np.quantile(channel, (0, 0.25, 0.5, 0.75, 1))) for channel in shown]
    return boxplots(boxes, "Weights of a depthwise layer, BatchNorm folded", "output channel (the first 48)", near=0.1)


def figure8() -> Picture:
    """Boxes downwards: what is always done, and what is done where it helps."""
    steps = [
        ("Import: one form, BatchNorm folded", "3.2: weights and biases as the chip sees them", REQUIRED),
        ("Cross-layer equalization, bias absorption", "3.2: kept where the result is no worse", OPTIONAL),
        ("Add quantizers", "2.3: where the target computes in integers", REQUIRED),
        ("Weight ranges", "3.1: mean squared error", REQUIRED),
        ("Activation ranges", "3.1: from calibration data, or BatchNorm", REQUIRED),
        ("Rounding: GPTQ, coordinate descent, AdaRound", "3.4: needs data; where it pays", OPTIONAL),
        ("Bias correction", "3.3: analytic or empirical", OPTIONAL),
        ("Lower to QDQ, verify on held-out samples", "the float model is the measure", REQUIRED),
    ]
    tall, gap, top = 46, 20, 34
    marks = [box(120, 0, 200, 24, ["float32 model"], RESULT)]
    y = top + 10
    for n, (name, note, colour) in enumerate(steps):
        marks += [arrow(220, 24 if n == 0 else y - gap, 220, y), box(30, y, 380, tall, [name], colour, note)]
        y += tall + gap
    marks += [arrow(220, y - gap, 220, y), box(120, y, 200, 24, ["integer model, report"], RESULT)]
    y += 48
    marks += [f'<rect x="30" y="{y - 11}" width="12" height="12" fill="{REQUIRED}"/>', text(48, y, "always")]
    marks += [
        f'<rect x="110" y="{y - 11}" width="12" height="12" fill="{OPTIONAL}"/>',
        text(128, y, "where it makes the result better"),
    ]
    return Picture(WIDTH, y + 10, tuple(marks), "The pipeline of post-training quantization")


def figure9() -> Picture:
    """Questions downwards, what to do about the answer beside them."""
    rows = [
        (["Float model with all", "quantizers off: as good?"], "no", ["Mend the harness:", "data, labels, code"]),
        (
            ["Weights alone", "quantized: good?"],
            "no",
            ["Equalize; per channel;", "correct biases; round"],
        ),
        (["Activations alone", "quantized: good?"], "no", ["Other ranges; equalize;", "SmoothQuant; absorb biases"]),
        (
            ["Which quantizers", "miss the target alone?"],
            "each",
            ["Uneven channels? Outliers?", "Clipping? Coarse grid?"],
        ),
        (["Still below the target?"], "yes", ["16 bits or float for the few that", "need it; training for the rest"]),
    ]
    tall, gap, y = 46, 28, 48
    marks = [box(0, 0, 190, 26, ["quantized model is bad"], RESULT), arrow(95, 26, 95, 48)]
    for question, answer, remedy in rows:
        marks += [box(0, y, 190, tall, question, ASK), arrow(190, y + tall / 2, 228, y + tall / 2)]
        marks += [text(209, y + tall / 2 - 6, answer, anchor="middle", size=12)]
        marks += [f'<rect x="228" y="{y}" width="212" height="{tall}" rx="6" fill="{OPTIONAL}"/>']
        marks += [
            text(334, y + 20 + 16 * n, words, anchor="middle", fill="#ffffff", size=12)
            for n, words in enumerate(remedy)
        ]
        marks += [arrow(95, y + tall, 95, y + tall + gap)]
        y += tall + gap
    marks += [box(0, y, 190, 26, ["accepted, held out"], RESULT)]
    return Picture(WIDTH, y + 30, tuple(marks), "The debugging workflow")


FIGURES: dict[str, Callable[[], Picture]] = {"figure5.svg": figure5, "figure8.svg": figure8, "figure9.svg": figure9}

if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / name).write_text(draw()._repr_svg_(), encoding="utf-8")
