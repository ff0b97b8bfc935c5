"""Layers see what whole models compute: the float one, and the one whose preceding layers are quantized and changed."""

from dataclasses import dataclass, field

import graphs
import numpy as np
import pytest
from quantized import context, samples, with_ranges

from onnxq.errors import DataError
from onnxq.execution import layerwise
from onnxq.execution.layerwise import isolate, planned_layers, visit_layers
from onnxq.execution.partial import extract
from onnxq.execution.services import Services
from onnxq.graph.simulate import simulated
from onnxq.operators.linear import LinearLayer, linear_layer

CHAIN = """(float[N,3,8,8] x) => (float[N,4] y) <float[5,3,3,3] a, float[5] b, float[5,1,3,3] d, float[5,5,1,1] p,
           float[5,4] f> { h = Conv<pads=[1,1,1,1]>(x, a, b)  r = Relu(h)  s = Conv<group=5, pads=[1,1,1,1]>(r, d)
           t = Relu(s)  u = Conv(t, p)  g = GlobalAveragePool(u)  v = Flatten(g)  y = Gemm(v, f) }"""
RESIDUAL = """(float[N,3,6,6] x) => (float[N,3,6,6] y) <float[3,3,3,3] a, float[3,3,3,3] b, float[3,3,1,1] c,
              float[3,3,1,1] e> { h = Conv<pads=[1,1,1,1]>(x, a)  r = Relu(h)  i = Conv<pads=[1,1,1,1]>(r, b)
              j = Conv(x, c)  k = Add(i, j)  l = Relu(k)  m = Conv(l, e)  y = Add(m, l) }"""
ATTENTION = """(float[N,5,6] x) => (float[N,5,6] y)
               <float[6,6] q, float[6,6] k, float[6,6] v, float[6] vb, float[6,6] o>
               { Q = MatMul(x, q)  K = MatMul(x, k)  V0 = MatMul(x, v)  V = Add(vb, V0)  T = Transpose<perm=[0,2,1]>(K)
               s = MatMul(Q, T)  w = Softmax(s)  c = MatMul(w, V)  y = MatMul(c, o) }"""
TIED = """(float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v>
          { a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  d = Relu(c)  e = MatMul(d, w)
            f = Relu(e)  y = MatMul(f, v) }"""
FIXED = """(float[3,4] x) => (float[3,2] y) <float[4,4] w, float[4,2] v> { a = MatMul(x, w)  b = Relu(a)
           y = MatMul(b, v) }"""


@dataclass
class Recorder:
    """Keeps what it is shown; `change` may halve weights."""

    model: object
    halve: bool = False
    held: int = 0
    x: dict = field(default_factory=dict)
    y: dict = field(default_factory=dict)
    groups: list = field(default_factory=list)

    def observe(self, layer, sample, x, y):
        return sample, x, y

    def take(self, layer, part):
        sample, x, y = part
        assert sample == len(self.x.setdefault(layer.node.name, []))
        self.x[layer.node.name].append(x)
        self.y.setdefault(layer.node.name, []).append(y)

    avoided_by = "`effort` fast avoids it"

    def cost(self, layer):
        return layer.weight.values.size

    def memory(self, layer):
        return self.held

    def change(self, uses):
        self.groups.append([use.node.name for use in uses])
        if self.halve:
            params = self.model.quantizers[uses[0].weight.name].params
            uses[0].weight.values = params.fake(uses[0].weight.values / 2)
            for use in uses:
                use.bias.values = use.bias.values + np.float32(0.25)
        return "halved" if self.halve else "seen"


def visited(proto, halve=False, feeds=None, held=0, **fields):
    """The recorder; the model before the visit; and after it."""
    model = with_ranges(proto, feeds)
    isolate(model)
    before, recorder = model.clone(), Recorder(model, halve, held)
    given = context(proto, feeds, **fields)
    traffic = visit_layers(model, given.feeds, given.services, recorder, "visiting")
    return recorder, before, model, traffic


def outputs(layers, proto, feed, inputs):
    """Each layer's input, or its output with bias, in a whole model."""
    names = {}
    nodes = {node.name: node for node in proto.graph.node}
    for layer in layers:
        node = nodes[layer.node.name]
        names[node.name] = node.input[0] if inputs else (layer.bias_node or layer.node).outputs[0].name
    computed = set(names.values()) - set(feed)
    arrays = {**feed, **(graphs.run(extract(proto, computed), feed) if computed else {})}
    return {node: arrays[tensor] for node, tensor in names.items()}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("text", [CHAIN, RESIDUAL, ATTENTION])
