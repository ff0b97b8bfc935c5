"""Mutated models through `onnxq.quantize`: each is quantized or refused with an OnnxqError, and nothing else.

    python bench/fuzz.py --cases 6000 --seed 0 --keep /tmp/found      what fails is kept there, with its number
    python bench/fuzz.py --seed 0 --number 1234                       one case again, here, with its traceback

Case `number` of a seed is always the same: a small network or a quantizable operator test, mutated in its bytes, its
protobuf fields or its graph (mutations.py). Each runs in a process with limits on time (60 s) and memory (4 GiB).
What would be a defect: any exception but OnnxqError, a death of the process, no end, or files left behind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
from conformance import PLAIN, constant, kind_of, load_cases
from isolation import Lost, Worker
from mutations import MUTATIONS, pick
from onnx import ModelProto, numpy_helper

Feed = Mapping[str, np.ndarray]

NETWORKS = (
    "(float[N,3,6,6] x) => (float[N,4] y) <float[5,3,3,3] w, float[5] b, float[4,5] v, float[4] c> {"
    " h = Conv<pads=[1,1,1,1]>(x, w, b) a = Relu(h) p = GlobalAveragePool(a) f = Flatten(p)"
    " y = Gemm<transB=1>(f, v, c) }",
    "(float[N,4,5,5] x) => (float[N,4,5,5] y) <float[4,1,3,3] d, float[4,4,1,1] w, float[4] s, float[4] t, float[4] m,"
    " float[4] var, float lo, float hi> { a = Conv<group=4, pads=[1,1,1,1]>(x, d)"
    " b = BatchNormalization(a, s, t, m, var) c = Clip(b, lo, hi) e = Conv(c, w) g = Add(e, x) y = Relu(g) }",
    "(float[N,3,8] x) => (float[N,3,8] y) <float[8,8] q, float[8,8] k, float[8,8] v, float[8] o, float root> {"
    " a = MatMul(x, q) b = MatMul(x, k) t = Transpose<perm=[0,2,1]>(b) s = MatMul(a, t) u = Div(s, root)"
    " p = Softmax<axis=-1>(u) w = MatMul(x, v) z = MatMul(p, w) r = Add(z, x)"
    " y = LayerNormalization<axis=-1>(r, o) }",
    "(float[N,3] x) => (float[N,3] y) <float[3,3] w, float[3] k> { h = MatMul(x, w) m = ReduceMax<keepdims=0>(h)"
    " c = Greater(m, m) z = If(c) <then_branch = t () => (float[N,3] a) { a = Add(h, k) },"
    " else_branch = e () => (float[N,3] b) { b = MatMul(h, w) }> y = Relu(z) }",
    "(float[N,2,4,4] x) => (float[N,?,?,?] y, float[N,?] z) <float[2,3,2,2] w,"
    " float[2,2,1,1] u, int64[4] sizes> { c = Conv(x, u) h = ConvTranspose<strides=[2,2]>(c, w)"
    " r = Resize<mode=\"nearest\">(h, , , sizes) s = Sigmoid(r) y = Concat<axis=1>(s, s) i = Shape(y)"
    " b = Constant<value_ints=[2, -1]>() q = Reshape(y, b)"
    " n = Cast<to=7>(i) z = Identity(q) }",
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """A model that can be quantized, and inputs for it."""

    model: ModelProto
    feeds: Sequence[Feed]


def networks() -> list[Seed]:
    """NETWORKS with seeded weights."""
    rng = np.random.default_rng(0)
    return [_network(text, rng) for text in NETWORKS]


def _network(text: str, rng: np.random.Generator) -> Seed:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> net {text}')
    made = {name for node in model.graph.node for name in node.output}
    fixed = {"lo": np.float32(0), "hi": np.float32(6), "root": np.float32(3), "sizes": np.int64([2, 3, 9, 9])}
    for value in model.graph.value_info:
        if value.name not in made:
            dims = [d.dim_value for d in value.type.tensor_type.shape.dim]
            array = fixed.get(value.name, rng.standard_normal(dims).astype(np.float32))
            array = np.abs(array) + 1 if value.name == "var" else array
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), value.name))
    del model.graph.value_info[:]
    feeds = []
    for _ in range(3):
        dims = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
        feeds.append({"x": rng.standard_normal(dims).astype(np.float32)})
    return Seed(model, feeds)


def operator_tests() -> list[Seed]:
    """ONNX's tests of operators that can be quantized, with constant weights."""
    cases = [constant(case) for case in load_cases(["node"]) if case.feed and _is_linear(case.model)]
    return [Seed(case.model, [case.feed]) for case in cases if case is not None]


