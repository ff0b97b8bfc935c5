"""How to quantize: every choice that a user has, with its type, default, bounds, meaning and unit, said once.

The command line, TOML files, the checks below and docs/options.md are made from these fields; see `schema`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from .data import Preprocess
from .encodings import VERSIONS
from .errors import UsageError
from .execution.session import CPU, check_custom_ops, check_provider
from .graph.freeze import parse_freeze
from .numeric.quant import Grid, QuantSpec
from .numeric.ranges import check_method, parse_method, usage
from .other_tools import EXPLAINED, RENAMED, key_of
from .rounding.choice import EFFORTS
from .rounding.methods import ROUNDINGS
from .schema import check_fields, documented, option, unknown
from .targets import Target, find_target
from .targets.contradictions import FALLBACKS, contradictions, no_fallback, no_table_of_4_bits
from .thresholds import CLEAR_DB, EXCEPTIONS_BELOW_DB, HARD_SWISH_DB, HARD_SWISH_PRODUCTS, LATENCY_SECONDS, LEAST_DB

DATA = "Calibration data"
TARGET = "Target, bits and placement"
STEPS = "Steps (figure 8 of the white paper)"
RANGES = "Quantization ranges"
DATA_FREE = "Without calibration data"
ENCODINGS = "Encodings"
RUNNING = "Time and memory"
OVERRIDE = "Exceptions for single tensors"
LATENCY = "Latency"
OUTPUT = "Output"

PRESETS = ("w8a8", "w8a16", "w4a8", "w4a16", "w8", "w4", "w8a8-dynamic")
"""Those worth naming; any of w2 to w16, a2 to a16, alone or together, is understood. Without w or a: left in float.
dynamic: activations are quantized at run time."""


@documented
@dataclass(frozen=True)
class Override:
    """What to do differently with some tensors, a table [[override]] in a TOML file; None leaves a thing as it is.

    One of tensor and node says which. `range` takes the place of a method.
    """

    tensor: str | None = option(None, "Glob of tensor names.", OVERRIDE)
    node: str | None = option(
        None,
        "Glob of node names or operator types: the weights that they read and the activations that they compute.",
        OVERRIDE,
    )
    bits: int | None = option(None, "Width.", OVERRIDE, least=2, most=16)
    symmetric: bool | None = option(None, "Zero point 0, or zero points.", OVERRIDE)
    per_channel: bool | None = option(None, "A scale for each channel of a weight, or one for the tensor.", OVERRIDE)
    power_of_two: bool | None = option(None, "Scales that are powers of two.", OVERRIDE)
    block: int | None = option(None, "Weights of a channel that share a scale.", OVERRIDE, least=1)
    method: str | None = option(None, "How the range is set, as `weight_range`.", OVERRIDE, parse=parse_method)
    range: tuple[float, float] | None = option(None, "The range itself, [lo, hi].", OVERRIDE)
    keep_float: bool = option(False, "No quantizer at all.", OVERRIDE)

    def __post_init__(self) -> None:
        if (self.tensor is None) == (self.node is None):
            raise UsageError("an override names either a `tensor` or a `node`, as a glob of names")
        check_fields(self, f"the override of {self.place}: ")
        if all(getattr(self, f.name) is f.default for f in fields(self) if f.name not in ("tensor", "node")):
            raise UsageError(f"the override of {self.place} changes nothing: give bits, method, range or another field")
        if self.range is not None and not _is_range(self.range):
            raise UsageError(f"the override of {self.place}: `range` must be [lo, hi] with lo < hi, got {self.range}")

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"tensor {self.tensor!r}" if self.tensor is not None else f"node {self.node!r}"


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value)
    return numbers and len(value) == 2 and -math.inf < value[0] < value[1] < math.inf


def _check_input_ranges(value: Any) -> None:
    for each in value:
        if not (len(each) == 3 and isinstance(each[0], str) and each[0] and _is_range(each[1:])):
            raise UsageError(f"`input_ranges` must hold (input, lo, hi) with lo < hi, got {each!r}")


PRESET_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("int8", "8bit", "i8", "s8s8", "u8s8", "u8u8", "xint8", "int8-int8"), "w8a8"),
    **dict.fromkeys(("int4", "4bit", "i4", "int4-weight-only", "weight-only-int4", "w4a16-weight-only"), "w4"),
    **dict.fromkeys(("int8-weight-only", "weight-only", "weight-only-int8", "weights-only"), "w8"),
    **dict.fromkeys(("dynamic", "int8-dynamic", "w8-dynamic"), "w8a8-dynamic"),
    **dict.fromkeys(("int16", "int8-int16"), "w8a16"),
}
"""Other names of presets -> the preset. int4 is what most tools mean by it: 4 bits of weights, activations in float."""


def preset_of(name: str) -> str:
    """A preset as `Options` spells it, of a name in any case, `a8w8` for w8a8, or one of other tools."""
    known = name.strip().lower().replace("_", "-").replace(" ", "-")
    known = re.sub(r"^a(\d+)-?w(\d+)", r"w\2a\1", known)
    known = re.sub(r"^w(\d+)-a(\d+)", r"w\1a\2", known)
    return PRESET_NAMES.get(known, known)


def bits(preset: str) -> tuple[int | None, int | None]:
    """Widths of (weights, activations); None: left in float, or quantized at run time. Raises UsageError."""
    spelled = re.sub(r"^(w[2-8])a8-dynamic$", r"\1", preset_of(preset))
    match = re.fullmatch(r"(?:w(\d+))?(?:a(\d+))?", spelled)
    widths = tuple(None if text is None else int(text) for text in match.groups()) if match else ()
    if not preset or not widths or not all(w is None or 2 <= w <= 16 for w in widths):
        kind = "is no integer format" if re.search(r"(?i)fp|bf|float|half", preset) else "is unknown"
        close = f"; did you mean w{preset}a8?" if preset in ("2", "3", "4", "5", "6", "7", "8") else ""
        raise UsageError(
            f"`preset` {preset!r} {kind}; expected {', '.join(PRESETS)}, or other widths from 2 to 16 so written{close}"
        )
    return widths[0], widths[1]


@documented
@dataclass(frozen=True)
class Options:
    """How to quantize. Each field is an option of the command line and a key of the configuration file.

    Raises UsageError for values that make no sense, alone or together.
    """

    target: str = option(
        "ort",
        "The tool-chain that is to run the result: `onnxq targets` lists them; or a TOML file that describes one.",
        TARGET, metavar="NAME|FILE", parse=find_target,
    )  # fmt: skip
    preset: str = option(
        "w8a8",
        f"Bits of weights and activations: {', '.join(PRESETS)}, ...; wN or aM alone: the rest stays in float. dynamic:"
        " ranges of activations are found at run time, in each sample, which needs no data.",
        TARGET, metavar="wNaM", parse=bits,
    )  # fmt: skip
    per_channel: bool = option(
        True, "Per-channel weights: one scale for each output channel; or per-tensor: one for each weight tensor.",
        TARGET, opposite="per-tensor", shown="per-channel",
    )  # fmt: skip
    force_int_kernels: bool = option(False, "Use integer kernels even where they are slower than float ones.", TARGET)
    symmetric_activations: bool = option(
        False, "Activations with zero point 0; unsigned where nothing is negative (7, 8b).", TARGET
    )
    narrow_activations: str = option(
        "products",
        "Which activations have fewer than 8 bits, where the preset says so: products, what convolutions and matrix"
        " products read, but for the model's inputs; all others have 8. Or all.",
        TARGET, choices=("products", "all"),
    )  # fmt: skip
    asymmetric_weights: bool | None = option(
        None, "Weights with zero points.", TARGET, opposite="symmetric-weights",
        shown="those of 4 bits in blocks, where activations stay in float and the target takes it",
    )  # fmt: skip
    power_of_two: bool = option(False, "All scales are powers of two.", TARGET)
    block_size: int | None = option(
        None, "One weight scale for each N weights of a channel.", TARGET, least=1, metavar="N", shown="whole channels"
    )
    embeddings: str = option(
        "8", "Bits of tables that Gather looks up, one scale a row; an output layer that is tied to one has its grid.",
        TARGET, choices=("8", "4", "float"),
    )  # fmt: skip
    store_4bit: str = option(
        "auto",
        "How weights of up to 4 bits are stored; the values are the same. auto: in int8 where the target has no kernel"
        " for 4 bits, else packed as int4.",
        TARGET, choices=("auto", "int4", "int8"),
    )  # fmt: skip
    dead_channels: bool = option(True, "Empty channels that carry a constant.", STEPS)
    cle: str = option(
        "noise", "Cross-layer equalization, by expected noise or by the white paper's ranges (3.2).", STEPS,
        choices=("noise", "range", "off"),
    )  # fmt: skip
    absorb: bool = option(True, "Absorb high biases into the next layer (3.2).", STEPS)
    bias_correction: str = option(
        "analytic", "From means of inputs, or empirical: layer after layer in the quantized network (3.3).", STEPS,
        choices=("analytic", "empirical", "off"),
    )  # fmt: skip
    smoothquant: float | None = option(
        None, "SmoothQuant: move outliers behind LayerNorm into the weights that read them, by alpha; 0.5 is usual.",
        STEPS, least=0, most=1, metavar="ALPHA", shown="off",
    )  # fmt: skip
    hard_swish: str = option(
        "auto",
        "Whether HardSwish runs in integers where `target` computes it by a look-up and a product: faster, with more"
        f" that is rounded. auto: in float where layers have fewer than {HARD_SWISH_PRODUCTS:g} multiplications for"
        f" each value of it, or outputs are below {LEAST_DB:g} dB otherwise, and gain {HARD_SWISH_DB:g} dB.",
        STEPS, choices=("auto", "integers", "float"),
    )  # fmt: skip
    fallback: str = option(
        "off",
        "What activations get, as few of them as possible, whose grid costs the outputs too much: a16, 16 bits;"
        " dynamic, a range found at run time; float; auto, what is worth most in the target's arithmetic.",
        STEPS, choices=("off", *FALLBACKS, "auto"),
    )  # fmt: skip
    exceptions: float = option(
        3.0,
        "Wider formats for the few weights and activations that carry the loss, where outputs are below"
        f" {EXCEPTIONS_BELOW_DB:g} dB after everything else: at most PERCENT of the weights get 8 bits where they have"
        " fewer, and activations in layers of at most PERCENT of the multiplications what `fallback` auto gives, or 8"
        " bits where they have fewer. 0, or overrides: none. They are of `quantize` alone: analyses and training keep"
        " to the preset.",
        STEPS, least=0, most=100, metavar="PERCENT",
    )  # fmt: skip
    rounding: str = option(
        "auto",
        "How weights are rounded, layer after layer, on calibration samples, some of which are held out to choose."
        " auto: coordinate-descent below 8 bits, at 8 bits gptq (per tensor, or with fewer bits for activations,"
        f" coordinate-descent) where nearest leaves less than {CLEAR_DB:g} dB; else nearest (3.4).",
        STEPS, choices=("auto", *ROUNDINGS),
    )  # fmt: skip
    effort: str = option(
        "default",
        "Time for quality, about so many times that of ONNX Runtime's quantize_static. fast, 1.3: no step is tried, and"
        " no rounding optimised unless `rounding` names it. default, 4, or 8 where optimised rounding pays: steps that"
        " can matter are tried on few samples. high: all steps are tried, and rounding takes its longest schedules.",
        STEPS, choices=tuple(EFFORTS),
    )  # fmt: skip
    checkpoint: str | None = option(None, "Folder that an interrupted `rounding` goes on from.", STEPS, path="folder")
    data_free: bool = option(
        False, "Without calibration data: ranges and means from BatchNorm's statistics.", DATA_FREE
    )
    synthetic: bool = option(
        False, "With `data_free`: range on random inputs what BatchNorm's statistics cannot.", DATA_FREE
    )
    input_ranges: tuple[tuple[str, float, float], ...] = option(
        (), "Range of an input, for `data_free`: (input, lo, hi) each.", DATA_FREE,
        flag="input-range", metavar="INPUT=LO,HI", parse=_check_input_ranges,
    )  # fmt: skip
    weight_range: str = option(
        "auto",
        f"How weight ranges are set: {usage('weights')}; weighted: mse weighted by output sensitivity, which auto"
        " takes per tensor, and mse per channel.",
        RANGES, metavar="METHOD",
    )  # fmt: skip
    activation_range: str = option(
        "mse", f"How activation ranges are set: {usage('activations')}.", RANGES, metavar="METHOD"
    )
    logits_range: str = option(
        "cross-entropy",
        f"How ranges of logits are set that a Softmax of the model reads, and nobody else: {usage('logits')}.",
        RANGES,
        metavar="METHOD",
    )
    freeze: tuple[str, ...] = option(
        (),
        "Make dynamic dimensions static: the shape of an input (image=1x3x224x224), or a named dimension (batch=1).",
        TARGET, metavar="NAME=SHAPE", parse=parse_freeze,
    )  # fmt: skip
    include: tuple[str, ...] = option((), "Quantize only these nodes or operators.", TARGET, metavar="GLOB")
    exclude: tuple[str, ...] = option((), "Leave these nodes or operators in float.", TARGET, metavar="GLOB")
    tie: tuple[str, ...] = option((), "Inputs of these operators share a scale.", TARGET, choices=("Add", "Concat"))
    overrides: tuple[Override, ...] = ()
    from_encodings: str | None = option(
        None,
        "Take scales and offsets from an encodings file of AIMET, QNN or onnxq. Tensors that it does not name are"
        " ranged from data, or stay in float without any.",
        ENCODINGS, path="file",
    )  # fmt: skip
    encodings_version: str = option(
        "1.0.0", "The schema that encodings are written in.", ENCODINGS, choices=tuple(VERSIONS)
    )
    float_output: bool = option(
        False, "With encodings: the output is the float model that they belong to, for QNN's converter.", ENCODINGS
    )
    samples: int | None = option(
        None, "Use N calibration samples, spread over all.", DATA, least=1, metavar="N", shown="all"
    )
    seed: int = option(0, "Chooses which samples `samples` takes.", DATA)
    strict: bool = option(False, "Refuse calibration data that look wrong, instead of a warning in the report.", DATA)
    latency: str = option(
        "report",
        "What is done about the time of a run, where ONNX Runtime runs the result. report: it is measured beside the"
        f" float model's, for a tenth of what quantization took and {LATENCY_SECONDS:g} s at most; where it is no"
        " shorter, the report names the operators that cost. tune: operators whose integer kernels do not pay on this"
        " machine are left in float, so that the result depends on the machine. off: nothing.",
        LATENCY, choices=("report", "tune", "off"),
    )  # fmt: skip
    provenance: bool = option(
        True,
        "Write into the model how it was made: version, options, digests of the source and of the calibration data; no"
        " time and no path.",
        OUTPUT,
    )
    batch_size: int = option(
        0, "Samples held in memory and run at once; never changes the result. 0: two a thread.", RUNNING, least=0
    )
    threads: int = option(0, "Threads; never changes the result. 0: all processors.", RUNNING, least=0)
    provider: str = option(
        CPU,
        "ONNX Runtime's execution provider that runs the model to calibrate, to analyse and to evaluate it, such as"
        " CUDAExecutionProvider. Rewrites and the verification of the result stay on the CPU, and only there the same"
        " input gives the same bytes.",
        RUNNING, metavar="NAME", parse=check_provider,
    )  # fmt: skip
    custom_ops: tuple[str, ...] = option(
        (),
        "Shared library of custom operators that ONNX Runtime is to know wherever it runs the model, as"
        " `SessionOptions.register_custom_ops_library` takes it; it must be one that you trust, since it is code.",
        RUNNING, metavar="LIB", parse=check_custom_ops,
    )  # fmt: skip
    max_memory: int = option(
        512, "Activations held while calibrating, and statistics of one layer whose rounding is optimised. Less means "
        "more passes over the data, with the same result, and, for wide layers, rounding fitted to fewer positions.",
        RUNNING,
        least=1, unit="MiB", metavar="MIB",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(isinstance(each, Override) for each in self.overrides):
            raise UsageError("`overrides` must be a list of onnxq.Override; of a dictionary onnxq.Override(**it)")
        object.__setattr__(self, "preset", preset_of(self.preset))
        if self.data_free:
            self._refuse_data_free()
        elif self.synthetic:
            raise UsageError("`synthetic` is for `data_free`: with calibration data there is nothing to make up")
        if self.from_encodings is not None and (
            self.rounding not in ("auto", "nearest") or self.bias_correction == "empirical"
        ):
            raise UsageError(
                "`from_encodings` takes weights and biases as they are: it goes with `rounding` nearest and without"
                " empirical `bias_correction`"
            )
        self._refuse_contradictions()
        check_method(self.weight_method, "weights", "`weight_range`")
        check_method(self.activation_range, "activations", "`activation_range`")
        check_method(self.logits_range, "logits", "`logits_range`")

    def _refuse_contradictions(self) -> None:
        """Refuse what no model of the target can have."""
        target = find_target(self.target)
        found = no_fallback(target, "dynamic") if self.is_dynamic else None
        if found is None:
            found = next(contradictions(target, self.weight, self.activation, self.store_4bit), None)
        if found is not None:
            raise UsageError(f"`preset` {self.preset}, `target` {self.target}: {found}")
        if self.embeddings == "4" and (refusal := no_table_of_4_bits(target)) is not None:
            raise UsageError(f"`embeddings` 4, `target` {self.target}: {refusal}; take 8")
        if self.is_dynamic and self.block_size is not None:
            raise UsageError(f"`preset` {self.preset} multiplies integers without blocks: leave `block_size` out")
        if self.is_dynamic and self.from_encodings is not None:
            raise UsageError(f"`preset` {self.preset} finds ranges at run time: leave `from_encodings` out")
        self._refuse_fallback(target)
        if self.latency == "tune" and not target.runs_here:
            raise UsageError(f"`latency` tune, `target` {self.target}: another tool-chain runs it, not ONNX Runtime")
        if self.latency == "tune" and self.from_encodings is not None:
            raise UsageError("`latency` tune decides what is quantized, and so does `from_encodings`: leave one out")

    def _refuse_fallback(self, target: Target) -> None:
        """Refuse what activations cannot get, or where there are none."""
        if self.fallback == "off":
            return
        if self.activation is None:
            raise UsageError(
                f"`fallback` {self.fallback} is for activations whose ranges are set: `preset` {self.preset} has none"
            )
        reasons = [no_fallback(target, kind) for kind in FALLBACKS if self.fallback in ("auto", kind)]
        if None not in reasons:
            raise UsageError(f"`fallback` {self.fallback}, `target` {self.target}: {'; '.join(filter(None, reasons))}")

    def _refuse_data_free(self) -> None:
        """Refuse what needs calibration data."""
        if self.latency == "tune":
            raise UsageError(
                "`latency` tune needs calibration data: it measures what leaving operators in float is worth"
            )
        if self.fallback != "off":
            raise UsageError(f"`fallback` {self.fallback} needs calibration data: it tries what each grid costs")
        if self.bias_correction == "empirical":
            raise UsageError("`bias_correction` empirical needs calibration data; data-free there is analytic")
        if self.rounding not in ("auto", "nearest"):
            raise UsageError(f"`rounding` {self.rounding} needs calibration data; data-free there is nearest")

    @property
    def activation(self) -> QuantSpec | None:
        """The activations' grids; None: left in float."""
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
        """The weights' grids; None: left in float."""
        width = bits(self.preset)[0]
        if width is None:
            return None
        spec = find_target(self.target).weight_of(width)
        spec = replace(spec, power_of_two=self.power_of_two or spec.power_of_two)
        if self._has_zero_points(spec):
            spec = replace(spec, grid=Grid(spec.grid.bits, spec.grid.signed), symmetric=False)
        per_channel = spec.per_channel and self.per_channel and self.block_size is None
        return replace(spec, per_channel=per_channel, block=self.block_size)

    def _has_zero_points(self, spec: QuantSpec) -> bool:
        """Whether weights get zero points; left open, those of 4 bits in blocks do, which gain 1 to 2 dB by them, for a
        fortieth of their size."""
        if self.asymmetric_weights is not None:
            return self.asymmetric_weights
        in_small_blocks = self.block_size is not None and spec.grid.bits <= 4 and bits(self.preset)[1] is None
        return in_small_blocks and not spec.power_of_two and find_target(self.target).zero_points_in_blocks

    @property
    def is_dynamic(self) -> bool:
        """Whether activations are quantized at run time."""
        return self.preset.endswith("-dynamic")

    @property
    def needs_data(self) -> bool:
        """Whether activations are to be quantized, and nothing but data says how."""
        return self.activation is not None and not self.data_free and self.from_encodings is None

    @property
    def table(self) -> QuantSpec | None:
        """The grids of tables, which are symmetric, one scale a row; None: they are left in float."""
        if self.embeddings == "float" or self.weight is None or self.from_encodings is not None:
            return None
        spec = find_target(self.target).weight_of(int(self.embeddings))
        signed = replace(spec.grid, signed=True)
        power_of_two = self.power_of_two or spec.power_of_two
        return replace(spec, grid=signed, symmetric=True, per_channel=True, power_of_two=power_of_two)

    @property
    def weighs_weights(self) -> bool:
        """Whether the weights' squared error is weighted by input power and output sensitivity."""
        auto = self.weight_range == "auto" and not self.per_channel and self.from_encodings is None
        return auto or self.weight_range == "weighted"

    @property
    def optimised_rounding(self) -> str | None:
        """The rounding method where weights are not merely rounded to nearest, whatever the data says."""
        if self.weight is None or self.data_free or self.rounding == "nearest":
            return None
        if self.rounding != "auto":
            return self.rounding
        if self.effort == "fast":
            return None
        return "coordinate-descent" if self.weight.grid.bits < 8 else None

    @property
    def weight_method(self) -> str:
        """How weight ranges are set, before any weighting. Blocks with zero points span their weights where `effort` is
        fast: a search gains 0.3 dB, and takes five times as long as all else that is done to a weight."""
        if self.weight_range not in ("auto", "weighted"):
            return self.weight_range
        weight = self.weight
        quick = weight is not None and weight.block is not None and not weight.symmetric and self.effort == "fast"
        return "minmax" if quick else "mse"

    @property
    def has_integer_kernels(self) -> bool:
        """Whether the target computes with these widths, rather than simulating them in float."""
        weight, activation = bits(self.preset)
        if weight is None or activation != 8 or self.block_size is not None:
            return False
        return weight == 8 or (weight < 8 and not (weight <= 4 and self.packs_int4(beside_integers=True)))

    def packs_int4(self, *, beside_integers: bool) -> bool:
        """Whether weights of up to 4 bits are stored in 4 bits, where the input of their layer is quantized or not."""
        return find_target(self.target).packs_int4(self.store_4bit, beside_integers)


def with_settings(options: Options | None, settings: Mapping[str, object]) -> Options:
    """`options` with single fields replaced, `settings.Settings`. Raises UsageError."""
    if options is not None and not isinstance(options, Options):
        raise UsageError(f"`options` must be onnxq.Options, got {type(options).__name__}; or give its fields by name")
    known = [f.name for f in fields(Options)]
    for name in settings:
        if name not in known:
            raise _unknown_setting(name, known)
    return replace(options or Options(), **cast("dict[str, Any]", settings))


def _unknown_setting(name: str, known: Sequence[str]) -> UsageError:
    """The error for an argument that is no option, with what it may have been meant for."""
    if name in [f.name for f in fields(Preprocess)]:
        return UsageError(f"`{name}` says how images become inputs: give it as preprocess=onnxq.Preprocess({name}=...)")
    key = key_of(name)
    if key in RENAMED:
        return UsageError(f"there is no argument `{name}`: it is `{RENAMED[key]}` here")
    if key in EXPLAINED:
        return UsageError(f"there is no argument `{name}`: {EXPLAINED[key]}")
    return unknown("argument", name, known)
