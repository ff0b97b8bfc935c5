"""What onnxq costs and what that buys, beside quantize_static: CPU seconds, peak memory, SQNR on unseen samples.

    python bench/cost.py [--only PATTERN ...] [--preset w8a8 ...] [--tools default ...] [--limit SECONDS]
                         [--markdown bench/results/cost.md] [--json FILE]

Networks: models/NAME of this repository, realmodels/NAME and cases/NAME of ../shared, which are left out with a line
where they are missing. Every quantization is a process of its own, one after another, with the same calibration
samples from .npz files; SQNR is measured on other samples. Needs `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import cases
import compare
import measure
import numpy as np
import onnx
import tables
from cases import Case
from child import STATIC_TYPES
from measure import Feed
from task_score import TaskScore, top1

CASES = cases.ROOT.parent / "shared" / "cases"

STATIC = "quantize_static"
TOOLS: dict[str, tuple[str, ...]] = {
    STATIC: (),
    "default": (),
    "fast": ("--effort", "fast"),
    "nearest": ("--rounding", "nearest"),
}
"""Columns: quantize_static, and onnxq with these options; a dash where onnxq refuses them."""

PRESETS = {name: ("--preset", name) for name in STATIC_TYPES} | {"w4-block32": ("--preset", "w4", "--block-size", "32")}

MOST_TIMES = {"default": 4.0, "fast": 1.3}
"""Of quantize_static's CPU time, on networks of realmodels; `default` may take 8 where optimised rounding pays."""
MOST_BELOW_NEAREST = 0.3
MOST_BESIDE = 1.5
"""dB by which `default` may be below `nearest` on unseen samples, and the printed figure beside that on unseen ones."""


@dataclass(frozen=True)
class Loaded:
    """A network as a file, with samples to calibrate on, and others. score: on the latter, where they have labels."""

    model: Path
    calibration: Sequence[Feed]
    unseen: Sequence[Feed]
    score: TaskScore | None = None


@dataclass(frozen=True)
class Network:
    """load: takes an empty folder to write to."""

    name: str
    load: Callable[[Path], Loaded]


@dataclass(frozen=True)
class Row:
    """One quantization. outcome: `done`, `ended` at the limit, `refused`, or `failed`; why: what was said then.

    sqnr_db, printed_db: by output, in dB, on unseen samples and as onnxq prints it; infinite where identical.
    """

    network: str
    preset: str
    tool: str
    calibration_samples: int
    unseen_samples: int
    outcome: str
    why: str
    cpu_seconds: float
    mebibytes: float
    sqnr_db: dict[str, float]
    printed_db: dict[str, float]

    @property
    def mean_db(self) -> float | None:
        """Over outputs that differ from float; infinite where none does; None where nothing could be compared."""
        return mean(self.sqnr_db)

    @property
    def mean_printed_db(self) -> float | None:
        """The same of the printed figures, for the outputs that could be compared on unseen samples."""
        return mean({name: db for name, db in self.printed_db.items() if name in self.sqnr_db})


def mean(decibels: Mapping[str, float]) -> float | None:
    differing = [db for db in decibels.values() if db < math.inf]
    return float(np.mean(differing)) if differing else math.inf if decibels else None


def networks() -> Iterator[Network | str]:
    """All there are, in this order; a sentence for what is missing."""
    for case in cases.all_cases():
        folder = "models" if cases.EXAMPLES in case.model.parents else "realmodels"
        yield Network(f"{folder}/{case.name}", lambda _, case=case: classifier(case))
    if (cases.REAL / "evaluate.py").is_file():
        for name, task in cases.evaluator(cases.REAL)["TASKS"].items():
            if (cases.REAL / name / "model.onnx").is_file():
                yield Network(f"realmodels/{name}", lambda _, name=name, task=task: trained(name, task))
            else:
                yield f"realmodels/{name} is left out: there is no ../shared/realmodels/{name}/model.onnx."
    else:
        yield "realmodels are left out: there is no ../shared/realmodels."
    if (CASES / "make_cases.py").is_file():
        for made in runpy.run_path(str(CASES / "make_cases.py"))["CASES"]:
            yield Network(f"cases/{made.name}", lambda folder, made=made: small(made, folder))
    else:
        yield "cases are left out: there is no ../shared/cases."


def classifier(case: Case) -> Loaded:
    name = measure.input_name(case.model)
    calibration, (unseen, labels) = case.calibration(), case.evaluation()
    seen, fresh = ([{name: x[i : i + 1]} for i in range(len(x))] for x in (calibration, unseen))
    return Loaded(case.model, seen, fresh, None if labels is None else TaskScore(labels, top1))


def trained(name: str, task: Any) -> Loaded:
    unseen, labels = task.eval()
    return Loaded(cases.REAL / name / "model.onnx", task.calib(), unseen, TaskScore(labels, task.score))


def small(case: Any, folder: Path) -> Loaded:
    built = case.build()
    onnx.save(built.model, folder / "model.onnx")
    return Loaded(folder / "model.onnx", built.calibration, built.fresh)


