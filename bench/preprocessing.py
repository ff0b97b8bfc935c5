"""Is right preprocessing told from wrong? On the networks with BatchNorm of ../shared/realmodels.

    python bench/preprocessing.py [NETWORK ...] [--markdown bench/results/preprocessing.md]

Each network gets its own images as it was trained, and with the usual mistakes; what the check would say is put down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cases
import numpy as np
import tables

from onnxq import CalibrationData, Preprocess
from onnxq.calibration.check_data import check_data
from onnxq.calibration.context import Context
from onnxq.data import Source
from onnxq.options import Options
from onnxq.pipeline.open_inputs import input_specs, open_model
from onnxq.pipeline.prepare import prepare

PIXELS = Preprocess(scale=1.0)
UNIT = Preprocess()
SYMMETRIC = Preprocess(scale=1.0, mean=(127.5,), std=(127.5,))
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TWICE = Preprocess(mean=(127.5,), std=(127.5,))
FORMS = {"0 to 255": PIXELS, "0 to 1": UNIT, "-1 to 1": SYMMETRIC, "ImageNet": IMAGENET, "scaled twice": TWICE}


@dataclass(frozen=True)
class Network:
    """form: that of training, in `FORMS`; images: a folder, or an .npz with `images`."""

    name: str
    images: str
    form: str

    def source(self) -> Source:
        path = cases.REAL / self.images
        return np.asarray(np.load(path)["images"]) if path.suffix == ".npz" else path


NETWORKS = {
    each.name: each
    for each in (
        Network("mobilenet_v1_025_imagenet", "mobilenet_v1_025_imagenet/calib", "-1 to 1"),
        Network("effnet_lite0", "mobilenet_v1_025_imagenet/calib", "-1 to 1"),
        Network("deeplab_portrait", "coco128/calib", "-1 to 1"),
        Network("resnet20_cifar10", "resnet20_cifar10/calib.npz", "ImageNet"),
    )
}


def rows(network: Network) -> Iterator[str]:
    proto, origin, _ = open_model(cases.REAL / network.name / "model.onnx")
    prepared, _ = prepare(proto, origin, Options(), Context())
    right = FORMS[network.form]
    given = {"as trained": right, "blue and red swapped": replace(right, color="bgr")}
    given |= {name: form for name, form in FORMS.items() if name != network.form}
    source = network.source()
    for name, preprocess in given.items():
        check = check_data(prepared, CalibrationData(source, input_specs(proto), preprocess=preprocess))
        fit = check.fit
        swapped = "" if fit.swapped_shift is None else f"{fit.shift / fit.swapped_shift:.2f}"
        yield tables.line(network.name, name, f"{fit.misfit:.3g}", swapped, fit.remedy or "none")


def table(networks: list[str]) -> Iterator[str]:
    yield from tables.head("network", "given", "misfit", "shift, of that swapped", "remedy named")
    for name in networks:
        yield from rows(NETWORKS[name])


def main() -> None:
    """The command line."""
    args = tables.parsed(tables.parser(__doc__ or "", NETWORKS), NETWORKS)
    there = [name for name in args.models or NETWORKS if Path(cases.REAL / name).is_dir()]
    text = (
        "Cells: divergence of the first layers' outputs from what BatchNorm remembers of training (`misfit`, see"
        " onnxq/calibration/preprocessing.py), how many times the shift of their means is that with red and blue"
        " swapped, and what the check of the data tells the user to do. deeplab_portrait was trained on portraits and"
        " is given photographs of other things; effnet_lite0 was trained with (pixel - 127) / 128.\n"
    )
    command = "python bench/preprocessing.py --markdown bench/results/preprocessing.md"
    title = "Right and wrong preprocessing, told apart by BatchNorm"
    tables.show((tables.heading(title, command, text), table(there)), args.markdown)


if __name__ == "__main__":
    main()
