"""Whether HardSwish runs in integers, where a runtime computes it by a look-up and a product
(`passes.tabulate_hard_swish`).

    m    multiplications of the network's layers for each value that its HardSwishes compute, on one sample

In float, HardSwish is a part of the Conv before it, so that in integers the look-up and the product have to be paid by
what the layers gain: they are where m is large. Depthwise convolutions follow what is around them. And two more tensors
a block are rounded, channels of very different ranges among them. So HardSwish stays

    in float    where m < `HARD_SWISH_PRODUCTS`; or where outputs are below `LEAST_DB` with it in integers, and better
                by `HARD_SWISH_DB` without, both quantized quickly (`quantize_quickly`)
"""

from __future__ import annotations

import time
from dataclasses import replace

from ..execution.workload import workload
from ..graph.model import Model
from ..operators.node import is_op
from ..report import Step
from ..thresholds import HARD_SWISH_DB, HARD_SWISH_PRODUCTS, LEAST_DB
from .quantize_quickly import quantized_quickly
from .run_passes import Steps
from .task import Task


def choose_hard_swish(model: Model, task: Task) -> tuple[Task, Steps]:
    """The task with `hard_swish` decided, where it is to be measured, and what was found. model: the prepared one."""
    options, start = task.options, time.perf_counter()
    if not _is_open(model, task):
        return task, ()
    other = replace(task, options=replace(options, hard_swish="float"))

    def record(in_float: bool, note: str) -> Steps:
        title = f"HardSwish in {'float' if in_float else 'integers'}"
        return (Step("ChooseHardSwish", title, "", 0, time.perf_counter() - start, (note,)),)

    few = too_few_products(model, task)
    if few is not None:
        return other, record(True, f"{few:.0f} multiplications a value are too few for integers to pay")
    if options.effort == "fast" or task.has_no_data or task.statistics is not None:
        return task, ()
    integers = task.quality.db(quantized_quickly(model.clone(), task))
    if integers is None or integers >= LEAST_DB:
        return task, ()
    floats = task.quality.db(quantized_quickly(model.clone(), other))
    in_float = floats is not None and floats >= integers + HARD_SWISH_DB
    note = f"outputs at {integers:.1f} dB in integers, {floats:.1f} dB in float"
    return other if in_float else task, record(in_float, note)


def too_few_products(model: Model, task: Task) -> float | None:
    """m, where it alone says that HardSwish stays in float."""
    feed = next(iter(task.feeds), None) if _is_open(model, task) else None
    if feed is None:
        return None
    work = workload(model.to_proto(), feed, task.context.services.max_memory)
    values = sum(work.elements(node.outputs[0].name) for node in model.graph.nodes if is_op(node, "HardSwish"))
    products = sum(work.products.values()) / max(values, 1)
    return products if products < HARD_SWISH_PRODUCTS else None


def _is_open(model: Model, task: Task) -> bool:
    """Whether there is something to choose."""
    options = task.options
    if options.hard_swish != "auto" or options.force_int_kernels or task.encodings or not options.has_integer_kernels:
        return False
    return task.context.target.tabulates_hard_swish and any(is_op(n, "HardSwish") for n in model.graph.nodes)
