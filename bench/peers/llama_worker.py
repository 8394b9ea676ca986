"""llama.cpp as a peer, through its Python package's plain C interface: whole models with random weights.

The weights are written once as GGUF files of the shape asked for (into the folder of the virtual environment), since
llama.cpp opens files alone. Keys and values are f32, as wick keeps them. Every call is awaited: the logits are read.
"""
import argparse
import ctypes
import os
import sys

import gguf
import llama_cpp
import numpy as np

from worker import Unavailable, peak_memory, serve

F32 = 0  # GGML_TYPE_F32
SHAPES = {
    "qwen2.5-0.5b": dict(vocab=151936, hidden=896, inner=4864, layers=24, heads=14, kv_heads=2, head=64),
    "qwen2.5-1.5b": dict(vocab=151936, hidden=1536, inner=8960, layers=28, heads=12, kv_heads=2, head=128),
}
TYPES = {"bf16": gguf.GGMLQuantizationType.BF16, "f32": gguf.GGMLQuantizationType.F32}


class RandomValues:
    """Normal numbers of deviation 0.02, drawn once; each tensor takes them from a place of its own."""

    def __init__(self):
        self.pool = np.random.default_rng(5).normal(0, 0.02, 1 << 20).astype(np.float32)
        self.taken = 0

    def take(self, *extents):
        self.taken += 7919
        return np.resize(np.roll(self.pool, -self.taken), extents)


def projections(shape):
    """GGUF's name of each projection -> (outputs, inputs)."""
    q, kv = shape["heads"] * shape["head"], shape["kv_heads"] * shape["head"]
    hidden, inner = shape["hidden"], shape["inner"]
    return {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q),
            "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}


def write_whole(path, write):
    """Calls write(temporary path), then gives the file its name."""
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write(path + ".tmp")
        os.replace(path + ".tmp", path)
    return path


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path, shape, dtype):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(32768)
    writer.add_embedding_length(shape["hidden"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")
    values = RandomValues()

    def matrix(name, *extents):
        data = values.take(*extents)
        if dtype == "bf16":
            data = gguf.quants.quantize(data, TYPES[dtype])
        writer.add_tensor(name, data, raw_dtype=TYPES[dtype])

    matrix("token_embd.weight", shape["vocab"], shape["hidden"])
    for layer in range(shape["layers"]):
        for name, extents in projections(shape).items():
            matrix(f"blk.{layer}.{name}.weight", *extents)
            if name in ("attn_q", "attn_k", "attn_v"):
                writer.add_tensor(f"blk.{layer}.{name}.bias", values.take(extents[0]))
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape["hidden"], np.float32))
    writer.add_tensor("output_norm.weight", np.ones(shape["hidden"], np.float32))
    finish(writer)


def write_adapter(path, shape, rank):
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * rank)
    values = RandomValues()
    for layer in range(shape["layers"]):
        for name, (outputs, inputs) in projections(shape).items():
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_a", values.take(rank, inputs))
            writer.add_tensor(f"blk.{layer}.{name}.weight.lora_b", values.take(outputs, rank))
    finish(writer)


class Model:
    """An open model with room for `positions` tokens."""

    def __init__(self, shape, dtype, positions, rank=0):
        if shape not in SHAPES:
            raise Unavailable(f"no shape {shape}")
        folder = os.path.join(sys.prefix, "models")
        path = write_whole(os.path.join(folder, f"{shape}-{dtype}.gguf"),
                           lambda file: write_model(file, SHAPES[shape], dtype))
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(positions, 64)
        parameters.n_threads = parameters.n_threads_batch = THREADS
        parameters.type_k = parameters.type_v = F32
        self.context = llama_cpp.llama_init_from_model(self.model, parameters) if self.model else None
        if not self.context:
            raise Unavailable(f"llama.cpp does not open {path}")
        if rank:
            path = write_whole(os.path.join(folder, f"{shape}-r{rank}.gguf"),
                               lambda file: write_adapter(file, SHAPES[shape], rank))
            self.attach(path)
        self.vocab = SHAPES[shape]["vocab"]

    def attach(self, path):
        adapter = llama_cpp.llama_adapter_lora_init(self.model, path.encode())
        one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        if not adapter or llama_cpp.llama_set_adapters_lora(self.context, one, 1, (ctypes.c_float * 1)(1.0)):
            raise Unavailable(f"llama.cpp does not open {path}")

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def feed(self, ids):
        """Runs the tokens after those fed before; returns the logits of the last one."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError("llama_decode failed")
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), shape=(self.vocab,))


def some_ids(count):
    return [(i * 7919 + 13) % 1000 for i in range(count)]


def decode(shape, prompt, tokens, dtype, r=0):
    model = Model(shape, dtype, prompt + tokens, r)

    def call():
        model.forget()
        logits = model.feed(some_ids(prompt))
        for _ in range(tokens):
            logits = model.feed([int(logits.argmax())])

    call.extra = peak_memory
    return call


def prefill(shape, T, dtype):
    model = Model(shape, dtype, T)

    def call():
        model.forget()
        model.feed(some_ids(T))

    call.extra = peak_memory
    return call


def train_step(**_):
    raise Unavailable("its Python package does not train")


@llama_cpp.llama_log_callback
def silent(level, text, data):
    """llama.cpp tells of every tensor that it loads."""


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--threads", type=int, default=2)
    THREADS = arguments.parse_args().threads
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    features = llama_cpp.llama_print_system_info().decode().replace("|", " ").split()
    serve({"name": "llama.cpp", "version": f"llama-cpp-python {llama_cpp.__version__}", "threads": THREADS,
           "detail": " ".join(features)},
          {"decode": decode, "prefill": prefill, "train_step": train_step}, "it runs whole models only")
