"""How to quantize: every choice that a user has, checked when it is made."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from .encodings import VERSIONS
from .errors import UsageError
from .numeric.quant import Grid, QuantSpec
from .numeric.ranges import check_method, parse_method
from .rounding.choice import EFFORTS
from .rounding.methods import ROUNDINGS
from .targets import find_target

PRESETS = ("w8a8", "w8a16", "w4a8", "w4a16", "w8", "w4")
"""Those worth naming; any of w2 to w16, a2 to a16, alone or together, is understood. Without w or a: left in float."""


_TYPES: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("tensor", "node", "method"), (str, "a string")),
    **dict.fromkeys(("bits", "block"), (int, "a whole number")),
    **dict.fromkeys(("symmetric", "per_channel", "power_of_two", "keep_float"), (bool, "true or false")),
}


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value)
    return numbers and len(value) == 2 and -math.inf < value[0] < value[1] < math.inf


@dataclass(frozen=True)
class Override:
    """What to do differently with some tensors; None leaves a thing as it is.

    tensor: glob of tensor names; or node: glob of node names or operator types, for the weights that they read and
    the activations that they compute. keep_float: no quantizer at all. range: (lo, hi) instead of a method.
    """

    tensor: str | None = None
    node: str | None = None
    bits: int | None = None
    symmetric: bool | None = None
    per_channel: bool | None = None
    power_of_two: bool | None = None
    block: int | None = None
    method: str | None = None
    range: tuple[float, float] | None = None
    keep_float: bool = False

    def __post_init__(self) -> None:
        if (self.tensor is None) == (self.node is None):
            raise UsageError("an override names either a tensor or a node (a glob of names)")
        for name, (kind, text) in _TYPES.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and isinstance(value, bool) == (kind is bool)):
                raise UsageError(f"the override of {self.place}: {name} must be {text}, got {value!r}")
        if all(getattr(self, f.name) is f.default for f in fields(self) if f.name not in ("tensor", "node")):
            raise UsageError(f"the override of {self.place} changes nothing")
        if self.bits is not None and not 2 <= self.bits <= 16:
            raise UsageError(f"the override of {self.place}: bits must be 2 to 16, got {self.bits}")
        if self.block is not None and self.block < 1:
            raise UsageError(f"the override of {self.place}: block must be at least 1, got {self.block}")
        if self.range is not None and not _is_range(self.range):
            raise UsageError(f"the override of {self.place}: range must be [lo, hi] with lo < hi, got {self.range}")
        if self.method is not None:
            parse_method(self.method)

    @property
    def place(self) -> str:
        return f"tensor {self.tensor!r}" if self.tensor is not None else f"node {self.node!r}"


@dataclass(frozen=True)
class Options:
    """The fields are the command line's options and the configuration file's keys.

    target: a key of `TARGETS`, or a TOML file that describes one. preset: bits of weights and activations, `w8a8`; one
        alone leaves the other in float.
    per_channel: one weight scale per output channel. force_int_kernels: also integer kernels slower than float ones.
    symmetric_activations: zero point 0, unsigned where a tensor has no negative values (7, 8b).
    asymmetric_weights: weights with zero points. power_of_two: all scales. block_size: weights in blocks.
    dead_channels, cle, absorb, bias_correction: the steps of sections 3.2 and 3.3. cle: `noise`, `range` (the paper's
        criterion) or `off`. bias_correction: `analytic`, `empirical` or `off`. With calibration data a step that makes
        the result worse is dropped.
    smoothquant: how much of the outliers behind LayerNorm goes to the weights that read them, 0 to 1 (SmoothQuant's
        alpha); None: the step is left out. Dropped like those above.
    a16_fallback: `auto` finds activations for which the preset's width costs the outputs too much and gives them
        16 bits; `off`.
    rounding: how weights are rounded (section 3.4), a key of `ROUNDINGS`; `auto`: by descent below 8 bits, and
        at 8 where rounding to nearest leaves the outputs below `thresholds.CLEAR_DB`; else to nearest. effort: time for
        quality, a key of `EFFORTS`. checkpoint: a folder that an interrupted run goes on from.
    data_free: no calibration data; BatchNorm's moments instead. input_ranges: (input, lo, hi), which no moments tell.
        synthetic: tensors that cannot be ranged so are ranged on random inputs.
    weight_range, activation_range, logits_range: range-setting methods (`numeric.ranges.RANGE_METHODS`), the last one
        for the logits of a classifier. weight_range may also be `weighted`, mse weighted by what channels contribute,
        and is so by default (`auto`) per tensor; per channel it is mse.
    include, exclude: globs of node names or operator types. tie: operators (Add, Concat) whose inputs share a grid.
    overrides: exceptions for single tensors.
    from_encodings: a file of scales and offsets that a tool like AIMET wrote beside the model; they are taken as they
        are, and no step changes the network that they were made for. Tensors that it does not name are ranged from
        data, or stay in float without any.
    encodings_version: the schema, a key of `encodings.VERSIONS`, that such a file is written in.
        float_output: the output is the float model that the encodings belong to, instead of the quantized one.
    samples, seed: how many calibration samples to use, and which draw of them.
    batch_size: samples held in memory and run at once, 0 for two a thread; threads: 0 for all processors;
        max_memory: MiB of activations held while calibrating. None of these three changes the result.
    """

    target: str = "ort"
    preset: str = "w8a8"
    per_channel: bool = True
    force_int_kernels: bool = False
    symmetric_activations: bool = False
    asymmetric_weights: bool = False
    power_of_two: bool = False
    block_size: int | None = None
    dead_channels: bool = True
    cle: str = "noise"
    absorb: bool = True
    bias_correction: str = "analytic"
    smoothquant: float | None = None
    a16_fallback: str = "off"
    rounding: str = "auto"
    effort: str = "medium"
    checkpoint: str | None = None
    data_free: bool = False
    synthetic: bool = False
    input_ranges: tuple[tuple[str, float, float], ...] = ()
    weight_range: str = "auto"
    activation_range: str = "mse"
    logits_range: str = "cross-entropy"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    from_encodings: str | None = None
    encodings_version: str = "1.0.0"
    float_output: bool = False
    samples: int | None = None
    seed: int = 0
    batch_size: int = 0
    threads: int = 0
    max_memory: int = 512

    def __post_init__(self) -> None:
        find_target(self.target)
        for name, lowest in (("batch_size", 0), ("threads", 0), ("max_memory", 1), ("samples", 1), ("block_size", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UsageError(f"{name.replace('_', '-')} must be at least {lowest}, got {value}")
        for name in ("include", "exclude", "tie"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} must be a list of strings, got {getattr(self, name)!r}")
        for op in self.tie:
            _one_of("tie", op, ("Add", "Concat"))
        _one_of("cle", self.cle, ("noise", "range", "off"))
        _one_of("bias-correction", self.bias_correction, ("analytic", "empirical", "off"))
        _one_of("a16-fallback", self.a16_fallback, ("off", "auto"))
        if self.smoothquant is not None and not 0 <= self.smoothquant <= 1:
            raise UsageError(f"smoothquant must be from 0 to 1, got {self.smoothquant}")
        if self.a16_fallback == "auto" and self.data_free:
            raise UsageError("--a16-fallback auto needs calibration data: it tries what each grid costs")
        _one_of("rounding", self.rounding, ("auto", *ROUNDINGS))
        _one_of("effort", self.effort, EFFORTS)
        _one_of("encodings-version", self.encodings_version, VERSIONS)
        if self.data_free and self.bias_correction == "empirical":
            raise UsageError("--bias-correction empirical needs calibration data; data-free there is analytic")
        if self.data_free and self.rounding not in ("auto", "nearest"):
            raise UsageError(f"--rounding {self.rounding} needs calibration data; data-free there is nearest")
        if self.from_encodings is not None and (
            self.rounding not in ("auto", "nearest") or self.bias_correction == "empirical"
        ):
            raise UsageError(
                "--from-encodings takes weights and biases as they are: it goes with --rounding nearest and without"
                " empirical bias correction"
            )
        if self.synthetic and not self.data_free:
            raise UsageError("--synthetic is for --data-free: with calibration data there is nothing to make up")
        check_method(self.weight_method, "weights", "weight-range")
        check_method(self.activation_range, "activations", "activation-range")
        check_method(self.logits_range, "logits", "logits-range")
        bits(self.preset)

    @property
    def activation(self) -> QuantSpec | None:
        """What activations are to be like; None: left in float."""
        width = bits(self.preset)[1]
        if width is None:
            return None
        spec = find_target(self.target).activation_of(width)
        spec = replace(spec, power_of_two=self.power_of_two or spec.power_of_two)
        if self.symmetric_activations and not spec.symmetric:
            spec = replace(spec, grid=Grid(width, signed=True), symmetric=True, one_tailed=True)
        return spec

    @property
    def weight(self) -> QuantSpec | None:
        """What weights are to be like; None: left in float."""
        width = bits(self.preset)[0]
        if width is None:
            return None
        spec = find_target(self.target).weight_of(width)
        spec = replace(spec, power_of_two=self.power_of_two or spec.power_of_two)
        if self.asymmetric_weights:
            spec = replace(spec, grid=Grid(spec.grid.bits, spec.grid.signed), symmetric=False)
        per_channel = spec.per_channel and self.per_channel and self.block_size is None
        return replace(spec, per_channel=per_channel, block=self.block_size)

    @property
    def weighs_weights(self) -> bool:
        """Whether the weights' squared error is weighted by what their input channels contribute."""
        auto = self.weight_range == "auto" and not self.per_channel and self.from_encodings is None
        return auto or self.weight_range == "weighted"

    @property
    def optimised_rounding(self) -> str | None:
        """The rounding method where weights are not merely rounded to nearest, whatever the data says."""
        if self.weight is None or self.data_free or self.rounding == "nearest":
            return None
        if self.rounding != "auto":
            return self.rounding
        return "coordinate-descent" if self.weight.grid.bits < 8 else None

    @property
    def weight_method(self) -> str:
        """How weight ranges are set, before any weighting."""
        return "mse" if self.weight_range in ("auto", "weighted") else self.weight_range

    @property
    def has_integer_kernels(self) -> bool:
        """Whether the target computes with these widths, rather than simulating them in float."""
        return bits(self.preset) == (8, 8) and self.block_size is None

    @property
    def min_opset(self) -> int:
        """The operator set that the result needs: 21 brings 4 and 16 bits, and blocks."""
        widths = [spec.grid.stored_bits for spec in (self.activation, self.weight) if spec is not None]
        widths += [Grid(o.bits, True).stored_bits for o in self.overrides if o.bits is not None]
        blocks = self.block_size is not None or any(o.block is not None for o in self.overrides)
        return max(find_target(self.target).min_opset, 21 if blocks or {4, 16} & set(widths) else 0)


def bits(preset: str) -> tuple[int | None, int | None]:
    """Widths of (weights, activations); None for what stays in float. Raises UsageError."""
    match = re.fullmatch(r"(?:w(\d+))?(?:a(\d+))?", preset)
    widths = tuple(None if text is None else int(text) for text in match.groups()) if match else ()
    if not preset or not widths or not all(w is None or 2 <= w <= 16 for w in widths):
        raise UsageError(
            f"--preset {preset!r} is unknown; expected {', '.join(PRESETS)}, or other widths from 2 to 16 in this form"
        )
    return widths[0], widths[1]


def _one_of(option: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UsageError(f"--{option} {value!r} is unknown; expected one of {', '.join(sorted(known))}")


def with_settings(options: Options | None, settings: Mapping[str, Any]) -> Options:
    """`options` with single fields replaced. Raises UsageError."""
    try:
        return replace(options or Options(), **settings)
    except TypeError:
        raise UsageError(f"unknown option among {', '.join(settings)}; known: {', '.join(asdict(Options()))}") from None
