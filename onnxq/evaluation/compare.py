"""Where does a quantized model leave the float model? Tensor by tensor, in the order of computation.

With n_t = sum (x - y)^2 / sum x^2 the share of noise in tensor t, SQNR_t = -10 log10 n_t, what the node that computes t
adds is seen against the worst of the tensors it reads (of those that were matched):

    drop_t = min(SQNR of its inputs, 40 dB) - min(SQNR_t, 40 dB)

and the error jumps where drop_t is largest, SQNR_t being replaced by that of the tensors that read t where these are
better: what they do not have any more did not matter. 40 dB is about what an 8-bit grid leaves of a bell-shaped tensor:
what is better than that counts as clean, so that the first layers, which read exact inputs, do not always win.

What lies behind a selection (`graph.comparable`) is not compared: one rounding may put other values in its place.
Both models run on each sample, in several passes over the data where the tensors of one pass would not fit the memory;
nothing is kept but sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto

from ..calibration.context import Context
from ..checking.integer_operators import with_dequantizers
from ..data import Feed, Preprocess, Transform
from ..errors import DataError, ModelError, OnnxqError
from ..execution.compare_outputs import Outputs, map_models
from ..execution.partial import extract, parts_that_fit
from ..execution.progress import ProgressLike, called, shows_progress
from ..execution.services import Stage, open_workers
from ..execution.session import Session, Source, running_on
from ..graph import large
from ..graph.comparable import selected_tensors
from ..numeric.distance import Distance
from ..numeric.metrics import comparable, finite, sqnr
from ..operators.node import is_op
from ..operators.registry import is_convolution, operands, operator_of, preserves_grid
from ..options import Options, with_settings
from ..pipeline.open_inputs import common_inputs, open_data, open_model
from ..pipeline.prepare import prepare
from ..pipeline.task import make_context
from ..settings import Settings, Unpack
from ..thresholds import CLEAN_DB, EXPLAINED_DB
from .comparison import ComparedTensor, Comparison, Jump
from .matching import Matching, match

Models = tuple[ModelProto, ModelProto]
"""The float model, and the quantized one with its integer operators made readable."""

_SELECTED = "it lies behind an operator that selects, whose result any rounding may exchange"

Pairs = Mapping[str, str]
Figures = Mapping[str, tuple[float, bool]]
"""SQNR by tensor, and whether it is one up to a scale and an offset of each channel."""


@shows_progress
@large.storing()
def compare(
    reference: Source,
    quantized: Source,
    calibration: Any,
    *,
    options: Options | None = None,
    preprocess: Preprocess | None = None,
    input_keys: Mapping[str, str] | None = None,
    transform: Transform | None = None,
    progress: ProgressLike = None,
    scheduler: str | None = None,
    **settings: Unpack[Settings],
) -> Comparison:
    """Match the tensors of two models and measure how far they are apart on some data.

    reference: the float model. quantized: of any tool, with QuantizeLinear and DequantizeLinear or integer operators.
    calibration: data for both, as for `quantize`, like the other arguments; of the options, samples, seed, threads,
        batch_size, provider and max_memory count. scheduler: as for `calibrate`.

    Raises a subclass of OnnxqError: ModelError where the models have different inputs or nothing in common.
    """
    options = with_settings(options, settings)
    with running_on(options.provider, scheduler, options.custom_ops):
        proto, name, _ = open_model(reference, quantized=True)
        other, other_name, _ = open_model(quantized, quantized=True)
        inputs = common_inputs(proto, other, (name, other_name))
        feeds = open_data(calibration, inputs, options, preprocess, input_keys, proto, transform)
        readable = with_dequantizers(other)
        found = match(proto, readable)
        selected = selected_tensors(proto)
        pairs = {t: m.quantized for t, m in found.matches.items() if _compared(found, t) and t not in selected}
        if not pairs:
            raise ModelError(
                f"{other_name}: no tensor or layer of it stands for one of {name}; nothing can be compared"
            )
        with open_workers(scheduler) as workers:
            distances = _distances(
                (proto, readable), found, pairs, make_context(options, feeds, called(progress), workers=workers)
            )
        for tensor in [t for t in pairs if t not in distances]:
            found.unmatched[tensor] = f"{found.matches.pop(tensor).quantized!r} has another type or shape"
        before = {t: _inputs(found, t, distances) for t in pairs if t in distances}
        figures = _figures(distances, before)
        weights = _weights((proto, readable), name, found, next(iter(feeds)).arrays)
        tensors = tuple(_record(found, t, names, distances[t], figures, weights) for t, names in before.items())
        found.unmatched.update((t, _SELECTED) for t in selected & found.floats)
        unmatched = {t: why for t, why in found.unmatched.items() if _compared(found, t)}
        return Comparison(
            name, other_name, len(feeds.numbers()), tensors, _jump(before, figures), unmatched, dict(found.inside)
        )


def _compared(found: Matching, tensor: str) -> bool:
    """Whether a matched tensor is compared: not where its node only moves values, which were compared before."""
    node = found.maker(tensor)
    if node is None or tensor in found.reference.outputs:
        return True
    operator = operator_of(node)
    chooses = operator is not None and operator.depends_on_values
    return chooses or not (preserves_grid(node) or is_op(node, "Cast", "Dropout"))


def _distances(models: Models, found: Matching, pairs: Pairs, context: Context) -> dict[str, Distance]:
    """Of the pairs whose arrays can be compared."""
    first = next(iter(context.feeds), None)
    if first is None:
        raise DataError("no data to compare on")
    services = context.services
    limit = services.max_memory // (2 * services.in_flight)  # of both models
    axis = 1 if any(_rank(node) == 3 for node in found.reference.nodes) else -1  # of tensors of rank 3
    distances: dict[str, Distance] = {}
    for label, names in parts_that_fit(models[0], pairs, first.arrays, limit, "comparing"):
        part = {name: pairs[name] for name in names}
        protos = extract(models[0], part), extract(models[1], part.values())
        prepare = partial(_comparer, protos, part, found.reference.outputs, axis, services.in_flight)
        for one in services.workers.run(prepare, context.with_progress(label), services.threads):
            for name, distance in one.items():
                distances.setdefault(name, Distance()).merge(distance)
    return distances


def _rank(node: gs.Node) -> int:
    """Of a Conv's weight; 0 for other nodes."""
    weight = node.inputs[operands(node)[1]] if is_convolution(node) else None
    return len(weight.shape) if isinstance(weight, gs.Constant) else 0


