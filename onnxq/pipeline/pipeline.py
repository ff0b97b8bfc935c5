"""Figure 8 of the white paper (section 3.6) from top to bottom: a float model becomes a quantized one.

    prepare          normalise, move Transposes, fuse decomposed operators, fold BatchNorm
    equalize         remove dead channels, CLE, absorb biases, SmoothQuant       each kept if better
    set_ranges       add quantizers, weight ranges, activation ranges, fallback of activations
    correct          optimised rounding, or bias correction                      kept if better
    exceptions       wider formats for the few tensors that carry the loss, where it is large: the last resort
    lower            bias scales, fuse activations, QuantizeLinear and DequantizeLinear

What is written is then verified (`verify`). Every function takes a model and returns (model, steps): the next model and
the record of each pass.

One box departs from the figure, which sets activation ranges last: here they come before weights are rounded, since
rounding and bias correction fit what a layer computes on its *quantized* inputs, x^ in sum |W~ x^ + b~ - y|^2. SQNR of
a MobileNet's outputs (models/mobilenet_digits, 128 unseen images, coordinate descent), ranges first and rounding first:
w4a4 8.0 and 6.9 dB, w8a8 29.0 and 28.6 dB, w4a8 25.2 and 25.4 dB. The coarser the activations, the more it matters.
"""

from __future__ import annotations

from ..graph.dynamic_lstm import with_dynamic_lstms
from ..graph.precision import stored_as_given
from .choose_hard_swish import choose_hard_swish
from .collect_report import ReportCollector
from .correct import correct
from .equalize import equalize
from .exceptions import with_exceptions
from .log import log_steps
from .lower import lower, store_inner_weights
from .plan import Plan, Quantized
from .prepare import data_findings, prepare
from .refuse_contradictions import refuse_contradictions
from .set_ranges import given_encodings, placement, set_ranges
from .task import Task


def quantize(task: Task, collector: ReportCollector | None = None) -> Quantized:
    """Figure 8. collector: takes down what a detailed report shows. Raises OnnxqError."""
    plan = with_exceptions(make_plan(task, collector), task)
    proto, lowered = lower(plan.model, task.context)
    proto, stored, nodes = store_inner_weights(proto, task.options)
    proto, dynamic = with_dynamic_lstms(proto) if task.options.is_dynamic else (proto, ())
    proto = stored_as_given(proto)
    log_steps(lowered + stored)
    return Quantized(plan.model, proto, plan.steps + lowered + stored, plan.findings, nodes, dynamic)


def make_plan(task: Task, collector: ReportCollector | None = None) -> Plan:
    """All of figure 8 that decides something; what is left is to write it down. Raises OnnxqError."""
    model, prepared = prepare(task.proto, task.origin, task.options, task.context)
    log_steps(prepared)
    refuse_contradictions(model, task, (*placement(task.options), *given_encodings(task)))
    findings = data_findings(model, task)
    if collector is not None:
        collector.start(model)
    task, chosen = choose_hard_swish(model, task)
    log_steps(chosen)
    model, equalized = equalize(model, task)
    log_steps(equalized)
    ranged, ranges = set_ranges(model, task, collector)
    log_steps(ranges)
    if collector is not None:
        collector.adjusted(ranged)
    model, corrected = correct(ranged, task)
    log_steps(corrected)
    return Plan(ranged, model, prepared + chosen + equalized + ranges + corrected, findings, corrected)
