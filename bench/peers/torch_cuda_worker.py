"""PyTorch (and PEFT + transformers for whole models) as a peer on a GPU: the operations as its users write them.

Every call is awaited. `in=graph`: the same operations so many times in one torch.cuda.CUDAGraph that is replayed, and the
time is that of one of them. In bf16 all tensors are bf16, the adapter's too; whole models keep their adapters as PEFT makes
them (f32). With --device cpu everything runs there, for trying the worker out.
"""
import argparse
import gc
import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_worker import PROJECTIONS, SHAPES, delta_loss, factors
from worker import Unavailable, sample as sampled, serve

REPEATS = 100  # of the work in a graph
TIMED_TOKENS = 24  # of decoding, which is slow here: the time of more is in proportion
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
SHAPES = SHAPES | {
    "qwen2.5-7b": dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                       num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False),
}
device = "cuda"
on_gpu = True


def synchronize():
    if on_gpu:
        torch.cuda.synchronize()


def awaited(function, graph):
    def call():
        function()
        synchronize()

    return recorded(function) if graph else call


def recorded(function):
    """The function REPEATS times in a CUDA graph."""
    if not on_gpu:
        def replay():
            for _ in range(REPEATS):
                function()
    else:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            for _ in range(REPEATS):
                function()
        replay = captured.replay

    def call():
        replay()
        synchronize()

    call.repeats = REPEATS
    return call


def inference(function):
    def call():
        with torch.inference_mode():
            return function()

    return call


def lora_delta(graph, T, d, r, dtype="f32"):
    x, (a, b) = torch.randn(T, d).to(DTYPES[dtype]), (f.to(DTYPES[dtype]) for f in factors(d, r))
    return awaited(inference(lambda: F.linear(F.linear(x, a), b) * 2.0), graph)


def lora_linear(graph, T, d, r, dtype="f32", n=1):
    to = DTYPES[dtype]
    x, w = torch.randn(T, d).to(to), (torch.randn(d, d) * 0.02).to(to)
    if n == 1:
        a, b = (f.to(to) for f in factors(d, r))
        return awaited(inference(lambda: F.linear(x, w) + F.linear(F.linear(x, a), b) * 2.0), graph)
    a, b = (torch.randn(n, d, r) * 0.05).to(to), (torch.randn(n, r, d) * 0.05).to(to)
    which = torch.arange(T) % n

    def many():
        s = torch.bmm(x.unsqueeze(1), a[which])
        return F.linear(x, w) + torch.bmm(s, b[which]).squeeze(1) * 2.0

    return awaited(inference(many), graph)


def gemm(graph, T, N, K, dtype="f32"):
    x, w = torch.randn(T, K).to(DTYPES[dtype]), (torch.randn(N, K) * 0.02).to(DTYPES[dtype])
    return awaited(inference(lambda: F.linear(x, w)), graph)


def attention(gradients):
    """The fastest of PyTorch's ways to do it, in the layout in which a model has queries, keys and values."""
    def make(graph, B, T, H, G, D, dtype="f32"):
        q, k, v, d_o = (torch.randn(B, T, heads, D).to(DTYPES[dtype]).transpose(1, 2) for heads in (H, G, G, H))
        for x in (q, k, v):
            x.requires_grad_(gradients)

        def run(way):
            keys, values = k, v
            if way == SDPBackend.EFFICIENT_ATTENTION:  # as transformers does it, since this has no grouped heads
                keys, values = (x.repeat_interleave(H // G, 1) for x in (k, v))
            with sdpa_kernel(way):
                o = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=keys is k)
            if gradients:
                torch.autograd.grad(o, (q, k, v), d_o)

        ways = {}
        for name, way in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION),
                          ("efficient", SDPBackend.EFFICIENT_ATTENTION), ("math", SDPBackend.MATH)):
            # One with all scores in memory is for where there is no other.
            if name == "math" and ways:
                continue
            function = partial(run, way) if gradients else inference(partial(run, way))
            try:
                call = awaited(function, graph)
                ways[name] = call, min(sampled(call, 5, 1.0))
            except RuntimeError as reason:
                print(f"attention by {name}: {reason}", file=sys.stderr)
        fastest = min(ways, key=lambda name: ways[name][1])
        call = ways[fastest][0]
        call.extra = lambda: {f"{name}_seconds": seconds for name, (_, seconds) in ways.items()}
        return call

    return make


def lora_gradients(graph, B, T, d, r):
    x, target = torch.randn(B * T, d), torch.randint(d, (B * T,))
    a, b = factors(d, r, gradient=True)

    def gradients():
        a.grad = b.grad = None
        delta_loss(x, a, b, target).backward()

    return awaited(gradients, graph)


def lora_step(graph, B, T, d, r):
    x, target = torch.randn(B * T, d), torch.randint(d, (B * T,))
    a, b = factors(d, r, gradient=True)
    optimizer = torch.optim.AdamW([a, b], lr=1e-4, fused=True, capturable=graph and on_gpu)

    def step():
        optimizer.zero_grad(set_to_none=True)
        delta_loss(x, a, b, target).backward()
        optimizer.step()

    return awaited(step, graph)


