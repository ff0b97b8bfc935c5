"""Every ONNX operator test, and ONNX's models that carry their weights, through onnxq and through quantize_static.

    python bench/conformance.py --markdown bench/results/conformance.md      all of them, both tools
    python bench/conformance.py --only conv --every 10              some of them (quantize_static needs sympy)

Each test goes through twice: as it is, and with all inputs but the first made initializers, for operator tests feed
their weights. Calibration data are the test's own inputs. Each run has a process with limits on time and memory.

    quantized              loads in ONNX Runtime, runs, and is finite where the float model is
    noise above signal     the same, but the outputs' SQNR against the float model is below 0 dB
    damaged                does not load or run, or has other shapes, infinity or not-a-number
    nothing to quantize    onnxq refuses; quantize_static writes the float model again
    refused                an OnnxqError with a reason
    traceback, crash, hang any other exception; the process died; it did not end within the limit

Most tests hold one operator. quantize_static puts any operator of its list between grids; onnxq only those for which
target `ort` has an integer kernel that is worth it: a Softmax or an Add alone is not, and then it says so.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from isolation import Lost, Worker
from onnx import ModelProto, numpy_helper

TOOLS = ("onnxq", "quantize_static")
OUTCOMES = (
    "quantized", "noise above signal", "damaged", "nothing to quantize", "refused", "traceback", "crash", "hang",
)  # fmt: skip
VARIANTS = ("as it is", "constant")
PLAIN = {
    "activation_range": "minmax", "weight_range": "minmax", "cle": "off", "dead_channels": False, "absorb": False,
    "bias_correction": "off", "rounding": "nearest", "threads": 1,
}  # fmt: skip
"""What quantize_static does, too."""


@dataclass(frozen=True)
class Case:
    """A test: its model, and the inputs that it is tested with, in the model's order."""

    name: str
    model: ModelProto
    inputs: tuple[Any, ...]

    @property
    def feed(self) -> dict[str, Any]:
        weights = {t.name for t in self.model.graph.initializer}
        names = [v.name for v in self.model.graph.input if v.name not in weights]
        return dict(zip(names, self.inputs, strict=False))


@dataclass(frozen=True)
class Outcome:
    """One of OUTCOMES, and the reason: a message, an exception, a signal."""

    outcome: str
    reason: str = ""


def load_cases(kinds: Iterable[str] = ("node", "simple", "pytorch-operator", "pytorch-converted")) -> Iterator[Case]:
    """Tests of the installed onnx package; those whose model would have to be downloaded are left out."""
    from onnx.backend.test.loader import load_model_tests

    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tests = load_model_tests(kind=kind)
        for test in tests:
            if test.model is not None:
                yield Case(test.name, test.model, tuple(map(_array, test.data_sets[0][0])))
            elif test.model_dir is not None:
                yield _stored(test.name, Path(test.model_dir))


def _array(value: Any) -> Any:
    """A tensor as an array; sequences and optional values as they are."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _stored(name: str, folder: Path) -> Case:
    files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
    inputs = (numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files)
    return Case(name, onnx.load(folder / "model.onnx"), tuple(inputs))


def constant(case: Case) -> Case | None:
    """The case with all inputs but the first made initializers; None where there are none, or no tensors."""
    first, *others = case.feed.items()
    kinds = {v.name: v.type.WhichOneof("value") for v in case.model.graph.input}
    if not others or case.model.ir_version < 4 or any(kinds[name] != "tensor_type" for name, _ in others):
        return None
    model = ModelProto()
    model.CopyFrom(case.model)
    kept = [v for v in model.graph.input if v.name == first[0]]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in others)
    return Case(case.name, model, (first[1],))


def run_onnxq(case: Case, output: Path, settings: Mapping[str, Any]) -> Outcome:
    """As `onnxq quantize` runs it."""
    import onnxq
    from onnxq.errors import NothingToQuantizeError, OnnxqError

    try:
        onnxq.quantize(case.model, [case.feed], output=output, **settings)
    except NothingToQuantizeError as error:
        return Outcome("nothing to quantize", str(error))
    except OnnxqError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("traceback", _place(error))
    return outcome_of(case, output)


def run_static(case: Case, output: Path, settings: Mapping[str, Any]) -> Outcome:
    """quantize_static behind quant_pre_process, as its documentation recommends; opset 13 where it is older."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quant_pre_process, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter([case.feed])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    source, prepared = output.with_suffix(".source"), output.with_suffix(".prepared")
    try:
        proto = case.model
        if (_opset(proto) or 99) < 13:
            proto = onnx.version_converter.convert_version(proto, 13)
        onnx.save(proto, source)
        quant_pre_process(str(source), str(prepared))
        quantize_static(str(prepared), str(output), Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
    except (Exception, SystemExit) as error:
        return Outcome("traceback", _place(error))
    nodes = {node.op_type for node in onnx.load(output).graph.node}
    if "QuantizeLinear" not in nodes or "DequantizeLinear" not in nodes:
        return Outcome("nothing to quantize")
    return outcome_of(case, output)


def _opset(model: ModelProto) -> int | None:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)


def outcome_of(case: Case, written: Path) -> Outcome:
    """Whatever tool wrote it: does it load and run as users run it, and is it anywhere near the float model?"""
    from onnxq.execution.session import Session
    from onnxq.numeric.metrics import Sqnr

    model = case.model
    if (_opset(model) or 7) < 7:  # ONNX Runtime does not run these
        model = onnx.version_converter.convert_version(model, 13)
    reference = Session(model, optimize=True).run(case.feed)
    try:
        found = Session(written, optimize=True).run(case.feed)
    except Exception as error:
        return Outcome("damaged", str(error))
    lowest = np.inf
    for name, x in reference.items():
        y = found.get(name)
        if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
            continue
        if not isinstance(y, np.ndarray) or (x.shape, x.dtype) != (y.shape, y.dtype):
            return Outcome("damaged", f"output {name!r} has another shape or type")
        distance = Sqnr()
        distance.update(x, y)
        if not np.isfinite(distance.noise):
            return Outcome("damaged", f"output {name!r} is not finite where the float model's is")
        lowest = min(lowest, distance.db)
    return Outcome("quantized" if lowest >= 0 else "noise above signal", f"{lowest:.1f} dB")


