"""Table 6 of the white paper on trained networks: their own scores in float, and quantized by onnxq and by others.

    python bench/networks.py [--only PATTERN ...] [--configurations NAME ...] [--peers PYTHON] [--limit SECONDS]
                             [--latency SECONDS] [--json FILE] [--pages]

One network in one configuration is one process, with one quantization in a process of its own; each is written to
--json when it is done, and what the file has already is not run again. Networks are those of `cost.py` with labels, and
models/ of this repository; what is missing is left out. --peers: the interpreter of an environment with onnxsim and
onnxruntime, for its column; that of `onnxq qat` needs PyTorch in this one. --pages: write what --json has to
bench/results/networks.md and docs/accuracy.md. `torch_peers.py` has other columns of the same networks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import cases
import compare
import cost
import measure
import numpy as np
import tables
import task_score
from cost import Loaded, Network

FLOAT = "float"


@dataclass(frozen=True)
class Configuration:
    """A column: a tool of `child.py` with its options.

    in_peers: it is in the environment of --peers. module: that this environment must have for it.
    """

    tool: str
    options: tuple[str, ...] = ()
    in_peers: bool = False
    module: str = ""


@dataclass(frozen=True)
class Table:
    """A bench that measures the networks in other configurations, and writes a section of its own to some pages.

    script: its file. columns: None where another bench measures it, which writes to `beside`.
    results: the file of all figures. text: above the tables.
    """

    script: Path
    columns: Mapping[str, Configuration | None]
    results: Path
    pages: tuple[Path, ...]
    text: str
    beside: Path | None = None

    @property
    def configurations(self) -> dict[str, Configuration]:
        """Those that it measures."""
        return {name: each for name, each in self.columns.items() if each is not None}

    @property
    def marks(self) -> tuple[str, str]:
        """In front of the section, and behind it."""
        name = f"bench/{self.script.name}"
        return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


QAT = ("--steps", "300", "--batch", "32")

TEXT = f"""Scores are the networks' own, on samples that calibration has not seen; behind them the difference from the
float model's and its standard error (jackknife over {task_score.GROUPS} groups of samples, the same samples for both
models). quantize_static is ONNX Runtime's, per channel, min-max, behind quant_pre_process; onnxsim its
`quark_compat` with preset U8S8_AAWS (percentiles) and PerChannel. The other columns are `onnxq quantize` with these
options alone, target `ort`; w4a4 qat is `onnxq qat --preset w4a4 {" ".join(QAT)}` on the calibration samples, without
labels.
"""

TABLE = Table(
    Path(__file__),
    {
        FLOAT: Configuration(FLOAT),
        "quantize_static": Configuration("quantize_static", ("MinMax", "w8a8")),
        "onnxsim": Configuration("onnxsim", ("U8S8_AAWS",), in_peers=True),
        "w8a8": Configuration("onnxq"),
        "w8a8 per tensor": Configuration("onnxq", ("--per-tensor",)),
        "w4a8": Configuration("onnxq", ("--preset", "w4a8")),
        "w4a8 per tensor": Configuration("onnxq", ("--preset", "w4a8", "--per-tensor")),
        "w4a4": Configuration("onnxq", ("--preset", "w4a4")),
        "w4a4 qat": Configuration("qat", ("--preset", "w4a4", *QAT), module="torch"),
    },
    Path("bench/results/networks.json"),
    (cases.ROOT / "bench" / "results" / "networks.md", cases.ROOT / "docs" / "accuracy.md"),
    TEXT,
)

LATENCY_FEEDS = 8
MOST_SAID = 300
"""Characters of an error on a page."""


@dataclass(frozen=True)
class Row:
    """One network in one configuration.

    outcome: `done`, `ended` at the limit, or `failed`; why: what was said then.
    scores: by name, the first one counts. errors: standard errors, of the float model's scores, or of the differences
    from them. sqnr_db: of the worst float output, on the samples of the scores. ratio, low, high: median and quartiles
    of CPU time over the float model's. wider: what onnxq says of weights that are wider than the preset.
    """

    network: str
    configuration: str
    commit: str
    samples: int = 0
    outcome: str = "done"
    why: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    ratio: float | None = None
    low: float = 0.0
    high: float = 0.0
    cpu_seconds: float = 0.0
    mebibytes: float = 0.0
    wider: str = ""

    @property
    def key(self) -> str:
        return f"{self.network}, {self.configuration}"


def networks() -> Iterator[Network | str]:
    """Those with scores; a sentence for what is missing."""
    for each in cost.networks():
        name = each if isinstance(each, str) else each.name
        if not name.startswith("cases") and "ultraface" not in name:
            yield each


# --- one network in one configuration ---------------------------------------------------------------------------------


def measured(network: Network, name: str, configuration: Configuration, args: argparse.Namespace) -> Row:
    """name: the column's. --scratch keeps calibration files and the float model's outputs for the next columns."""
    scratch = args.scratch / network.name.replace("/", "-")
    scratch.mkdir(exist_ok=True)
    loaded = network.load(scratch)
    assert loaded.score is not None
    head = network.name, name, commit(), len(loaded.score.labels)
    reference, without = _float(loaded, scratch)
    if configuration.tool == FLOAT:
        scores, errors = loaded.score.of(_lists(reference)), task_score.standard_error(without)
        return Row(*head, scores=scores, errors=errors)
    output = scratch / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}.onnx"
    output.unlink(missing_ok=True)
    run = compare.attempt(
        configuration.tool, loaded.model, _calibration(loaded, scratch), output, *configuration.options,
        limit=args.limit, interpreter=args.peers if configuration.in_peers else None,
    )  # fmt: skip
    spent: dict[str, Any] = {"cpu_seconds": run.cpu_seconds, "mebibytes": run.mebibytes}
    if run.code is None:
        return Row(*head, outcome="ended", why=f"ended after {args.limit:g} CPU seconds", **spent)
    if run.code:
        return Row(*head, outcome="failed", why=why(run.said), **spent)
    try:
        found = measure.outputs(output, loaded.unseen)
    except Exception as error:  # ONNX Runtime's errors share no other class
        return Row(*head, outcome="failed", why=f"ONNX Runtime does not run it: {str(error).splitlines()[0]}", **spent)
    distances = measure.distances(reference, found)
    few = cost.spread(loaded.unseen, LATENCY_FEEDS)
    low, middle, high = np.percentile(measure.cpu_ratios(loaded.model, output, few, args.latency), (25, 50, 75))
    return Row(
        *head,
        scores=loaded.score.of(_lists(found)),
        errors=task_score.difference_error(without, loaded.score.without_groups(_lists(found))),
        sqnr_db=min(distances.values(), default=None),
        ratio=float(middle),
        low=float(low),
        high=float(high),
        wider=_wider(run.said),
        **spent,
    )


def _lists(outputs: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [list(each.values()) for each in outputs]


def _float(loaded: Loaded, scratch: Path) -> tuple[list[dict[str, Any]], list[dict[str, float]]]:
    """The float model's outputs, and its scores without each group of samples."""
    file = scratch / "float.pickle"
    if not file.exists():
        assert loaded.score is not None
        outputs = measure.outputs(loaded.model, loaded.unseen)
        file.write_bytes(pickle.dumps((outputs, loaded.score.without_groups(_lists(outputs)))))
    found: tuple[list[dict[str, Any]], list[dict[str, float]]] = pickle.loads(file.read_bytes())
    return found


