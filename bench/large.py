"""Optimised rounding at the size of ResNet-50: time, peak memory, and where the time goes.

    python bench/large.py [--images 128] [--size 224] [--width 64] [--preset w4a8] [--effort default] [--threads N]

The network has ResNet-50's 53 convolutions and its Gemm, weights at random (He), and BatchNorm whose moments are those
that its inputs really have. Images have the spectrum of photographs, 1 / f. Accuracy means nothing here. Time is
distinguished by sampling all threads every 20 ms (`Sampler`). Peak memory is VmHWM (Linux).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
from child import peak_memory
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.execution.session import Session

Images = NDArray[np.float32]
Moments = dict[str, NDArray[np.float32]]

STAGES = ((1, 3), (2, 4), (4, 6), (8, 3))
"""Width over that of the first stage, and number of blocks."""

EPSILON = 1e-5


@dataclass
class Builder:
    """ResNet-50 (version 1.5). moments: mean and variance by BatchNorm's name; without them the network measures."""

    width: int
    moments: Moments | None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    measured: list[str] = field(default_factory=list)
    norms: int = 0

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(0)

    def network(self, size: int) -> onnx.ModelProto:
        """For size x size images; the measuring one has all moments as its outputs."""
        x = self.block(self.conv("image", 3, self.width, 7, 2), self.width)
        x = self.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        channels = self.width
        for stage, (factor, blocks) in enumerate(STAGES):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                x, channels = self.bottleneck(x, channels, factor * self.width, stride), 4 * factor * self.width
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        weight = self.constant(self.random.standard_normal((channels, 1000)) / np.sqrt(channels))
        outputs = [self.node("Gemm", [x, weight, self.constant(np.zeros(1000))])]
        graph = helper.make_graph(
            self.nodes,
            "resnet50",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.measured or outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return model if self.measured else onnx.shape_inference.infer_shapes(model)

    def bottleneck(self, x: str, channels: int, width: int, stride: int) -> tuple[str, int] | str:
        """1 x 1, 3 x 3, 1 x 1, and the sum with the shortcut."""
        y = self.block(self.conv(x, channels, width, 1), width)
        y = self.block(self.conv(y, width, width, 3, stride), width)
        y = self.norm(self.conv(y, width, 4 * width, 1), 4 * width, gain=0.5)
        if stride > 1 or channels != 4 * width:
            x = self.norm(self.conv(x, channels, 4 * width, 1, stride), 4 * width)
        return self.node("Relu", [self.node("Add", [y, x])])

    def block(self, x: str, channels: int) -> str:
        return self.node("Relu", [self.norm(x, channels)])

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1) -> str:
        weight = self.random.standard_normal((cout, cin, kernel, kernel)) * np.sqrt(2 / (cin * kernel**2))
        pads = [kernel // 2] * 4
        return self.node("Conv", [x, self.constant(weight)], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)

    def norm(self, x: str, channels: int, gain: float = 1.0) -> str:
        gamma = self.constant(gain * self.random.uniform(0.5, 1.5, channels))
        beta = self.constant(0.3 * self.random.standard_normal(channels))
        self.norms += 1
        mean, var = f"mean_{self.norms}", f"var_{self.norms}"
        if self.moments is not None:
            inputs = [x, gamma, beta, *(self.constant(self.moments[name]) for name in (mean, var))]
            return self.node("BatchNormalization", inputs, epsilon=EPSILON)
        shape = self.constant(np.int64([1, -1, 1, 1]))
        self.measured += [mean, var]
        self.node("ReduceMean", [x], mean, axes=[0, 2, 3], keepdims=1)
        centred = self.node("Sub", [x, mean])
        self.node("ReduceMean", [self.node("Mul", [centred, centred])], var, axes=[0, 2, 3], keepdims=1)
        std = self.node("Sqrt", [self.node("Add", [var, self.constant(np.float32(EPSILON))])])
        scaled = self.node("Mul", [self.node("Div", [centred, std]), self.node("Reshape", [gamma, shape])])
        return self.node("Add", [scaled, self.node("Reshape", [beta, shape])])

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.constants)}"
        value = value if value.dtype == np.int64 else np.asarray(value, np.float32)
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"node_{output}", **attributes))
        return output


