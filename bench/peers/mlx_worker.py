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


KINDS = {
    "lora_delta": lora_delta, "lora_linear": lora_linear, "lora_gradients": lora_gradients, "lora_step": lora_step,
    "adamw": adamw, "sample": sample,
    "softmax": rowwise(lambda x, w, b: mx.softmax(x, axis=-1)),
    "layer_norm": rowwise(lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5)),
    "rms_norm": rowwise(lambda x, w, b: mx.fast.rms_norm(x, w, 1e-6)),
}

if __name__ == "__main__":
    serve({"name": "MLX", "version": mx.__version__, "threads": None}, KINDS)
