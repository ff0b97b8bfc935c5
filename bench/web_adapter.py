"""ONNX Runtime for browsers (WebAssembly, one thread) under Node, as an adapter of `onnxq.toolchains`.

The npm package lies in node_modules beside the environment's bin: `npm install onnxruntime-web` in its folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "onnxq" / "toolchains" / "adapters"))

import protocol

PACKAGES = Path(sys.executable).parents[1]


def attempt(job: protocol.Job) -> None:
    with tempfile.TemporaryDirectory() as folder:

        def run(feed: protocol.Feed) -> list[np.ndarray]:
            request = {}
            for name, array in feed.items():
                file = Path(folder, f"{len(request)}.bin")
                np.ascontiguousarray(array).tofile(file)
                request[name] = {"file": str(file), "type": array.dtype.name, "dims": list(array.shape)}
            Path(folder, "request.json").write_text(json.dumps(request))
            script = str(Path(__file__).with_suffix(".mjs"))
            done = subprocess.run(["node", script, job.model, folder, str(PACKAGES)], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError((done.stderr or done.stdout).strip()[-400:])
            job.answer.accepted = True
            answer = json.loads(Path(folder, "answer.json").read_text())
            return [np.fromfile(Path(folder, i["file"]), i["type"]).reshape(i["dims"]) for i in answer]

        job.run(run)


protocol.main((), attempt)
