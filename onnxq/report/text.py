"""A report for a terminal, and the words that its other forms share."""

from __future__ import annotations

from collections import Counter

from ..thresholds import FLOAT_BYTES_SHARE, UNSURE_DB
from .records import (
    FloatNode,
    Latency,
    Measure,
    OutputQuality,
    ReportData,
    RoundedLayer,
    SampleSets,
    Step,
    Timing,
    ToolchainResult,
)

SHOWN_LETTERS = 60
"""Of each name, where several stand in one line of the summary."""

SHOWN_CONSTANTS = 5
"""Constants in float that the summary names; `verbose` names all."""


def to_text(report: ReportData, verbose: bool = False) -> str:
    """The summary, a few lines; with `verbose` each step and each node left in float."""
    lines = [
        f"{node_counts(report)}; {len(report.tensors)} tensors quantized; {sample_counts(report.samples)};"
        f" {report.seconds:.1f} s",
        f"size {size(report.source.bytes)} -> {size(report.result.bytes)}"
        f" ({times_smaller(report)}), opset {report.result.opset}",
    ]
    lines += [printable(measure_text(measure)) for measure in report.measures]
    lines += [f"{'output ' * (q.compared_at is None)}{_quality(q, report.samples.origin)}" for q in report.quality]
    lines += latency_lines(report.latency)
    lines += [
        f"SmoothQuant moved outliers behind {step.changed} norms into the weights that read them"
        for step in report.steps
        if step.name == "SmoothQuant" and step.changed and step.status in ("done", "kept")
    ]
    lines += [
        f"exceptions: {step.notes[1]}; {step.notes[0]}"
        for step in report.steps
        if step.name == "MakeExceptions" and step.status == "kept"
    ]
    lines += _left_in_float(report, verbose)
    lines += _stored_in_float(report, verbose)
    if verbose:
        lines += [line for step in report.steps for line in _step_lines(step)]
        lines += [f"activations quantized at run time: {printable(node)}" for node in report.dynamic_nodes]
        operators = ", ".join(f"{count} {op}" for op, count in report.runtime_operators.items())
        lines.append(f"ONNX Runtime runs: {operators}")
        lines += [f"repeat it with: {printable(report.command)}"] * bool(report.command)
    if report.toolchain is not None:
        lines += toolchain_lines(report.toolchain, verbose)
    lines += [f"warning: {warning}" for warning in report.warnings]
    return "\n".join(lines)


def sample_counts(samples: SampleSets) -> str:
    """How many samples were for what."""
    if not samples.fitting:
        return f"no calibration data, {samples.reporting} samples to compare"
    if not samples.are_unseen:
        return f"{samples.fitting} calibration samples, none of them held out"
    fitting, choosing, reporting = samples.fitting, samples.choosing, samples.reporting
    return f"samples: {fitting} to calibrate, {reporting} to report, {choosing} of them to choose"


def node_counts(report: ReportData) -> str:
    """How many nodes compute how."""
    text = f"{report.integer_nodes} nodes in integers, {len(report.float_nodes)} in float"
    if report.dynamic_nodes:
        text += f", {len(report.dynamic_nodes)} in integers with activations quantized at run time"
    if report.simulated_nodes:
        text += f", {report.simulated_nodes} quantized but computed in float"
    if report.weights_only_nodes:
        text += f", {report.weights_only_nodes} in float with quantized weights only"
    return text


def _left_in_float(report: ReportData, verbose: bool) -> list[str]:
    if verbose:
        return [
            f"in float: {printable(n.node)} ({printable(n.op)}): {printable(because(n))}" for n in report.float_nodes
        ]
    groups = Counter((n.op, n.reason) for n in report.float_nodes)
    return [f"in float: {count} {printable(op)}: {printable(reason)}" for (op, reason), count in groups.most_common()]


