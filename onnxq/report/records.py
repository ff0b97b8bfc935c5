"""What happened, as frozen records: plain data, and nothing that writes it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..thresholds import NOT_FASTER, UNSURE_RATIO

ReasonKind = Literal[
    "excluded", "not included", "override", "preset", "target", "slow", "inputs", "output", "constant", "type", "part",
    "range", "encodings", "runtime", "fallback", "spectrum",
]  # fmt: skip
"""Who or what keeps a node or a tensor in float:

    excluded, not included, override    the user, by --exclude, --include or an override
    preset                              the preset leaves its weights or activations in float
    target                              the target has no integer kernel for it
    slow                                the target has one that is slower than the float kernel
    inputs                              what it reads is in float, because of the node `cause`
    output, constant, type, part        it computes an output of the model; reads a constant that has no range, or a
                                        type that is not float32; or is a part of an operator that is quantized whole
    range, encodings                    nothing sets a range, or the given encodings say so
    runtime                             ONNX Runtime computes it in float all the same
    fallback                            its grid costs the outputs too much, and --fallback does without it
    spectrum                            it computes a spectrum that a logarithm reads: no grid holds its small values
"""


@dataclass(frozen=True)
class Reason:
    """Why a node or a tensor stays in float. cause: the other node, or tensor, that it stays in float for, if any."""

    kind: ReasonKind
    text: str
    cause: str | None = None

    @property
    def is_the_users(self) -> bool:
        """Whether the user asked for it."""
        return self.kind in ("excluded", "not included", "override")


@dataclass(frozen=True)
class FloatNode:
    """A node that computes in float. reason, kind, cause: as in `Reason`."""

    node: str
    op: str
    reason: str
    kind: ReasonKind
    cause: str | None = None


@dataclass(frozen=True)
class FloatConstant:
    """A constant of the result that is stored in float. bytes: its size. reader, op: the first node that reads it."""

    tensor: str
    bytes: int
    reader: str
    op: str
    reason: str


@dataclass(frozen=True)
class RoundedLayer:
    """A weight whose rounding was optimised for what its layer computes (section 3.4).

    layer: the node that reads it, the first of `uses` where several share it. method: a value of `--rounding`.
    nearest, objective: squared error over the variance of the layer's output, mean over channels, on samples that were
    held out: rounded to nearest, and optimised. flipped: share of the weights that are not at the integer nearest at
    their new scale. samples: calibration samples, `held_out` among them. positions: columns of the layer's input that
    statistics were taken of, of `of_positions` that there are.
    kept_nearest_because: why the weight stays rounded to nearest; None where it does not.
    """

    layer: str
    uses: tuple[str, ...]
    method: str
    nearest: float
    objective: float
    flipped: float
    samples: int
    held_out: int
    positions: int
    of_positions: int
    kept_nearest_because: str | None = None


StepStatus = Literal["done", "kept", "nothing to do", "dropped", "not run", "undone"]


@dataclass(frozen=True)
class Step:
    """One pass: its options as text, what it changed, what it declined (where, why), what is worth knowing.

    name: of the pass in Python; title: what people call it.
    before_db, after_db: SQNR of the quantized model's outputs without and with it, where that was measured.
    status: what became of it; `dropped` where it made the result worse, `undone` where it changed the float function.
    rounded: weights whose rounding it optimised.  warnings: what the user must not miss.
    """

    name: str
    title: str
    options: str
    changed: int
    seconds: float
    notes: tuple[str, ...] = ()
    skips: tuple[tuple[str, str], ...] = ()
    before_db: float | None = None
    after_db: float | None = None
    status: StepStatus = "done"
    rounded: tuple[RoundedLayer, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the result has what it did."""
        return self.status in ("done", "kept", "nothing to do")


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor. scale, zero_point: one value, or one a channel along `axis`."""

    tensor: str
    kind: str
    grid: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int | None
    grid_of: str | None = None


@dataclass(frozen=True)
class OutputQuality:
    """One output of the quantized model beside the float model's, over the samples compared.

    sqnr_db: signal to quantization noise, in dB; None where the two are identical, or where it `is_unknown`. Of samples
    held out, or of all where it is lower there (`SampleSets.origin`).
    runtime_sqnr_db: the quantized model with ONNX Runtime's optimisations off against on, likewise; None, too, where it
    does not run in a default session, or another tool-chain will run it (`runs_in_default_session`).
    top1_agreement: share of samples with the same best class, where the output holds class scores.
    compared_at: the tensor that stands for the output, in front of the operator `in_front_of`; None: the output itself.
    more_outputs: further outputs that this tensor stands for.
    standard_error_db: how far `sqnr_db` may be from that of other samples, one standard deviation, by how the compared
    ones differ; None where that is unknown.
    is_unknown: whether nothing of it could be compared.
    classes: how many different best classes the float model found in the samples; None without class scores.
    option: the session option of ONNX Runtime that changes the quality; None where none is known to.
    option_sqnr_db: as sqnr_db, with that option.
    """

    output: str
    sqnr_db: float | None
    runtime_sqnr_db: float | None
    top1_agreement: float | None
    compared_at: str | None = None
    in_front_of: str | None = None
    more_outputs: tuple[str, ...] = ()
    standard_error_db: float | None = None
    is_unknown: bool = False
    runs_in_default_session: bool = True
    classes: int | None = None
    option: str | None = None
    option_sqnr_db: float | None = None

    @property
    def same_top1(self) -> str:
        """How often the best class is the same, for people: never a bare 100 % where there is one class only."""
        if self.top1_agreement is None:
            return ""
        one = ", all of one class" if self.classes == 1 else ""
        return f"same top-1 on {100 * self.top1_agreement:.1f} % of samples{one}"

    @property
    def label(self) -> str:
        """What was compared: `scores`, or `boxes (in front of NonMaxSuppression)`."""
        return self.output if self.compared_at is None else f"{self.compared_at} (in front of {self.in_front_of})"


@dataclass(frozen=True)
class SampleSets:
    """How many samples were for what. fitting: ranges, roundings and biases.  choosing: which steps are kept.
    reporting: what the quality was measured on.

    origin: which samples the last ones are, as the end of a sentence: `on 25 samples held out`.
    are_unseen: whether nothing was fitted to them: then the quality is to be expected of other data.
    """

    fitting: int
    choosing: int
    reporting: int
    origin: str
    are_unseen: bool


@dataclass(frozen=True)
class ModelFacts:
    """A model file: `path` None where it never was one; sizes in bytes."""

    path: str | None
    bytes: int
    opset: int
    nodes: int
    parameters: int


Box: TypeAlias = tuple[float, float, float, float, float]
"""Smallest value, lower quartile, median, upper quartile, largest value."""


@dataclass(frozen=True)
class ChannelRanges:
    """Weights of each output channel, before and after the steps that adjust the float network (figure 5).

    shown: which of all `channels` the boxes are of. after: empty where nothing changed.
    """

    channels: int
    shown: tuple[int, ...]
    before: tuple[Box, ...]
    after: tuple[Box, ...]


@dataclass(frozen=True)
class Layer:
    """A linear layer, in the network's order.

    shape: of its weight. macs: multiplications a sample. weight_grid, input_grid: None where left in float.
    scale: smallest, median and largest scale of the weight.
    clipped: share of its input's values beyond the input's grid; None where that was not seen.
    weight_sqnr_db: of the weight on its grid alone. sqnr_db: of what the layer computes, everything in front of it
    included: float network against quantized network. Both None where the two are identical.
    """

    node: str
    op: str
    weight: str
    shape: tuple[int, ...]
    macs: int
    weight_grid: str | None
    input_grid: str | None
    scale: tuple[float, float, float] | None
    clipped: float | None
    weight_sqnr_db: float | None
    sqnr_db: float | None
    ranges: ChannelRanges


@dataclass(frozen=True)
class Distribution:
    """An activation on the calibration data, and the grid that was chosen for it.

    lowest, highest: what was seen. lo, hi: ends of the grid. clipped: share of values beyond them.
    counts: values in bins of equal width over [first, last]; the outer two hold everything beyond.
    sqnr_db: of the tensor on its grid alone; None where that loses nothing.
    """

    tensor: str
    grid: str
    lowest: float
    highest: float
    lo: float
    hi: float
    clipped: float
    sqnr_db: float | None
    first: float
    last: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Measure:
    """A figure of merit of the float model and of the quantized one, such as top-1 accuracy in %. reference: None of
    one that compares the two. origin: the samples that it was measured on, as in `SampleSets`."""

    name: str
    unit: str
    reference: float | None
    result: float
    origin: str = ""


@dataclass(frozen=True)
class Sensitivity:
    """What one unit, a quantizer or a layer, costs: with it alone on its grid, and with all others on theirs."""

    unit: str
    kind: str
    only: float | None
    all_but: float | None


@dataclass(frozen=True)
class SensitivityRanking:
    """metric, unit: what `only` and `all_but` are, `SQNR` in `dB`. The most sensitive first."""

    metric: str
    unit: str
    ranking: tuple[Sensitivity, ...]


@dataclass(frozen=True)
class ParetoPoint:
    """A choice of bit-widths: size of the weights, bit operations a sample, and how good it is."""

    size_bytes: int
    bops: float
    score: float
    label: str
    chosen: bool


@dataclass(frozen=True)
class ParetoFront:
    """score: what the points' score is, with its unit. Larger is better."""

    score: str
    points: tuple[ParetoPoint, ...]


