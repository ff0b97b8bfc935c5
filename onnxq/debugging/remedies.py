"""Figure 9, remedies: what can be done about quantization noise, for a whole network and for one tensor.

A remedy is an edit of the options, so that whatever helps can be written down as a configuration. Some cost nothing at
run time; others cost scales, bits, or integer arithmetic, and are tried last:

    network    dead channels, equalization, range methods, bias correction, rounding, then one scale a channel
    tensor     another range method; then the fallbacks in their order: one scale a channel, 16 bits, float
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from typing import Any

from ..options import Options, Override
from ..targets import find_target
from .candidate import Part
from .root_cause import CauseKind

WIDE = 16


@dataclass(frozen=True)
class NetworkRemedy:
    """For the whole network. name: the user's word for it.  parts: what it helps.  causes: those that it is meant for.
    settings: fields of the options.  costs: whether it costs something at run time."""

    name: str
    title: str
    parts: tuple[Part, ...]
    causes: frozenset[CauseKind]
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


def _causes(*kinds: CauseKind) -> frozenset[CauseKind]:
    return frozenset(kinds)


PER_CHANNEL = NetworkRemedy(
    "per-channel",
    "one weight scale for each output channel",
    ("weights",),
    _causes("uneven channels", "bias beyond 32 bits"),
    {"per_channel": True},
    costs=True,
)

NETWORK_REMEDIES = (
    NetworkRemedy(
        "dead-channels",
        "empty channels that carry a constant",
        ("weights", "activations"),
        _causes("uneven channels", "bias beyond 32 bits"),
        {"dead_channels": True},
    ),
    NetworkRemedy(
        "cle",
        "cross-layer equalization, with absorption of high biases",
        ("weights", "activations"),
        _causes("uneven channels", "extreme range"),
        {"cle": "noise", "absorb": True},
    ),
    NetworkRemedy(
        "weight-range",
        "weight ranges by least squared error",
        ("weights",),
        _causes("uneven channels", "clipped values"),
        {"weight_range": "auto"},
    ),
    NetworkRemedy(
        "bias-correction",
        "bias correction",
        ("weights",),
        _causes("uneven channels", "coarse grid"),
        {"bias_correction": "analytic"},
    ),
    NetworkRemedy(
        "rounding",
        "weights rounded by coordinate descent",
        ("weights",),
        _causes("coarse grid"),
        {"rounding": "coordinate-descent"},
    ),
    NetworkRemedy(
        "activation-range",
        "activation ranges by least squared error",
        ("activations",),
        _causes("extreme range", "clipped values"),
        {"activation_range": "mse"},
    ),
    NetworkRemedy(
        "activation-range",
        "activation ranges from the smallest to the largest value",
        ("activations",),
        _causes("clipped values"),
        {"activation_range": "minmax"},
    ),
    NetworkRemedy(
        "smoothquant",
        "outliers behind LayerNorm moved into weights",
        ("activations",),
        _causes("extreme range"),
        {"smoothquant": 0.5},
    ),
    PER_CHANNEL,
)
"""In the order in which they are tried, all else being equal."""

METHODS = {"weights": ("mse", "minmax"), "activations": ("mse", "minmax", "percentile:99.99", "percentile:99.9")}
"""Range methods for a single tensor."""

NAMES = (
    *dict.fromkeys(remedy.name for remedy in NETWORK_REMEDIES),
    "tensor-range",
    "tensor-per-channel",
    "tensor-16-bit",
    "float",
)
"""Of all remedies, those for single tensors last."""


@dataclass(frozen=True)
class Fallback:
    """One step in the fallback order of a tensor."""

    name: str
    title: str
    override: Override


def fallback_order(unit: str, part: Part, options: Options, channels: bool, without: Collection[str]) -> list[Fallback]:
    """What one tensor can be given, the cheapest first.

    channels: whether it may get one scale a channel, and has one in all. without: names of remedies not to be used.
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
