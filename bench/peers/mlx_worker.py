"""MLX on the CPU as a peer: every call is awaited by mx.eval."""
import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from worker import serve

mx.set_default_device(mx.cpu)


def factors(d, r):
    return mx.random.normal((d, r)) * 0.05, mx.random.normal((r, d)) * 0.05


def awaited(function, *inputs):
    mx.eval(*inputs)

    def call():
        mx.eval(function(*inputs))

    return call


def lora_delta(T, d, r):
    a, b = factors(d, r)
    return awaited(lambda x, a, b: 2.0 * ((x @ a) @ b), mx.random.normal((T, d)), a, b)


def lora_linear(T, d, r):
    a, b = factors(d, r)
    w = mx.random.normal((d, d)) * 0.02
    return awaited(lambda x, w, a, b: x @ w.T + 2.0 * ((x @ a) @ b), mx.random.normal((T, d)), w, a, b)


def lora_grouped(T, d, r, n):
    a, b = mx.random.normal((n, d, r)) * 0.05, mx.random.normal((n, r, d)) * 0.05
    which = mx.arange(T) % n
    return awaited(lambda x, a, b, which: 2.0 * mx.squeeze((x[:, None, :] @ a[which]) @ b[which], 1),
                   mx.random.normal((T, d)), a, b, which)


def gemm(T, N, K):
    """wick's weights are bf16 and its arithmetic f32; what MLX has for f32 arithmetic is f32 weights."""
    return awaited(lambda x, w: x @ w.T, mx.random.normal((T, K)), mx.random.normal((N, K)) * 0.02)


def delta_loss(parameters, x, target):
    logits = 2.0 * ((x @ parameters["a"]) @ parameters["b"])
    return nn.losses.cross_entropy(logits, target, reduction="mean")


def lora_gradients(B, T, d, r):
    a, b = factors(d, r)
    gradient = mx.value_and_grad(delta_loss)
    return awaited(lambda x, t, a, b: gradient({"a": a, "b": b}, x, t), mx.random.normal((B * T, d)),
                   mx.random.randint(0, d, (B * T,)), a, b)


class Delta(nn.Module):
    def __init__(self, d, r):
        super().__init__()
        self.a, self.b = factors(d, r)

    def __call__(self, x):
        return 2.0 * ((x @ self.a) @ self.b)


def lora_step(B, T, d, r):
    model, optimizer = Delta(d, r), optim.AdamW(learning_rate=1e-4)
    x, target = mx.random.normal((B * T, d)), mx.random.randint(0, d, (B * T,))
    gradient = nn.value_and_grad(model, lambda m, x, t: nn.losses.cross_entropy(m(x), t, reduction="mean"))
    mx.eval(model.parameters(), x, target)

    def call():
        loss, grads = gradient(model, x, target)
        optimizer.update(model, grads)
        mx.eval(loss, model.parameters(), optimizer.state)

    return call


def adamw(n):
    optimizer = optim.AdamW(learning_rate=1e-4)
    parameters = {"p": mx.random.normal((n,))}
    grads = {"p": mx.random.normal((n,))}
    optimizer.init(parameters)
    mx.eval(parameters, grads)

    def call():
        nonlocal parameters
        parameters = optimizer.apply_gradients(grads, parameters)
        mx.eval(parameters, optimizer.state)

    return call


def rowwise(function):
    def make(T, C):
        return awaited(function, mx.random.normal((T, C)), mx.random.normal((C,)), mx.random.normal((C,)))

    return make


def sample(V, mode, k=0, p=1.0):
    logits = mx.random.normal((V,)) * 3

    def choose(logits):
        if mode == "greedy":
            return mx.argmax(logits)
        if mode == "top_k":
            outside = mx.argpartition(-logits, kth=k - 1)[k:]
            return mx.random.categorical(mx.put_along_axis(logits, outside, mx.array(-math.inf), axis=-1))
        if mode == "top_p":
            order = mx.argsort(-logits)
            probability = mx.softmax(logits)[order]
            inside = mx.cumsum(probability) - probability < p
            return order[mx.random.categorical(mx.where(inside, mx.log(probability), -math.inf))]
        return mx.random.categorical(logits / 0.8)

    return awaited(choose, logits)


def appender(layers, G, D, P):
    """A function that writes one row into the caches of every layer, as mlx-lm does, and awaits it."""
    caches = [mx.zeros((P, G, D)) for _ in range(2 * layers)]
    row = mx.random.normal((1, G, D))
    mx.eval(caches, row)

    def append(position):
        for cache in caches:
            cache[position:position + 1] = row
        mx.eval(caches)

    return append


def kv_append(layers, G, D, P):
    append = appender(layers, G, D, P)
    return lambda: append(P // 2)


def kv_fill(layers, G, D, T):
    append = appender(layers, G, D, T)

    def call():
        for position in range(T):
            append(position)

    return call


KINDS = {
    "lora_delta": lora_delta, "lora_linear": lora_linear, "lora_gradients": lora_gradients, "lora_step": lora_step,
    "lora_grouped": lora_grouped, "gemm": gemm, "adamw": adamw, "sample": sample,
    "kv_append": kv_append, "kv_fill": kv_fill,
    "softmax": rowwise(lambda x, w, b: mx.softmax(x, axis=-1)),
    "layer_norm": rowwise(lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5)),
    "rms_norm": rowwise(lambda x, w, b: mx.fast.rms_norm(x, w, 1e-6)),
}

if __name__ == "__main__":
    serve({"name": "MLX", "version": mx.__version__, "threads": None}, KINDS,
          "MLX alone has no such operation")
