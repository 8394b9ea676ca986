"""PyTorch (and PEFT + transformers for whole models) as a peer on the CPU: the operations as its users write them."""
import argparse

import torch
import torch.nn.functional as F

from worker import Unavailable, peak_memory, serve

SHAPES = {
    "qwen2.5-0.5b": dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                         num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2.5-1.5b": dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                         num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def factors(d, r, gradient=False):
    a = (torch.randn(r, d) * 0.05).requires_grad_(gradient)
    b = (torch.randn(d, r) * 0.05).requires_grad_(gradient)
    return a, b


def lora_delta(T, d, r):
    x = torch.randn(T, d)
    a, b = factors(d, r)

    def call():
        with torch.inference_mode():
            return F.linear(F.linear(x, a), b) * 2.0

    return call


def lora_linear(T, d, r):
    x, w = torch.randn(T, d), torch.randn(d, d) * 0.02
    a, b = factors(d, r)

    def call():
        with torch.inference_mode():
            return F.linear(x, w) + F.linear(F.linear(x, a), b) * 2.0

    return call


def lora_grouped(T, d, r, n):
    x = torch.randn(T, d)
    a, b = torch.randn(n, r, d) * 0.05, torch.randn(n, d, r) * 0.05
    which = torch.arange(T) % n

    def call():
        with torch.inference_mode():
            s = torch.einsum("td,trd->tr", x, a[which])
            return torch.einsum("tr,tdr->td", s, b[which]) * 2.0

    return call


def delta_loss(x, a, b, target):
    return F.cross_entropy(F.linear(F.linear(x, a), b) * 2.0, target)


def lora_gradients(B, T, d, r):
    x, target = torch.randn(B * T, d), torch.randint(d, (B * T,))
    a, b = factors(d, r, gradient=True)

    def call():
        a.grad = b.grad = None
        delta_loss(x, a, b, target).backward()

    return call


def lora_step(B, T, d, r):
    x, target = torch.randn(B * T, d), torch.randint(d, (B * T,))
    a, b = factors(d, r, gradient=True)
    optimizer = torch.optim.AdamW([a, b], lr=1e-4, fused=True)

    def call():
        optimizer.zero_grad(set_to_none=True)
        delta_loss(x, a, b, target).backward()
        optimizer.step()

    return call


def adamw(n):
    p = torch.randn(n).requires_grad_(True)
    p.grad = torch.randn(n)
    optimizer = torch.optim.AdamW([p], lr=1e-4, fused=True)
    return optimizer.step


def rowwise(function):
    def make(T, C):
        x, w, b = torch.randn(T, C), torch.randn(C), torch.randn(C)

        def call():
            with torch.inference_mode():
                return function(x, w, b)

        return call

    return make


def sample(V, mode, k=0, p=1.0):
    logits = torch.randn(V) * 3

    def probabilities():
        if mode == "top_k":
            values, ids = torch.topk(logits, k)
            return torch.softmax(values, -1), ids
        if mode == "top_p":
            values, ids = torch.sort(logits, descending=True)
            probability = torch.softmax(values, -1)
            outside = torch.cumsum(probability, -1) - probability >= p
            return probability.masked_fill(outside, 0.0), ids
        return torch.softmax(logits / 0.8, -1), None

    def call():
        with torch.inference_mode():
            if mode == "greedy":
                return int(torch.argmax(logits))
            probability, ids = probabilities()
            choice = torch.multinomial(probability, 1)
            return int(choice if ids is None else ids[choice])

    return call


def gemm(T, N, K):
    """wick's weights are bf16 and its arithmetic f32; what PyTorch has for f32 arithmetic is f32 weights."""
    x, w = torch.randn(T, K), torch.randn(N, K) * 0.02

    def call():
        with torch.inference_mode():
            return F.linear(x, w)

    return call


class Caches:
    """Keys and values of every layer, f32 as wick's."""

    def __init__(self, layers, G, D, P):
        self.caches = [torch.zeros(P, G, D) for _ in range(2 * layers)]
        self.row = torch.randn(1, G, D)
        self.slots = [torch.tensor([position]) for position in range(P)]

    def append(self, position):
        for cache in self.caches:
            cache.index_copy_(0, self.slots[position], self.row)


def kv_append(layers, G, D, P):
    caches = Caches(layers, G, D, P)

    def call():
        with torch.inference_mode():
            caches.append(P // 2)

    return call


def kv_fill(layers, G, D, T):
    caches = Caches(layers, G, D, T)

    def call():
        with torch.inference_mode():
            for position in range(T):
                caches.append(position)

    return call


def build_model(shape, dtype):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    if shape not in SHAPES:
        raise Unavailable(f"no shape {shape}")
    torch.manual_seed(0)
    with torch.device("cpu"):
        torch.set_default_dtype(getattr(torch, dtype))
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], max_position_embeddings=32768, rope_theta=1e6))
        torch.set_default_dtype(torch.float32)
    return model


def with_adapter(model, r):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


def train_step(shape, T, r, dtype):
    model = with_adapter(build_model(shape, {"bf16": "bfloat16", "f32": "float32"}[dtype]), r)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(1000, (1, T))

    def call():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    call.extra = peak_memory
    return call


def decode(shape, prompt, tokens, dtype, r=0):
    model = build_model(shape, {"bf16": "bfloat16", "f32": "float32"}[dtype])
    if r:
        model = with_adapter(model, r)
    model.eval()
    ids = torch.randint(1000, (1, prompt))

    def call():
        with torch.inference_mode():
            # The first token comes from the prompt's pass, the others from a pass each.
            model.generate(input_ids=ids, max_new_tokens=tokens + 1, min_new_tokens=tokens + 1, do_sample=False,
                           pad_token_id=0)

    call.extra = peak_memory
    return call


def prefill(shape, T, dtype):
    model = build_model(shape, {"bf16": "bfloat16", "f32": "float32"}[dtype]).eval()
    ids = torch.randint(1000, (1, T))

    def call():
        with torch.inference_mode():
            model(input_ids=ids, logits_to_keep=1)

    call.extra = peak_memory
    return call


KINDS = {
    "lora_delta": lora_delta, "lora_linear": lora_linear, "lora_grouped": lora_grouped,
    "lora_gradients": lora_gradients, "lora_step": lora_step, "adamw": adamw,
    "softmax": rowwise(lambda x, w, b: torch.softmax(x, -1)),
    "layer_norm": rowwise(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b)),
    "rms_norm": rowwise(lambda x, w, b: F.rms_norm(x, x.shape[-1:], w, 1e-6)),
    "sample": sample, "kv_append": kv_append, "kv_fill": kv_fill, "gemm": gemm,
    "train_step": train_step, "decode": decode, "prefill": prefill,
}

if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=2)
    threads = arguments.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    serve({"name": "PyTorch", "version": torch.__version__, "threads": threads,
           "detail": torch.backends.cpu.get_cpu_capability()}, KINDS)
