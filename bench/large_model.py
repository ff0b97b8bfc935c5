"""Quantize models that are larger than a protobuf, and watch how much memory that takes.

    python bench/large_model.py [--layers 12] [--width 8192] [--folder DIR] [-- OPTIONS OF onnxq quantize]

The model: LAYERS times MatMul, WIDTH x WIDTH float32, with Relu between them, weights in a file beside it. Printed are,
as multiples of the model's size, the peaks of memory of the process's own (RssAnon: what cannot be had without), and of
all that is resident (VmHWM: file pages too, which the kernel drops when somebody else needs memory).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper


def build(path: Path, layers: int, width: int, samples: int = 4) -> int:
    """Write the model, its data and calib.npy; returns bytes. One layer is in memory at a time."""
    rng, nodes, tensors, name = np.random.default_rng(0), [], [], "x"
    location, size = f"{path.name}.data", 4 * width * width
    with open(path.with_name(location), "wb") as file:
        for index in range(layers):
            weight = rng.standard_normal((width, width), dtype=np.float32) * np.float32((2 / width) ** 0.5)
            weight.tofile(file)
            tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": location, "offset": index * size, "length": size}.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"h{index}"], f"matmul{index}"))
            name = f"h{index}"
            if index < layers - 1:
                nodes.append(helper.make_node("Relu", [name], [f"r{index}"], f"relu{index}"))
                name = f"r{index}"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "stack", values[:1], values[1:], tensors)
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    np.save(path.with_name("calib.npy"), rng.standard_normal((samples, width)).astype(np.float32))
    return layers * size


def watch(command: list[str]) -> dict[str, float]:
    """Run a command; its peaks in bytes, its seconds and its exit code."""
    begin, peaks = time.monotonic(), {"RssAnon": 0.0, "VmHWM": 0.0}
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            key, _, value = line.partition(":")
            if key in peaks:
                peaks[key] = max(peaks[key], 1024.0 * int(value.split()[0]))
        time.sleep(0.02)
    return {**peaks, "code": process.wait(), "seconds": time.monotonic() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("options", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        path, size = folder / "stack.onnx", 4 * given.layers * given.width**2
        if not path.exists():
            build(path, given.layers, given.width)
        calib = [] if "--data-free" in given.options else ["--calib", str(folder / "calib.npy")]
        command = [sys.executable, "-m", "onnxq", "quantize", str(path), str(folder / "out.onnx"), *calib]
        found = watch([*command, *given.options])
        written = {p.name: p.stat().st_size for p in folder.glob("out.onnx*")}
    peaks = {f"{key}_over_model": round(found.pop(key) / size, 3) for key in ("RssAnon", "VmHWM")}
    print(json.dumps({"model_bytes": size, **found, **peaks, "written": written}, indent=2))


if __name__ == "__main__":
    main()
