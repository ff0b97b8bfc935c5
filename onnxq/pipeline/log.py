"""What `logging.getLogger("onnxq")` says of a quantization: its steps as they end, the result, and its warnings.

A program that embeds onnxq decides where records go; `onnxq -v` prints them on standard error.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from ..report import Report, Step

logger = logging.getLogger("onnxq")


def log_steps(steps: Iterable[Step]) -> None:
    """A record for each step: its name and seconds, whether it was kept, and why, with the outputs' SQNR."""
    for step in steps:
        kept = f"{step.changed} changed" if step.kept else "left out"
        logger.info("%s", "; ".join([f"{step.name}: {kept}, {step.seconds:.2f} s", *step.notes]))


def log_result(report: Report) -> None:
    """Records for where nodes compute, and for each output's quality; a warning for each of the report's."""
    reasons = Counter(f"{node.op}: {node.reason}" for node in report.float_nodes)
    logger.info(
        "%s", f"{report.integer_nodes} nodes in integers, {len(report.float_nodes)} in float, {len(report.tensors)}"
        f" tensors quantized, {report.samples} calibration samples"
    )  # fmt: skip
    for reason, count in reasons.most_common():
        logger.info("in float: %d %s", count, reason)
    for output in report.quality:
        db = "identical" if output.sqnr_db is None else f"SQNR {output.sqnr_db:.1f} dB"
        logger.info("output %s: %s against float", output.output, db)
    for warning in report.warnings:
        logger.warning("%s", warning)
