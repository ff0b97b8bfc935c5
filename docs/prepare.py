"""Makes a folder to follow the tutorials in: `python docs/prepare.py FOLDER`. All pages are tested in such a folder.

model.onnx             the bundled MobileNetV2 of digits
images/, eval/         a hundred of its images each, as PNG files: to calibrate on, and to judge on
labels.csv, eval.csv   their classes, `file,class` a line
models/                the three bundled networks with their data
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MODELS = Path(__file__).resolve().parents[1] / "models"

SAMPLES = 100
"""Images in each of the two folders."""


def prepare(folder: Path) -> None:
    """Fill a folder, which must not have these things yet."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(MODELS, folder / "models", ignore=shutil.ignore_patterns("__pycache__"))
    network = MODELS / "mobilenet_digits"
    shutil.copy(network / "model.onnx", folder / "model.onnx")
    with np.load(network / "eval.npz") as data:
        images, labels = data["images"], data["labels"]
    for number, (part, table) in enumerate((("images", "labels.csv"), ("eval", "eval.csv"))):
        (folder / part).mkdir()
        chosen = range(number * SAMPLES, (number + 1) * SAMPLES)
        for n in chosen:
            Image.fromarray(images[n]).save(folder / part / f"{n:03}.png")
        (folder / table).write_text("".join(f"{n:03}.png,{labels[n]}\n" for n in chosen), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python docs/prepare.py FOLDER")
    prepare(Path(sys.argv[1]))
    print(f"cd {sys.argv[1]}")
