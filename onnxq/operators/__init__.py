"""What an operator is to quantization: one registry, which users add operators of their own to with `register`."""

from . import conv, elementwise, matmul, movement, selection  # noqa: F401  their entries
from .custom import register
from .registry import Operator

__all__ = ["Operator", "register"]
