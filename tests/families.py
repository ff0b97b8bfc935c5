"""Small float graphs of each kind that targets have rules for."""

from __future__ import annotations

from graphs import model

HEAD = "(float[1,4,8,8] x) => (float[?,?,?,?] y) <float[6,4,3,3] w, float[6] b, float[6,6,1,1] v, float[6] c {}>"
MATRIX = "(float[2,6] x) => (float[2,?] y) <float[6,6] w, float[6] b, float[6,3] v, float[3] c {}>"


def image(body, declared="", **values):
    return model(f"{HEAD.format(declared)} {{ {body} }}", check=False, **values)


def matrix(body, declared="", **values):
    return model(f"{MATRIX.format(declared)} {{ {body} }}", check=False, **values)


START = "a = Conv<pads=[1,1,1,1]>(x, w, b) "

FAMILIES = {
    "Conv-Relu": image(START + "r = Relu(a) y = Conv(r, v, c)"),
    "Conv-Clip": image(START + "r = Clip(a, lo, hi) y = Conv(r, v, c)", ", float lo, float hi", lo=0, hi=6),
    "no bias": image("a = Conv(x, w) r = Relu(a) y = Conv(r, v)"),
    "residual": image(START + "r = Relu(a) d = Conv(r, v, c) s = Add(d, r) t = Relu(s) y = Conv(t, v)"),
    "residual of two convolutions": image(
        START + "r = Relu(a) d = Conv(r, v, c) e = Conv(r, u) s = Add(d, e) t = Relu(s) y = Conv(t, v)",
        ", float[6,6,1,1] u",
    ),
    "Concat": image(
        START + "r = Relu(a) d = Conv(r, v, c) s = Concat<axis=1>(r, d) y = Conv(s, u)", ", float[3,12,1,1] u"
    ),
    "depthwise": image(START + "d = Conv<group=6>(a, u) r = Relu(d) y = Conv(r, v, c)", ", float[6,1,3,3] u"),
    "ConvTranspose": image(
        START + "r = Relu(a) d = ConvTranspose<strides=[2,2]>(r, u, c) y = Conv(d, v)", ", float[6,6,2,2] u"
    ),
    "grouped ConvTranspose": image(
        START + "r = Relu(a) d = ConvTranspose<group=2>(r, u, c) y = Conv(d, v)", ", float[6,3,2,2] u"
    ),
    "Sigmoid and Mul": image(START + "s = Sigmoid(a) m = Mul(a, s) y = Conv(m, v, c)"),
    "Tanh and Sub": image(START + "s = Tanh(a) m = Sub(a, s) y = Conv(m, v, c)"),
    "pooling": image(
        START + "r = Relu(a) m = MaxPool<kernel_shape=[2,2]>(r) p = AveragePool<kernel_shape=[2,2]>(m)"
        " g = GlobalAveragePool(p) y = Conv(g, v, c)"
    ),
    "squeeze and excite": image(
        START + "g = GlobalAveragePool(a) f = Conv(g, v, c) s = Sigmoid(f) m = Mul(a, s) y = Conv(m, v)"
    ),
    "output by Sigmoid": image(START + "y = Sigmoid(a)"),
    "output by movement": image(START + "r = Relu(a) y = Transpose<perm=[0,2,3,1]>(r)"),
    "Resize": image(START + 'r = Resize<mode="nearest">(a, , s) y = Conv(r, v, c)', ", float[4] s", s=[1, 1, 2, 2]),
    "constant Add": image(START + "s = Add(a, k) y = Conv(s, v, c)", ", float[1,6,1,1] k"),
    "Gemm": matrix("a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, c)"),
    "transposed Gemm": matrix("a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm(r, v, c)"),
    "MatMul": matrix("m = MatMul(x, w) a = Add(m, b) r = Relu(a) n = MatMul(r, v) y = Add(n, c)"),
    "MatMul without bias": matrix("m = MatMul(x, w) r = Relu(m) y = MatMul(r, v)"),
    "Reshape and Gemm": model(
        "(float[1,4,8,8] x) => (float[?,?] y) <float[6,4,3,3] w, float[6] b, int64[2] s, float[216,5] v, float[5] c>"
        " { a = Conv(x, w, b) r = Relu(a) f = Reshape(r, s) y = Gemm(f, v, c) }",
        s=[1, -1],
    ),
    "Softmax output": matrix("a = Gemm(x, w, b) r = Relu(a) g = Gemm(r, v, c) y = Softmax<axis=-1>(g)"),
    "attention": model(
        "(float[1,4,6] x) => (float[?,?,?] y) <float[6,6] w, float[6] b, float[6,6] v, float[6,6] u, float k> {"
        " p = MatMul(x, w) q = Add(p, b) z = MatMul(x, v) t = Transpose<perm=[0,2,1]>(z) s = MatMul(q, t)"
        " d = Mul(s, k) f = Softmax<axis=-1>(d) o = MatMul(f, q) h = MatMul(o, u) y = Add(h, x) }",
        k=0.4,
    ),
}
