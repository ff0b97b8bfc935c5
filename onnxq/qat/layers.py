"""Convolutions, matrix products, pooling, normalization and resampling of ONNX as PyTorch functions.

ONNX pads each side by its own amount (`pads`, all beginnings, then all ends) or as `auto_pad` says; PyTorch pads both
sides alike: what it cannot do itself is padded before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Pads = list[tuple[int, int]]


def _pads(a: Attributes, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Pads:
    """(before, after) of each spatial axis."""
    axes = len(kernel)
    auto = a.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            less, more = total // 2, total - total // 2
            pads.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return pads
    flat = list(a.get("pads", [0] * (2 * axes))) if auto == "NOTSET" else [0] * (2 * axes)
    return list(zip(flat[:axes], flat[axes:], strict=True))


def _padded(x: Tensor, pads: Pads, value: float = 0.0) -> Tensor:
    flat = [n for pair in reversed(pads) for n in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def _window(a: Attributes, kernel: list[int]) -> tuple[list[int], list[int]]:
    """(strides, dilations)."""
    ones = [1] * len(kernel)
    return list(a.get("strides", ones)), list(a.get("dilations", ones))


def _by_rank(x: Tensor, *functions: Any) -> Any:
    """The function for 1, 2 or 3 spatial axes."""
    return functions[x.ndim - 3]


def conv(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    kernel = list(w.shape[2:])
    strides, dilations = _window(a, kernel)
    pads = _pads(a, x, kernel, strides, dilations)
    alike = all(before == after for before, after in pads)
    x = x if alike else _padded(x, pads)
    padding = [before for before, _ in pads] if alike else 0
    function = _by_rank(x, functional.conv1d, functional.conv2d, functional.conv3d)
    return function(x, w, b, strides, padding, dilations, a.get("group", 1))


def conv_transpose(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    kernel = list(w.shape[2:])
    strides, dilations = _window(a, kernel)
    extra = list(a.get("output_padding", [0] * len(kernel)))
    if a.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in a:
        raise NotImplementedError("ConvTranspose with auto_pad or output_shape")
    pads = _pads(a, x, kernel, strides, dilations)
    function = _by_rank(x, functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    whole = function(x, w, b, strides, 0, extra, a.get("group", 1), dilations)
    for axis, (before, after) in enumerate(pads, 2):
        whole = whole.narrow(axis, before, whole.shape[axis] - before - after)
    return whole


def gemm(a: Attributes, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x = x.t() if a.get("transA", 0) else x
    w = w if a.get("transB", 0) else w.t()
    alpha, beta = a.get("alpha", 1.0), a.get("beta", 1.0)
    if alpha == beta == 1.0 and (b is None or b.ndim == 1):
        return functional.linear(x, w, b)
    product = alpha * functional.linear(x, w)
    return product if b is None else product + beta * b


def _padded_for_pool(a: Attributes, x: Tensor, value: float) -> tuple[Tensor, list[int], list[int], list[int]]:
    """The input padded, kernel, strides and dilations; what `ceil_mode` looks at beyond it is left to the caller."""
    kernel = list(a["kernel_shape"])
    strides, dilations = _window(a, kernel)
    pads = _pads(a, x, kernel, strides, dilations)
    if a.get("ceil_mode", 0):
        for axis, (before, after) in enumerate(pads):
            n = x.shape[2 + axis] + before + after
            span, s = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
            outputs = -(-(n - span) // s) + 1
            if (outputs - 1) * s >= x.shape[2 + axis] + before:  # a window that starts in the padding does not count
                outputs -= 1
            pads[axis] = (before, after + max((outputs - 1) * s + span - n, 0))
    return _padded(x, pads, value), kernel, strides, dilations


def max_pool(a: Attributes, x: Tensor) -> Tensor:
    x, kernel, strides, dilations = _padded_for_pool(a, x, -torch.inf)
    return _by_rank(x, functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)(
        x, kernel, strides, 0, dilations
    )


def average_pool(a: Attributes, x: Tensor) -> Tensor:
    if any(d != 1 for d in a.get("dilations", ())):
        raise NotImplementedError("AveragePool with dilations")
    summed, kernel, strides, _ = _padded_for_pool(a, x, 0.0)
    function = _by_rank(x, functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
    mean = function(summed, kernel, strides)
    if summed.shape == x.shape or (a.get("count_include_pad", 0) and not a.get("ceil_mode", 0)):
        return mean
    ones = torch.ones_like(x[:1, :1])
    if a.get("count_include_pad", 0):  # what is counted is the declared padding, not what ceil_mode adds
        ones = _padded(ones, _pads(a, x, kernel, strides, [1] * len(kernel)), 1.0)
        ones = _padded(ones, [(0, s - n) for s, n in zip(summed.shape[2:], ones.shape[2:], strict=True)])
    else:
        ones = _padded_for_pool(a, ones, 0.0)[0]
    return mean / function(ones, kernel, strides)


def global_average_pool(a: Attributes, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def global_max_pool(a: Attributes, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


def batch_normalization(a: Attributes, x: Tensor, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, var, scale, b, False, 0.0, a.get("epsilon", 1e-5))


def instance_normalization(a: Attributes, x: Tensor, scale: Tensor, b: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=b, eps=a.get("epsilon", 1e-5))


def layer_normalization(a: Attributes, x: Tensor, scale: Tensor, b: Tensor | None = None) -> Tensor:
    axis = a.get("axis", -1) % x.ndim
    normal = functional.layer_norm(x, x.shape[axis:], eps=a.get("epsilon", 1e-5)) * scale
    return normal if b is None else normal + b


def pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts = [int(n) for n in pads.tolist()]
    which = list(range(x.ndim)) if axes is None else [int(i) % x.ndim for i in axes.tolist()]
    pairs: Pads = [(0, 0)] * x.ndim
    for place, axis in enumerate(which):
        pairs[axis] = (amounts[place], amounts[place + len(which)])
    mode = a.get("mode", "constant")
    if mode == "constant":
        return _padded(x, pairs, 0.0 if value is None else float(value))
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    flat = [n for pair in reversed(pairs[2:]) for n in pair]
    if any(n for pair in pairs[:2] for n in pair):
        raise NotImplementedError(f"Pad of batch or channels in mode {mode}")
    return functional.pad(x, flat, mode=names[mode])


def resize(
    a: Attributes, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Nearest (asymmetric, floor) and linear (half_pixel, align_corners) of all spatial axes."""
    mode, where = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        shape = [int(n) for n in sizes.tolist()]
    else:
        assert scales is not None
        shape = [int(n * float(s)) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    if shape[:2] != list(x.shape[:2]) or "axes" in a or a.get("antialias", 0):
        raise NotImplementedError("Resize of batch or channels, with axes or antialias")
    if mode == "nearest":
        whole = all(m % n == 0 for m, n in zip(shape[2:], x.shape[2:], strict=True))
        if not whole and not (where == "asymmetric" and a.get("nearest_mode") == "floor"):
            raise NotImplementedError(f"Resize to nearest, {where}, by factors that are not whole")
        return functional.interpolate(x, shape[2:], mode="nearest")
    if mode == "linear" and x.ndim == 4 and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return functional.interpolate(x, shape[2:], mode="bilinear", align_corners=where == "align_corners")
    raise NotImplementedError(f"Resize {mode}, {where}")


def depth_to_space(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    if a.get("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, b)
    parts = x.reshape(n, b, b, c // (b * b), h, w)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def space_to_depth(a: Attributes, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = a["blocksize"]
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


LAYERS: Mapping[str, Callable[..., Tensor]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": lambda a, x, y: torch.matmul(x, y),
    "MaxPool": max_pool, "AveragePool": average_pool, "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool, "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization, "LayerNormalization": layer_normalization, "Pad": pad,
    "Resize": resize, "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth,
}  # fmt: skip
