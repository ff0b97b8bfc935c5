"""What `logging.getLogger("onnxq")` says of a quantization: its steps as they end, the result, and its warnings.

A program that embeds onnxq decides where records go; `onnxq -v` prints them on standard error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from ..report import Report, Step
from ..report.text import node_counts, sample_counts, status

logger = logging.getLogger("onnxq")


def log_steps(steps: Iterable[Step]) -> None:
    """A record for each step: its title and seconds, what became of it, and why, with the outputs' SQNR."""
    for step in steps:
        logger.info("%s", "; ".join([f"{step.title}: {status(step)}, {step.seconds:.2f} s", *step.notes]))


def log_result(report: Report) -> None:
    """Records for where nodes compute, and for each output's quality; a warning for each of the report's."""
    reasons = Counter(f"{node.op}: {node.reason}" for node in report.float_nodes)
    facts = (node_counts(report), f"{len(report.tensors)} tensors quantized", sample_counts(report.samples))
    logger.info("%s", ", ".join(facts))
    for reason, count in reasons.most_common():
        logger.info("in float: %d %s", count, reason)
    for output in report.quality:
        if not output.is_unknown:
            db = "identical" if output.sqnr_db is None else f"SQNR {output.sqnr_db:.1f} dB"
            logger.info("output %s: %s against float, %s", output.label, db, report.samples.origin)
    for warning in report.warnings:
        logger.warning("%s", warning)
