"""`--auto-mixed` of `onnxq quantize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from ..data import Preprocess
from ..errors import UsageError
from ..evaluation.mixed_precision import Limits, MixedPrecision, auto_mixed
from ..options import Options
from .options import evaluation_options, grouped, options

MIXED = "Mixed precision"

mixed_options = options(
    grouped(
        MIXED,
        "--auto-mixed",
        metavar="WIDTHS",
        help="Choose bits tensor by tensor among these, such as w4,w8,a8,a16, within the limits below.",
    ),
    grouped(
        MIXED,
        "--target-drop",
        type=click.FloatRange(min=0),
        metavar="X",
        help="Allowed loss of --metric: points of top-1 with --labels, else points of agreement with the float model's"
        " top-1; for SQNR dB below the most bits everywhere.",
    ),
    grouped(
        MIXED, "--max-bops", type=click.FloatRange(min=0), metavar="G", help="Allowed 10^9 bit operations a sample."
    ),
    grouped(
        MIXED, "--max-size", type=click.FloatRange(min=0), metavar="MIB", help="Allowed size of the layers' weights."
    ),
    grouped(MIXED, "--closest", is_flag=True, help="Where the limits cannot be kept, take what comes closest."),
    grouped(
        MIXED,
        "--write-config",
        type=click.Path(dir_okay=False),
        help="Write what --auto-mixed chose as a file for --config, which gives the same model.",
    ),
    evaluation_options,
)

NAMES = (
    "auto_mixed",
    "target_drop",
    "max_bops",
    "max_size",
    "closest",
    "write_config",
    "labels",
    "metric",
    "evaluation_samples",
)


@dataclass(frozen=True)
class MixedWish:
    """What the options above ask for."""

    auto_mixed: str
    limits: Limits
    closest: bool
    labels: str | None
    metric: str | None
    evaluation_samples: int | None

    def search(
        self,
        model: str,
        calib: str,
        options: Options,
        preprocess: Preprocess,
        keys: Mapping[str, str],
        progress: Callable[[str, int, int], None],
    ) -> MixedPrecision:
        return auto_mixed(
            model,
            calib,
            self.auto_mixed,
            self.limits,
            labels=self.labels,
            metric=self.metric,
            evaluation_samples=self.evaluation_samples,
            closest=self.closest,
            options=options,
            preprocess=preprocess,
            input_keys=keys,
            progress=progress,
        )


def take_wish(given: dict[str, Any], calib: str | None, stats: Sequence[str]) -> tuple[MixedWish | None, str | None]:
    """The spec, if there is one, and the file to write; their options are taken out of `given`."""
    taken = {name: given.pop(name) for name in NAMES}
    if taken["auto_mixed"] is None:
        idle = [name for name, value in taken.items() if value not in (None, False)]
        if idle:
            raise UsageError(f"--{idle[0].replace('_', '-')} goes with --auto-mixed")
        return None, None
    if calib is None or stats:
        raise UsageError("--auto-mixed needs calibration data (--calib), and no statistics beside it")
    size = None if taken["max_size"] is None else taken["max_size"] * 2**20
    bops = None if taken["max_bops"] is None else taken["max_bops"] * 1e9
    limits = Limits(taken["target_drop"], bops, size)
    spec = MixedWish(
        taken["auto_mixed"], limits, *(taken[n] for n in ("closest", "labels", "metric", "evaluation_samples"))
    )
    return spec, taken["write_config"]
