"""`onnxq targets`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from ..report import printable
from ..targets import TARGETS, Target, find_target, requirements
from ..targets.contradictions import taken
from .command import Command
from .options import output_options


@click.command("targets", cls=Command)
@click.argument("names", nargs=-1, metavar="[NAME|FILE]...")
@output_options("Print what each target requires, and who says so.", quiet=False)
def targets_command(names: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """List targets, or those that are named: what they are, and with names or -v what they require."""
    chosen = [find_target(name) for name in names or TARGETS]
    if as_json:
        click.echo(json.dumps([_record(target) for target in chosen], indent=2))
        return
    width = max(len(target.name) for target in chosen)
    for target in chosen:
        click.echo(printable(f"{target.name:{width}}  {target.description}"))
        if verbose or names:
            click.echo("\n".join(printable(f"    {line}") for line in _details(target)))


def _details(target: Target) -> list[str]:
    lines = [f"activations: {target.activation}; weights: {target.weight}; biases: {target.bias}"]
    lines.append(f"widths: {taken(target)}")
    kinds: dict[str, list[str]] = {}
    for op, rule in target.rules.items():
        kinds.setdefault(rule.kind, []).append(op)
    lines += [f"{kind}: {', '.join(ops)}" for kind, ops in kinds.items()]
    for requirement in requirements(target):
        lines += [f"{requirement.id}: {requirement.text}", f"    {requirement.source}"]
    return lines


def _record(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "description": target.description,
        "source": target.source,
        "activation": str(target.activation),
        "weight": str(target.weight),
        "bias": target.bias,
        "widths": taken(target),
        "opset": [target.min_opset, target.max_opset],
        "fused": sorted(target.fused),
        "operators": {op: {"kind": r.kind, "output": r.output, "grid": r.grid} for op, r in target.rules.items()},
        "requirements": [asdict(requirement) for requirement in requirements(target)],
    }
