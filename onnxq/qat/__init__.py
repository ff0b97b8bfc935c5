"""Quantization-aware training (white paper section 4): ONNX in, ONNX out, PyTorch in between.

    recipe.py       how to train, as options
    pipeline.py     figure 12, from file to file; prepare and finish for training loops of one's own
    initialize.py   the post-training result, and the weights that training begins with
    quantizer.py    straight-through estimator, learned scales and zero points
    network.py      the planned graph as a torch.nn.Module
    operators.py    ONNX operators as PyTorch functions; convolutions, pooling and the like in layers.py
    samples.py      batches and their augmentation
    loss.py         distillation, cross-entropy, the user's own
    training.py     the training loop
    verify.py       PyTorch against ONNX Runtime, before and after training

The only part of onnxq that imports torch, which comes with the extra `qat`, and only when one of the names below but
`Recipe` is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .recipe import Recipe

if TYPE_CHECKING:
    from .network import TorchNetwork
    from .pipeline import QatResult, finish, prepare, train

__all__ = ["TorchNetwork", "QatResult", "Recipe", "finish", "prepare", "train"]


def __getattr__(name: str) -> Any:
    """The names that need PyTorch, imported when they are first used. Raises UsageError where it is not installed."""
    if name not in __all__:
        raise AttributeError(f"module 'onnxq.qat' has no attribute {name!r}")
    try:
        importlib.import_module("torch")  # slow, and need not be there
    except ImportError:
        raise UsageError(
            "quantization-aware training needs PyTorch, which is not installed: pip install 'onnxq[qat]'"
        ) from None
    return getattr(importlib.import_module(".network" if name == "TorchNetwork" else ".pipeline", __name__), name)