@dataclass(frozen=True)
class LogEntry:
    """A step of a workflow: what was done and why, and figures that belong to it, as (label, value) in `unit`."""

    title: str
    text: str
    unit: str = ""
    figures: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class FallbackNode:
    """A node that a tool-chain does not run in integers on its device. where: what it runs on instead, or in."""

    node: str
    op: str
    where: str


@dataclass(frozen=True)
class ToolchainResult:
    """What the vendor's own tool-chain made of the result.

    accepted: it compiles the model. message: what it said. partitions: pieces of the model that it took.
    nodes, integer_nodes: nodes that it had to take, and those that it did; None: it does not tell.
    samples: that it ran, of `source`; the figures are of these.
    is_compared: whether any output could be compared. sqnr_db: its outputs against those of ONNX Runtime without
    optimisations, in dB. top1_agreement: share of samples with the same best class. quality_db, runtime_quality_db: its
    outputs, and ONNX Runtime's, against the float model's; None where these are not known.
    Like all figures in dB they are None where nothing differs.
    problem: why the model is of no use there; empty where it is.
    """

    toolchain: str
    versions: dict[str, str]
    accepted: bool
    message: str
    partitions: int | None
    nodes: int | None
    integer_nodes: int | None
    fallback: tuple[FallbackNode, ...]
    samples: int
    source: str
    is_compared: bool = False
    sqnr_db: float | None = None
    top1_agreement: float | None = None
    quality_db: float | None = None
    runtime_quality_db: float | None = None
    problem: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Timing:
    """The quantized model beside the float one, run by turns. milliseconds, float_milliseconds: of one run, medians.
    ratio: of the two in one round, the median of all rounds, with the quartiles `low` and `high`.
    clock: processor time, which other processes do not count in, or the time on the clock.
    option: the session option of ONNX Runtime that the quantized model ran with; empty: a default session."""

    threads: int
    milliseconds: float
    float_milliseconds: float
    ratio: float
    low: float
    high: float
    rounds: int
    clock: Literal["processor", "wall"] = "wall"
    option: str = ""

    @property
    def is_unsure(self) -> bool:
        """Whether the rounds differ so much that the ratio says nothing."""
        return self.high - self.low > UNSURE_RATIO * self.ratio


