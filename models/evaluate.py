"""Top-1 accuracy of an ONNX model on one of the example tasks (numpy and onnxruntime only).

    python models/evaluate.py models/resnet_digits/model.onnx --as resnet_digits

MODEL may be any model with the same input and output as the example it is evaluated as, e.g. a quantized one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent

MEAN_STD = {
    "resnet_digits": ((0.0,), (1.0,)),
    "mobilenet_digits": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "vit_digits": ((0.5,), (0.5,)),  # pixel / 127.5 - 1
}
"""What each example expects, by channel: (pixel / 255 - mean) / std."""


def preprocess(name: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn uint8 images (N x H x W x C) into the float input (N x C x H x W) of the example `name`."""
    mean, std = (np.array(values, np.float32) for values in MEAN_STD[name])
    scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def load(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The preprocessed evaluation images of the example `name`, and their labels."""
    with np.load(HERE / name / "eval.npz") as data:
        return preprocess(name, data["images"]), data["labels"]


def top1(model: str | Path | bytes, x: NDArray[np.float32], labels: NDArray[np.int64], batch: int = 100) -> float:
    """The share (0..1) of `x` that the model (a path, or the serialized model) gives its label."""
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), providers=["CPUExecutionProvider"]
    )
    feed = session.get_inputs()[0].name
    hits = 0
    for start in range(0, len(x), batch):
        logits = session.run(None, {feed: x[start : start + batch]})[0]
        hits += int(np.count_nonzero(logits.argmax(axis=1) == labels[start : start + batch]))
    return hits / len(x)


def main() -> None:
    """Evaluate the model named on the command line."""
    parser = argparse.ArgumentParser(description="Top-1 accuracy of an ONNX model on an example task.")
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument("--as", dest="name", choices=MEAN_STD, required=True, help="the example task")
    args = parser.parse_args()
    x, labels = load(args.name)
    accuracy = top1(args.model, x, labels)
    print(f"top-1 {accuracy:.2%} ({round(accuracy * len(x))} of {len(x)} images)")


if __name__ == "__main__":
    main()
