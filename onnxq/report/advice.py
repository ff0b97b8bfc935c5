"""What was verified of a result, and what to do next: sentences for the top of a report, and lines of TOML to paste.

The lines belong into the file of `onnxq quantize --config`, behind all keys that stand in no table.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass

from ..schema import toml
from ..thresholds import ADVISED, CLEAR_DB, FLOAT_BYTES_SHARE, LEAST_DB
from .markup import name
from .records import Latency, Layer, ReportData, Sensitivity


@dataclass(frozen=True)
class Advice:
    """text: what to do, and why; commands in it stand in backquotes, names have none.  lines: of TOML, where pasting
    does it."""

    text: str
    lines: str = ""


def kept_float(*, nodes: Iterable[str] = (), tensors: Iterable[str] = ()) -> str:
    """Overrides that leave nodes, and tensors, in float; names mean themselves, whatever characters they hold."""
    named = [*(("node", each) for each in nodes), *(("tensor", each) for each in tensors)]
    tables = (f"[[override]]\n{key} = {toml(glob.escape(found))}\nkeep_float = true" for key, found in named)
    return "\n\n".join(tables)


def sensitive_kept_float(ranking: Iterable[Sensitivity]) -> str:
    """The most sensitive units in float; a ranking has these first."""
    first = list(ranking)[:ADVISED]
    return kept_float(
        nodes=[each.unit for each in first if each.kind == "layer"],
        tensors=[each.unit for each in first if each.kind != "layer"],
    )


def slow_kept_float(latency: Latency) -> str:
    """In float what loses most in integers."""
    return kept_float(nodes=[node for each in latency.slow for node in each.slowest])


def worst_layers(report: ReportData) -> list[tuple[int, Layer]]:
    """Layers with their place in the network, that with the lowest SQNR first; lossless ones are not among them."""
    known = [(place, layer) for place, layer in enumerate(report.layers, 1) if layer.sqnr_db is not None]
    return sorted(known, key=lambda each: (each[1].sqnr_db or 0.0, each[0]))


def verified(report: ReportData) -> list[str]:
    """What was verified, a clause each."""
    sessions = "as written"
    if any(quality.runs_in_default_session for quality in report.quality):
        sessions = "as written and in a default session, which agree"
    facts = ["it is valid ONNX", f"it runs in ONNX Runtime {report.onnxruntime} {sessions}"]
    if any(not quality.is_unknown for quality in report.quality):
        facts.append(f"its outputs were compared with the float model's {report.samples.origin}")
    if report.requirements:
        facts.append(
            f"it keeps to the {len(report.requirements)} requirements of target {report.options.get('target')}"
        )
    if report.toolchain is not None and report.toolchain.accepted:
        facts.append(f"{report.toolchain.toolchain} accepts it")
    return facts


def not_verified(report: ReportData) -> str:
    """What the reader may think was, and was not."""
    if report.measures:
        return ""
    return "its accuracy on labelled data was not measured"


def next_steps(report: ReportData) -> list[Advice]:
    """What to do, the most urgent first."""
    found = [*urgent_steps(report), *_float_bytes(report)]
    if not report.measures:
        text = "Measure the accuracy: `--eval-data` with `--labels`, or `onnxq evaluate`; SQNR says how far outputs are"
        found.append(Advice(f"{text} from the float model's, not how many answers change."))
    return found


def urgent_steps(report: ReportData) -> list[Advice]:
    """Those without which the result may be of no use."""
    return [*_quality(report), *_latency(report)]


def to_lines(report: ReportData, verbose: bool) -> list[str]:
    """What is urgent, for a terminal; with `verbose` the lines to paste, too."""
    found = []
    for step in urgent_steps(report):
        where = " `--verbose` and reports have the lines" * bool(step.lines and not verbose)
        found += [f"next: {step.text}{where}", *(step.lines.splitlines() if verbose else ())]
    return found


def _named(text: str) -> str:
    """A name of the model's in a sentence: of bearable length, and without backquotes."""
    return name(text).replace("`", "'")


def _quality(report: ReportData) -> list[Advice]:
    known = [quality.sqnr_db for quality in report.quality if not quality.is_unknown and quality.sqnr_db is not None]
    worst = min(known, default=CLEAR_DB)
    found = []
    if worst < LEAST_DB:
        text = f"The outputs are at {worst:.1f} dB: `onnxq debug` finds out what costs them, and repairs it"
        found.append(Advice(f"{text}; more calibration samples, and `--effort high`, may help, too."))
    layers = worst_layers(report)[:ADVISED]
    if worst < CLEAR_DB and layers:
        names = ", ".join(f"{_named(layer.node)} ({layer.sqnr_db:.1f} dB)" for _, layer in layers)
        lines = kept_float(nodes=[layer.node for _, layer in layers])
        text = (
            f"The noisiest layers are {names}. `onnxq sensitivity` says whether they are what costs; these lines leave"
        )
        found.append(Advice(f"{text} them in float:", lines))
    return found


def _latency(report: ReportData) -> list[Advice]:
    latency = report.latency
    if latency is None or not latency.is_slower:
        return []
    what = ", ".join(_named(slow.op) for slow in latency.slow)
    text = f"Integers are no faster than float here{f'; what costs most: {what}' * bool(what)}."
    lines = slow_kept_float(latency)
    if not lines:
        return [Advice(f"{text} `--latency tune` tries what leaving operators in float is worth.")]
    own = "or leave the costliest in float yourself:"
    return [Advice(f"{text} `--latency tune` tries what leaving operators in float is worth; {own}", lines)]


def _float_bytes(report: ReportData) -> list[Advice]:
    total = sum(constant.bytes for constant in report.float_constants)
    if total < FLOAT_BYTES_SHARE * report.result.bytes:
        return []
    largest = report.float_constants[0]
    share = total / max(report.result.bytes, 1)
    why = f"the largest is {_named(largest.tensor)}: {_named(largest.reason)}"
    return [Advice(f"{share:.0%} of the file are constants in float; {why}.")]
