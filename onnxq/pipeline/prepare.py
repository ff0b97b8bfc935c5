"""The first box of figure 8: any exporter's model in the one form that the rest works on; its data are checked."""

from __future__ import annotations

from onnx import ModelProto

from ..calibration.check_data import check_data
from ..calibration.context import Context
from ..errors import DataError
from ..graph.model import Model
from ..graph.opset import convert_opset
from ..options import Options
from ..passes.fold_batchnorm import FoldBatchNorm
from ..passes.fuse_decomposed import FuseDecomposedOperators
from ..passes.move_transposes import MoveTransposes
from ..passes.normalize import Normalize
from ..passes.rewrite_einsum import RewriteEinsum
from ..targets import find_target
from .run_passes import Steps, run_passes
from .task import Task


def prepare(proto: ModelProto, origin: str, options: Options, context: Context) -> tuple[Model, Steps]:
    """From any exporter's model to the one form that the rest works on; the function stays."""
    model = load(proto, origin, options)
    return run_passes(
        (Normalize(), RewriteEinsum(), MoveTransposes(), FuseDecomposedOperators(), FoldBatchNorm()),
        model,
        context,
        proto,
    )


def data_findings(prepared: Model, task: Task) -> tuple[str, ...]:
    """What is likely wrong with the calibration data. Raises DataError for it where `strict` says so."""
    if task.has_random_inputs:
        return ()
    findings = check_data(prepared, task.feeds).findings
    if findings and task.options.strict:
        raise DataError(f"{task.source or 'the calibration data'}: {'; '.join(findings)}; `strict` refuses such data")
    return findings


def load(proto: ModelProto, origin: str, options: Options) -> Model:
    """A model to work on, at an operator set that the target needs: the same one for all grids, so that statistics
    serve all of them."""
    target = find_target(options.target)
    return Model.from_proto(convert_opset(proto, target.min_opset, origin, target.max_opset), origin)
