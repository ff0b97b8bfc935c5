"""Quantizers that train (section 4): round to nearest in the forward pass, straight through in the backward pass.

    v = x / s                                     s: scale > 0, z: zero point, [n, p]: integers of the grid
    q = clamp(round(v) + round(z), n, p) - round(z)
    x^ = s q                                                                                          (39)

    d x^ / d x = 1 inside the grid, 0 outside                                                         (36, 37)
    d x^ / d s = round(v) - v inside, n - z or p - z outside                                          (38)
    d x^ / d z = 0 inside, -s outside                                                                 (40)

The gradients of s and z are multiplied by 1 / sqrt(N p), N elements a scale (LSQ, Esser et al., arXiv:1902.08153; with
zero points LSQ+, Bhalgat et al., arXiv:2004.09576): steps then are in proportion to those of weights.

What is trained is dimensionless: s = s_0 exp(growth) stays positive, z = z_0 + (p - n) shift; both start at 0, so that
the start is the grid from before training to the last bit, and one learning rate serves tensors of all magnitudes.
Scales that must be powers of two are rounded in their logarithm, straight through as well (Jain et al., 1903.08066).

The arithmetic is that of `QuantParams.fake`: float32, division by s, half to even, integer zero point.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..numeric.quant import QuantParams, QuantSpec


class FakeQuantize(torch.autograd.Function):
    """x^ of the module's algebra; s and z broadcast against x, z holds integers.

    Kept for the backward pass: where x lies outside the grid, and d x^ / d s. Passes over memory are what it costs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, z: Tensor, n: int, p: int, factor: float) -> Tensor:
        """factor: what the gradients of s and z are multiplied by."""
        v = x / s
        rounded = v.round()
        q = (rounded + z).clamp_(n, p).sub_(z)
        if any(ctx.needs_input_grad[:3]):
            outside = q != rounded
            slope = torch.where(outside, q, rounded.sub_(v)) if ctx.needs_input_grad[1] else None
            ctx.save_for_backward(outside, slope, s, z)
            ctx.factor = factor
        return q.mul_(s)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outside, slope, s, z = ctx.saved_tensors
        (g,) = gradients
        g_inside = torch.where(outside, 0.0, g)  # unlike masked_fill it keeps channels last
        g_s = g_z = None
        if ctx.needs_input_grad[1]:
            g_s = (g * slope).sum_to_size(s.shape) * ctx.factor
        if ctx.needs_input_grad[2]:
            g_z = -((g - g_inside) * s).sum_to_size(z.shape) * ctx.factor
        return g_inside, g_s, g_z, None, None, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of x."""
    return x + (value - x).detach()


class Quantizer(nn.Module):
    """One grid, which all tensors that keep it share.

    growth, shift: what is trained, of the scale's shape; `learned`: whether it is. The zero point is learned where the
    grid is asymmetric and zero lies inside it: at an end of it, as behind Relu, it stays.
    """

    def __init__(self, params: QuantParams, spec: QuantSpec, shape: tuple[int, ...], learned: bool) -> None:
        """shape: of a tensor on the grid; dynamic dimensions, whose length says nothing on the layer, as 1."""
        super().__init__()
        self.params, self.power_of_two = params, spec.power_of_two
        self.n, self.p = params.grid.qmin, params.grid.qmax
        scale = np.array(params.scale, np.float32)
        zero = np.array(params.zero_point, np.float32)
        self.register_buffer("scale_0", torch.from_numpy(scale), persistent=False)
        self.register_buffer("zero_0", torch.from_numpy(zero), persistent=False)
        self.growth = nn.Parameter(torch.zeros(scale.shape), requires_grad=learned)
        inside = not spec.symmetric and bool(np.all((zero > self.n) & (zero < self.p)))
        self.shift = nn.Parameter(torch.zeros(scale.shape), requires_grad=learned and inside)
        elements = max(math.prod(shape) // max(scale.size, 1), 1)
        self.factor = 1 / math.sqrt(elements * self.p)

    def scale(self) -> Tensor:
        """s, of the scale's own shape."""
        s = self.scale_0 * self.growth.exp()
        if self.power_of_two:
            s = straight_through(s, torch.exp2(torch.log2(s).round()))
        return s

    def zero_point(self) -> Tensor:
        """z, rounded straight through, as a float tensor of the scale's shape."""
        z = self.zero_0 + (self.p - self.n) * self.shift
        return straight_through(z, z.round().clamp(self.n, self.p))

    def forward(self, x: Tensor) -> Tensor:
        s, z = (self._along(value, x) for value in (self.scale(), self.zero_point()))
        return FakeQuantize.apply(x, s, z, self.n, self.p, self.factor)

    def _along(self, value: Tensor, x: Tensor) -> Tensor:
        """A scale or zero point in a shape that broadcasts against x."""
        axis, block = self.params.axis, self.params.block
        if axis is None:
            return value
        if block is not None:
            return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
        shape = [1] * x.ndim
        shape[axis] = -1
        return value.reshape(shape)

    def answer(self) -> QuantParams:
        """The grid as it is now, exactly as the forward pass uses it."""
        scale = np.asarray(self.scale().detach().cpu().numpy(), np.float32)
        zero = np.asarray(self.zero_point().detach().cpu().numpy(), self.params.grid.dtype)
        return QuantParams(self.params.grid, scale, zero, self.params.axis, self.params.block)


def on_bias_grid(bias: Tensor, input_scale: Tensor, weight_scale: Tensor, groups: int) -> Tensor:
    """A bias (C,) rounded to integers at s_x s_w, as `lower_to_qdq` writes it; straight through for the bias alone."""
    with torch.no_grad():
        s = input_scale.double() * weight_scale.double().reshape(-1)
        if s.numel() not in (1, bias.numel()):
            s = s.repeat(groups)
        s = s.float()
        integers = (bias.double() / s.double()).round().clamp(-(2.0**31), 2.0**31 - 1)
        rounded = integers.float() * s
    return straight_through(bias, rounded)
