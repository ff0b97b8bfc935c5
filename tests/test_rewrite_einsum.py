"""Einsum of activations and a constant becomes MatMul, with the Transpose and Reshape that this takes, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import assert_same_function, model, ops, wrapped

from onnxq.calibration.context import Context
from onnxq.passes.rewrite_einsum import RewriteEinsum

SIZES = {"b": 2, "t": 3, "d": 4, "h": 5, "k": 6, "s": 7}

EXACT = {
    "btd,dk->btk": "MatMul",
    "btd,kd->btk": "MatMul",
    "dk,btd->btk": "MatMul",
    "btd,dhk->bthk": "MatMul Reshape",
    "bthk,hkd->btd": "Reshape MatMul",
    "bhtk,hkd->btd": "Transpose Reshape MatMul",
    "btd,dhk->bhtk": "MatMul Reshape Transpose",
    "dbt,dk->btk": "Transpose MatMul",
    "btd,dk->kbt": "MatMul Transpose",
    "hbd,hdk->hbk": "MatMul",
    "bhd,hdk->bhk": "Transpose MatMul Transpose",
    "bhtd,hdk->bhtk": "Transpose Reshape MatMul Reshape Transpose",
    "bthd,hd->bth": "Transpose Reshape MatMul Reshape Transpose",
    "btd,d->bt": "MatMul Reshape",
    "hd,hdk->hk": "Reshape MatMul Reshape",
    "...d,dk->...k": "MatMul",
}  # fmt: skip


def einsum(equation: str, opset: int = 17, dynamic: bool = False):
    left, out = equation.replace("...", "bt").split("->")
    one, other = left.split(",")
    first = one if one != "dk" else other
    weight = other if first == one else one

    def shape(term: str, free: bool = False) -> str:
        return ",".join("N" if free and i == "b" and dynamic else str(SIZES[i]) for i in term)

    operands = "x, w" if first == one else "w, x"
    return model(
        f"(float[{shape(first, True)}] x) => (float[{shape(out, True)}] y) <float[{shape(weight)}] w>"
        f' {{ [layer] y = Einsum<equation="{equation}">({operands}) }}',
        opset=opset,
    )


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("equation", EXACT)
def test_products(equation: str, dynamic: bool) -> None:
    proto = einsum(equation, dynamic=dynamic)
    after = wrapped(proto)
    assert RewriteEinsum().apply(after, Context()).changed == 1
    assert ops(after) == EXACT[equation].split()
    assert next(n for n in after.graph.nodes if n.op == "MatMul").name == "layer"
    assert_same_function(proto, after.to_proto(), 1e-5)


LEFT = {
    "btd,ds->bt": "sums over an index of one operand",
    "btd,dk->bk": "sums over an index of one operand",
    "btd,hk->btdhk": "sums over nothing",
    "d,dk->k": "without a batch",
    "bbd,dk->bk": "occurs twice",
    "btd,dk": "order of the output",
}


@pytest.mark.parametrize("equation", LEFT)
def test_what_is_no_product_stays(equation: str) -> None:
    if equation == "bbd,dk->bk":
        text = '(float[2,2,4] x) => (float[2,6] y) <float[4,6] w> { y = Einsum<equation="bbd,dk->bk">(x, w) }'
        proto = model(text)
    elif "->" not in equation:
        text = '(float[2,3,4] x) => (float[2,6,3] y) <float[4,6] w> { y = Einsum<equation="btd,dk">(x, w) }'
        proto = model(text, check=False)
    else:
        proto = einsum(equation)
    after = wrapped(proto)
    outcome = RewriteEinsum().apply(after, Context())
    assert (outcome.changed, ops(after)) == (0, ["Einsum"])
    assert LEFT[equation] in outcome.skips[0].reason


def test_two_activations_are_no_layer() -> None:
    proto = model('(float[N,3,4] x, float[N,5,4] z) => (float[N,3,5] y) { y = Einsum<equation="btd,bsd->bts">(x, z) }')
    after = wrapped(proto)
    assert RewriteEinsum().apply(after, Context()).skips == ()
    assert ops(after) == ["Einsum"]


def test_a_shared_weight_serves_the_others_still() -> None:
    text = "(float[N,3,4] x) => (float[N,3,6] y, float[4,6] z) <float[4,6] w>"
    proto = model(f'{text} {{ y = Einsum<equation="btd,dk->btk">(x, w) z = Neg(w) }}')
    after = wrapped(proto)
    RewriteEinsum().apply(after, Context())
    assert_same_function(proto, after.to_proto(), 1e-5)
    assert np.prod(after.graph.tensors()["w"].shape) == 24