def spread(feeds: Sequence[Feed], most: int) -> list[Feed]:
    """At most so many of them, evenly spread."""
    return [feeds[i] for i in np.linspace(0, len(feeds) - 1, min(most, len(feeds))).astype(int)]


@dataclass(frozen=True)
class Bench:
    """limit: CPU seconds of one quantization; samples, unseen: at most so many of each."""

    presets: Sequence[str]
    tools: Sequence[str]
    limit: float
    samples: int
    unseen: int

    def rows(self, network: Network) -> Iterator[Row]:
        """The rows of one network, preset after preset."""
        with tempfile.TemporaryDirectory() as temporary:
            scratch = Path(temporary)
            loaded = network.load(scratch)
            calibration, unseen = spread(loaded.calibration, self.samples), spread(loaded.unseen, self.unseen)
            (scratch / "calib").mkdir()
            for index, feed in enumerate(calibration):
                np.savez(scratch / "calib" / f"{index:05}.npz", **feed)
            reference = measure.outputs(loaded.model, unseen)
            for preset in self.presets:
                for tool in self.tools:
                    if tool != STATIC or preset in STATIC_TYPES:
                        head = network.name, preset, tool, len(calibration), len(unseen)
                        yield Row(*head, *self.measured(preset, tool, loaded.model, scratch, unseen, reference))

    def measured(
        self, preset: str, tool: str, model: Path, scratch: Path, unseen: Sequence[Feed], reference: Sequence[Any]
    ) -> tuple[str, str, float, float, dict[str, float], dict[str, float]]:
        """The fields of a row from `outcome` on."""
        output = scratch / "quantized.onnx"
        output.unlink(missing_ok=True)
        if tool == STATIC:
            command, options = STATIC, ["MinMax", preset]
        else:
            command, options = "onnxq", [*PRESETS[preset], *TOOLS[tool]]
        run = compare.attempt(command, model, scratch / "calib", output, *options, limit=self.limit)
        if run.code is None:
            return "ended", f"ended after {self.limit:g} CPU s", run.cpu_seconds, run.mebibytes, {}, {}
        if run.code:
            outcome = "refused" if tool != STATIC and run.code == 2 else "failed"
            last = run.said.splitlines()[-1].strip().rstrip(".") if run.said else "nothing was said"
            return outcome, f"exit {run.code}: {last}", run.cpu_seconds, run.mebibytes, {}, {}
        printed = {} if tool == STATIC else printed_db(run.said)
        try:
            found = measure.distances(reference, measure.outputs(output, unseen))
        except Exception as error:  # ONNX Runtime's errors share no other class
            why = f"ONNX Runtime does not run the result: {str(error).splitlines()[0]}"
            return "failed", why, run.cpu_seconds, run.mebibytes, {}, printed
        return "done", "", run.cpu_seconds, run.mebibytes, found, printed


def printed_db(said: str) -> dict[str, float]:
    """SQNR of each output as onnxq prints it."""
    found = re.findall(r"^output (.+): SQNR (identical|-?[0-9.]+)", said, re.MULTILINE)
    return {output: math.inf if db == "identical" else float(db) for output, db in found}


Found = Mapping[tuple[str, str, str], Row]
"""By network, preset and tool."""


def cost(row: Row, found: Found) -> str:
    """A cell of the first table: `65.0 s (13.8), 334 MiB`."""
    if row.outcome == "refused":
        return "-"
    times = ratio(row, found)
    over = ">" if row.outcome == "ended" else ""
    share = f" ({over}{times:.1f})" if times is not None else ""
    failed = ", failed" if row.outcome == "failed" else ""
    return f"{over}{row.cpu_seconds:.1f} s{share}, {row.mebibytes:.0f} MiB{failed}"


def ratio(row: Row, found: Found) -> float | None:
    """CPU time over quantize_static's; None where that did not end well, or is the row itself."""
    static = found.get((row.network, row.preset, STATIC))
    return row.cpu_seconds / static.cpu_seconds if static and static is not row and static.outcome == "done" else None


def quality(row: Row) -> str:
    """A cell of the second table: `30.3 (31.0)`, the printed figure in brackets."""
    if row.outcome != "done":
        return "-"
    printed = "" if row.tool == STATIC else f" ({decibels(row.mean_printed_db)})"
    return decibels(row.mean_db) + printed


def decibels(db: float | None) -> str:
    return "unknown" if db is None else "identical" if db == math.inf else f"{db:.1f}"


def progress(row: Row, found: Found) -> str:
    """A line on what was measured last."""
    text = row.why if row.outcome != "done" else f"{quality(row)} dB on unseen samples (printed)"
    return f"{row.network} {row.preset} {row.tool}: {cost(row, found)}, {text}"


