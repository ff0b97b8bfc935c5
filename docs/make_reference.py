"""The reference, made from the code: a page of the command line and one of the Python API, of which the site is built.

A docstring becomes text; its entries, `name, name: what it is` at the start of a line, where the names are arguments or
fields, become a list.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click

import onnxq
from onnxq import cli, errors, operators, qat
from onnxq.qat.recipe import Recipe

MODULES = {"operators": operators, "qat": qat}
"""Public modules. The functions of qat are read from their source: they can be imported only with PyTorch."""

CONTENTS = {"operators": {"register": operators.register}, "qat": {"Recipe": Recipe}}

ENTRY = re.compile(r"(?:^|(?<=\. ))([a-z_]+(?:, [a-z_]+)*): +", re.MULTILINE)


def cli_page() -> str:
    """Every command with its arguments and options, under the headings of its help."""
    lines = [
        "# Command line",
        "",
        "Made from the commands themselves; `onnxq COMMAND --help` prints the same. Every option with a value can",
        "stand in the TOML file of `--config`, under its name without dashes ([options](../options.md)).",
        "",
    ]
    lines += [f"- [`onnxq {c.name}`](#onnxq-{c.name}): {_first_sentence(c.help or '')}" for c in _commands()]
    for command in _commands():
        context = click.Context(command, info_name=f"onnxq {command.name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        lines += [
            "",
            f"## onnxq {command.name}",
            "",
            "```text",
            *_squeezed(usage),
            "```",
            "",
            *_paragraphs(command.help or ""),
        ]
        groups: dict[str, list[str]] = {}
        for parameter in command.get_params(context):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                group = getattr(parameter, "group", "Output")
                groups.setdefault(group, []).append(_option_row(parameter, context))
        for group, rows in groups.items():
            lines += ["", f"**{group}**", "", "| option | meaning |", "|---|---|", *rows]
    lines += ["", "## Exit codes", "", "See the [guide](../guide.md#exit-codes)."]
    return _without_gaps(lines)


def _without_gaps(lines: list[str]) -> str:
    """The lines as a page, one empty line at most in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _commands() -> list[click.Command]:
    return sorted(cli.COMMANDS, key=lambda command: str(command.name))


def _squeezed(usage: str) -> list[str]:
    return [" ".join(usage.split())]


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s|\n\n", " ".join(text.split("\n\n")[0].split()))[0]


