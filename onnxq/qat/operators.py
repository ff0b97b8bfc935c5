"""ONNX operators as PyTorch functions: f(attributes, inputs...) -> output or outputs.

The graph is onnxq's own prepared one (constants folded, BatchNorm folded, operator set 13 and later), so that one
function serves all versions of an operator. Converters that exist were looked at: onnx2torch 1.5.15 imports torchvision
in any case, has one entry for each version of an operator and so refuses graphs at operator set 21, which 4 and 16 bits
need, and hides tensors' names inside modules, by which trained weights go back.

Missing optional inputs are None. Integer tensors are shapes, axes and indices: they stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_graphsurgeon as gs
import torch
from torch import Tensor
from torch.nn import functional

from ..operators.matmul import MatrixProduct
from ..operators.node import ONNX_DOMAINS
from ..operators.registry import linear_form
from .layers import LAYERS

Attributes = Mapping[str, Any]
Function = Callable[..., Any]


def _ints(value: Any) -> list[int]:
    """A shape, axes or the like, from an attribute or a tensor."""
    return [int(v) for v in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]


def _plain(function: Callable[..., Any]) -> Function:
    """An operator without attributes."""
    return lambda a, *inputs: function(*inputs)


def _on_device(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two operands on one device, that of the float one."""
    if a.device == b.device:
        return a, b
    device = a.device if a.is_floating_point() else b.device
    return a.to(device), b.to(device)


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda a, x, y: function(*_on_device(x, y))


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def apply(a: Attributes, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for x in inputs[1:]:
            total = function(total, x)
        return total

    return apply


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _clip(a: Attributes, x: Tensor, lo: Tensor | None = None, hi: Tensor | None = None) -> Tensor:
    if not x.is_floating_point():
        return torch.clamp(x, lo, hi)
    bounds = (-torch.inf if lo is None else lo.item(), torch.inf if hi is None else hi.item())
    return functional.hardtanh(x, *bounds)  # several times as fast as torch.clamp backwards


def _gelu(a: Attributes, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=a.get("approximate", "none"))


def _hard_sigmoid(a: Attributes, x: Tensor) -> Tensor:
    return (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1)


def _prelu(a: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64,
}  # fmt: skip


def _cast(a: Attributes, x: Tensor) -> Tensor:
    target = a["to"]
    number = int(target) if isinstance(target, int) else _number_of(target)
    if number not in _TYPES:
        raise NotImplementedError(f"Cast to ONNX type {number}")
    return x.to(_TYPES[number])


def _number_of(dtype: Any) -> int:
    from onnx.helper import np_dtype_to_tensor_dtype

    return int(np_dtype_to_tensor_dtype(dtype))


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    keep = not a.get("allowzero", 0)
    return x.reshape([x.shape[i] if n == 0 and keep else n for i, n in enumerate(_ints(shape))])


def _flatten(a: Attributes, x: Tensor) -> Tensor:
    axis = a.get("axis", 1) % (x.ndim + 1)
    rows = 1
    for n in x.shape[:axis]:
        rows *= n
    return x.reshape(rows, -1)


def _axes(a: Attributes, axes: Tensor | None) -> list[int] | None:
    value = a.get("axes") if axes is None else axes
    return None if value is None else _ints(value)


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(a, axes)
    return x.squeeze() if found is None else x.squeeze(tuple(found))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    found = _axes(a, axes) or []
    for axis in sorted(i % (x.ndim + len(found)) for i in found):
        x = x.unsqueeze(axis)
    return x


def _transpose(a: Attributes, x: Tensor) -> Tensor:
    return x.permute(*a.get("perm", reversed(range(x.ndim))))


def _concat(a: Attributes, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, a["axis"])


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> Any:
    axis, parts = a.get("axis", 0), a.get("split") if sizes is None else sizes
    if parts is not None:
        return x.split(_ints(parts), axis)
    count = a.get("num_outputs", a["_outputs"])
    return x.split(-(-x.shape[axis] // count), axis)


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    first, last = _ints(starts), _ints(ends)
    which = list(range(len(first))) if axes is None else _ints(axes)
    strides = [1] * len(first) if steps is None else _ints(steps)
    for axis, start, end, step in zip(which, first, last, strides, strict=True):
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:  # which torch has no views for
            chosen = _backwards(x.shape[axis], start, end, step)
            x = x.index_select(axis, chosen.to(x.device))
    return x


def _backwards(n: int, start: int, end: int, step: int) -> Tensor:
    """Places from start down to, without, end, in an axis of length n."""
    start = min(start + n if start < 0 else start, n - 1)
    end = -1 if end < -n else end + n if end < 0 else end
    return torch.arange(start, end, step)


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0) % x.ndim
    flat = indices.reshape(-1).to(x.device).long()
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _expand(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(_ints(shape))))


def _tile(a: Attributes, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(_ints(repeats))


def _where(a: Attributes, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    device = x.device if x.is_floating_point() else y.device
    return torch.where(condition.to(device), x.to(device), y.to(device))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[slice(a.get("start", 0), a.get("end"))], dtype=torch.int64)


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value = a.get("value")
    filled = torch.zeros(1) if value is None else torch.as_tensor(value.values)
    return filled.reshape(()).expand(_ints(shape)).clone()


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def apply(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        found = _axes(a, axes)
        if not found:
            if a.get("noop_with_empty_axes", 0):
                return x
            found = list(range(x.ndim))
        return function(x, found, bool(a.get("keepdims", 1)))

    return apply


def _softmax(a: Attributes, x: Tensor) -> Tensor:
    return x.softmax(a.get("axis", -1))


def _log_softmax(a: Attributes, x: Tensor) -> Tensor:
    return x.log_softmax(a.get("axis", -1))


def _dropout(a: Attributes, x: Tensor, *rest: Tensor) -> Tensor:
    return x


OPERATORS: Mapping[str, Function] = {
    **LAYERS,
    "Add": _binary(torch.add), "Sub": _binary(torch.sub), "Mul": _binary(torch.mul), "Div": _binary(_divided),
    "Pow": _binary(torch.pow), "Equal": _binary(torch.eq), "Greater": _binary(torch.gt), "Less": _binary(torch.lt),
    "GreaterOrEqual": _binary(torch.ge), "LessOrEqual": _binary(torch.le), "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or), "Not": _plain(torch.logical_not), "Where": _where,
    "Sum": _folded(torch.add), "Max": _folded(torch.maximum), "Min": _folded(torch.minimum),
    "Abs": _plain(torch.abs), "Neg": _plain(torch.neg), "Exp": _plain(torch.exp), "Log": _plain(torch.log),
    "Sqrt": _plain(torch.sqrt), "Reciprocal": _plain(torch.reciprocal), "Erf": _plain(torch.erf),
    "Floor": _plain(torch.floor), "Ceil": _plain(torch.ceil), "Round": _plain(torch.round),
    "Sin": _plain(torch.sin), "Cos": _plain(torch.cos), "Tanh": _plain(torch.tanh), "Sigmoid": _plain(torch.sigmoid),
    "Relu": _plain(functional.relu), "Softplus": _plain(functional.softplus), "Softsign": _plain(functional.softsign),
    "Mish": _plain(functional.mish), "HardSwish": _plain(functional.hardswish), "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu, "PRelu": _prelu, "Clip": _clip, "Elu": lambda a, x: functional.elu(x, a.get("alpha", 1.0)),
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a.get("alpha", 0.01)),
    "Softmax": _softmax, "LogSoftmax": _log_softmax, "Dropout": _dropout, "Identity": _plain(lambda x: x),
    "Cast": _cast, "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Transpose": _transpose, "Concat": _concat, "Split": _split, "Slice": _slice, "Gather": _gather,
    "Expand": _expand, "Tile": _tile, "Shape": _shape, "ConstantOfShape": _constant_of_shape,
    "Range": lambda a, start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMax": _reduction(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "ReduceMin": _reduction(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}  # fmt: skip
"""By operator type, all of the standard domain."""


def function_of(node: gs.Node) -> Function | None:
    """What a node computes; None where it is not known. Linear operators that users register compute y = W x + b."""
    if node.domain in ONNX_DOMAINS:
        return OPERATORS.get(node.op)
    form = linear_form(node.op, node.domain)
    return _product(form) if isinstance(form, MatrixProduct) else None


def _product(form: MatrixProduct) -> Function:
    def apply(a: Attributes, *inputs: Tensor) -> Tensor:
        w = inputs[form.weight] if form.axis == 1 else inputs[form.weight].t()
        y = torch.matmul(inputs[0].movedim(form.output_axis, -1), w)
        b = inputs[form.bias] if form.bias is not None and len(inputs) > form.bias else None
        return (y if b is None else y + b).movedim(-1, form.output_axis)

    return apply
