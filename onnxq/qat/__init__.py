"""Quantization-aware training (white paper section 4): ONNX in, ONNX out, PyTorch in between.

    pipeline.py     figure 12, from file to file; prepare and finish for training loops of one's own
    initialize.py   the post-training result, and the weights that training begins with
    quantizer.py    straight-through estimator, learned scales and zero points
    network.py      the planned graph as a torch.nn.Module
    operators.py    ONNX operators as PyTorch functions; convolutions, pooling and the like in layers.py
    samples.py      batches and their augmentation
    loss.py         distillation, cross-entropy, the user's own
    train.py        the training loop
    verify.py       PyTorch against ONNX Runtime, before and after training

The only part of onnxq that imports torch, which comes with the extra `qat`.
"""

from __future__ import annotations

from ..errors import UsageError

try:
    import torch as _torch
except ImportError:
    raise UsageError(
        "quantization-aware training needs PyTorch, which is not installed: pip install 'onnxq[qat]'"
    ) from None

from .network import Network
from .pipeline import QatResult, finish, prepare, train
from .train import Recipe

__all__ = ["Network", "QatResult", "Recipe", "finish", "prepare", "train"]

assert _torch
