"""Files made to harm whoever reads them: refused with one message, or escaped. Nothing hangs, nothing is run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model
from hostile import HOSTILE, NET, no_hang, place, refused, run
from onnx import TensorProto, helper

from onnxq.cli import main

__all__ = ["no_hang", "place"]


# --- models -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_a_pipe_or_a_device(place: Path) -> None:
    os.mkfifo(place / "pipe.onnx")
    (place / "zeros.onnx").symlink_to("/dev/zero")
    for name in ("pipe.onnx", "zeros.onnx"):
        refused(place, 3, "expected an .onnx file, got something that is no regular file", net=name)


def external(place: Path, **entries: str | None) -> None:
    """The net with its weights in weights.bin, and other entries about them."""
    onnx.save_model(
        model(NET), place / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    proto = onnx.load(place / "net.onnx", load_external_data=False)
    data = proto.graph.initializer[1].external_data
    for key, value in entries.items():
        for entry in [e for e in data if e.key == key]:
            data.remove(entry)
        if value is not None:
            data.add(key=key, value=value)
    (place / "net.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "/etc/passwd"},
        {"location": "/dev/zero"},
        {"location": "../secret.bin"},
        {"location": "sub/../../secret.bin"},
        {"location": "./../secret.bin"},
        {"location": "sub\\..\\..\\secret.bin"},
        {"location": ""},
        {"location": "."},
        {"location": None},
        {"location": "weights.bin\x00.png"},
        {"location": "w" * 5000},
        {"location": "nothing\x1b[2J\nthere"},
        {"location": "symbolic.bin"},
        {"location": "folder/secret.bin"},
        {"location": "hard.bin"},
        {"location": "pipe.bin"},
        {"offset": "-4096"},
        {"offset": "999999999999"},
        {"offset": "1e3"},
        {"offset": "9" * 6000},
        {"length": "-1"},
        {"length": "999999999999"},
        {"length": "4"},
        {"length": "zero"},
        {"length": "140", "offset": "700"},
    ],
    ids=range(25),
)
def test_external_data(place: Path, entries: dict[str, str | None]) -> None:
    inner = place / "inner"
    inner.mkdir()
    (place / "secret.bin").write_bytes(b"secret" * 100)
    (inner / "sub").mkdir()
    (inner / "symbolic.bin").symlink_to(place / "secret.bin")
    (inner / "hard.bin").hardlink_to(place / "secret.bin")
    (inner / "folder").symlink_to(place)
    os.mkfifo(inner / "pipe.bin")
    external(inner, **entries)
    refused(place, 3, "external data|not a valid ONNX model", net="inner/net.onnx")


def test_external_data_that_is_empty_or_short(place: Path) -> None:
    external(place)
    os.truncate(place / "weights.bin", 100)
    refused(place, 3, "external data")
    os.truncate(place / "weights.bin", 0)
    refused(place, 3, "external data")


def nested(depth: int) -> onnx.ModelProto:
    """If in If in If."""
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["leaf"])], "g", [], [value("leaf")])
    for level in range(depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graph, else_branch=graph_of_x(level))
        graph = helper.make_graph([node], "g", [], [value(f"y{level}")])
    graph.input.extend([value("x"), helper.make_tensor_value_info("c", TensorProto.BOOL, [])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def graph_of_x(level: int) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["x"], [f"else{level}"])
    return helper.make_graph([node], "e", [], [value(f"else{level}")])


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])


@pytest.mark.parametrize("depth", [5, 20, 30])
def test_deeply_nested_graphs(place: Path, depth: int) -> None:
    (place / "net.onnx").write_bytes(nested(depth).SerializeToString())
    np.savez(place / "calib.npz", x=np.ones(3, np.float32), c=np.asarray(True))
    expected = "nothing to quantize" if depth == 5 else "graphs within graphs, .* levels deep|not an ONNX model"
    refused(place, 3, expected, calib="calib.npz")


def test_bytes_nested_deeper_than_any_stack(place: Path) -> None:
    """graph.node.attribute.g.node. ... a hundred thousand times."""
    inner = b""
    for _ in range(20_000):
        inner = b"\x3a" + varint(len(inner)) + inner if len(inner) < 1 << 20 else inner
    (place / "net.onnx").write_bytes(b"\x08\x08" + inner)
    refused(place, 3, "not an ONNX model")


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 20] * 3, [1 << 62, 4], [-5, 3, 1, 1], [0, 1 << 62]], ids=str)
@pytest.mark.parametrize("kind", ["raw", "floats", "constant", "external", "input"])
def test_absurd_dimensions(place: Path, dims: list[int], kind: str) -> None:
    proto = model(NET)
    tensor = proto.graph.initializer[0]
    if kind == "input":
        for dim, size in zip(proto.graph.input[0].type.tensor_type.shape.dim, dims, strict=False):
            dim.dim_value = size
    else:
        if kind == "floats":
            tensor.float_data.extend([1.0] * 15)
            tensor.ClearField("raw_data")
        if kind == "external":
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="calib.npy")
        tensor.dims[:] = dims
        if kind == "constant":
            node = helper.make_node("Constant", [], ["w"], value=tensor)
            del proto.graph.initializer[0]
            proto.graph.node.insert(0, node)
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    result = run(place)
    assert result.exit_code in (3, 4, 7), (result.output, result.exception)
    assert len(result.stderr.splitlines()) == 1


# --- names ------------------------------------------------------------------------------------------------------


def test_names_do_nothing_where_they_are_shown(place: Path) -> None:
    """Names of tensors, nodes, operators, domains, and of the model's file."""
    proto = model(NET)
    proto.graph.node[0].name = proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = HOSTILE
    proto.graph.node[2].name = proto.graph.node[2].output[0] = proto.graph.output[0].name = f"out{HOSTILE}"
    proto.producer_name, proto.doc_string = HOSTILE, HOSTILE
    name = f"net{HOSTILE}.onnx".replace("/", "")
    (place / name).write_bytes(proto.SerializeToString())
    reports = [f"report.{kind}" for kind in ("html", "md", "json")]
    result = run(place, "-v", *(a for r in reports for a in ("--report", place / r)), net=name)
    assert result.exit_code == 0, (result.output, result.exception)
    for command in (["inspect", "-v", name], ["check", "--target", "ort", "out.onnx"]):
        result_of = CliRunner().invoke(main, [str(place / c) if c.endswith("onnx") else c for c in command])
        assert result_of.exit_code in (0, 5), (result_of.output, result_of.exception)
        assert all(line.isprintable() for line in result_of.output.splitlines()), result_of.output
    assert all(line.isprintable() for line in result.output.splitlines()), result.output
    html = (place / "report.html").read_text()
    assert "<script>alert" not in html
    assert "\x1b" not in html
    markdown = (place / "report.md").read_text()
    assert "\x1b" not in markdown
    code = re.compile(r"^ *```toml\n.*?^ *```$|``.*?``|`[^`\n]*`", re.MULTILINE | re.DOTALL)
    assert not re.search(r"(?<!\\)<script>", code.sub("", markdown))
    assert "\x1b" not in (place / "report.json").read_text(), "JSON escapes control characters"


def test_names_in_errors(place: Path) -> None:
    proto = model(NET)
    proto.graph.node[2].op_type = f"No{HOSTILE}"
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    refused(place, 3, "not a valid ONNX model")
    proto = model(NET)
    proto.graph.input[0].name = proto.graph.node[0].input[0] = HOSTILE
    (place / "net.onnx").write_bytes(proto.SerializeToString())
    np.save(place / "calib.npy", np.ones((2, 9), np.float32))
    refused(place, 4, "expected N x 3 x 4 x 4")
