"""OpenVINO: its reader and its compiler for CPUs. A kernel computes in integers where its runtime precision is 8 bits.

Inference precision is float32: bfloat16, the default on some CPUs, would be mistaken for what quantization costs.
"""

from __future__ import annotations

from typing import Any

import protocol

try:
    import openvino
except ImportError as error:
    protocol.missing(error)

KERNELS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


def attempt(job: protocol.Job) -> None:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(job.model), "CPU", settings)
    precisions = dict(_precisions(compiled))
    known = [(node, op, precisions[node]) for node, op in job.linear if node in precisions]
    job.answer.nodes = len(known)
    job.answer.fallback = [(node, op, p) for node, op, p in known if p not in ("u8", "i8")]
    job.answer.integer_nodes = len(known) - len(job.answer.fallback)
    job.accept()
    job.run(lambda feed: list(compiled(feed).values()))


def _precisions(compiled: Any) -> Any:
    """(node of the ONNX model, precision of the kernel that it runs in)."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if str(info["layerType"].astype(str)) in KERNELS:
            for name in str(info["originalLayersNames"].astype(str)).split(","):
                yield name, str(info["runtimePrecision"].astype(str))


protocol.main(("openvino",), attempt)