@dataclass(frozen=True)
class OperatorTime:
    """All nodes of one operator, with one thread. nodes: in the graph that ONNX Runtime makes of the quantized model.
    milliseconds, float_milliseconds: that they take there, and in the float model. slowest: of those that the user can
    leave in float, names, the one that loses most first."""

    op: str
    nodes: int
    milliseconds: float
    float_milliseconds: float
    slowest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latency:
    """Time of a run in default sessions. samples: calibration samples that it is of. timings: for one thread and for
    all. not_measured: why there are none. slow: operators that lose most, where the result is not faster than the float
    model. left_in_float: nodes that were left in float for it.  notes: what was tried for it."""

    provider: str
    samples: int = 0
    timings: tuple[Timing, ...] = ()
    not_measured: str = ""
    slow: tuple[OperatorTime, ...] = ()
    left_in_float: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_slower(self) -> bool:
        """Whether the result is no faster than the float model, with some number of threads."""
        return any(timing.ratio >= NOT_FASTER and not (timing.is_unsure or timing.option) for timing in self.timings)


@dataclass(frozen=True)
class ReportData:
    """Everything about a run. `options` reproduce it; `seconds` are wall time.

    integer_nodes: that compute in integers, as far as is known: for ONNX Runtime from the graph that it runs, for other
    targets from the plan.  simulated_nodes: of which all tensors are quantized, and which ONNX Runtime computes in
    float.  dynamic_nodes: names of those that compute in integers with activations that are quantized at run time.
    weights_only_nodes: of which only the weights are quantized.  float_nodes: all others.
    float_constants: what the result stores in float, the largest first.

    layers, distributions: only where details were asked for. measures, sensitivity, pareto, log: of the commands
    that find them out. requirements: of the target, each with its id; the result was checked and keeps to them.
    command: what repeats the run, a command line quoted for a shell, or a call in Python.
    toolchain: what the vendor's own one made of the result, where it was asked. latency: None where it was not wanted.
    changes: lines of TOML that repeat what a command found, for the file of `onnxq quantize --config`.
    """

    onnxq: str
    onnxruntime: str
    options: dict[str, Any]
    source: ModelFacts
    result: ModelFacts
    samples: SampleSets
    steps: tuple[Step, ...]
    integer_nodes: int
    simulated_nodes: int
    weights_only_nodes: int
    float_nodes: tuple[FloatNode, ...]
    float_constants: tuple[FloatConstant, ...]
    tensors: tuple[QuantizedTensor, ...]
    quality: tuple[OutputQuality, ...]
    runtime_operators: dict[str, int]
    warnings: tuple[str, ...]
    seconds: float
    layers: tuple[Layer, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    measures: tuple[Measure, ...] = ()
    sensitivity: SensitivityRanking | None = None
    pareto: ParetoFront | None = None
    log: tuple[LogEntry, ...] = ()
    requirements: tuple[str, ...] = ()
    toolchain: ToolchainResult | None = None
    dynamic_nodes: tuple[str, ...] = ()
    command: str = ""
    latency: Latency | None = None
    changes: str = ""