def _stored_in_float(report: ReportData, verbose: bool) -> list[str]:
    """The largest constants that are stored in float, where these are a good part of the file."""
    constants = report.float_constants
    total = sum(constant.bytes for constant in constants)
    if not verbose and total < FLOAT_BYTES_SHARE * report.result.bytes:
        return []
    shown = constants if verbose else constants[:SHOWN_CONSTANTS]
    lines = [f"stored in float: {size(c.bytes)} {printable(c.tensor)}: {printable(c.reason)}" for c in shown]
    rest = constants[len(shown) :]
    return lines + [f"stored in float: {size(sum(c.bytes for c in rest))} in {len(rest)} more"] * bool(rest)


def because(node: FloatNode) -> str:
    """The reason, with the node that it stays in float for."""
    return node.reason if node.cause is None else f"{node.reason} (because of {node.cause!r})"


def _quality(quality: OutputQuality, origin: str) -> str:
    if quality.is_unknown:
        return f"{printable(quality.output)}: quality unknown, nothing of it could be compared"
    text = f"{printable(quality.label)}: SQNR {sqnr_text(quality)} against float"
    if quality.option is not None:
        text += f" ({db(quality.option_sqnr_db)} with the session option {quality.option}, which is slower)"
    if quality.top1_agreement is not None:
        text += f", {quality.same_top1}"
    if not quality.runs_in_default_session:
        return f"{text}, {origin} (computed as written)"
    return f"{text}, {origin} (ONNX Runtime optimised against not: {db(quality.runtime_sqnr_db)})"


def latency_lines(latency: Latency | None) -> list[str]:
    """How long a run takes beside the float model's, and what costs where it is no shorter."""
    if latency is None:
        return []
    if latency.not_measured:
        return [f"latency: not measured: {printable(latency.not_measured)}"]
    return [*(f"latency: {timing_text(timing)}" for timing in latency.timings), *slow_lines(latency)]


def timing_text(timing: Timing) -> str:
    """`0.53 of float's (0.50 to 0.56 in half of 221 rounds), 8.47 -> 4.48 ms of processor time, 1 thread`."""
    busy = "; the machine is too busy to tell" * timing.is_unsure
    return (
        f"{timing.ratio:.2f} of float's ({timing.low:.2f} to {timing.high:.2f} in half of {timing.rounds} rounds"
        f"{busy}), {timing.float_milliseconds:.3g} -> {timing.milliseconds:.3g} ms"
        f"{' of processor time' * (timing.clock == 'processor')},"
        f" {timing.threads} thread{'s' * (timing.threads > 1)}"
        f"{f', with the session option {timing.option}' if timing.option else ''}"
    )


def slow_lines(latency: Latency) -> list[str]:
    """What costs where the result is no faster than the float model, and what can be done."""
    lines = [printable(note) for note in latency.notes]
    if not latency.is_slower:
        return lines
    for slow in latency.slow:
        names = (
            f"; most in {', '.join(shortened(name, SHOWN_LETTERS) for name in slow.slowest)}" if slow.slowest else ""
        )
        times = f"{slow.milliseconds:.3g} ms, {slow.float_milliseconds:.3g} ms in the float model"
        lines.append(printable(f"slower than float: {slow.nodes} {slow.op}: {times}{names}"))
    return lines


