"""Qualcomm QNN: ONNX Runtime's provider with the HTP libraries for this machine validates every node, finalises the
graph and executes it in a simulator. What it does not take runs on the CPU, QuantizeLinear and DequantizeLinear at the
edges apart, which belong there.
"""

from __future__ import annotations

from pathlib import Path

import protocol

try:
    import onnxruntime as ort
    import onnxruntime_qnn
except ImportError as error:
    protocol.missing(error)

PROVIDER = "QNNExecutionProvider"
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def attempt(job: protocol.Job) -> None:
    libraries = Path(onnxruntime_qnn.__file__).parent
    ort.register_execution_provider_library(PROVIDER, str(libraries / "libonnxruntime_providers_qnn.so"))
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    backend = {"backend_path": str(libraries / "libQnnHtp.so"), "htp_graph_finalization_optimization_mode": "1"}
    options.add_provider_for_devices(devices[:1], backend)
    session = ort.InferenceSession(job.model, options)
    pieces = session.get_provider_graph_assignment_info()
    nodes = [(n, piece.ep_name) for piece in pieces for n in piece.get_nodes() if n.op_type not in CONVERSIONS]
    job.answer.partitions = sum(piece.ep_name == PROVIDER for piece in pieces)
    job.answer.nodes = len(nodes)
    job.answer.fallback = [(node.name, node.op_type, "CPU") for node, place in nodes if place != PROVIDER]
    job.answer.integer_nodes = len(nodes) - len(job.answer.fallback)
    job.accept()
    job.run(lambda feed: session.run(None, feed))


protocol.main(("onnxruntime", "onnxruntime-qnn"), attempt)