def _calibration(loaded: Loaded, scratch: Path) -> Path:
    folder = scratch / "calib"
    if not folder.exists():
        folder.mkdir()
        for index, feed in enumerate(loaded.calibration):
            np.savez(folder / f"{index:05}.npz", **feed)
    return folder


def why(said: str) -> str:
    """The error that a failed command names last, or else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing was said"]
    errors = [
        line
        for line in lines
        if re.match(r"[\w.]*(Error|Exception|Fail|InvalidArgument|InvalidGraph|NotImplemented): ", line)
    ]
    return (errors or lines)[-1][:MOST_SAID]


def _wider(said: str) -> str:
    """What onnxq prints of exceptions from the preset's width."""
    return "; ".join(re.findall(r"^exceptions: (.+)$", said, re.MULTILINE))


def commit() -> str:
    """Of this repository, with a star where files differ from it."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=*"], cwd=cases.ROOT, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


# --- pages ------------------------------------------------------------------------------------------------------------


def page(table: Table, found: Mapping[str, Row], notes: Sequence[str]) -> Iterator[str]:
    """The tables, as lines of Markdown."""
    names = list(dict.fromkeys(row.network for row in found.values()))
    yield table.text
    yield from tables.head("network, score", "samples", *table.columns)
    for name in names:
        base = found.get(f"{name}, {FLOAT}")
        for title in base.scores if base else ():
            cells = [_score(found.get(f"{name}, {c}"), base, title) for c in table.columns]
            yield tables.line(f"{name}, {title}", str(base.samples if base else 0), *cells)
    for title, cell in (
        ("SQNR of the worst output on the same samples, dB", _sqnr),
        ("CPU time of a run over the float model's, one thread, with quartiles", _latency),
        ("CPU seconds and MiB of quantizing, and the commit that was measured", _cost),
    ):
        yield f"\n{title}:\n"
        others = [c for c in table.columns if c != FLOAT]
        yield from tables.head("network", *others)
        for name in names:
            yield tables.line(name, *(_cell(found.get(f"{name}, {c}"), cell) for c in others))
    remarks = [f"- {row.key}: {row.wider}" for row in found.values() if row.wider]
    remarks += [f"- {row.key}: {row.why}" for row in found.values() if row.why] + [f"- {note}" for note in notes]
    if remarks:
        yield "\nExceptions from the preset's widths, and what is missing:\n"
        yield from remarks


def _cell(row: Row | None, of: Any) -> str:
    if row is None:
        return "not run"
    return str(of(row)) if row.outcome == "done" else row.outcome


def _score(row: Row | None, base: Row | None, title: str) -> str:
    def text(row: Row) -> str:
        score, error = row.scores[title], row.errors[title]
        if row.configuration == FLOAT or base is None:
            return f"{score:.2f} ± {error:.2f}"
        return f"{score:.2f} ({score - base.scores[title]:+.2f} ± {error:.2f})"

    return _cell(row, text)


def _sqnr(row: Row) -> str:
    return cost.decibels(row.sqnr_db)


def _latency(row: Row) -> str:
    return "unknown" if row.ratio is None else f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


def _cost(row: Row) -> str:
    return f"{row.cpu_seconds:.1f} s, {row.mebibytes:.0f} MiB, {row.commit}"


def write_pages(table: Table, found: Mapping[str, Row], notes: Sequence[str]) -> None:
    """Between the marks of each page; all else on it stays."""
    begin, end = table.marks
    commits = ", ".join(sorted({row.commit for row in found.values()}))
    where = f"Written by `bench/{table.script.name}`; commits {commits}; {tables.made_with(compare.processor())}."
    text = "\n".join([begin, "", where, "", *page(table, found, notes), "", end])
    for file in table.pages:
        before, _, rest = file.read_text(encoding="utf-8").partition(begin)
        file.write_text(before + text + rest.partition(end)[2], encoding="utf-8")


# --- command line -----------------------------------------------------------------------------------------------------


def parsed(table: Table, doc: str, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="networks [all]")
    known = list(table.configurations)
    parser.add_argument("--configurations", nargs="+", default=known, choices=known, help="[all]")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has other tools [none of their columns]")
    parser.add_argument("--limit", type=float, default=600, metavar="SECONDS", help="CPU time of one command [600]")
    parser.add_argument("--latency", type=float, default=3, metavar="SECONDS", help="for each latency [3]")
    parser.add_argument("--json", type=Path, default=table.results, metavar="FILE", help=f"figures [{table.results}]")
    parser.add_argument("--pages", action="store_true", help="write what the file has to the pages")
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="calibration files and float outputs, kept [none]"
    )
    parser.add_argument("--cell", nargs=2, metavar=("NETWORK", "CONFIGURATION"), help=argparse.SUPPRESS)  # of a child
    return parser.parse_args(arguments)


def load(file: Path) -> dict[str, Row]:
    rows = [Row(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    return {row.key: row for row in rows}


def main(arguments: Sequence[str] | None = None, table: Table = TABLE, doc: str = __doc__ or "") -> None:
    """Measure what the file of figures has not yet, with a line on standard error for each; then print the tables."""
    args = parsed(table, doc, arguments)
    every = list(networks())
    if args.cell:
        name, column = args.cell
        network = next(n for n in every if isinstance(n, Network) and n.name == name)
        print(json.dumps(asdict(measured(network, column, table.configurations[column], args))))
        return
    given = list(sys.argv[1:] if arguments is None else arguments)
    notes = [each for each in every if isinstance(each, str)]
    order = [n.name for n in every if isinstance(n, Network)]
    found, others = load(args.json), load(table.beside) if table.beside else {}
    for name in (n for n in order if any(fnmatch(n, p) for p in args.only)):
        with tempfile.TemporaryDirectory() as temporary:
            scratch = str(args.scratch or temporary)
            for column in args.configurations:
                if f"{name}, {column}" in found or not _is_available(table.configurations[column], args):
                    continue
                row = _in_child(table.script, name, column, [*given, "--scratch", scratch])
                found[row.key] = row
                args.json.write_text(json.dumps([asdict(r) for r in found.values()], indent=1), encoding="utf-8")
                print(_progress(row, others | found), file=sys.stderr, flush=True)
    shown = _shown(table, found, others, order)
    if args.pages:
        write_pages(table, shown, notes)
    print("\n".join(page(table, shown, notes)))


def _is_available(configuration: Configuration, args: argparse.Namespace) -> bool:
    if configuration.in_peers:
        return args.peers is not None
    return not configuration.module or importlib.util.find_spec(configuration.module) is not None


def _shown(table: Table, found: Mapping[str, Row], others: Mapping[str, Row], order: Sequence[str]) -> dict[str, Row]:
    """By network in this order; of the other bench, networks and columns that the table has."""
    names = {row.network for row in found.values()}
    beside = [r for r in others.values() if r.network in names and table.columns.get(r.configuration, r) is None]
    every = sorted(
        [*beside, *found.values()],
        key=lambda row: (order.index(row.network) if row.network in order else len(order), row.network),
    )
    return {row.key: row for row in every}


def _in_child(script: Path, name: str, column: str, given: Sequence[str]) -> Row:
    command = [sys.executable, str(script), *given, "--cell", name, column]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return Row(name, column, commit(), outcome="failed", why=f"the bench ended with {done.returncode}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def _progress(row: Row, found: Mapping[str, Row]) -> str:
    base = found.get(f"{row.network}, {FLOAT}")
    scores = ", ".join(f"{title} {_score(row, base, title)}" for title in row.scores)
    return f"{row.key}: {scores or row.why}; {_sqnr(row)} dB, {_latency(row)}, {_cost(row)} {row.wider}"


if __name__ == "__main__":
    main()
