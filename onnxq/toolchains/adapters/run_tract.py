"""tract, a runtime in Rust for small devices: loads, optimises and runs the model."""

from __future__ import annotations

import protocol

try:
    import tract
except ImportError as error:
    protocol.missing(error)


def attempt(job: protocol.Job) -> None:
    runnable = tract.onnx().load(job.model).into_model().into_runnable()
    job.accept()
    job.run(lambda feed: [value.to_numpy() for value in runnable.run(list(feed.values()))])


protocol.main(("tract",), attempt)