def _comparer(
    protos: tuple[ModelProto, ModelProto], pairs: Pairs, whole: Collection[str], axis: int, in_flight: int, threads: int
) -> Stage[Any, dict[str, Distance]]:
    sessions, measure = [Session(proto) for proto in protos], partial(_of_sample, pairs, whole, axis)
    return lambda feeds: map_models(measure, sessions, feeds, threads, in_flight)


def _of_sample(
    pairs: Pairs, whole: Collection[str], axis: int, feed: Feed, outputs: Sequence[Outputs]
) -> dict[str, Distance]:
    reference, quantized = outputs
    distances = {}
    for name, other in pairs.items():
        x, y = reference[name], quantized[other]
        if comparable(x, y):
            # Outputs are what they are: nothing behind them makes up for other scales.
            distance = Distance(None if x.ndim < 2 or name in whole else axis if x.ndim == 3 else 1)
            distance.update(x, y)
            distances[name] = distance
    return distances


def _weights(
    models: Models, origin: str, found: Matching, feed: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, float]]:
    """By the tensor that a linear layer computes: its weight's name, and the SQNR of what the quantized model has.

    Where BatchNormalization is folded into the layer, it is folded into the reference as well.
    """
    layers = [
        (result, node, stored.name)
        for node, other, _ in found.layers
        if (result := found.result_of(node)) is not None
        and (stored := found.quantized.stored_weight(other)) is not None
    ]
    if not layers:
        return {}
    folded = _folded_weights(models[0], origin) if any(_has_more(found, r, n) for r, n, _ in layers) else {}
    figures = {}
    for result, node, weight in layers:  # one at a time: together they are as large as the model
        own = node.inputs[operands(node)[1]].name
        x = folded.get(node.name) if _has_more(found, result, node) else _value(models[0], own, feed)
        y = _value(models[1], weight, feed)
        if x is not None and x.shape != y.shape and x.shape == y.T.shape:
            y = y.T
        if x is not None and comparable(x, y):
            figures[result] = own, sqnr(x, y)
    return figures


def _value(proto: ModelProto, tensor: str, feed: Mapping[str, np.ndarray]) -> Any:
    return Session(extract(proto, [tensor])).run(feed)[tensor]


def _has_more(found: Matching, result: str, node: gs.Node) -> bool:
    """Whether something that changes the weight is folded between a layer's node and its result."""
    tensor = node.outputs[0]
    while tensor.name != result:
        reader = tensor.outputs[0]
        if reader.op in ("BatchNormalization", "Mul", "Div"):
            return True
        tensor = reader.outputs[0]
    return False


