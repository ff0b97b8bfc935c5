"""Targets that users write in TOML: a base, and what is different from it.

    name = "npu5"
    description = "..."
    base = "generic-int8"           any target that comes with onnxq
    source = "data sheet, rev. 3"   whom `onnxq check` cites for what is written here; the file itself by default
    max_opset = 17                  fields of `Target`, those of simple types
    [activation]                    fields of `QuantSpec`, and `signed` and `narrow` of its grid
    [weight]
    [ops.Softmax]                   fields of `OpRule`; an operator that the base has not needs at least `kind`
    float = true                    ... or takes the operator out
    [[operator]]                    an operator of another domain, as `onnxq.operators.register` takes it: what it is
    domain = "com.x"                to quantization, for all targets from then on; [ops."com.x.MyLinear"] has its rule,
    op = "MyLinear"                 where that differs from what the base has for its kind
    kind = "linear"
    [shifts]                        fields of `Shifts`
    [requirements]                  id -> source, or false to drop one

A requirement that is stated by what the file changes cites `source`.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..errors import UsageError
from ..numeric.quant import QuantSpec
from ..operators import register
from ..operators.registry import Kind
from .requirements import REQUIREMENTS
from .target import FUSIBLE, OpRule, Shifts, Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES = ("activation", "weight", "ops", "operator", "shifts", "requirements")
_FIELDS = {name: hint for name, hint in get_type_hints(Target).items() if name not in (*_TABLES, "rules")}
_IN_PYTHON = ("encodings", "refuses", "slow", "caution")
_RULE_FIELDS = {name: hint for name, hint in get_type_hints(OpRule).items() if name not in _IN_PYTHON}
"""Fields of simple types, which files may set, with these types."""

_OPERATOR = ("op", "domain", "kind", "weight", "bias", "axis", "reduction_axis", "output_axis", "homogeneous")
_TYPES = tuple(f"{sign}int{bits}" for bits in (4, 8, 16) for sign in ("", "u"))

_REQUIREMENT_OF: Mapping[str, str] = {
    "min_opset": "opset",
    "max_opset": "opset",
    "activation_types": "activation-types",
    "weight_types": "weight-types",
    "activation_zero_points": "activation-zero-point",
    "weight_zero_points": "weight-zero-point",
    "weight_limit": "weight-range",
    "smallest_range": "smallest-range",
    "bias": "bias",
    "shifts": "shifts",
}
"""Field -> the requirement that it is the data of."""


def read_target(path: str, targets: Mapping[str, Target]) -> Target:
    """The target in a TOML file. Raises UsageError, with what was expected and what is close."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"`target` {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or UnicodeDecodeError
        raise UsageError(f"`target` {path}: not valid TOML: {error}") from None
    return _Reader(f"`target` {path}", path).target(table, targets)


class _Reader:
    """Turns tables into records; every message says where."""

    def __init__(self, where: str, path: str) -> None:
        self.where, self.path = where, path

    def target(self, table: dict[str, Any], targets: Mapping[str, Target]) -> Target:
        self._known(table, ("base", *_FIELDS, *_TABLES), "")
        base = targets[self._choice("base", table.get("base", "generic-int8"), tuple(targets))]
        source = self._typed("source", table.get("source", self.path), str, "a string")
        changes: dict[str, Any] = {"name": self.path, "description": f"{self.path}, from {base.name}"}
        changes.update({key: self._field(key, value) for key, value in table.items() if key not in ("base", *_TABLES)})
        for key in ("activation", "weight"):
            if key in table:
                changes[key] = self._spec(key, table[key], getattr(base, key))
        registered = self._operators(table.get("operator", []))
        rules = {**base.rules, **{key: base.rule_of_kind(kind) for key, kind in registered.items()}}
        if rules != base.rules or "ops" in table:
            changes["rules"] = self._rules(table.get("ops", {}), rules, base.name)
        if "shifts" in table:
            changes["shifts"] = self._shifts(table["shifts"])
        changes["requirements"] = self._requirements(table, base, source)
        return self._consistent(replace(base, **changes))

    def _field(self, key: str, value: Any) -> Any:
        hint = _FIELDS[key]
        if hint is str:
            return self._typed(key, value, str, "a string")
        if hint is bool:
            return self._typed(key, value, bool, "true or false")
        if get_origin(hint) is Literal:
            return self._choice(key, value, get_args(hint))
        if hint in (int, float, int | None):
            if self._typed(key, value, (int, float) if hint is float else int, "a number") < 0:
                raise UsageError(f"{self.where}: {key} must not be negative, got {value}")
            return value
        names = self._typed(key, value, list, "a list of strings")
        known = FUSIBLE if key == "fused" else _TYPES
        return get_origin(hint)(self._choice(key, name, known) for name in names)

    def _spec(self, key: str, table: Any, base: QuantSpec) -> QuantSpec:
        flags = ("symmetric", "per_channel", "one_tailed", "power_of_two")
        self._known(self._table(key, table), (*flags, "signed", "narrow"), f"[{key}] ")
        values = {name: self._typed(f"{key}.{name}", v, bool, "true or false") for name, v in table.items()}
        grid = replace(base.grid, **{name: values.pop(name) for name in ("signed", "narrow") if name in values})
        return replace(base, grid=grid, **values)

    def _operators(self, tables: Any) -> dict[str, Kind]:
        """Registers operators: what a target calls them -> their kinds."""
        found: dict[str, Kind] = {}
        for table in self._typed("operator", tables, list, "a list of tables, [[operator]]"):
            self._known(self._table("operator", table), _OPERATOR, "[[operator]] ")
            try:
                operator = register(**{"op": None, "domain": None, "kind": None, **table})
            except UsageError as error:
                raise UsageError(f"{self.where}: [[operator]] {error}") from None
            found[operator.key] = operator.kind
        return found

    def _rules(self, table: Any, rules: dict[str, OpRule], base: str) -> dict[str, OpRule]:
        for op, changes in self._table("ops", table).items():
            place = f"[ops.{op}] "
            self._known(self._table(f"ops.{op}", changes), ("float", *_RULE_FIELDS), place)
            if changes.pop("float", False):
                rules.pop(op, None)
                continue
            if op not in rules and "kind" not in changes:
                raise UsageError(f"{self.where}: {place}{base} has no rule for {op!r}: give its kind")
            values = {name: self._rule_field(f"{place}{name}", name, value) for name, value in changes.items()}
            rules[op] = replace(rules[op], **values) if op in rules else OpRule(**values)
        return rules

    def _rule_field(self, place: str, name: str, value: Any) -> Any:
        hint = _RULE_FIELDS[name]
        if hint is bool:
            return self._typed(place, value, bool, "true or false")
        return self._choice(place, value, get_args(hint)) if get_origin(hint) is Literal else self._pair(place, value)

    def _shifts(self, table: Any) -> Shifts:
        self._known(self._table("shifts", table), [f.name for f in fields(Shifts)], "[shifts] ")
        values: dict[str, Any] = {}
        for name, value in table.items():
            if name in ("cut", "add", "mul"):
                values[name] = tuple(int(end) for end in self._pair(f"shifts.{name}", value))
            else:
                values[name] = self._typed(f"shifts.{name}", value, int, "a whole number")
        return Shifts(**values)

    def _requirements(self, table: dict[str, Any], base: Target, source: str) -> dict[str, str]:
        wanted = {**base.requirements, **{_REQUIREMENT_OF[key]: source for key in table if key in _REQUIREMENT_OF}}
        ops = self._table("ops", table.get("ops", {})).values()
        if any(rule.get("tie", "none") != "none" for rule in ops):
            wanted["shared-grid"] = source
        if any(rule.get("grid") == "same" for rule in ops):
            wanted["same-grid"] = source
        if any("per_channel" in rule for rule in ops) or "per_channel" in table.get("weight", {}):
            wanted["weight-granularity"] = source
        if any(table.get(part, {}).get("power_of_two") for part in ("activation", "weight")):
            wanted["power-of-two"] = source
        stated = self._table("requirements", table.get("requirements", {}))
        self._known(stated, list(REQUIREMENTS), "[requirements] ")
        for id, said in stated.items():
            if said is False:
                wanted.pop(id, None)
            else:
                wanted[id] = self._typed(f"requirements.{id}", said, str, "a source (a string) or false")
        return wanted

    def _consistent(self, target: Target) -> Target:
        """Refuse what would make every model of this target fail its own requirements."""
        if target.max_opset is not None and target.max_opset < target.min_opset:
            raise UsageError(f"{self.where}: max_opset {target.max_opset} lies below min_opset {target.min_opset}")
        for what in ("activation", "weight"):
            spec, types = getattr(target, what), getattr(target, f"{what}_types")
            if f"{what}-types" in target.requirements and not any(t.startswith("u") != spec.grid.signed for t in types):
                raise UsageError(f"{self.where}: [{what}] is {spec.grid}, but {what}_types has only {', '.join(types)}")
            zero_points = getattr(target, f"{what}_zero_points")
            if zero_points == "zero" and not (spec.symmetric and spec.grid.signed):
                raise UsageError(
                    f"{self.where}: [{what}] is {spec}, whose zero points are not 0; make it symmetric and signed, or"
                    f' set {what}_zero_points = "any"'
                )
        if "power-of-two" in target.requirements and not (
            target.activation.power_of_two and target.weight.power_of_two
        ):
            raise UsageError(f"{self.where}: power_of_two must be set for [activation] and [weight], or for neither")
        if target.shifts is not None and (target.weight.per_channel or not target.weight.power_of_two):
            raise UsageError(f"{self.where}: [shifts] are for weights with one scale a tensor, a power of two")
        return target

    def _table(self, key: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UsageError(f"{self.where}: {key!r} must be a table, [{key}], got {value!r}")
        return value

    def _known(self, table: Mapping[str, Any], known: Collection[str], place: str) -> None:
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
                raise UsageError(f"{self.where}: {place}unknown key {key!r}; {hint}")

    def _choice(self, key: str, value: Any, known: tuple[str, ...]) -> Any:
        if value not in known:
            close = difflib.get_close_matches(str(value), known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{self.where}: {key} must be one of {', '.join(known)}, got {value!r}{hint}")
        return value

    def _typed(self, key: str, value: Any, kind: Any, text: str) -> Any:
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UsageError(f"{self.where}: {key} must be {text}, got {value!r}")
        return value

    def _pair(self, key: str, value: Any) -> tuple[float, float]:
        numbers = isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) for v in value)
        if not numbers or not value[0] < value[1]:
            raise UsageError(f"{self.where}: {key} must be [lo, hi] with lo < hi, got {value!r}")
        return float(value[0]), float(value[1])