def _place(error: BaseException) -> str:
    """An exception, and where it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


RUNNERS = {"onnxq": run_onnxq, "quantize_static": run_static}


def attempt(tool: str, case: Case, settings: Mapping[str, Any]) -> Outcome:
    """One tool on one case, in this process."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        return RUNNERS[tool](case, Path(folder) / "out.onnx", settings)


def survey(
    cases: list[tuple[str, Case]], tools: Iterable[str], settings: Mapping[str, Any], seconds: float, log: Any = None
) -> dict[tuple[str, str, str], Outcome]:
    """(tool, variant, test) -> outcome, each in a process with limits."""
    outcomes = {}
    with Worker(lambda job: attempt(job[0], cases[job[1]][1], settings), seconds) as worker:
        for number, (variant, case) in enumerate(cases):
            for tool in tools:
                outcome = worker.run((tool, number))
                outcome = Outcome(outcome.kind, outcome.detail) if isinstance(outcome, Lost) else outcome
                outcomes[tool, variant, case.name] = outcome
                if log is not None:
                    print(tool, variant, case.name, outcome.outcome, outcome.reason, sep="\t", file=log, flush=True)
            if number % 100 == 99:
                print(f"{number + 1} of {len(cases)}", file=sys.stderr)
    return outcomes


def kind_of(reason: str) -> str:
    """A message without what is particular to its model: names, numbers, shapes."""
    short = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason.split(";")[0])
    short = re.sub(r"^(\w+): model: ", r"\1: ", short)
    short = re.sub(r"LayerSensitivity model from \S+ failed:\s*|/\S+/|\(\w*onnxruntime\w*\.py:\d+\)", "", short)
    return re.sub(r"\d+", "#", short)[:120]


def markdown(outcomes: Mapping[tuple[str, str, str], Outcome], settings: Mapping[str, Any]) -> str:
    """Counts for each outcome, and reasons grouped."""
    from importlib.metadata import version

    lines = ["# Conformance: every ONNX operator test", "", *(__doc__ or "").strip().splitlines()[5:], ""]
    lines += [
        f"onnx {version('onnx')}, onnxruntime {version('onnxruntime')}, Python {platform.python_version()}; options of"
        f" onnxq: {', '.join(f'{k}={v}' for k, v in settings.items()) or 'default'}.", "",
    ]  # fmt: skip
    lines[1:1] = ["", "Written by `python bench/conformance.py --markdown bench/results/conformance.md`."]
    tools = [tool for tool in TOOLS if any(key[0] == tool for key in outcomes)]
    for variant in VARIANTS:
        counts = {t: Counter(a.outcome for key, a in outcomes.items() if key[:2] == (t, variant)) for t in tools}
        total = sum(counts[tools[0]].values())
        lines += [f"## Tests {'as they are' if variant == 'as it is' else 'with constant weights'}: {total}", ""]
        lines += ["| outcome | " + " | ".join(tools) + " |", "|---|" + "---:|" * len(tools)]
        lines += [f"| {o} | " + " | ".join(str(counts[t][o]) for t in tools) + " |" for o in OUTCOMES]
        lines.append("")
    for tool in tools:
        lines += [f"## Reasons: {tool}", "", "| count | outcome | reason | such as |", "|---:|---|---|---|"]
        groups: dict[tuple[str, str], list[str]] = {}
        for (who, _, name), outcome in outcomes.items():
            if who == tool and outcome.outcome not in ("quantized", "noise above signal", "nothing to quantize"):
                groups.setdefault((outcome.outcome, kind_of(outcome.reason)), []).append(name)
        for (outcome, reason), names in sorted(groups.items(), key=lambda g: (OUTCOMES.index(g[0][0]), -len(g[1]))):
            safe = reason.replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| {len(names)} | {outcome} | {safe} | {names[0]} |")
        lines.append("")
    return "\n".join(lines)


def select(only: str = "", every: int = 1) -> list[tuple[str, Case]]:
    """(variant, case): tests whose name holds `only`, one in `every`."""
    chosen = [case for case in load_cases() if only in case.name][::every]
    changed = [constant(case) if case.feed else None for case in chosen]
    return [("as it is", case) for case in chosen] + [("constant", case) for case in changed if case is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="tests whose name holds this")
    parser.add_argument("--every", type=int, default=1, help="one test in so many")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="default: both")
    parser.add_argument("--steps", action="store_true", help="onnxq's default options instead of plain ones")
    parser.add_argument("--seconds", type=float, default=60, help="limit for one run")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--log", type=Path, help="every outcome, as tab-separated values")
    given = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    settings: Mapping[str, Any] = {} if given.steps else PLAIN
    log = None if given.log is None else given.log.open("w")
    outcomes = survey(select(given.only, given.every), given.tool or TOOLS, settings, given.seconds, log)
    text = markdown(outcomes, settings)
    print(text)
    if given.markdown is not None:
        given.markdown.write_text(text + "\n", encoding="utf-8")
    bad = [key for key, a in outcomes.items() if key[0] == "onnxq" and a.outcome in ("damaged", *OUTCOMES[-3:])]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
