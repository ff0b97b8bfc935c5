"""What can be done about quantization noise: for a whole network, and for one tensor (white paper, section 3.7).

A fix is an edit of the options, so that whatever helps can be written down as a configuration. Some take nothing at
run time; others take scales, bits, or integer arithmetic, and are the later resort:

    network    dead channels, equalization, range methods, bias correction, rounding, then one scale a channel
    tensor     another range method; then one scale a channel, 16 bits, float: the fallbacks of a fallback_order
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any

from ..options import Options, Override
from ..targets import find_target
from .root_cause import Kind
from .trial import Part

WIDE = 16


@dataclass(frozen=True)
class Fix:
    """For the network. name: what the user calls it.  parts: which grids it helps.  cures: the findings it is meant
    for.  settings: fields of the options.  costs: whether it takes something at run time."""

    name: str
    title: str
    parts: tuple[Part, ...]
    cures: frozenset[Kind]
    settings: Mapping[str, Any] = field(hash=False)
    costs: bool = False

    def applies(self, options: Options) -> bool:
        """Whether it would change anything."""
        if self.name == "per-channel" and not find_target(options.target).weight.per_channel:
            return False
        if "weights" in self.parts and len(self.parts) == 1 and options.weight is None:
            return False
        return any(getattr(options, name) != value for name, value in self.settings.items())

    def apply(self, options: Options) -> Options:
        """Raises UsageError where the options contradict it."""
        return replace(options, **self.settings)


def _cures(*kinds: Kind) -> frozenset[Kind]:
    return frozenset(kinds)


PER_CHANNEL = Fix(
    "per-channel",
    "one weight scale for each output channel",
    ("weights",),
    _cures("uneven channels", "bias beyond 32 bits"),
    {"per_channel": True},
    costs=True,
)

FIXES = (
    Fix(
        "dead-channels",
        "empty channels that carry a constant",
        ("weights", "activations"),
        _cures("uneven channels", "bias beyond 32 bits"),
        {"dead_channels": True},
    ),
    Fix(
        "cle",
        "cross-layer equalization, with absorption of high biases",
        ("weights", "activations"),
        _cures("uneven channels", "extreme range"),
        {"cle": "noise", "absorb": True},
    ),
    Fix(
        "weight-range",
        "weight ranges by least squared error",
        ("weights",),
        _cures("uneven channels", "clipped values"),
        {"weight_range": "auto"},
    ),
    Fix(
        "bias-correction",
        "bias correction",
        ("weights",),
        _cures("uneven channels", "coarse grid"),
        {"bias_correction": "analytic"},
    ),
    Fix(
        "rounding",
        "weights rounded by descent",
        ("weights",),
        _cures("coarse grid"),
        {"rounding": "coordinate-descent"},
    ),
    Fix(
        "activation-range",
        "activation ranges by least squared error",
        ("activations",),
        _cures("extreme range", "clipped values"),
        {"activation_range": "mse"},
    ),
    Fix(
        "activation-range",
        "activation ranges from the smallest to the largest value",
        ("activations",),
        _cures("clipped values"),
        {"activation_range": "minmax"},
    ),
    Fix(
        "smoothquant",
        "outliers behind LayerNorm moved into weights",
        ("activations",),
        _cures("extreme range"),
        {"smoothquant": 0.5},
    ),
    PER_CHANNEL,
)
"""In the order in which they are tried, all else being equal."""

METHODS = {"weights": ("mse", "minmax"), "activations": ("mse", "minmax", "percentile:99.99", "percentile:99.9")}
"""Range methods for a single tensor."""

NAMES = (*dict.fromkeys(fix.name for fix in FIXES), "tensor-range", "tensor-per-channel", "tensor-16-bit", "float")
"""Of all fixes, those for single tensors last."""


@dataclass(frozen=True)
class Fallback:
    """One step up the fallback_order for a tensor."""

    name: str
    title: str
    override: Override


def fallback_order(unit: str, part: Part, options: Options, channels: bool, without: Collection[str]) -> list[Fallback]:
    """What one tensor can be given, the cheapest first.

    channels: whether it may get one scale a channel, and has one in all. without: names of fixes not to be used.
    """
    target, tensor = find_target(options.target), escape(unit)
    types = target.weight_types if part == "weights" else target.activation_types
    spec = options.weight if part == "weights" else options.activation
    fallbacks = []
    if channels and target.weight.per_channel:
        fallbacks.append(
            Fallback("tensor-per-channel", "one scale for each output channel", Override(tensor, per_channel=True))
        )
    if spec is not None and spec.grid.bits < WIDE and {f"int{WIDE}", f"uint{WIDE}"} & set(types):
        fallbacks.append(Fallback("tensor-16-bit", f"{WIDE} bits", Override(tensor, bits=WIDE)))
    fallbacks.append(Fallback("float", "float", Override(tensor, keep_float=True)))
    return [fallback for fallback in fallbacks if fallback.name not in without]
