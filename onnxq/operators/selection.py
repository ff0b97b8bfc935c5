"""Operators whose outputs jump where their inputs move a little: what lies behind is not compared number by number.

    positions   which values come out, how many, or in which order: one rounding may exchange any of them
    threshold   one result for each value, by the side of a bound on which it lies: only values at the bound may jump

See `graph.comparable`. Cast to integers, If, Loop and Scan select as well; of these it depends on the node.
"""

from __future__ import annotations

from .registry import Operator, add

add(
    Operator("TopK", "selection", selects="positions"),
    Operator("NonMaxSuppression", "selection", selects="positions"),
    Operator("ArgMax", "selection", selects="positions"),
    Operator("ArgMin", "selection", selects="positions"),
    Operator("NonZero", "selection", selects="positions"),
    Operator("Unique", "selection", selects="positions"),
    Operator("Hardmax", "selection", selects="positions"),
    Operator("Equal", "selection", selects="threshold"),
    Operator("Greater", "selection", selects="threshold"),
    Operator("GreaterOrEqual", "selection", selects="threshold"),
    Operator("Less", "selection", selects="threshold"),
    Operator("LessOrEqual", "selection", selects="threshold"),
    Operator("Round", "selection", selects="threshold"),
    Operator("Floor", "selection", selects="threshold"),
    Operator("Ceil", "selection", selects="threshold"),
    Operator("Sign", "selection", selects="threshold"),
)
