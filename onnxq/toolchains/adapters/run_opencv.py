"""OpenCV's new engine for networks (version 5). The classic one takes every model and computes it in float."""

from __future__ import annotations

from typing import Any

import protocol

try:
    import cv2
    import onnx
except ImportError as error:
    protocol.missing(error)


def attempt(job: protocol.Job) -> None:
    cv2.setNumThreads(1)
    network = cv2.dnn.readNetFromONNX(job.model, cv2.dnn.ENGINE_NEW)
    network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    kinds = [network.getLayer(network.getLayerId(name)).type for name in network.getLayerNames()]
    job.answer.integer_nodes = sum(kind.endswith("Int8") for kind in kinds)
    job.accept()
    names = [output.name for output in onnx.load(job.model, load_external_data=False).graph.output]

    def run(feed: protocol.Feed) -> list[Any]:
        for name, array in feed.items():
            if len(feed) > 1:
                network.setInput(array, name)
            else:
                network.setInput(array)
        return list(network.forward(names)) if len(names) > 1 else [network.forward()]

    job.run(run)


protocol.main(("opencv-python-headless", "opencv-python"), attempt)
