"""Models for tests: ONNX text in, a checked model with seeded random weights out, and what to ask of it.

Anything declared in the angle brackets that no node computes becomes an initializer:

    model("(float[N,3,7,7] x) => (float[N,5,?,?] y) <float[5,3,2,2] w> { y = Conv(x, w) }")
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from onnxq.graph.model import Model

Arrays = Mapping[str, np.ndarray]


def model(
    text: str,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: str = "",
    functions: str = "",
    seed: int = 0,
    check: bool = True,
    **values: np.ndarray | float,
) -> ModelProto:
    """The graph `text`, as `(inputs) => (outputs) <initializers> { nodes }`; `values` set initializers by name."""
    imports = ", ".join(f'"{domain}": 1' for domain in domains.split())
    header = f'<ir_version: {ir_version}, opset_import: ["": {opset}{", " * bool(imports)}{imports}]>'
    proto = onnx.parser.parse_model(f"{header} test {text} {functions}")
    rng = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    declared = list(proto.graph.value_info)
    del proto.graph.value_info[:]
    for value in declared:
        if value.name not in made and ir_version < 4:
            proto.graph.input.append(value)
        if value.name in made:
            proto.graph.value_info.append(value)
        else:
            array = np.asarray(values[value.name]) if value.name in values else random(value, rng)
            dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            array = np.ascontiguousarray(np.broadcast_to(array, shape(value)), dtype)
            proto.graph.initializer.append(numpy_helper.from_array(array.reshape(shape(value)), value.name))
    unknown = set(values) - {t.name for t in proto.graph.initializer}
    assert not unknown, f"no such initializers: {unknown}"
    if check:
        onnx.checker.check_model(proto, full_check=True)
    return proto


def wrapped(proto: ModelProto) -> Model:
    """The model that passes work on."""
    return Model.from_proto(proto)


def shape(value: ValueInfoProto, free: int = 2) -> tuple[int, ...]:
    """Dimensions of a declared tensor, `free` for those without a number."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else free for d in dims)


def random(value: ValueInfoProto, rng: np.random.Generator, free: int = 2) -> np.ndarray:
    """Normal values; positive ones for a variance, small integers for integer tensors."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    dims = shape(value, free)
    if dtype.kind == "b":
        return np.asarray(rng.integers(0, 2, dims), bool)
    if dtype.kind in "iu":
        return np.asarray(rng.integers(0, 5, dims), dtype)
    normal = rng.standard_normal(dims)
    return np.asarray(np.square(normal) + 0.1 if value.name.startswith("var") else normal, dtype)


def feeds(proto: ModelProto, *, seed: int = 1, free: int = 2) -> dict[str, np.ndarray]:
    """Random values for every input that is no initializer; `free`: size of dynamic dimensions."""
    rng = np.random.default_rng(seed)
    constant = {t.name for t in proto.graph.initializer}
    return {v.name: random(v, rng, free) for v in proto.graph.input if v.name not in constant}


def run(proto: ModelProto, arrays: Arrays | None = None) -> dict[str, np.ndarray]:
    """All outputs in ONNX Runtime, its optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds(proto) if arrays is None else arrays)), strict=True))


def ops(proto: ModelProto | Model) -> list[str]:
    """Operators of the main graph, in order."""
    if isinstance(proto, Model):
        return [node.op for node in proto.graph.nodes]
    return [node.op_type for node in proto.graph.node]


def weights(proto: ModelProto) -> dict[str, np.ndarray]:
    """Initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def interface(proto: ModelProto) -> tuple[list[str], list[str]]:
    """Names of inputs that are no initializers, and of outputs."""
    constant = {t.name for t in proto.graph.initializer}
    return [v.name for v in proto.graph.input if v.name not in constant], [v.name for v in proto.graph.output]


def assert_same_function(before: ModelProto, after: ModelProto, tolerance: float, arrays: Arrays | None = None) -> None:
    """`after` is valid, has the inputs and outputs of `before`, and computes the same.

    tolerance: largest difference over the largest absolute value of the output; 0 asks for the same bits.
    """
    onnx.checker.check_model(after, full_check=True)
    assert interface(before) == interface(after)
    for given in (arrays,) if arrays is not None else (feeds(before), feeds(before, seed=2, free=3)):
        expected, got = run(before, given), run(after, given)
        for name, reference in expected.items():
            assert_close(got[name], reference, tolerance, name)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float, label: str = "") -> None:
    """Same type and shape, and difference over the largest expected magnitude within `tolerance`."""
    if isinstance(expected, list):
        assert len(got) == len(expected), label
        for one, other in zip(got, expected, strict=True):
            assert_close(one, other, tolerance, label)
        return
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), label
    if expected.dtype.kind not in "fc" or tolerance == 0:
        np.testing.assert_array_equal(got, expected, err_msg=label)
    elif expected.size:
        scale = max(float(np.abs(expected).max()), 1e-30)
        error = float(np.abs(np.float64(got) - expected).max()) / scale
        assert error <= tolerance, f"{label}: relative error {error:.3g}, allowed {tolerance:.3g}"
