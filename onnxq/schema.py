"""What an option is, said once: the checks of its values, the command line, TOML files and docs/options.md use it.

    @documented
    @dataclass(frozen=True)
    class Options:
        block_size: int | None = option(None, "One weight scale for N weights.", "Target", least=1, shown="off")

        def __post_init__(self) -> None:
            check_fields(self)

A message names an option as Python does, in backquotes: `block_size`. The command line prints its flag instead.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cache, wraps
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

Kind: TypeAlias = Literal["flag", "whole", "number", "text", "texts", "other"]

P = ParamSpec("P")
T = TypeVar("T")

_KEY = "option"

MANY = 20
"""Values from which on a message does not list them beside a likely one."""

_EXPECTED = {
    "flag": "true or false", "whole": "a whole number", "number": "a finite number", "text": "a string",
    "texts": "a list of strings",
}  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option: of a function in Python, of a command, of a TOML file.

    help: a sentence. group: its heading. unit: of its numbers. choices: what a text may be; of `texts`, each of them.
    least, most: bounds, both allowed; above: a bound that is not. flag: its name on the command line and in TOML files,
    if that is not the field's own; opposite: of a flag that is on, the name that switches it off. metavar: what the
    help calls the value. shown: the default in words. path: of a text, whether it names a file or a folder. parse:
    checks a value that has a grammar of its own, and raises UsageError. kind, optional and default are the field's.
    """

    help: str
    group: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    flag: str = ""
    opposite: str = ""
    metavar: str = ""
    shown: str = ""
    path: Literal["", "file", "folder"] = ""
    parse: Callable[[Any], object] | None = None
    name: str = ""
    kind: Kind = "text"
    optional: bool = False
    default: Any = None

    @property
    def long_name(self) -> str:
        """Its name on the command line, without dashes in front, and in TOML files."""
        return self.flag or self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """The default in words, as help and documentation print it; empty for a flag that is off, or for nothing."""
        if self.shown or self.default is None or self.default is False or self.default == ():
            return self.shown
        if self.default is True:
            return "on"
        return ", ".join(self.default) if isinstance(self.default, tuple) else str(self.default)

    @property
    def bounds_text(self) -> str:
        """What values are accepted, as documentation and messages say it; empty where any is."""
        if self.choices:
            return ", ".join(self.choices)
        if self.above is not None:
            return f"above {self.above:g}" + (f", at most {self.most:g}" if self.most is not None else "")
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else ""

    def checked(self, value: Any, place: str = "") -> Any:
        """The value, lists as tuples. Raises UsageError. place: what the message starts with."""
        if value is None and self.optional:
            return None
        if self.kind == "texts" and isinstance(value, str):
            value = (value,)
        if not _is_of(value, self.kind):
            raise UsageError(f"{place}`{self.name}` must be {_EXPECTED[self.kind]}, got {value!r}")
        if self.kind == "texts":
            value = tuple(value)
        for text in value if self.kind == "texts" else (value,):
            if self.choices and text not in self.choices:
                raise unknown(f"{place}`{self.name}`", text, self.choices)
        if self.kind in ("whole", "number") and not self._in_bounds(value):
            raise UsageError(f"{place}`{self.name}` must be {self.bounds_text}, got {value}")
        if self.parse is not None:
            self.parse(value)
        return value

    def _in_bounds(self, value: float) -> bool:
        if self.above is not None and not value > self.above:
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def checked_call(function: Callable[P, T]) -> Callable[P, T]:
    """A function that raises UsageError, with its arguments in order, where it is called with others."""
    signature = inspect.signature(function)
    ordered = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    name = getattr(function, "__name__", "")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UsageError(
                f"{name}: {error}; call it as {name}({', '.join(ordered)}, ...), and give everything else by name"
            ) from None
        return function(*args, **kwargs)

    return call


def unknown(what: str, value: object, known: Collection[str]) -> UsageError:
    """The error for a value that is none of those known, with the closest of them; of many, with it alone."""
    close = difflib.get_close_matches(str(value), known, 1)
    if close and len(known) > MANY:
        return UsageError(f"{what} {value!r} is unknown; did you mean {close[0]!r}?")
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return UsageError(f"{what} {value!r} is unknown; expected one of {', '.join(known)}{hint}")


def _is_of(value: Any, kind: Kind) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    if kind == "whole":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind == "text":
        return isinstance(value, str)
    if kind == "texts":
        return isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value)
    return True


def option(default: Any, help: str, group: str, **more: Any) -> Any:
    """A field of a dataclass that is an option; see `Option` for the keywords."""
    return field(default=default, metadata={_KEY: Option(help, group, **more)})


@cache
def options_of(cls: type) -> tuple[Option, ...]:
    """The options among the fields of a class, in order, with name, kind and default."""
    hints = get_type_hints(cls)
    found = []
    for f in fields(cls):
        if _KEY in f.metadata:
            assert f.default is not MISSING
            kind, optional = _kind(hints[f.name])
            found.append(replace(f.metadata[_KEY], name=f.name, kind=kind, optional=optional, default=f.default))
    return tuple(found)


def _kind(hint: Any) -> tuple[Kind, bool]:
    """(kind, whether None is allowed) of a type annotation."""
    if get_origin(hint) in (Union, UnionType) and type(None) in get_args(hint):
        inner = [arm for arm in get_args(hint) if arm is not type(None)]
        return (_kind(inner[0])[0] if len(inner) == 1 else "other"), True
    if get_origin(hint) is Literal:
        return "text", False
    kinds: dict[Any, Kind] = {
        bool: "flag", int: "whole", float: "number", str: "text", tuple[str, ...]: "texts",
    }  # fmt: skip
    return kinds.get(hint, "other"), False


def check_fields(options: Any, place: str = "") -> None:
    """Check all fields of an instance that are options, and turn lists into tuples. Raises UsageError."""
    cls: type = type(options)
    for each in options_of(cls):
        object.__setattr__(options, each.name, each.checked(getattr(options, each.name), place))


def documented(cls: type[T]) -> type[T]:
    """Adds a line for each option to the docstring of a class."""
    plain: type = cls
    lines = [f"    {each.name}: {_details(each)}" for each in options_of(plain)]
    cls.__doc__ = "\n".join([(cls.__doc__ or "").rstrip(), "", *lines, "    "])
    return cls


def _details(option: Option) -> str:
    accepted = f" ({option.bounds_text}{f' {option.unit}' if option.unit else ''})" if option.bounds_text else ""
    return f"{option.help}{accepted}" + (f" [{option.default_text}]" if option.default_text else "")


def toml(value: Any) -> str:
    """A value of an option in TOML; strings as JSON writes them, which TOML reads, but for what cannot be seen."""
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], float):
        return toml(f"{value[0]}={value[1]},{value[2]}")  # the range of an input
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(value, ensure_ascii=False))
    return repr(value)


def toml_table(name: str, values: Any) -> str:
    """A record, an entry of the list of tables `name`: what differs from the defaults of its fields."""
    given = {f.name: value for f in fields(values) if (value := getattr(values, f.name)) != f.default}
    return "\n".join([f"[[{name}]]", *(f"{key} = {toml(value)}" for key, value in given.items())])
