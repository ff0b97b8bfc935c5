"""The options that most people need, and an example for each heading of the help; a test parses all of them."""

from __future__ import annotations

from typing import Any

from ..data.images import IMAGES
from ..options import DATA, DATA_FREE, ENCODINGS, LATENCY, OUTPUT, RANGES, RUNNING, STEPS, TARGET
from ..qat.recipe import TRAINING
from ..toolchains import TOOLCHAIN

MEASURING = "Measuring"
MIXED = "Mixed precision"
DEBUGGING = "Debugging (figure 9 of the white paper)"

_IMAGES = ("mean", "std")

_EXAMPLES = {
    DATA: "--samples 300",
    IMAGES: "--resize 256 --crop 224 --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
    TARGET: "--target tensorrt --exclude Softmax",
    STEPS: "--rounding adaround --effort high",
    RANGES: "--activation-range percentile:99.99",
    RUNNING: "--threads 4 --max-memory 2048",
    MEASURING: "--labels labels.csv --metric top1",
    OUTPUT: "--json",
}

_QUANTIZE = {
    **_EXAMPLES,
    MEASURING: "--eval-data val/ --labels val.csv",
    DATA_FREE: "--data-free --input-range image=-2.1,2.6",
    ENCODINGS: "--encodings model.encodings --encodings-version 2.0.0",
    MIXED: "--auto-mixed w4,w8,a8,a16 --target-drop 1",
    TOOLCHAIN: "--target qnn --toolchain",
    LATENCY: "--latency tune",
    OUTPUT: "--report report.html -v",
}

_DEBUG = {**_EXAMPLES, DEBUGGING: "--target-drop 0.5 --eval val/", OUTPUT: "-o int8.onnx --report debug.html"}

_QAT = {
    **_EXAMPLES,
    DATA: "--labels train.csv",
    TRAINING: "--steps 5000 --lr 0.005",
    LATENCY: "--latency off",
    OUTPUT: "--report report.html",
}

_EVALUATE = {**_EXAMPLES, MEASURING: "--labels val.csv --reference model.onnx", RUNNING: "--threads 4"}

_CHECK = {
    **_EXAMPLES,
    TARGET: "",
    DATA: "--toolchain --calib images/",
    TOOLCHAIN: "--toolchain",
    RUNNING: "--custom-ops ./libops.so",
}

LOOKS: dict[str, dict[str, Any]] = {
    "quantize": {
        "usual": "model.onnx int8.onnx --calib images/",
        "common": ("calib", "samples", *_IMAGES, "target", "preset", "exclude", "effort", "eval_data", "labels",
                   "reports", "dry_run", "verbose"),
        "examples": _QUANTIZE,
    },
    "qat": {
        "usual": "model.onnx int8.onnx --data train/",
        "common": ("data", "labels", *_IMAGES, "target", "preset", "steps", "lr", "augment", "checkpoint", "reports",
                   "verbose"),
        "examples": _QAT,
    },
    "debug": {
        "usual": "model.onnx --calib images/",
        "common": ("calib", *_IMAGES, "target", "preset", "labels", "metric", "target_drop", "evaluation", "output",
                   "write_config", "reports"),
        "examples": _DEBUG,
    },
    "calibrate": {
        "usual": "model.onnx statistics.npz --calib images/",
        "common": ("calib", "samples", *_IMAGES, "freeze", "threads", "scheduler", "as_json", "quiet"),
        "examples": {**_EXAMPLES, TARGET: "--freeze batch=1"},
    },
    "sensitivity": {
        "usual": "model.onnx --calib images/",
        "common": ("calib", *_IMAGES, "target", "preset", "labels", "metric", "by", "budget", "top", "as_json"),
        "examples": {**_EXAMPLES, OUTPUT: "--top 20 --json"},
    },
    "compare": {
        "usual": "model.onnx int8.onnx --calib images/",
        "common": ("calib", "samples", *_IMAGES, "as_json", "verbose"),
        "examples": _EXAMPLES,
    },
    "evaluate": {
        "usual": "int8.onnx --data val/",
        "common": ("data", "labels", "metric", "reference", "samples", *_IMAGES, "optimized", "as_json"),
        "examples": _EVALUATE,
    },
    "inspect": {
        "usual": "model.onnx",
        "common": ("calib", *_IMAGES, "target", "preset", "exclude", "as_json", "verbose"),
        "examples": {**_EXAMPLES, DATA: "--calib images/", RUNNING: "--custom-ops ./libops.so"},
    },
    "check": {
        "usual": "int8.onnx --target qnn",
        "common": ("target", "toolchain", "calib", *_IMAGES, "as_json", "verbose"),
        "examples": _CHECK,
    },
    "targets": {"usual": "", "examples": {OUTPUT: "qnn --json"}},
}  # fmt: skip
"""Command -> the arguments of a usual call, the options that --help shows, heading -> options of an example."""
