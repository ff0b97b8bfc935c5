"""Gram matrices of samples that arrive one after another."""

import numpy as np

from onnxq.rounding import layer_statistics
from onnxq.rounding.layer_statistics import LayerStatistics
from onnxq.rounding.objective import Gram


def test_columns_wait_up_to_a_number_of_elements(monkeypatch):
    monkeypatch.setattr(layer_statistics, "_ELEMENTS_AT_ONCE", 1000)
    rng, waiting = np.random.default_rng(0), []
    statistics, kept = LayerStatistics(), {False: [], True: []}
    for _ in range(20):
        x, y = rng.standard_normal((8, 5, 7)), rng.standard_normal((8, 1, 7))  # 336 elements
        kept[statistics.add(x, y, 7)].append((x, y))
        waiting.append(sum(a.size + b.size for parts in statistics._waiting.values() for a, b in parts))
    assert 336 <= max(waiting) < 2 * 1000  # of both sets
    statistics.finish()
    for held_out, found in ((False, statistics.fit), (True, statistics.held_out)):
        x, y = (np.concatenate(parts, axis=2) for parts in zip(*kept[held_out], strict=True))
        expected = Gram.of(x, y)
        np.testing.assert_allclose(found.G, expected.G, rtol=1e-12)
        np.testing.assert_allclose(found.B, expected.B, rtol=1e-9, atol=1e-12)
        assert found.count == expected.count
