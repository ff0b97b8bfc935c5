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

A mean of integers often lies in the middle of two (of 16: one in 16 does). Where it keeps its inputs' grid, the last
bits of a float sum, and so its order, would decide: the scale of such a grid is rounded to 10 significant bits, so that
the products s q, their sum, its half, quarter, ... are exact in float32, and ties go to even everywhere.

The arithmetic is that of `QuantParams.fake`: float32, division by s, half to even, integer zero point.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..numeric.quant import QuantParams, QuantSpec

DROPPED = 14
"""Bits of 24: room for a sum of 64 integers of 8 bits, of 1024 of 4 bits. A scale moves by 0.05 % at most."""


class FakeQuantize(torch.autograd.Function):
    """x^ of the module's algebra; s and z broadcast against x, z holds integers.

    n, p and z are integers, and so q = round(clamp(v, n - z, p - z)); d x^ / d s = q - v [inside]. Only v and q are
    kept for the backward pass: passes over memory are what this costs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, z: Tensor, n: int, p: int, factor: float) -> Tensor:
        """factor: what the gradients of s and z are multiplied by."""
        v = x / s
        lo, hi = (n - z.item(), p - z.item()) if z.numel() == 1 else (n - z, p - z)
        q = v.clamp(lo, hi).round_()
        ctx.save_for_backward(v, q, s, z)
        ctx.bounds, ctx.factor = (lo - 0.5, hi + 0.5), factor
        return q * s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        v, q, s, z = ctx.saved_tensors
        (g,), (lo, hi) = gradients, ctx.bounds
        if g.stride() != v.stride():  # of an average, say: in one layout, such as channels last, all else is faster
            g = torch.empty_like(v).copy_(g)
        if z.numel() == 1:
            g_inside = torch.ops.aten.hardtanh_backward(g, v, lo, hi)  # the one pass that torch has for it
        else:
            g_inside = torch.where((v > lo) & (v < hi), g, 0.0)
        g_s = g_z = None
        if ctx.needs_input_grad[1]:
            g_s = torch.addcmul(g * q, g_inside, v, value=-1).sum_to_size(s.shape) * ctx.factor
        if ctx.needs_input_grad[2]:
            g_z = (g_inside.sum_to_size(z.shape) - g.sum_to_size(z.shape)) * s * ctx.factor
        return g_inside, g_s, g_z, None, None, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of x."""
    return x + (value - x).detach()


def shortened(s: Tensor) -> Tensor:
    """float32 with the last `DROPPED` bits rounded away; without a gradient."""
    bits = s.detach().contiguous().view(torch.int32)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).view(torch.float32)


class LearnedQuantizer(nn.Module):
    """One grid, which all tensors that keep it share.

    growth, shift: what is trained, of the scale's shape; `learned`: whether it is. The zero point is learned where the
    grid is asymmetric and zero lies inside it: at an end of it, as behind Relu, it stays.
    """

    def __init__(
        self, params: QuantParams, spec: QuantSpec, shape: tuple[int, ...], learned: bool, averaged: bool = False
    ) -> None:
        """shape: of a tensor on the grid; dynamic dimensions, whose length says nothing on the layer, as 1.
        averaged: whether means of tensors on the grid are on it, too."""
        super().__init__()
        self.params, self.power_of_two, self.averaged = params, spec.power_of_two, averaged
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
        elif self.averaged:
            s = straight_through(s, shortened(s))
        return s

    def zero_point(self) -> Tensor:
        """z, rounded straight through, as a float tensor of the scale's shape."""
        z = self.zero_0 + (self.p - self.n) * self.shift
        return straight_through(z, z.round().clamp(self.n, self.p))

    def forward(self, x: Tensor) -> Tensor:
        s, z = (self._along(value, x) for value in (self.scale(), self.zero_point()))
        return FakeQuantize.apply(x, s, z, self.n, self.p, self.factor)

    def along(self, x: Tensor) -> Tensor:
        """The scale as it broadcasts against x, a tensor on the grid; without a gradient."""
        return self._along(self.scale().detach(), x)

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

    def trained_params(self) -> QuantParams:
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