def _paragraphs(text: str) -> list[str]:
    """Help of click: paragraphs; behind a mark, lines that stay as they are."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            lines += ["```text", *paragraph.splitlines()[1:], "```", ""]
        else:
            lines += [" ".join(paragraph.split()), ""]
    return lines


def _option_row(option: click.Option, context: click.Context) -> str:
    record = option.get_help_record(context)
    assert record is not None
    names, text = record
    cells = [f"`{part}`" for part in (" ".join(names.split()), " ".join(text.split()))]
    return "| " + " | ".join(_cell(part) for part in (cells[0], cells[1].strip("`"))) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def api_page() -> str:
    """Every public name of the package."""
    functions = [name for name in onnxq.__all__ if inspect.isfunction(getattr(onnxq, name))]
    classes = [name for name in onnxq.__all__ if inspect.isclass(getattr(onnxq, name))]
    results = _results([getattr(onnxq, name) for name in functions], {getattr(onnxq, name) for name in classes})
    lines = [
        "# Python",
        "",
        "Made from the code. `import onnxq` gives all of these names. Functions that quantize take the fields of",
        '`Options` as keywords, too ([options](../options.md)): `onnxq.quantize(model, data, preset="w8a16")`.',
        "",
        "## Functions",
    ]
    for name in functions:
        lines += ["", *_function(f"onnxq.{name}", getattr(onnxq, name))]
    lines += ["", "## Classes"]
    for name in classes:
        if not issubclass(getattr(onnxq, name), Exception):
            lines += ["", *_class(f"onnxq.{name}", getattr(onnxq, name))]
    lines += ["", "## Results"]
    for cls in results:
        lines += ["", *_class(cls.__name__, cls)]
    for module, members in CONTENTS.items():
        lines += ["", f"## onnxq.{module}", "", *_text(inspect.getdoc(MODULES[module]) or "", ())]
        for name, each in members.items():
            made = _class if inspect.isclass(each) else _function
            lines += ["", *made(f"onnxq.{module}.{name}", each)]
    for node in ast.parse((Path(qat.__file__).parent / "pipeline.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name in qat.__all__:
            lines += ["", *_unimported(f"onnxq.qat.{node.name}", node)]
    lines += ["", "## Exceptions", "", "| exception | exit code | meaning |", "|---|--:|---|"]
    for each in vars(errors).values():
        if inspect.isclass(each) and issubclass(each, errors.OnnxqError):
            code = str(each.exit_code)
            lines.append(f"| `onnxq.errors.{each.__name__}` | {code} | {_cell(_first_sentence(each.__doc__ or ''))} |")
    return _without_gaps(lines)


def _results(functions: Iterable[Any], known: set[type]) -> list[type]:
    """Classes of the package that functions return, and that are not public names themselves."""
    found: list[type] = []
    for function in functions:
        hint = get_type_hints(function).get("return")
        for cls in (hint, *get_args(hint)):
            if inspect.isclass(cls) and cls.__module__.startswith("onnxq") and cls not in {*known, *found}:
                found.append(cls)
    return found


def _function(name: str, function: Any) -> list[str]:
    signature = inspect.signature(function)
    arguments = [f"    {parameter}," for parameter in map(_parameter, signature.parameters.values())]
    star = next((n for n, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY), None)
    if star is not None and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        arguments.insert(star, "    *,")
    returns = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    code = ["```python", f"{name}(", *arguments, f"){returns}", "```"]
    return [f"### {name}", "", *code, "", *_text(inspect.getdoc(function) or "", signature.parameters)]


def _unimported(name: str, node: ast.FunctionDef) -> list[str]:
    """A function of a module that needs PyTorch, from its source."""
    code = f"{name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    known = [each.arg for each in (*node.args.args, *node.args.kwonlyargs)]
    return [f"### {name}", "", "```python", *textwrap.wrap(code, 110, subsequent_indent="    "), "```", "",
            *_text(ast.get_docstring(node) or "", known)]  # fmt: skip


def _parameter(parameter: inspect.Parameter) -> str:
    return str(parameter).replace("'", "").replace("typing.", "")


def _class(name: str, cls: type) -> list[str]:
    lines = [f"### {name}", ""]
    fields = [f for f in dataclasses.fields(cls) if not f.name.startswith("_")] if dataclasses.is_dataclass(cls) else []
    options = any("option" in f.metadata for f in fields)
    public = [
        n
        for n, each in vars(cls).items()
        if not n.startswith("_") and (inspect.isfunction(each) or isinstance(each, property))
    ]
    names = [f.name for f in fields] + public
    lines += _text(inspect.getdoc(cls) or "", [*names, *inspect.signature(cls).parameters])
    if options:
        lines += ["", f"Its {len(fields)} fields are [options](../options.md)."]
    elif fields:
        lines += ["", "```python", *(f"{f.name}: {f.type}{_default(f)}" for f in fields), "```"]
    for each in public:
        doc = inspect.getdoc(getattr(cls, each))
        member = vars(cls)[each]
        form = each if isinstance(member, property) else f"{each}{_short(member)}"
        if doc:
            lines += ["", f"- `{form}`: {' '.join(doc.split())}"]
    return lines


def _short(function: Any) -> str:
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return "(" + ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters) + ")"


def _default(field: dataclasses.Field[Any]) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _text(doc: str, names: Iterable[str]) -> list[str]:
    """A docstring as Markdown: its entries as a list, indented examples as code."""
    known = set(names)
    lines: list[str] = []
    for paragraph in doc.split("\n\n"):
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            lines += ["", "```text", *textwrap.dedent(paragraph).splitlines(), "```", ""]
            continue
        for piece in _pieces(paragraph, known):
            entry = ENTRY.match(piece)
            if entry and _names(entry[1]) <= known:
                words = ", ".join(f"`{name}`" for name in re.findall(r"[a-z_]+", entry[1]))
                lines.append(f"- {words}: {' '.join(piece[entry.end() :].split())}")
            else:
                lines += ["", " ".join(piece.split()), ""]
        lines.append("")
    return lines


def _pieces(paragraph: str, known: set[str]) -> list[str]:
    """A paragraph parted in front of each entry, and behind the last one where a sentence says what is raised."""
    paragraph = re.sub(r"(?<=\.)\s+(Raises |Returns )", r"\n\n\1", paragraph)
    starts = [m.start() for m in ENTRY.finditer(paragraph) if _names(m[1]) <= known]
    edges = [0, *(start for start in starts if start), len(paragraph)]
    parts = [paragraph[a:b] for a, b in pairwise(edges)]
    return [piece for part in parts for piece in part.split("\n\n") if piece.strip()]


def _names(text: str) -> set[str]:
    return set(re.findall(r"[a-z_]+", text))