def adamw(graph, n):
    p = torch.randn(n).requires_grad_(True)
    p.grad = torch.randn(n)
    return awaited(torch.optim.AdamW([p], lr=1e-4, fused=True, capturable=graph and on_gpu).step, graph)


def rowwise(function):
    def make(graph, T, C):
        x, w, b = torch.randn(T, C), torch.randn(C), torch.randn(C)
        return awaited(inference(lambda: function(x, w, b)), graph)

    return make


def sample(graph, V, mode, k=0, p=1.0):
    logits = torch.randn(V) * 3

    def draw(probability):
        # torch.multinomial awaits the GPU; in a graph the same draw is composed, as gpt-fast does.
        if graph:
            return torch.argmax(probability / torch.empty_like(probability).exponential_(1), dim=-1, keepdim=True)
        return torch.multinomial(probability, 1)

    def choose():
        if mode == "greedy":
            return torch.argmax(logits)
        if mode == "top_k":
            values, ids = torch.topk(logits, k)
            return ids[draw(torch.softmax(values, -1))]
        values, ids = torch.sort(logits, descending=True)
        probability = torch.softmax(values, -1)
        outside = torch.cumsum(probability, -1) - probability >= p
        return ids[draw(probability.masked_fill(outside, 0.0))]

    if graph:
        return awaited(inference(choose), graph)
    return inference(lambda: int(choose()))  # the id on the host


def kv_append(graph, layers, G, D, P, dtype="f32"):
    caches = [torch.zeros(P, G, D, dtype=DTYPES[dtype]) for _ in range(2 * layers)]
    row, slot = torch.randn(1, G, D).to(DTYPES[dtype]), torch.tensor([P // 2])

    def append():
        for cache in caches:
            cache.index_copy_(0, slot, row)

    return awaited(inference(append), graph)


def reset_peak():
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()


def peak_memory():
    return {"peak_device_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0}


def build_model(shape, dtype):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    if shape not in SHAPES:
        raise Unavailable(f"no shape {shape}")
    reset_peak()
    torch.set_default_dtype(DTYPES[dtype])
    config = Qwen2Config(**SHAPES[shape], max_position_embeddings=32768, attn_implementation="sdpa")
    model = Qwen2ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def with_adapter(model, r):
    from peft import LoraConfig, get_peft_model
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=PROJECTIONS, task_type="CAUSAL_LM"))


def train_step(graph, shape, T, r, dtype, B=1):
    model = with_adapter(build_model(shape, dtype), r)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    ids = torch.randint(1000, (B, T))

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    call = awaited(step, graph)
    call.extra = peak_memory
    return call


def decode(graph, shape, prompt, tokens, dtype, r=0):
    model = build_model(shape, dtype)
    if r:
        model = with_adapter(model, r)
    model.eval()
    ids = torch.randint(1000, (1, prompt))
    timed = min(tokens, TIMED_TOKENS)

    def generate():
        # The first token comes from the prompt's pass, the others from a pass each.
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=timed + 1,
                       min_new_tokens=timed + 1, do_sample=False, pad_token_id=0)

    call = awaited(inference(generate), graph)
    call.repeats = (timed + 1) / (tokens + 1)
    call.extra = lambda: peak_memory() | {"timed_tokens": timed}
    return call


KINDS = {
    "lora_delta": lora_delta, "lora_linear": lora_linear, "gemm": gemm, "lora_gradients": lora_gradients,
    "lora_step": lora_step, "adamw": adamw, "sample": sample, "kv_append": kv_append, "train_step": train_step,
    "decode": decode, "attention": attention(False), "attention_gradients": attention(True),
    "softmax": rowwise(lambda x, w, b: torch.softmax(x, -1)),
    "layer_norm": rowwise(lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b)),
    "rms_norm": rowwise(lambda x, w, b: F.rms_norm(x, x.shape[-1:], w, 1e-6)),
}


def guarded(kind):
    """`in=graph` as a flag; a lack of memory as an answer."""
    def make(**values):
        graph = values.pop("in", "") == "graph"
        try:
            # Not set as the default device, which would make each call slower.
            with torch.device(device):
                return refusing(kind(graph, **values))
        except torch.OutOfMemoryError as error:
            raise Unavailable(f"out of memory: {str(error).splitlines()[0]}") from None

    return make


def refusing(call):
    """A call that says so where it runs out of memory."""
    def guarded_call():
        try:
            call()
        except torch.OutOfMemoryError as error:
            raise Unavailable(f"out of memory: {str(error).splitlines()[0]}") from None

    guarded_call.__dict__.update(call.__dict__)
    return guarded_call


def forget():
    """Gives the memory of the last cases back to the GPU."""
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    on_gpu = device != "cpu"
    torch.manual_seed(0)
    name = (f"{torch.cuda.get_device_name()}, cuDNN {torch.backends.cudnn.version()}" if on_gpu else "on the CPU")
    serve({"name": "PyTorch", "version": torch.__version__, "detail": name, "forgets": True},
          {kind: guarded(make) for kind, make in KINDS.items()}, forget=forget)
