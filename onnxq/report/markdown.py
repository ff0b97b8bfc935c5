"""A report as Markdown: the facts of the HTML page in short, for logs, wikis and pull requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .advice import next_steps, not_verified, sensitive_kept_float, verified, worst_layers
from .markup import count, decibels, name, number, percent
from .records import ReportData, Step
from .text import (
    latency_lines,
    measure_text,
    node_counts,
    printable,
    sample_counts,
    size,
    sqnr_text,
    times_smaller,
    toolchain_lines,
    was_compared,
)

ROWS = 50
"""Of a table; the JSON report has all."""


def to_markdown(report: ReportData) -> str:
    """Headings, lists and tables that GitHub and others show; names are escaped."""
    parts = [_summary(report), _steps(report), _layers(report), _activations(report), _sensitivity(report)]
    parts += [_pareto(report), _log(report), _in_float(report), _stored_in_float(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(report: ReportData) -> str:
    facts = [_text(measure_text(m)) for m in report.measures]
    for q in report.quality:
        same = "" if q.top1_agreement is None else f", {q.same_top1}"
        where = f"output {_code(q.output)}"
        if q.compared_at is not None:
            where = f"{_code(q.compared_at)} (in front of {_text(str(q.in_front_of))})"
        worth = f"SQNR {sqnr_text(q)} against float{same}, {report.samples.origin}"
        facts.append(f"{where}: {'unknown' if q.is_unknown else worth}")
    facts += [
        f"size {size(report.source.bytes)} → {size(report.result.bytes)}, {times_smaller(report)}",
        f"{node_counts(report)}; {len(report.tensors)} tensors quantized",
        f"{sample_counts(report.samples)}; {report.seconds:.1f} s;"
        f" onnxq {report.onnxq}, ONNX Runtime {report.onnxruntime}",
        f"preset {_text(str(report.options.get('preset')))}, target {_text(str(report.options.get('target')))}"
        f"{f', whose {len(report.requirements)} requirements it keeps to' * bool(report.requirements)}",
    ]
    facts += [_sentence(line) for line in latency_lines(report.latency)]
    if report.toolchain is not None:
        facts.append("; ".join(_text(line.strip()) for line in toolchain_lines(report.toolchain)))
    facts += [f"repeat it with {_command(report.command)}"] * bool(report.command)
    warnings = [f"**warning**: {_text(warning)}" for warning in report.warnings]
    left = f" Not verified: {not_verified(report)}." if not_verified(report) else ""
    head = [
        f"# Quantization of {_code(str(report.source.path or 'model'))}",
        f"Verified: {_sentence('; '.join(verified(report)))}.{left}",
        "\n".join(f"- {fact}" for fact in (*warnings, *facts)),
    ]
    return "\n\n".join([*head, *_next_steps(report)])


def _next_steps(report: ReportData) -> list[str]:
    found = next_steps(report)
    if not found:
        return []
    steps = [f"{place}. {_with_code(each.text)}{_pasted(each.lines, '   ')}" for place, each in enumerate(found, 1)]
    return ["## What to do next", "\n".join(steps)]


def _with_code(text: str) -> str:
    """Text with what stands in backquotes as code."""
    parts = text.split("`")
    return "".join(_code(part) if place % 2 else _sentence(part) for place, part in enumerate(parts))


def _pasted(lines: str, indent: str = "") -> str:
    """Lines of TOML to copy, behind a text; nothing where there are none."""
    if not lines:
        return ""
    return "\n\n" + "\n".join(f"{indent}{line}".rstrip() for line in ("```toml", *lines.splitlines(), "```"))


def _steps(report: ReportData) -> str:
    rows = [
        [
            s.title,
            _effect(s),
            str(s.changed) if s.status in ("done", "kept", "dropped") else s.status,
            f"{s.seconds:.2f}",
            "; ".join(map(_text, s.notes[was_compared(s) :][:2])),
        ]
        for s in report.steps
    ]
    return _table("Pipeline", ("step", "outputs, dB", "changed", "s", "notes"), "l-rrl", rows)


def _effect(step: Step) -> str:
    if not was_compared(step):
        return ""
    return f"{decibels(step.before_db)} → {decibels(step.after_db)}{', dropped' if step.status == 'dropped' else ''}"


def _layers(report: ReportData) -> str:
    head = ("#", "layer", "shape", "weight grid", "input grid", "weight dB", "output dB", "clipped", "MACs")
    ordered = worst_layers(report)
    rows = [
        [
            str(index),
            _code(x.node),
            "×".join(map(str, x.shape)),
            x.weight_grid or "float",
            x.input_grid or "float",
            "" if x.weight_grid is None else decibels(x.weight_sqnr_db),
            decibels(x.sqnr_db),
            percent(x.clipped),
            count(x.macs),
        ]
        for index, x in ordered
    ]
    return _table("Layers, the noisiest first", head, "rllllrrrr", rows)


def _activations(report: ReportData) -> str:
    head = ("tensor", "grid", "from", "to", "smallest", "largest", "clipped", "dB")
    seen = sorted(report.distributions, key=lambda d: 1e9 if d.sqnr_db is None else d.sqnr_db)
    rows = [
        [
            _code(d.tensor),
            d.grid,
            *map(number, (d.lo, d.hi, d.lowest, d.highest)),
            percent(d.clipped),
            decibels(d.sqnr_db),
        ]
        for d in seen
    ]
    return _table("Activations, the noisiest first", head, "llrrrrrr", rows)


def _sensitivity(report: ReportData) -> str:
    found = report.sensitivity
    if found is None:
        return ""
    head = ("unit", "kind", f"only it quantized, {found.unit}", f"all but it, {found.unit}")
    rows = [[_code(s.unit), s.kind, number(s.only, 4), number(s.all_but, 4)] for s in found.ranking]
    ranking = _table(f"Sensitivity by {found.metric}", head, "llrr", rows)
    text = "The most sensitive in float, for the file of `onnxq quantize --config`:"
    return f"{ranking}\n\n{text}{_pasted(sensitive_kept_float(found.ranking))}" if ranking else ""


def _pareto(report: ReportData) -> str:
    if report.pareto is None:
        return ""
    rows = [
        [_text(p.label), number(p.size_bytes / 2**10), count(p.bops), number(p.score, 4), "chosen" * p.chosen]
        for p in sorted(report.pareto.points, key=lambda p: p.size_bytes)
    ]
    return _table("Accuracy against size", ("choice", "KiB", "bit operations", report.pareto.score, ""), "lrrrl", rows)


def _log(report: ReportData) -> str:
    entries = [f"{i}. **{_text(entry.title)}** {_text(entry.text)}" for i, entry in enumerate(report.log, 1)]
    again = "\n\nThe same again, for the file of `onnxq quantize --config`:" + _pasted(report.changes)
    return "## Log\n\n" + "\n".join(entries) + again * bool(report.changes) if entries else ""


def _in_float(report: ReportData) -> str:
    groups = Counter((n.op, n.reason) for n in report.float_nodes)
    rows = [[_text(op), str(held), _text(reason)] for (op, reason), held in groups.most_common()]
    return _table("Left in float", ("operator", "nodes", "reason"), "lrl", rows)


def _stored_in_float(report: ReportData) -> str:
    rows = [[_code(c.tensor), size(c.bytes), _text(c.op), _text(c.reason)] for c in report.float_constants]
    return _table("Stored in float", ("constant", "size", "read by", "reason"), "lrll", rows)


def _table(title: str, head: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> str:
    """align: a letter a column, r for right."""
    if not rows:
        return ""
    lines = [_row(head), _row(["--:" if a == "r" else "---" for a in align]), *map(_row, rows[:ROWS])]
    left_out = [f"\n{len(rows) - ROWS} more are in the JSON report."] if len(rows) > ROWS else []
    return "\n".join([f"## {title}", "", *lines, *left_out])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """A name as code: no character of it may end the code or the table's cell."""
    return f"`{name(text).replace('`', chr(39)).replace('|', '¦')}`"


def _command(text: str) -> str:
    """A command as code, whole, so that it can be copied."""
    text = printable(text)
    return f"`` {text.replace('``', chr(39))} ``" if "`" in text else f"`{text}`"


def _text(text: str) -> str:
    """A name, or a reason with one, that means no markup."""
    return _sentence(name(text))


def _sentence(text: str) -> str:
    """Text of any length that means no markup."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in printable(text))
