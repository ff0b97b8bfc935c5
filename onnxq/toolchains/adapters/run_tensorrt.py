"""TensorRT: NVIDIA's ONNX parser and engine builder. Those of TensorRT-RTX work without a GPU where they are told a
compute capability; TensorRT's need one. Engines are built and not run.
"""

from __future__ import annotations

import importlib
from typing import Any

import protocol

trt: Any = None
for _name in ("tensorrt_rtx", "tensorrt"):
    try:
        trt = importlib.import_module(_name)
        break
    except ImportError as error:
        _error = error
else:
    protocol.missing(_error)


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Called by the library."""
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)


def attempt(job: protocol.Job) -> None:
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.model):
        raise RuntimeError("parser: " + "; ".join(_described(parser)))
    config = builder.create_builder_config()
    if trt.__name__ == "tensorrt_rtx":  # Ada, the oldest architecture with all types
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if any(-1 in tuple(tensor.shape) for tensor in inputs):
        profile, shapes = builder.create_optimization_profile(), job.shapes()
        for tensor in inputs:
            shape = shapes.get(tensor.name, tuple(1 if size == -1 else size for size in tensor.shape))
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("builder: " + "; ".join(log.errors[-3:]))
    job.answer.message = f"engine of {engine.nbytes} bytes from {network.num_layers} layers"
    job.accept()


def _described(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"{error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors]


protocol.main(("tensorrt-rtx", "tensorrt"), attempt)
