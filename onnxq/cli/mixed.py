"""`--auto-mixed` of `onnxq quantize`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import click

from ..errors import UsageError
from ..evaluation.mixed_precision import Limits, MixedPrecision, auto_mixed
from .examples import MEASURING, MIXED
from .options import evaluation_options, grouped, options

mixed_options = options(
    grouped(
        MEASURING,
        "--eval-data",
        type=click.Path(readable=False),
        help="Data to choose between steps and to report on, given as --calib is; instead of calibration samples that"
        " are held out for that.",
    ),
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
    "eval_data",
)

MEASURED = ("labels", "metric", "evaluation_samples", "eval_data")
"""Of these, what measures the result on evaluation data as well."""


def take_measuring(given: dict[str, Any]) -> dict[str, Any]:
    """What measures the result on --eval-data, for `quantize`; the options stay in `given`."""
    return {name: given[name] for name in MEASURED} if given["eval_data"] is not None else {}


def take_search(
    given: dict[str, Any], calib: str | None, stats: Sequence[str]
) -> tuple[Callable[..., MixedPrecision] | None, str | None]:
    """The search that the options above describe, without its model and data, and the file to write; both None without
    --auto-mixed. The options are taken out of `given`."""
    taken = {name: given.pop(name) for name in NAMES}
    candidates, config = taken.pop("auto_mixed"), taken.pop("write_config")
    if candidates is None:
        idle = [name for name, value in {**taken, "write_config": config}.items() if value not in (None, False)]
        measured = taken["eval_data"] is not None
        idle = [name for name in idle if not (measured and name in MEASURED)]
        if idle:
            other = "--eval-data or --auto-mixed" if idle[0] in MEASURED else "--auto-mixed"
            raise UsageError(f"--{idle[0].replace('_', '-')} goes with {other}: give that, too, or leave it out")
        return None, None
    if calib is None or stats:
        raise UsageError("--auto-mixed needs calibration data (--calib), and no statistics beside it")
    drop, bops, size = taken.pop("target_drop"), taken.pop("max_bops"), taken.pop("max_size")
    limits = Limits(drop, None if bops is None else bops * 1e9, None if size is None else size * 2**20)
    return partial(auto_mixed, candidates=candidates, limits=limits, **taken), config