def _is_linear(model: ModelProto) -> bool:
    return bool({n.op_type for n in model.graph.node} & {"Conv", "ConvTranspose", "Gemm", "MatMul"})


def make_case(seeds: Sequence[Seed], seed: int, number: int) -> tuple[str, bytes, Sequence[Feed], dict[str, Any]]:
    """(kind of mutation, bytes of the model, calibration data, options) of a case."""
    rng = np.random.default_rng([seed, number])
    start, kind = pick(rng, seeds), pick(rng, sorted(MUTATIONS))
    settings: dict[str, Any] = pick(rng, (PLAIN, PLAIN, {"threads": 1}, {**PLAIN, "per_channel": False}))
    return kind, MUTATIONS[kind](start.model, rng), start.feeds, settings


def attempt(data: bytes, feeds: Sequence[Feed], settings: Mapping[str, Any]) -> tuple[str, str]:
    """(outcome, detail): quantized, refused, traceback or leftover."""
    import onnxq
    from onnxq.errors import OnnxqError

    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        source, output = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        source.write_bytes(data)
        try:
            onnxq.quantize(source, feeds, output=output, **settings)
            outcome, detail, expected = "quantized", "", {source, output}
        except OnnxqError as error:
            outcome, detail, expected = "refused", f"{type(error).__name__}: {error}", {source}
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        left = set(Path(folder).iterdir()) ^ expected
        return ("leftover", ", ".join(p.name for p in left)) if left else (outcome, detail)


def survey(
    seeds: Sequence[Seed], seed: int, numbers: Sequence[int], seconds: float = 60, keep: Path | None = None
) -> dict[int, tuple[str, str, str]]:
    """number -> (kind of mutation, outcome, detail)."""
    results = {}
    with Worker(lambda number: attempt(*make_case(seeds, seed, number)[1:]), seconds, 4096) as worker:
        for count, number in enumerate(numbers):
            result = worker.run(number)
            outcome, detail = (result.kind, result.detail) if isinstance(result, Lost) else result
            kind, data, *_ = make_case(seeds, seed, number)
            results[number] = (kind, outcome, detail)
            if outcome not in ("quantized", "refused") and keep is not None:
                (keep / f"{seed}-{number}-{outcome}.onnx").write_bytes(data)
                (keep / f"{seed}-{number}-{outcome}.txt").write_text(f"{kind}\n{detail}\n")
            if count % 500 == 499:
                print(f"{count + 1} of {len(numbers)}", file=sys.stderr, flush=True)
    return results


def table(results: Mapping[int, tuple[str, str, str]]) -> str:
    """Counts, and the reasons of refusals grouped."""
    outcomes = ("quantized", "refused", "traceback", "leftover", "crash", "hang")
    counts = Counter((kind, outcome) for kind, outcome, _ in results.values())
    lines = ["| mutated | cases | " + " | ".join(outcomes) + " |", "|---|---:|" + "---:|" * len(outcomes)]
    for kind in MUTATIONS:
        row = [counts[kind, o] for o in outcomes]
        lines.append(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    reasons = Counter(kind_of(d).partition(":")[0] for _, outcome, d in results.values() if outcome == "refused")
    lines += ["", "Refused with: " + ", ".join(f"{name} {count}" for name, count in reasons.most_common())]
    bad = [(n, o, d) for n, (_, o, d) in results.items() if o not in ("quantized", "refused")]
    return "\n".join([*lines, "", *(f"{n} {o}: {d.partition(chr(10))[0][:200]}" for n, o, d in bad)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, help="only this case, in this process")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--keep", type=Path, help="folder for cases that fail")
    given = parser.parse_args()
    seeds = 20 * networks() + operator_tests()
    if given.number is not None:
        kind, *case = make_case(seeds, given.seed, given.number)
        print(kind, *attempt(*case), sep="\n")
        return
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    results = survey(seeds, given.seed, range(given.cases), given.seconds, given.keep)
    print(table(results))
    sys.exit(any(outcome not in ("quantized", "refused") for _, outcome, _ in results.values()))


if __name__ == "__main__":
    main()
