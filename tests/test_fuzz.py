"""A short run of bench/fuzz.py: mutated models are quantized or refused, and the process survives them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import fuzz
from onnx import AttributeProto

from onnxq.errors import ModelError
from onnxq.graph import storage


def test_200_mutated_models() -> None:
    seeds = fuzz.networks()
    results = fuzz.survey(seeds, seed=7, numbers=range(200), seconds=60)
    assert {n: r for n, r in results.items() if r[1] not in ("quantized", "refused")} == {}
    assert sum(outcome == "quantized" for _, outcome, _ in results.values()) > 20


def test_cases_can_be_made_again() -> None:
    seeds = fuzz.networks()
    assert [fuzz.make_case(seeds, 3, n)[1] for n in range(5)] == [fuzz.make_case(seeds, 3, n)[1] for n in range(5)]
    assert fuzz.make_case(seeds, 3, 0)[1] != fuzz.make_case(seeds, 4, 0)[1]


@pytest.mark.parametrize("network", range(len(fuzz.NETWORKS)))
def test_the_networks_themselves_are_quantized(network: int) -> None:
    seed = fuzz.networks()[network]
    assert fuzz.attempt(seed.model.SerializeToString(), seed.feeds, fuzz.PLAIN) == ("quantized", "")


def test_an_element_type_that_nobody_knows() -> None:
    model = fuzz.networks()[0].model
    model.graph.output[0].type.tensor_type.elem_type = 2**31 - 1
    with pytest.raises(ModelError, match="'y' is of an unknown element type"):
        storage.check(model, "net")


def test_an_attribute_that_refers_to_no_function() -> None:
    model = fuzz.networks()[0].model
    model.graph.node[0].attribute.append(AttributeProto(name="group", ref_attr_name="g", type=AttributeProto.INT))
    with pytest.raises(ModelError, match="takes group from a function's attribute"):
        storage.check(model, "net")


def test_a_segment_of_a_tensor() -> None:
    model = fuzz.networks()[0].model
    model.graph.initializer[0].segment.begin = 1
    with pytest.raises(ModelError, match="'w' is one segment"):
        storage.check(model, "net")


def test_a_tensor_that_is_shorter_than_its_shape() -> None:
    model = fuzz.networks()[0].model
    model.graph.initializer[0].raw_data = b"1234"
    with pytest.raises(ModelError, match=r"\bw\b.*\b540\b"):
        storage.check(model, "net")


def test_a_name_that_is_no_text() -> None:
    data = fuzz.networks()[0].model.SerializeToString().replace(b"\x12\x03net", b"\x12\x03n\xff\xfe")
    outcome, reason = fuzz.attempt(data, fuzz.networks()[0].feeds, fuzz.PLAIN)
    assert (outcome, "name in a GraphProto is not UTF-8" in reason) == ("refused", True)
