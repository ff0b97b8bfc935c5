"""One list of data movement for all targets: where a tool-chain moves integers, one grid stands in front and behind."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import weights
from onnx import ModelProto, NodeProto
from quantized import quantized
from test_targets import MISSING, MOVEMENT, SOFT_PAD, chain

from onnxq.checking import check
from onnxq.operators.registry import names
from onnxq.targets import TARGETS

CASES = {
    **{op: proto for op, (_, proto) in MOVEMENT.items()},
    **{op: proto for op, (kind, proto) in MISSING.items() if kind == "movement"},
    "Pad": SOFT_PAD,
}

IN_FLOAT = {
    "ort": {"GatherND", "SpaceToDepth", "GlobalMaxPool"},
    "ort-no-vnni": {"GatherND", "SpaceToDepth", "GlobalMaxPool"},
    "rknn": {"GatherND", "SpaceToDepth", "GlobalMaxPool"},
    "tract": {"GatherND", "SpaceToDepth", "GlobalMaxPool"},
    "opencv": {"GatherND", "SpaceToDepth", "GlobalMaxPool"},
    "openvino": {"GatherND", "SpaceToDepth"},
    "openvino-npu": {"GatherND", "SpaceToDepth"},
}
"""What a tool-chain was seen to compute in float (test_targets.py and test_openvino.py), or the one that a target is
made from."""

MOVED_PAST = set(CASES) - {"SpaceToDepth", "GlobalMaxPool"}
"""What TensorRT moves quantization past."""


def test_every_operator_of_the_list_is_tried() -> None:
    """Identity is removed before anything is quantized."""
    assert set(CASES) == set(names("movement")) - {"Identity"}


def grids(proto: ModelProto, node: NodeProto) -> tuple[list[np.ndarray] | None, list[list[np.ndarray]]]:
    """Scale and zero point that an operator reads its data on, None for float, and those that it writes on."""
    constants = weights(proto)
    before = next((n for n in proto.graph.node if node.input[0] in n.output), None)
    behind = [n for n in proto.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in node.output]
    read = before is not None and before.op_type == "DequantizeLinear"
    return (
        [constants[name] for name in before.input[1:]] if read and before is not None else None,
        [[constants[name] for name in n.input[1:]] for n in behind],
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", CASES)
def test_one_grid_in_front_and_behind(op: str, target: str) -> None:
    found = quantized(CASES[op], target=target)
    assert not check(found, TARGETS[target]).violations
    for node in (n for n in found.graph.node if n.op_type == op):
        before, behind = grids(found, node)
        if op in IN_FLOAT.get(target, ()):
            assert op not in TARGETS[target].rules
        elif target == "tensorrt" and op in MOVED_PAST:
            assert before is None, "nothing is quantized for its sake"
        else:
            assert before is not None
            assert len(behind) == len(node.output)
            assert all(np.array_equal(x, y) for grid in behind for x, y in zip(before, grid, strict=True))


def test_behind_global_pooling_tensorrt_keeps_the_grid_through_what_it_moves_quantization_past() -> None:
    proto = chain("g = GlobalMaxPool(a) s = Slice(g, i, j, i) z = Tile(s, e)",
                  ", int64[1] i, int64[1] j, int64[4] e", i=[1], j=[3], e=[1, 2, 1, 1])  # fmt: skip
    found = quantized(proto, target="tensorrt")
    scales = [weights(found)[n.input[1]] for n in found.graph.node if n.op_type == "QuantizeLinear"]
    assert len(scales) == 4, "in front of the first layer, on both sides of the pooling, in front of the last layer"
    assert scales[1] == scales[2] == scales[3] != scales[0]
