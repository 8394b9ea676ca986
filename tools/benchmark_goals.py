# The goals that wick's CPU kernels are held to, and what a record of samples says of them.
"""A goal is a limit on a ratio of times of one run; see docs/performance.md for where the limits come from."""

import re

from benchmark_decoding import adapter_costs, bandwidth_shares, spread
from benchmark_record import NAMES, case_named, median, memory_of, ratio, times_of

# What is timed (a pattern on the names of cases), against whom, at most so much of their time.
RATIOS = [
    ("LoRA delta", r"lora_delta:", "onednn", 0.9),
    ("LoRA delta", r"lora_delta:", "torch", 0.5),
    ("LoRA delta", r"lora_delta:", "mlx", 0.5),
    ("Frozen linear layer with LoRA, against the bare product", r"lora_linear:", "onednn", 1.05),
    ("Forward and backward, AdamW, small training step", r"lora_gradients:|adamw:|lora_step:", "torch", 0.4),
    ("Softmax, layer norm, RMS norm", r"softmax:|layer_norm:|rms_norm:", "torch", 0.7),
    ("Softmax, layer norm, RMS norm", r"softmax:|layer_norm:|rms_norm:", "mlx", 0.7),
    ("Top-k and top-p", r"sample:.*mode=top_", "torch", 0.3),
    ("Products with bf16 weights at 512 rows, against f32", r"gemm:", "onednn", 1 / 0.93),
    ("Training step of the 0.5B shape, bf16", r"train_step:shape=qwen2\.5-0\.5b.*bf16", "torch", 1 / 1.5),
    ("Decoding with the 0.5B shape, bf16", r"decode:shape=qwen2\.5-0\.5b.*dtype=bf16$", "llama.cpp", 1.0),
]
TRAINING = "train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16"


def ratio_goals(record):
    for what, pattern, peer, limit in RATIOS:
        found = [(ratio(case, peer), case["name"]) for case in record["cases"]
                 if re.match(pattern, case["name"]) and ratio(case, peer) is not None]
        if found:
            worst, name = max(found)
            yield what, f"at most {limit:.2f} of {NAMES[peer]}'s time", f"{worst:.2f} (`{name}`)", worst <= limit


def model_goals(record):
    step = case_named(record, TRAINING)
    if step and {"wick", "torch"} <= memory_of(step).keys():
        memory = memory_of(step)["wick"] / memory_of(step)["torch"]
        yield "The same step, peak memory", "at most 0.60 of PyTorch's", f"{memory:.2f}", memory <= 0.6
    decoding = record.get("decoding")
    if decoding:
        shares, costs = bandwidth_shares(decoding), adapter_costs(decoding)
        yield ("The same decoding, a token after the prompt, by pairs", "at least 0.80 of the memory's bandwidth", spread(shares),
               median(shares) >= 0.8)
        yield ("An unmerged adapter of rank 16, by pairs", "at most 1.05 of the time without", spread(costs, 3),
               median(costs) <= 1.05)


def gain_of(case, of=""):
    """How many times as fast all threads are as one, of a case of `wick bench scaling` or of the bare work beside it ("bare_")."""
    return median(case[f"{of}one_seconds"]) / median(case[f"{of}all_seconds"])


def machine_goals(record):
    """Over all cases: what a second core gains, and what a busy neighbour costs."""
    scaling = record.get("scaling", [])
    gains = [(gain_of(case), case["name"]) for case in scaling]
    if gains:
        gain, name = min(gains)
        reached = sum(each >= 1.85 for each, _ in gains)
        bare = [gain_of(case, "bare_") for case in scaling if "bare_one_seconds" in case]
        beside = f"; bare work beside them {min(bare):.2f}-{max(bare):.2f}" if bare else ""
        yield ("Two threads against one, every case of 1 Mflop or more", "at least 1.85 times as fast",
               f"{gain:.2f} (`{name}`); {reached} of {len(gains)} cases reach it{beside}", gain >= 1.85)
    costs = [(median(case["busy_seconds"]) / median(case["quiet_seconds"]), case["name"])
             for case in record.get("neighbour", [])]
    if costs:
        cost, name = max(costs)
        yield "With a busy neighbour, every case", "at most 3 times the quiet time", f"{cost:.2f} (`{name}`)", cost <= 3


def goals_of(record):
    """(what, goal, what was reached in the worst case, whether that is enough)."""
    return [*ratio_goals(record), *model_goals(record), *machine_goals(record)]