def toolchain_lines(result: ToolchainResult, verbose: bool = False) -> list[str]:
    """What a tool-chain made of a model: what it took, what runs elsewhere, what it computes."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    head = f"{result.toolchain} ({versions}): {'accepted' if result.accepted else 'refused'}"
    if result.partitions is not None:
        head += f", {result.partitions} partition{'s' * (result.partitions != 1)}"
    if result.integer_nodes is not None:
        head += f", {result.integer_nodes}{'' if result.nodes is None else f' of {result.nodes}'} nodes in integers"
    lines = [head]
    if result.message and not result.problem:
        lines.append(printable(f"  it says: {result.message}"))
    groups = Counter((node.op, node.where) for node in result.fallback)
    if verbose:
        lines += [printable(f"  falls back to {n.where}: {n.node} ({n.op})") for n in result.fallback]
    else:
        lines += [printable(f"  falls back to {where}: {count} {op}") for (op, where), count in groups.most_common()]
    if result.is_compared:
        text = f"  SQNR {db(result.sqnr_db)} against ONNX Runtime without optimisations"
        if result.top1_agreement is not None:
            text += f", same top-1 on {100 * result.top1_agreement:.1f} % of samples"
        lines.append(printable(f"{text} ({result.samples} samples of {result.source})"))
        if result.quality_db is not None:
            text = (
                f"  SQNR {db(result.quality_db)} against float, where ONNX Runtime has {db(result.runtime_quality_db)}"
            )
            lines.append(text)
    elif result.samples:
        lines.append(f"  it ran {result.samples} samples; none of the outputs can be compared")
    elif result.accepted:
        lines.append("  it was compiled and not run")
    return [*lines, printable(f"  problem: {result.problem}")] if result.problem else lines


def sqnr_text(quality: OutputQuality) -> str:
    """`25.3 ± 0.8 dB`, with its standard error where that is known."""
    error = quality.standard_error_db
    if quality.sqnr_db is None or error is None:
        return db(quality.sqnr_db)
    unsure = " (the samples differ much, and are few for that)" * (error > UNSURE_DB)
    return f"{quality.sqnr_db:.1f} ± {error:.1f} dB{unsure}"


def measure_text(measure: Measure) -> str:
    """`top-1 accuracy: float 59.5 %, quantized 58.75 %, on 350 samples of the evaluation data`."""
    unit = f" {measure.unit}" * bool(measure.unit)
    result = f"{measure.result:.5g}{unit}"
    if measure.reference is not None:
        result = f"float {measure.reference:.5g}{unit}, quantized {result}"
    return f"{measure.name}: {result}{f', {measure.origin}' * bool(measure.origin)}"


def db(value: float | None) -> str:
    return "identical" if value is None else f"{value:.1f} dB"


def times_smaller(report: ReportData) -> str:
    """The size of the quantized model against the float model's: `3.80 times smaller`, or `1.20 times larger`."""
    source, result = max(report.source.bytes, 1), max(report.result.bytes, 1)
    return f"{source / result:.2f} times smaller" if result <= source else f"{result / source:.2f} times larger"


def size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _step_lines(step: Step) -> list[str]:
    head = f"{step.title}: {status(step)}, {step.seconds:.2f} s"
    return [
        head,
        *(f"  {printable(note)}" for note in step.notes),
        *(f"  {printable(rounded(layer))}" for layer in step.rounded),
        *(f"  left: {printable(w)}: {printable(r)}" for w, r in step.skips),
    ]


def status(step: Step) -> str:
    """What became of a step, and how much it changed."""
    changed = f"{step.changed} changed"
    return {"done": changed, "kept": f"{changed}, kept"}.get(step.status, step.status)


def was_compared(step: Step) -> bool:
    """Whether the result was measured without and with it; its first note then says so in words."""
    return step.before_db is not None and step.status in ("kept", "dropped")


def rounded(layer: RoundedLayer) -> str:
    """One line on a weight whose rounding was optimised."""
    text = f"{layer.layer}: error {layer.nearest:.2%} -> {layer.objective:.2%}, {layer.flipped:.1%} of weights flipped"
    if layer.kept_nearest_because is not None:
        text = f"{layer.layer}: rounded to nearest, error {layer.nearest:.2%}: {layer.kept_nearest_because}"
    shared = f"; shared with {', '.join(layer.uses[1:])}" * (len(layer.uses) > 1)
    part = f"; {layer.positions} of {layer.of_positions} positions" * (layer.positions < layer.of_positions)
    return text + shared + part


def shortened(text: str, longest: int) -> str:
    """Printable text without its middle where it is longer."""
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest // 2]}…{text[-longest // 2 :]}"


def printable(text: str) -> str:
    """Names come from the model: no control characters may reach the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