def misses(found: Found) -> Iterator[str]:
    """What keeps within none of the bounds at the head of this file."""
    for (network, preset, tool), row in found.items():
        where = f"- {network}, {preset}, {tool}: "
        times, most = ratio(row, found), MOST_TIMES.get(tool, math.inf)
        if network.startswith("realmodels/") and times is not None and times > most:
            yield f"{where}{times:.1f} times the CPU time of quantize_static, at most {most:g}."
        if row.outcome in ("ended", "failed"):
            yield where + row.why + "."
        nearest = found.get((network, preset, "nearest"))
        if tool == "default" and nearest and farther(nearest.mean_db, row.mean_db, MOST_BELOW_NEAREST):
            yield f"{where}{decibels(row.mean_db)} dB on unseen samples, nearest {decibels(nearest.mean_db)}."
        unseen, printed = row.mean_db, row.mean_printed_db
        if farther(printed, unseen, MOST_BESIDE) or farther(unseen, printed, MOST_BESIDE):
            yield f"{where}{decibels(printed)} dB printed, {decibels(unseen)} on unseen samples."


def farther(above: float | None, below: float | None, most: float) -> bool:
    """Whether one figure is more dB above the other than it may be; not where one is unknown."""
    return above is not None and below is not None and above > below + most


TEXT = f"""Cost: CPU seconds (user and system, the whole process with imports and children), in brackets times those of
quantize_static (per channel, min-max, behind quant_pre_process; below opset 13 behind a conversion, too), and peak
memory. Both tools are started as `python bench/child.py TOOL ...` on the same calibration samples in .npz files, one
process at a time. SQNR: mean over float outputs in dB against the float model, on samples that calibration never saw,
ONNX Runtime's optimisations on, over samples whose shapes agree; in brackets the mean of what onnxq prints.
A dash: onnxq refuses the options, or there is no result to compare.

Bounds: on realmodels `default` takes at most {MOST_TIMES["default"]:g} times quantize_static's CPU time (8 where
optimised rounding pays), `fast` {MOST_TIMES["fast"]:g}; `default` is at most {MOST_BELOW_NEAREST:g} dB below nearest;
the printed figure is within {MOST_BESIDE:g} dB of that on unseen samples.
"""


def page(command: str, found: Found, notes: Sequence[str], tools: Sequence[str]) -> Iterator[str]:
    """All tables, as lines of Markdown."""
    yield from tables.heading("Cost of onnxq beside quantize_static", command, TEXT, compare.processor())
    for preset in dict.fromkeys(preset for _, preset, _ in found):
        names = dict.fromkeys(network for network, other, _ in found if other == preset)
        rows = {name: [found.get((name, preset, tool)) for tool in tools] for name in names}
        for title, kind, cell in (
            ("cost", "calibration", lambda row: cost(row, found)),
            ("SQNR on unseen samples (printed), dB", "unseen", quality),
        ):
            yield f"## {preset}: {title}\n"
            yield from tables.head("network", f"{kind} samples", *tools)
            for name, cells in rows.items():
                some = next(row for row in cells if row)
                count = getattr(some, f"{kind}_samples")
                yield tables.line(name, str(count), *(cell(row) if row else "-" for row in cells))
            yield ""
    yield "## Out of bounds\n"
    yield from list(misses(found)) or ["Nothing."]
    refused = {(row.tool, row.why) for row in found.values() if row.outcome == "refused"}
    if refused or notes:
        yield "\n## Left out\n"
        yield from (f"- {tool}: {why}" for tool, why in sorted(refused))
        yield from (f"- {note}" for note in notes)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="networks, as `realmodels/*` [all]")
    parser.add_argument("--preset", nargs="+", default=["w8a8"], choices=PRESETS, help="[w8a8]")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS), choices=TOOLS, help="columns [all]")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="CPU time of one command [600]")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples at most, evenly spread [512]")
    parser.add_argument("--unseen", type=int, default=400, help="samples for SQNR at most, evenly spread [400]")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file as well")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, with a line on standard error for each quantization, and print the tables."""
    args = parsed(arguments)
    bench = Bench(args.preset, args.tools, args.limit, args.samples, args.unseen)
    command = " ".join(["python bench/cost.py", *(sys.argv[1:] if arguments is None else arguments)])
    every = list(networks())
    notes = [note for note in every if isinstance(note, str)]
    chosen = [n for n in every if isinstance(n, Network) and any(fnmatch(n.name, p) for p in args.only)]
    found: dict[tuple[str, str, str], Row] = {}
    for number, network in enumerate(chosen, 1):
        for row in bench.rows(network):
            found[row.network, row.preset, row.tool] = row
            print(f"[{number}/{len(chosen)}] {progress(row, found)}", file=sys.stderr, flush=True)
            if args.markdown:
                text = "\n".join([*page(command, found, notes, args.tools), ""])
                args.markdown.write_text(text, encoding="utf-8")
            if args.json:
                args.json.write_text(json.dumps([asdict(row) for row in found.values()], indent=1), encoding="utf-8")
    print("\n".join(page(command, found, notes, args.tools)))


if __name__ == "__main__":
    main()