def _folded_weights(proto: ModelProto, origin: str) -> dict[str, np.ndarray]:
    """Weights by node of the float model as `quantize` prepares it, BatchNormalization folded."""
    try:
        model, _ = prepare(proto, origin, Options(), Context())
    except OnnxqError:  # a model that could not be quantized here can still be compared, without these weights
        return {}
    return {
        node.name: np.asarray(weight.values)
        for node in model.graph.nodes
        for weight in (node.inputs[index] for index in operands(node)[1:])
        if isinstance(weight, gs.Constant)
    }


def _figures(distances: Mapping[str, Distance], inputs: Mapping[str, Sequence[str]]) -> Figures:
    """What counts as scaled or moved on purpose, and not as an error, is what the tensors behind do not have any more.

    Where that is so for the scales of one tensor, the network is equalized, and scales of others are not errors either.
    """
    plain = {tensor: distance.sqnr.db for tensor, distance in distances.items()}
    equalized = any(d.is_scaled for t, d in distances.items() if _behind(t, inputs, plain) >= plain[t] + EXPLAINED_DB)
    scaled = {tensor: distance.scaled_db() if equalized else None for tensor, distance in distances.items()}
    figures = {t: (plain[t], False) if (db := scaled[t]) is None else (db, True) for t in distances}
    best = {tensor: db for tensor, (db, _) in figures.items()}
    for tensor, distance in distances.items():
        shifted = distance.shifted_db() if scaled[tensor] is None else None
        if shifted is not None and _behind(tensor, inputs, best) >= plain[tensor] + EXPLAINED_DB:
            figures[tensor] = shifted, True
    return figures


def _behind(tensor: str, inputs: Mapping[str, Sequence[str]], db: Mapping[str, float]) -> float:
    """The worst SQNR of the tensors that read this one, those in between not compared; minus infinity where none do."""
    return min((db[reader] for reader, names in inputs.items() if tensor in names), default=-np.inf)


def _record(
    found: Matching,
    tensor: str,
    inputs: Sequence[str],
    distance: Distance,
    figures: Figures,
    weights: Mapping[str, tuple[str, float]],
) -> ComparedTensor:
    pair, node = found.matches[tensor], found.maker(tensor)
    node = next((n for n, _, _ in found.layers if found.result_of(n) == tensor), node)
    db, adjusted = figures[tensor]
    weight, weight_db = weights.get(tensor, (None, None))
    if adjusted or any(figures[name][1] for name in inputs):
        weight_db = None
    return ComparedTensor(
        tensor=tensor,
        node="" if node is None else node.name,
        op="input" if node is None else node.op,
        quantized=pair.quantized,
        matched_by=pair.by,
        absorbed=pair.absorbed,
        sqnr_db=finite(db),
        cosine=distance.cosine,
        max_error=distance.max_error if np.isfinite(distance.max_error) else None,
        adjusted=adjusted,
        drop_db=_drop([figures[name][0] for name in inputs], db) if inputs else None,
        weight=weight,
        weight_sqnr_db=None if weight_db is None else finite(weight_db),
    )


def _drop(inputs: Iterable[float], db: float) -> float:
    return min(*inputs, CLEAN_DB) - max(min(db, CLEAN_DB), -200.0)


def _inputs(found: Matching, tensor: str, distances: Mapping[str, Distance]) -> list[str]:
    """The nearest tensors before `tensor` that were compared."""
    nearest: dict[str, None] = {}
    seen, open_ends = {tensor}, [tensor]
    while open_ends:
        node = found.maker(open_ends.pop())
        for name in () if node is None else (t.name for t in node.inputs):
            if not name or name in seen or name in found.reference.fixed:
                continue
            seen.add(name)
            if name in distances:
                nearest[name] = None
            else:
                open_ends.append(name)
    return list(nearest)


def _jump(inputs: Mapping[str, Sequence[str]], figures: Figures) -> Jump | None:
    """The largest drop that the next tensors still have, the first of equals; None where nothing gets worse."""
    lasting = {tensor: figures[tensor][0] for tensor in inputs}
    for tensor, names in inputs.items():
        for name in names:
            lasting[name] = max(lasting[name], figures[tensor][0])
    drops = {t: _drop([figures[name][0] for name in names], lasting[t]) for t, names in inputs.items() if names}
    worst = max(drops, key=lambda tensor: drops[tensor], default=None)
    return None if worst is None or drops[worst] <= 0 else Jump(worst, drops[worst])
