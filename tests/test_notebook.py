"""Results in an interactive session and in a notebook."""

from __future__ import annotations

import html
import re

import numpy as np
from graphs import model

import onnxq

MODEL = "(float[N,3,5] x) => (float[N,4] y) <float[15,4] w> { f = Flatten(x) y = MatMul(f, w) }"


def test_results_are_short_and_show_their_summary() -> None:
    proto = model(MODEL)
    data = np.random.default_rng(0).standard_normal((16, 3, 5)).astype(np.float32)
    result = onnxq.quantize(proto, data, rounding="nearest")
    first = result.report.to_text().partition("\n")[0]
    assert repr(result.report) == f"<Report: {first}>"
    assert repr(result) == f"<Result: model of {len(result.model.graph.node)} nodes, <Report: {first}>>"
    found = re.fullmatch(r'<iframe srcdoc="(.*)" style="[^"]*"></iframe>', result._repr_html_(), re.DOTALL)
    assert found is not None
    assert html.unescape(found[1]) == result.report.to_html()
    options = onnxq.Options(rounding="nearest")
    for shown in (
        onnxq.inspect(proto),
        onnxq.compare(proto, result.model, data),
        onnxq.evaluate(result.model, data, reference=proto),
        onnxq.check(result.model, "ort"),
        onnxq.sensitivity(proto, data, options=options),
        onnxq.debug(proto, data, options=options, closest=True),
        onnxq.auto_mixed(proto, data, "w4,w8", onnxq.Limits(drop=1.0), options=options),
    ):
        text = shown.to_text()
        assert repr(shown) == f"<{type(shown).__name__}: {text.partition(chr(10))[0]}>"
        assert shown._repr_html_() == f"<pre>{html.escape(text)}</pre>"
