"""What happened, and how good the result is: records, and the same as JSON for machines and as text,
Markdown and HTML for people."""

from .records import (
    Box,
    ChannelRanges,
    Distribution,
    FloatNode,
    Layer,
    LogEntry,
    Measure,
    ModelFacts,
    OutputQuality,
    ParetoFront,
    ParetoPoint,
    QuantizedTensor,
    Reason,
    ReportData,
    RoundedLayer,
    Sensitivity,
    SensitivityRanking,
    Step,
)
from .report import Report
from .text import printable

__all__ = [
    "Box",
    "ChannelRanges",
    "Distribution",
    "FloatNode",
    "Layer",
    "LogEntry",
    "Measure",
    "ModelFacts",
    "OutputQuality",
    "ParetoFront",
    "ParetoPoint",
    "QuantizedTensor",
    "Reason",
    "Report",
    "ReportData",
    "RoundedLayer",
    "Sensitivity",
    "SensitivityRanking",
    "Step",
    "printable",
]