def test_layers_see_both_networks(text, halve, threads):
    proto = graphs.model(text)
    recorder, before, after, _ = visited(proto, halve, threads=threads)
    layers = planned_layers(after)
    assert list(recorder.x) == [layer.node.name for layer in layers]
    for sample, feed in enumerate(samples(proto)):
        expected_y = outputs(planned_layers(before), before.to_proto(), feed, inputs=False)
        expected_x = outputs(layers, simulated(after), feed, inputs=True)  # what precedes a layer is final for it
        for layer in layers:
            name = layer.node.name
            np.testing.assert_allclose(recorder.y[name][sample], expected_y[name], atol=1e-5)
            np.testing.assert_allclose(recorder.x[name][sample], expected_x[name], atol=1e-5)


def test_a_shared_weight_changes_once_and_what_follows_goes_on_with_it():
    proto = graphs.model(TIED)
    recorder, _, after, _ = visited(proto, halve=True)
    first, second, third, last = (layer.node.name for layer in planned_layers(after))
    assert recorder.groups == [[first, third], [second, last]]
    feed = samples(proto)[0]
    node = next(n for n in after.graph.nodes if n.name == last)
    layer = linear_layer(node)
    assert isinstance(layer, LinearLayer)
    provisional = after.clone()  # the second weight was still what it was, when the last layer was seen
    original = graphs.wrapped(proto).graph.tensors()["v"].values
    weight = next(old for old in planned_layers(provisional) if old.node.name == last).weight
    weight.values = original
    for old in planned_layers(provisional):
        if old.node.name in (second, last):
            old.bias.values = old.bias.values - np.float32(0.25)
    expected = outputs([layer], simulated(provisional), feed, inputs=True)[last]
    np.testing.assert_allclose(recorder.x[last][0], expected, atol=1e-5)


def test_rows_that_fill_a_fixed_batch_up_are_not_seen():
    proto = graphs.model(FIXED)
    feeds = [np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)]
    recorder, *_ = visited(proto, feeds=feeds)
    assert [[x.shape[0] for x in seen] for seen in recorder.x.values()] == [[3, 2], [3, 2]]


def test_tensors_spill_to_files_beyond_the_limit():
    proto = graphs.model(RESIDUAL)
    in_memory, *_, traffic = visited(proto)
    assert traffic.spilled == 0
    assert traffic.held > 0
    spilled, *_, traffic = visited(proto, max_memory=1)
    assert traffic.held == 0
    assert traffic.spilled > 0
    assert "went to files" in str(traffic)
    for name, seen in in_memory.x.items():
        np.testing.assert_array_equal(seen, spilled.x[name])


def test_tensors_spill_that_the_visitor_leaves_no_room_for():
    proto = graphs.model(RESIDUAL)
    alone, *_, traffic = visited(proto)
    room, *_, beside = visited(proto, held=1000, max_memory=1000 + traffic.held)
    assert (beside.held, beside.spilled) == (traffic.held, 0)
    spilled, *_, beside = visited(proto, held=traffic.held, max_memory=traffic.held)
    assert beside.spilled > 0
    for name, seen in alone.x.items():
        np.testing.assert_array_equal(seen, room.x[name])
        np.testing.assert_array_equal(seen, spilled.x[name])


def test_isolated_layers_have_biases_of_their_own():
    text = """(float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4] b, float[4,4] v> { a = Gemm(x, w, b)
              c = Gemm(a, v, b)  d = MatMul(c, w)  y = Mul(d, w) }"""
    proto = graphs.model(text.replace("float[N,4]", "float[4,4]"))
    model = with_ranges(proto, exclude=("Mul",))
    isolate(model)
    layers = planned_layers(model)
    assert len({id(layer.bias) for layer in layers}) == 3
    assert all(len(layer.bias.outputs) == 1 for layer in layers)
    assert len(layers[0].weight.outputs) == 2  # both layers, not the Mul
    graphs.assert_same_function(proto, model.to_proto(), 1e-6)


def test_progress_tells_the_layer_and_counts_its_cost():
    proto, calls = graphs.model(TIED), []
    _, _, after, _ = visited(proto, progress=lambda *call: calls.append(call))
    layers = [layer.node.name for layer in planned_layers(after)]
    assert calls[0] == ("visiting", 0, 64)
    assert (f"visiting: {layers[-1]} seen", 64, 64) in calls
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert {done for _, done, _ in calls} == {0, 16, 32, 48, 64}


def test_no_data():
    model = with_ranges(graphs.model(CHAIN))
    isolate(model)
    with pytest.raises(DataError, match="at least one sample"):
        visit_layers(model, (), Services(), Recorder(model), "visiting")


def test_long_work_says_beforehand_what_it_takes_and_how_to_avoid_it(monkeypatch):
    proto = graphs.model(FIXED)
    for seconds, expected in ((1e-3, "visiting"), (10.0, "visiting: about 4 min of CPU time; `effort` fast avoids it")):
        monkeypatch.setattr(layerwise, "product_seconds", lambda s=seconds: s)
        labels = []
        visited(proto, progress=lambda label, done, total, labels=labels: labels.append((label, done, total)))
        assert labels[0] == (expected, 0, 24)
        assert all(": " in label and done > 0 for label, done, _ in labels[1:])
