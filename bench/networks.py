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
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import cases
import compare
import cost
import measure
import network_table
import numpy as np
import task_score
from cost import Loaded, Network
from network_table import FLOAT, OURS, Configuration, Row, Table

QAT = ("--steps", "150", "--batch", "32", "--lr", "0.003", "--scale-lr", "0.0006", "--threads", "1")
"""For a few hundred samples: small batches, and smaller rates than the defaults, which are for batches of 128 (with
those, ResNet-20's loss on held-out samples rose from 0.248 to 0.302 in 150 steps; with these it fell to 0.203)."""

TEXT = f"""Scores are the networks' own, on samples that calibration has not seen; behind them the difference from the
float model's and its standard error (jackknife over {task_score.GROUPS} groups of samples, the same samples for both
models). quantize_static is ONNX Runtime's, per channel, min-max, behind quant_pre_process; onnxsim its
`quark_compat` with preset U8S8_AAWS (percentiles) and PerChannel. The other columns are `onnxq quantize` with these
options alone, target `ort`; w4a4 qat is `onnxq qat` with preset w4a4 and
`{" ".join(QAT)}` on the calibration samples, without labels.
"""

TABLE = Table(
    Path(__file__),
    {
        FLOAT: Configuration(FLOAT),
        "quantize_static": Configuration("quantize_static", ("MinMax", "w8a8")),
        "onnxsim": Configuration("onnxsim", ("U8S8_AAWS",), in_peers=True),
        OURS: Configuration("onnxq"),
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
    found, others = network_table.load(args.json), network_table.load(table.beside) if table.beside else {}
    for name in (n for n in order if any(fnmatch(n, p) for p in args.only)):
        with tempfile.TemporaryDirectory() as temporary:
            scratch = str(args.scratch or temporary)
            for column in args.configurations:
                if f"{name}, {column}" in found or not _is_available(table.configurations[column], args):
                    continue
                row = _in_child(table.script, name, column, [*given, "--scratch", scratch])
                found[row.key] = row
                args.json.write_text(json.dumps([asdict(r) for r in found.values()], indent=1), encoding="utf-8")
                print(network_table.progress(row, others | found), file=sys.stderr, flush=True)
    shown = network_table.shown(table, found, others, order)
    if args.pages:
        network_table.write_pages(table, shown, notes)
    print("\n".join(network_table.page(table, shown, notes)))


def _is_available(configuration: Configuration, args: argparse.Namespace) -> bool:
    if configuration.in_peers:
        return args.peers is not None
    return not configuration.module or importlib.util.find_spec(configuration.module) is not None


def _in_child(script: Path, name: str, column: str, given: Sequence[str]) -> Row:
    command = [sys.executable, str(script), *given, "--cell", name, column]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return Row(name, column, commit(), outcome="failed", why=f"the bench ended with {done.returncode}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