def resnet50(images: Images, width: int) -> onnx.ModelProto:
    """The network, with BatchNorm's moments measured on `images`."""
    size = images.shape[2]
    found = Session(Builder(width, None).network(size)).run({"image": images})
    return Builder(width, {name: value.reshape(-1) for name, value in found.items()}).network(size)


def photographs(count: int, size: int) -> Images:
    """Noise with amplitudes as 1 / f, RGB largely in common; mean 0, standard deviation 1."""
    random = np.random.default_rng(1)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    frequency[0, 0] = 1 / size
    noise = random.standard_normal((count, 4, size, size))
    smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (size, size))
    images = smooth[:, :1] + 0.4 * smooth[:, 1:]
    return np.asarray((images - images.mean()) / images.std(), np.float32)


class Sampler(threading.Thread):
    """Where all threads are, every `period` seconds: passes by the main thread, functions by all of them."""

    def __init__(self, period: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.period = period
        self.passes: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    def run(self) -> None:
        main, last = threading.main_thread().ident, time.perf_counter()
        while True:
            time.sleep(self.period)
            now = time.perf_counter()
            for thread, frame in sys._current_frames().items():
                stack = _stack(frame)
                own = [f"{file}.{name}" for file, name in stack if file != "runtime" or name in ("run", "__init__")]
                idle = not stack or stack[0][1] in ("parallel_map", "<module>")
                if thread != self.ident and own and not idle:
                    self.functions[own[0]] += now - last  # type: ignore[assignment]
                if thread == main:
                    places = [f for f, name in stack if name == "apply" or f in ("keep_if_better", "verify")]
                    self.passes[" < ".join(dict.fromkeys(places)) or "else"] += now - last  # type: ignore[assignment]
            last = now

    def tell(self, counter: Counter[str], title: str, lines: int = 18) -> None:
        print(f"\n{title}")
        for name, seconds in counter.most_common(lines):
            print(f"  {seconds:8.1f} s  {name}")


def _stack(frame: FrameType | None) -> list[tuple[str, str]]:
    """(file, function) of what belongs to onnxq, innermost first."""
    found = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "onnxq" in path.parts:
            found.append((path.stem, frame.f_code.co_name))
        frame = frame.f_back
    return found


def main() -> None:
    """Build, quantize, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=224, help="height and width of the images [224]")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage [64, as in ResNet-50]")
    parser.add_argument("--preset", default="w4a8")
    parser.add_argument("--effort", default="default")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report", type=Path, help="also write the report to this JSON file")
    args = parser.parse_args()
    images = photographs(args.images, args.size)
    model = resnet50(images[:8], args.width)
    before, start, sampler = peak_memory(), time.perf_counter(), Sampler()
    busy = time.process_time()
    sampler.start()
    try:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "quantized.onnx"
            settings = {"preset": args.preset, "effort": args.effort, "threads": args.threads}
            result = onnxq.quantize(
                model, images, output=output, force_int_kernels=True, progress=_log(start), **settings
            )
    finally:  # after Ctrl-C too
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        print(f"\n{seconds:.0f} s, {busy:.0f} s of processors")
        print(f"peak memory {peak_memory() / 1024:.0f} MiB ({before / 1024:.0f} MiB before)")
        sampler.tell(sampler.passes, "passes, innermost first (time on the wall)")
        sampler.tell(sampler.functions, "functions (all threads together)")
    if args.report is not None:
        args.report.write_text(result.report.to_json())
    print(f"\n{args.images} images of {args.size} x {args.size}; {result.report.source.parameters} parameters")
    for quality in result.report.quality:
        print(f"{quality.output}: SQNR {quality.sqnr_db} dB")
    print("\nsteps")
    for step in result.report.steps:
        print(f"  {step.seconds:8.1f} s  {step.name}")


def _log(start: float):  # type: ignore[no-untyped-def]
    """Progress as lines, one for each change of label and each layer rounded."""
    seen: list[str] = [""]

    def log(label: str, done: int, total: int) -> None:
        if label != seen[0] or label.startswith("rounding"):
            print(f"{time.perf_counter() - start:7.1f} s  {label} {done}/{total}", file=sys.stderr, flush=True)
            seen[0] = label

    return log


if __name__ == "__main__":
    main()
