"""Rockchip's RKNN-Toolkit2: its compiler, and its simulator of an RK3588. QuantizeLinear and DequantizeLinear are taken
as they are, with `do_quantization=False`.
"""

from __future__ import annotations

import protocol

try:
    from rknn.api import RKNN
except ImportError as error:
    protocol.missing(error)


def attempt(job: protocol.Job) -> None:
    rknn = RKNN(verbose=False)
    try:
        rknn.config(target_platform="rk3588")
        if rknn.load_onnx(model=job.model) != 0:
            raise RuntimeError(f"load_onnx: {_said(job)}")
        if rknn.build(do_quantization=False) != 0:
            raise RuntimeError(f"build: {_said(job)}")
        job.accept()
        rknn.init_runtime()
        job.run(lambda feed: rknn.inference(inputs=list(feed.values()), data_format=["nchw"] * len(feed)))
    except ValueError as error:  # its stack as one text
        raise RuntimeError(_without_frames(str(error).splitlines())) from None
    finally:
        rknn.release()


def _said(job: protocol.Job) -> str:
    """Its lines of level E."""
    return _without_frames([line[2:] for line in job.logged("E ")])


def _without_frames(lines: list[str]) -> str:
    """What a log says, without the frames of a stack and the rules around them."""
    noise = ("Traceback", "File ", "During handling", "===", "-----")
    return "; ".join(line.strip() for line in lines if line.strip() and not line.strip().startswith(noise))


protocol.main(("rknn-toolkit2",), attempt)
