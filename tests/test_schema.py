"""One schema of options: what it checks, and that the command line, docstrings and docs/options.md follow it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import pytest
from click.testing import CliRunner

from onnxq import Options, Override, Preprocess, cli
from onnxq.errors import UsageError
from onnxq.qat.recipe import Recipe
from onnxq.schema import check_fields, documented, option, options_of
from onnxq.settings import Settings

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "docs"))

from make_tables import options_page  # noqa: E402

CLASSES = (Options, Preprocess, Recipe)
PAIRS = [(cls, each) for cls in CLASSES for each in options_of(cls)]


@documented
@dataclass(frozen=True)
class Sample:
    """For tests."""

    count: int = option(3, "How many.", "Group", least=1, most=9, unit="pieces")
    rate: float = option(0.5, "How fast.", "Group", above=0, most=1)
    limit: int | None = option(None, "Up to where.", "Group", least=0, shown="no limit")
    name: str = option("a", "Which.", "Group", choices=("a", "bee"))
    names: tuple[str, ...] = option((), "Which ones.", "Group", choices=("a", "b"))
    on: bool = option(True, "Whether.", "Group")

    def __post_init__(self) -> None:
        check_fields(self, "the sample: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "`count` must be 1 to 9, got 0"),
        ({"count": 10}, "`count` must be 1 to 9, got 10"),
        ({"count": "3"}, "`count` must be a whole number, got '3'"),
        ({"count": 3.0}, "`count` must be a whole number, got 3.0"),
        ({"count": True}, "`count` must be a whole number, got True"),
        ({"count": None}, "`count` must be a whole number, got None"),
        ({"rate": 0}, "`rate` must be above 0, at most 1, got 0"),
        ({"rate": 1.5}, "`rate` must be above 0, at most 1, got 1.5"),
        ({"rate": float("nan")}, "`rate` must be a finite number, got nan"),
        ({"limit": -1}, "`limit` must be at least 0, got -1"),
        ({"name": "be"}, "`name` 'be' is unknown; expected one of a, bee; did you mean 'bee'?"),
        ({"name": 3}, "`name` must be a string, got 3"),
        ({"names": ["a", "c"]}, "`names` 'c' is unknown; expected one of a, b"),
        ({"names": 3}, "`names` must be a list of strings, got 3"),
        ({"names": "c"}, "`names` 'c' is unknown; expected one of a, b"),
        ({"on": 1}, "`on` must be true or false, got 1"),
    ],
)
def test_values_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Sample(**values)
    assert str(caught.value) == f"the sample: {message}"


def test_values_that_are_accepted() -> None:
    found = Sample(count=9, rate=1, limit=None, name="bee", names=["a"], on=False)
    assert found.names == ("a",)
    assert found == Sample(count=9, rate=1, name="bee", names=("a",), on=False)


def test_the_docstring_names_every_option() -> None:
    assert "count: How many. (1 to 9 pieces) [3]" in (Sample.__doc__ or "")
    assert "limit: Up to where. (at least 0) [no limit]" in (Sample.__doc__ or "")
    for cls in (*CLASSES, Override):
        assert all(f"    {each.name}: {each.help}" in (cls.__doc__ or "") for each in options_of(cls))


@pytest.mark.parametrize("cls", [*CLASSES, Override])
def test_every_field_is_an_option(cls: type) -> None:
    """But for those that the command line does not take."""
    rest = {f.name for f in fields(cls)} - {each.name for each in options_of(cls)}
    assert rest == {Options: {"overrides"}, Recipe: {"seed"}}.get(cls, set())


@pytest.mark.parametrize(("cls", "each"), PAIRS, ids=[f"{cls.__name__}-{each.name}" for cls, each in PAIRS])
def test_the_command_line_takes_it(cls: type, each: Any) -> None:
    """With its bounds and its heading; what is not given is the default of the schema."""
    command = cli.qat_command if cls is Recipe else cli.quantize_command
    (parameter,) = [p for p in command.params if p.name == each.name]
    assert f"--{each.long_name}" in parameter.opts
    assert parameter.group == each.group
    assert each.default_text in (parameter.help or "")
    assert parameter.default in (each.default, None, ())
    if each.choices:
        assert tuple(parameter.type.choices) == each.choices
    if each.kind in ("whole", "number") and each.bounds_text:
        lowest = each.least if each.above is None else each.above
        assert (parameter.type.min, parameter.type.max) == (lowest, each.most)


def test_defaults_of_the_command_line_are_those_of_python() -> None:
    context = cli.quantize_command.make_context("quantize", ["in.onnx", "out.onnx"])
    with context:
        found = cli.options.parse(dict(context.params))
    assert found == {"options": Options(), "preprocess": Preprocess(), "input_keys": {}}


def test_the_page_is_current() -> None:
    assert (REPOSITORY / "docs" / "options.md").read_text(encoding="utf-8") == options_page()


# --- help ---------------------------------------------------------------------------------------------------------


def words_of(*arguments: str) -> str:
    return " ".join(CliRunner().invoke(cli.main, [*arguments, "--help-all" if arguments else "--help"]).output.split())


FIELD = ["gptq", "SmoothQuant", "held out", "calibration", "per-channel", "mixed precision"]


@pytest.mark.parametrize("command", [(), ("quantize",)], ids=["onnxq", "quantize"])
def test_the_words_of_the_field_are_found(command: tuple[str, ...]) -> None:
    text = words_of(*command).lower()
    assert [word for word in FIELD if word.lower() not in text] == []


@pytest.mark.parametrize("command", cli.COMMANDS, ids=[str(c.name) for c in cli.COMMANDS])
def test_options_stand_under_headings(command: click.Command) -> None:
    text = words_of(str(command.name))
    assert "None" not in text
    assert " Options: " not in text
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"{parameter.group}: " in text
            assert not (parameter.help or "").count("`") % 2


def test_messages_name_arguments_in_python_and_flags_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^`bias_correction` empirical needs calibration data"):
        Options(data_free=True, bias_correction="empirical")
    arguments = [str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--data-free", "--bias-correction", "empirical"]
    result = CliRunner().invoke(cli.main, ["quantize", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("onnxq: error: --bias-correction empirical needs calibration data")


# --- configuration files ------------------------------------------------------------------------------------------

CHANGED: dict[str, Any] = {
    "target": "openvino", "preset": "w4a16", "store_4bit": "int8", "embeddings": "4", "per_channel": False,
    "force_int_kernels": True, "symmetric_activations": True,
    "asymmetric_weights": True, "power_of_two": True, "block_size": 7, "dead_channels": False, "cle": "off",
    "absorb": False, "bias_correction": "empirical", "smoothquant": 0.25, "hard_swish": "float", "fallback": "auto",
    "narrow_activations": "all", "exceptions": 1.5, "rounding": "gptq",
    "effort": "fast", "input_ranges": (("a=b", -1.0, 2.5), ("x", 0.0, 1.0)), "weight_range": "minmax",
    "activation_range": "percentile:99.9", "logits_range": "mse", "freeze": ("image=1x3x8x8", "n=1"),
    "include": ("Conv*", '"quoted" \\ \x7f'),
    "exclude": ("Add",), "tie": ("Concat", "Add"), "overrides": (Override(tensor="w", range=(-1.0, 1.0)),),
    "encodings_version": "2.0.0", "float_output": True, "samples": 5, "seed": 3, "strict": True,
    "latency": "off", "provenance": False,
}  # fmt: skip
"""Another value for each option that a file holds, but for those that contradict others."""


def parsed(*arguments: str) -> tuple[dict[str, Any], Options]:
    """(what click made of the command line, the options)."""
    context = cli.quantize_command.make_context("quantize", ["in.onnx", "out.onnx", *arguments])
    with context:
        return dict(context.params), cli.options.parse(dict(context.params))["options"]


def test_keyword_arguments_have_the_types_of_options() -> None:
    hints = get_type_hints(Settings)
    assert list(hints) == [f.name for f in fields(Options)], (
        "onnxq/settings.py has the fields of Options, in their order"
    )
    plain = get_type_hints(Options)
    choices = {each.name: each.choices for each in options_of(Options)}
    for name, hint in hints.items():
        if get_origin(hint) is Literal:
            assert get_args(hint) == tuple(choices[name]), name
        elif name not in ("tie", "overrides"):
            assert (hint, choices[name]) == (plain[name], ()), name


def test_a_written_file_reads_back_as_the_same_options(tmp_path: Path) -> None:
    alone = ("data_free", "synthetic", "from_encodings", "custom_ops")  # the last needs a library: test_custom_ops.py
    assert {*CHANGED, *alone, *cli.config.RUN_ONLY} == {f.name for f in fields(Options)}
    assert all(CHANGED[f.name] != f.default for f in fields(Options) if f.name in CHANGED)
    options = Options(**CHANGED)
    path = tmp_path / "c.toml"
    given, _ = parsed("--resize", "8x9", "--mean", "0.5", "--input-key", "x=pixels")
    path.write_text(cli.config.config_text(cli.quantize_command, given, options, "made by a test"), encoding="utf-8")
    again, found = parsed("--config", str(path))
    assert found == options
    assert (again["resize"], again["mean"], again["input_keys"]) == ((8, 9), (0.5,), ("x=pixels",))


def test_ranges_of_inputs_may_be_a_table(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("data-free = true\ninput-range = { x = [-1, 2.5], y = [0, 1] }\n")
    assert parsed("--config", str(path))[1].input_ranges == (("x", -1.0, 2.5), ("y", 0.0, 1.0))
