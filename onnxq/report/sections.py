"""The sections of the HTML report, in their order; those that the report has nothing for are left out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from ..thresholds import ADVISED, DRAWN_DB
from . import figures
from .advice import next_steps, not_verified, sensitive_kept_float, verified, worst_layers
from .markup import (
    Cell,
    Column,
    Markup,
    Section,
    count,
    decibels,
    folded,
    join,
    name,
    number,
    pasted,
    table,
    tag,
    with_code,
    worst_first,
)
from .records import Latency, LogEntry, Measure, ParetoFront, ReportData, SensitivityRanking, Step
from .svg import dumbbell, pareto
from .text import because, sample_counts, size, sqnr_text, times_smaller, toolchain_lines, was_compared

SHOWN = 1000
"""Rows of the longest tables: beyond, the JSON report has them all."""

DECLINED = 200
"""Places that a step declined to change, likewise."""


def sections(report: ReportData) -> list[Section]:
    """All that the report has something for, the summary first."""
    found = [_summary(report)]
    if report.log:
        found.append(_log(report))
    found.append(_steps(report))
    if report.layers:
        found += figures.layers(report)
    if report.distributions:
        found.append(figures.activations(report))
    if report.sensitivity is not None and report.sensitivity.ranking:
        found.append(_sensitivity(report.sensitivity))
    if report.pareto is not None and report.pareto.points:
        found.append(_pareto(report.pareto))
    if report.float_nodes:
        found.append(_in_float(report))
    return [*found, _grids(report), _run(report)]


def heading(report: ReportData) -> Markup:
    """Title and verdict."""
    options = report.options
    granularity = "per-channel" if options.get("per_channel") else "per-tensor"
    words = f"{str(options.get('preset', '')).upper()}, {granularity} weights, target {options.get('target', '?')}"
    state, text = "good", "Valid, and it runs"
    if report.warnings:
        state, text = "warn", f"Valid, and it runs: {len(report.warnings)} warning{'s' * (len(report.warnings) > 1)}"
    return join(
        tag("p", "onnxq quantization report", class_="eyebrow"),
        tag("h1", name(str(report.source.path or "model").rsplit("/", 1)[-1])),
        tag("p", tag("span", text, class_=f"badge {state}"), tag("span", words), class_="subtitle"),
    )


def _summary(report: ReportData) -> Section:
    ratio = report.source.bytes / max(report.result.bytes, 1)
    cards = [_card(m.name, f"{number(m.result, 4)} {m.unit}", _beside(m)) for m in report.measures]
    for output in report.quality[:4]:
        where = f"of the output, against float, {report.samples.origin}"
        if len(report.quality) > 1 or output.compared_at is not None:
            where = f"{'output ' * (output.compared_at is None)}{name(output.label)}, {report.samples.origin}"
        worth, _, unsure = ("identical" if output.sqnr_db is None else sqnr_text(output)).partition(" (")
        where += f"; {unsure.removesuffix(')')}" * bool(unsure)
        if output.is_unknown:
            worth, where = "unknown", f"nothing of output {name(output.output)} could be compared"
        cards.append(_card("Signal to noise", worth, where))
        if output.top1_agreement is not None:
            cards.append(
                _card(
                    "Same top-1 class",
                    f"{100 * output.top1_agreement:.1f} %",
                    f"as float, {report.samples.origin}{', all of one class' * (output.classes == 1)}",
                    output.top1_agreement,
                )
            )
    in_float = report.simulated_nodes + report.weights_only_nodes + len(report.float_nodes)
    in_float_bytes = sum(constant.bytes for constant in report.float_constants)
    in_float_text = f"; {size(in_float_bytes)} of it in float" * (in_float_bytes >= 1024)
    integers = report.integer_nodes + len(report.dynamic_nodes)
    nodes = integers + in_float
    cards += [
        *_latency_cards(report.latency),
        *_noisiest(report),
        _card(
            "Size",
            size(report.result.bytes),
            f"{times_smaller(report)} than {size(report.source.bytes)}{in_float_text}",
            1 / max(ratio, 1),
        ),
        _card(
            "Nodes in integers",
            f"{integers} of {nodes}",
            _in_float_words(report, in_float),
            integers / max(nodes, 1),
        ),
        _card(
            "Calibration",
            f"{report.samples.fitting} samples" if report.samples.fitting else "no data",
            f"{sample_counts(report.samples)}; {len(report.tensors)} tensors quantized, {report.seconds:.1f} s",
        ),
    ]
    warnings = [tag("p", warning, class_="warning") for warning in report.warnings]
    lead = f"Verified: {'; '.join(verified(report))}."
    if left := not_verified(report):
        lead += f" Not verified: {left}."
    body = join(*warnings, tag("div", *cards, class_="cards"), _next_steps(report))
    return Section("summary", "Summary", lead, body)


def _next_steps(report: ReportData) -> Markup:
    found = next_steps(report)
    if not found:
        return Markup("")
    items = (tag("li", with_code(each.text), pasted(each.lines)) for each in found)
    return join(tag("h3", "What to do next", class_="next"), tag("ol", *items, class_="next"))


def _noisiest(report: ReportData) -> list[Markup]:
    """The layers with the lowest SQNR, where the report looks inside."""
    worst = worst_layers(report)[:ADVISED]
    if not worst:
        return []
    others = ", ".join(f"{name(layer.node)} {decibels(layer.sqnr_db)}" for _, layer in worst[1:])
    note = name(worst[0][1].node) + f"; then {others}" * bool(others)
    return [_card("Noisiest layer", f"{decibels(worst[0][1].sqnr_db)} dB", note)]


def _latency_cards(latency: Latency | None) -> list[Markup]:
    if latency is None:
        return []
    if latency.not_measured:
        return [_card("Latency", "not measured", name(latency.not_measured))]
    return [
        _card(
            f"Latency, {timing.threads} thread{'s' * (timing.threads > 1)}{', ' * bool(timing.option)}{timing.option}",
            "unsure" if timing.is_unsure else f"{timing.ratio:.2f} ×",
            f"{'the machine was too busy to tell; ' * timing.is_unsure}of the float model's time:"
            f" {timing.float_milliseconds:.3g} → {timing.milliseconds:.3g} ms; {timing.low:.2f} to {timing.high:.2f} in"
            f" half of {timing.rounds} rounds",
            min(timing.ratio, 1.0),
        )
        for timing in latency.timings
    ]


def _beside(measure: Measure) -> str:
    reference = "" if measure.reference is None else f"float {number(measure.reference, 4)} {measure.unit}"
    return ", ".join(part for part in (reference, measure.origin) if part)


def _in_float_words(report: ReportData, in_float: int) -> str:
    parts = [
        f"{count_} {words}"
        for count_, words in (
            (report.weights_only_nodes, "with quantized weights"),
            (report.simulated_nodes, "with all tensors quantized"),
        )
        if count_
    ]
    dynamic = len(report.dynamic_nodes)
    head = f"{dynamic} with activations quantized at run time; " if dynamic else ""
    return f"{head}{in_float} compute in float" + (f": {', '.join(parts)}" if parts else "")


def _card(title: str, value: str, note: str, share: float | None = None) -> Markup:
    bar = "" if share is None else tag("div", class_="meter", style=f"--bar:{100 * share:.1f}%", aria_hidden="true")
    return tag(
        "div",
        tag("div", title, class_="what"),
        tag("div", value, class_="value"),
        tag("div", note, class_="note"),
        Markup(bar),
        class_="card",
    )


def _log(report: ReportData) -> Section:
    entries = tag("ol", *map(_entry, report.log), class_="log")
    if not report.changes:
        return Section("log", "Log", "What was done, and why.", entries)
    text = tag(
        "p",
        "The same again: paste this into the file of onnxq quantize --config, over which flags win.",
        class_="paste",
    )
    return Section("log", "Log", "What was done, and why.", join(entries, text, pasted(report.changes)))


def _entry(entry: LogEntry) -> Markup:
    body = [tag("h3", entry.title), *(tag("p", part) for part in entry.text.splitlines() if part)]
    if entry.figures:
        most = max(abs(value) for _, value in entry.figures) or 1.0
        rows = [[Cell(name(label)), Cell(number(v, 4), v, abs(v) / most)] for label, v in entry.figures]
        body.append(table(entry.title, [Column("What"), Column(entry.unit or "value", True)], rows))
    return tag("li", *body)


def _steps(report: ReportData) -> Section:
    compared = [v for s in report.steps if s.before_db is not None for v in (s.before_db, s.after_db) if v is not None]
    finite = [v for v in compared if abs(v) < DRAWN_DB]
    lo, hi = (min(finite) - 0.5, max(finite) + 0.5) if finite else (0.0, 1.0)
    lead = "Figure 8 of the white paper from top to bottom."
    if compared:
        lead += (
            " Steps that are meant to help were each tried: hollow is the signal to noise ratio of the quantized"
            " model's outputs without the step, full with it. Those that made it worse were dropped."
        )
    return Section("steps", "Pipeline", lead, tag("ol", *(_step(s, lo, hi) for s in report.steps), class_="steps"))


def _step(step: Step, lo: float, hi: float) -> Markup:
    measured = was_compared(step)
    state = {"done": "kept", "kept": "kept", "dropped": "dropped", "undone": "dropped"}.get(step.status, "idle")
    what = f"{step.changed} changed" if state == "kept" else step.status
    notes = step.notes[measured:]  # the first one says in words what is drawn
    facts = [tag("li", note) for note in (f"options: {step.options}",) * bool(step.options) + notes[:DECLINED]]
    facts += [tag("li", tag("code", name(where)), f": left: {reason}") for where, reason in step.skips[:DECLINED]]
    total = len(notes) + len(step.skips) + bool(step.options)
    if total > len(facts):
        facts.append(tag("li", f"{total - len(facts)} more are in the JSON report"))
    text = f"{total} note{'s' * (total > 1)}"
    more = tag("details", tag("summary", text), tag("ul", *facts)) if facts else Markup("")
    return tag(
        "li",
        tag("div", tag("strong", step.title), class_="name"),
        tag("div", _effect(step, lo, hi), class_="effect"),
        tag("div", what, class_=f"state {state}"),
        tag("div", f"{step.seconds:.2f} s", class_="time"),
        more,
        class_=state,
    )


def _effect(step: Step, lo: float, hi: float) -> Markup:
    """SQNR without and with the step, drawn on [lo, hi] dB."""
    if not was_compared(step) or step.before_db is None or step.after_db is None:
        return Markup("")
    ends = tag("span", f"{decibels(step.before_db)} → {decibels(step.after_db)} dB", class_="ends")
    if not (abs(step.before_db) < DRAWN_DB and abs(step.after_db) < DRAWN_DB):
        return ends
    return join(dumbbell(step.before_db, step.after_db, lo, hi), ends)


def _sensitivity(found: SensitivityRanking) -> Section:
    values = [v for s in found.ranking for v in (s.only, s.all_but) if v is not None and math.isfinite(v)]
    lo, hi = min(values, default=0.0), max(values, default=1.0)
    rows = [
        [
            Cell(str(rank), rank),
            Cell(tag("code", name(s.unit))),
            Cell(s.kind),
            *(_measured(v, lo, hi) for v in (s.only, s.all_but)),
        ]
        for rank, s in enumerate(found.ranking[:SHOWN], 1)
    ]
    unit = f"{found.metric}, {found.unit}" if found.unit else found.metric
    columns = [
        Column("Rank", True),
        Column("Unit"),
        Column("Kind"),
        Column(f"Only it quantized ({unit})", True),
        Column(f"All but it quantized ({unit})", True),
    ]
    lead = "The most sensitive first: with it alone on its grid, and with everything else on its grid but it."
    text = tag("p", "The most sensitive in float: paste this into the file of onnxq quantize --config.", class_="paste")
    body = join(
        worst_first("Sensitivity ranking", columns, rows, rows, "units"),
        text,
        pasted(sensitive_kept_float(found.ranking)),
    )
    return Section("sensitivity", "Sensitivity", lead, body)


def _measured(value: float | None, lo: float, hi: float) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell("–" if value is None else "identical", value)
    return Cell(number(value, 4), value, (value - lo) / ((hi - lo) or 1))


def _pareto(front: ParetoFront) -> Section:
    columns = [
        Column("Choice"),
        Column("KiB", True),
        Column("Bit operations", True),
        Column(front.score, True),
        Column(""),
    ]
    rows = [
        [
            Cell(name(p.label)),
            Cell(number(p.size_bytes / 2**10), p.size_bytes),
            Cell(count(p.bops), p.bops),
            Cell(number(p.score, 4), p.score),
            Cell("chosen" * p.chosen),
        ]
        for p in sorted(front.points, key=lambda p: p.size_bytes)[:SHOWN]
    ]
    lead = "Each point is one choice of bit-widths; on the line are those that no other one beats."
    drawn = any(math.isfinite(p.score) for p in front.points)
    chart = figures.scrolled(pareto(front)) if drawn else Markup("")
    body = join(chart, folded(f"All {len(rows)} choices", table("Choices", columns, rows)))
    return Section("pareto", "Accuracy against size", lead, body)


def _in_float(report: ReportData) -> Section:
    groups = Counter((n.op, n.reason) for n in report.float_nodes)
    rows = [[Cell(op), Cell(str(held), held), Cell(reason)] for (op, reason), held in groups.most_common(SHOWN)]
    nodes = [[Cell(tag("code", name(n.node))), Cell(n.op), Cell(because(n))] for n in report.float_nodes[:SHOWN]]
    every = table("Every node in float", [Column("Node"), Column("Operator"), Column("Reason")], nodes)
    summary = table("Nodes in float, by reason", [Column("Operator"), Column("Nodes", True), Column("Reason")], rows)
    body = join(summary, folded(f"All {len(report.float_nodes)} nodes", every))
    constants = [
        [Cell(tag("code", name(c.tensor))), Cell(size(c.bytes), c.bytes), Cell(c.op), Cell(c.reason)]
        for c in report.float_constants[:SHOWN]
    ]
    if constants:
        columns = [Column("Constant"), Column("Size", True), Column("Read by"), Column("Reason")]
        body = join(body, table("Constants stored in float", columns, constants))
    return Section("float", "Left in float", "Nodes that compute in float, and why.", body)


def _grids(report: ReportData) -> Section:
    columns = [
        Column("Tensor"),
        Column("Kind"),
        Column("Grid"),
        Column("Scales", True, "how many"),
        Column("Smallest scale", True),
        Column("Largest scale", True),
        Column("Zero point"),
        Column("Grid of", hint="the tensor whose grid it shares"),
    ]
    rows = [
        [
            Cell(tag("code", name(t.tensor))),
            Cell(t.kind),
            Cell(t.grid),
            Cell(str(len(t.scale)), len(t.scale)),
            Cell(number(min(t.scale)), min(t.scale)),
            Cell(number(max(t.scale)), max(t.scale)),
            Cell(_range(t.zero_point)),
            Cell(tag("code", name(t.grid_of)) if t.grid_of is not None else "own"),
        ]
        for t in report.tensors[:SHOWN]
    ]
    lead = f"{len(report.tensors)} tensors are quantized: real value = scale × (integer − zero point)."
    return Section(
        "grids", "Grids", lead, folded(f"All {len(rows)} tensors", table("Quantized tensors", columns, rows))
    )


def _range(values: Iterable[int]) -> str:
    ends = sorted(set(values))
    text = str(ends[0]) if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    return text.replace("-", "−")


def _run(report: ReportData) -> Section:
    facts = [
        ("onnxq", report.onnxq),
        ("ONNX Runtime", report.onnxruntime),
        (
            "Float model",
            f"{report.source.path or 'in memory'}: {report.source.nodes} nodes, opset {report.source.opset},"
            f" {count(report.source.parameters)} parameters",
        ),
        (
            "Quantized model",
            f"{report.result.path or 'in memory'}: {report.result.nodes} nodes, opset {report.result.opset}",
        ),
        ("ONNX Runtime runs", ", ".join(f"{n} {op}" for op, n in report.runtime_operators.items())),
    ]
    facts += [
        (
            f"{'Output ' * (q.compared_at is None)}{name(q.label)}",
            f"optimised against as written: {decibels(q.runtime_sqnr_db)}{' dB' * (q.runtime_sqnr_db is not None)}",
        )
        for q in report.quality
        if not q.is_unknown and q.runs_in_default_session
    ]
    if report.toolchain is not None:
        facts += [("Tool-chain", name(line.strip())) for line in toolchain_lines(report.toolchain)]
    listed = tag("dl", *(join(tag("dt", key), tag("dd", value)) for key, value in facts))
    options = [[Cell(tag("code", key)), Cell(name(str(value)))] for key, value in report.options.items()]
    every = folded("All options", table("Options", [Column("Option"), Column("Value")], options))
    kept = Markup("")
    if report.requirements:
        text = f"{len(report.requirements)} requirements of the target that the model was checked to keep to"
        kept = folded(text, tag("ul", *(tag("li", each) for each in report.requirements), class_="plain"))
    return Section("run", "Run", "What it takes to do the same again.", join(listed, kept, every))
