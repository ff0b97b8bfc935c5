"""AMD Quark and AIMET, which need PyTorch, on the networks of `networks.py`, with their own steps; beside them onnxq.

    python bench/torch_peers.py --peers PYTHON [--only PATTERN ...] [--configurations NAME ...] [--limit SECONDS]
                                [--latency SECONDS] [--json FILE] [--pages]

--peers: the interpreter of an environment with amd-quark, aimet-onnx and torch. All else is as in `networks.py`, from
which the columns of the float model and of onnxq are taken as they were measured there. What a tool cannot quantize, or
not within --limit, is a cell that says so, and a line of what it said.
"""

from __future__ import annotations

from pathlib import Path

import cases
import networks
from networks import Configuration, Table

ADAROUND = "adaround=200"
"""Iterations a layer: a fifth of Quark's default, a fiftieth of AIMET's, which take hours on these networks."""

COLUMNS: dict[str, Configuration | None] = {
    "float": None,
    "w8a8": None,
    "Quark": Configuration("quark", (), in_peers=True),
    "Quark CLE, BC": Configuration("quark", ("cle", "bias-correction"), in_peers=True),
    "Quark CLE, BC, AdaRound": Configuration("quark", ("cle", "bias-correction", ADAROUND), in_peers=True),
    "AIMET": Configuration("aimet", (), in_peers=True),
    "AIMET CLE": Configuration("aimet", ("cle",), in_peers=True),
    "AIMET percentile": Configuration("aimet", ("percentile",), in_peers=True),
    "w4a8": None,
    "AIMET w4a8 AdaRound": Configuration("aimet", ("int4", ADAROUND), in_peers=True),
}

TEXT = f"""Scores, errors and samples as above; float, w8a8 and w4a8 (`onnxq quantize`) are from the table above. The
peers calibrate on the same samples, each run in a process of its own with one PyTorch thread; what they write runs in
the same ONNX Runtime. Models below operator set 13 are converted to it before.

- Quark: `QLayerConfig(UInt8Spec(MinMax), Int8Spec(MinMax, Channel))`: asymmetric activations, symmetric weights, one
  scale a channel. CLE: `CLEConfig(cle_steps=-1)`; BC: `BiasCorrectionConfig()`; AdaRound: `AdaRoundConfig` with
  {ADAROUND.partition("=")[2]} iterations a layer, batches of 2, learning rate 0.1, early stop.
- AIMET: `fold_all_batch_norms_to_weight`, then `QuantizationSimModel` with its default rules: asymmetric activations of
  8 bits, symmetric weights, one scale a channel; min-max, or `percentile`. CLE: `equalize_model`, which also makes ReLU
  of ReLU6 and absorbs high biases. AdaRound: `apply_adaround` with {ADAROUND.partition("=")[2]} iterations a layer.
  Written by `to_onnx_qdq(export_int32_bias=True, prequantize_constants=True)`: 4-bit weights are int4.
"""

TABLE = Table(
    Path(__file__),
    COLUMNS,
    Path("bench/results/torch_peers.json"),
    (cases.ROOT / "bench" / "results" / "networks.md", cases.ROOT / "docs" / "accuracy.md"),
    TEXT,
    beside=networks.TABLE.results,
)

if __name__ == "__main__":
    networks.main(table=TABLE, doc=__doc__ or "")
