#!/usr/bin/env python3
"""Model folders between transformers and wick.

    python3 tools/check_models.py write FOLDER    one small random model a case, in shards, with its
                                                  logits over IDS (logits.npy); prints the cases
    python3 tools/check_models.py read FOLDER     loads CASE/saved, as wick wrote it, strictly, and
                                                  compares its logits with CASE/logits.npy

A case is a family with the settings that change what is computed. Needs torch and transformers.
"""
import pathlib
import sys

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

IDS = [(i * 37 + 11) % 256 for i in range(40)]
BASE = dict(vocab_size=259, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=5e5)
CASES = {
    "llama-biases": ("llama", dict(attention_bias=True, mlp_bias=True)),
    "llama-llama3-rope": ("llama", dict(rope_parameters=LLAMA3)),
    "llama-linear-rope": ("llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4))),
    "llama-tied-wide-heads": ("llama", dict(tie_word_embeddings=True, head_dim=12)),
    "mistral-window": ("mistral", dict(sliding_window=5)),
    "mistral-no-window": ("mistral", dict(sliding_window=None)),
    "qwen2-upper-window": ("qwen2", dict(use_sliding_window=True, sliding_window=4, max_window_layers=2)),
    "qwen2-unused-window": ("qwen2", dict(use_sliding_window=False, sliding_window=4, max_window_layers=2)),
    "qwen3-layer-types": ("qwen3", dict(head_dim=16, use_sliding_window=True, sliding_window=3,
                                        layer_types=["sliding_attention", "full_attention"] * 2)),
    "qwen3-biases": ("qwen3", dict(head_dim=16, attention_bias=True)),
}


def logits_of(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def write(folder):
    for name, (family, settings) in CASES.items():
        torch.manual_seed(1)
        config = AutoConfig.for_model(family, **BASE, **settings)
        config._attn_implementation = "eager"
        model = AutoModelForCausalLM.from_config(config).float()
        for parameter_name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in parameter_name else 0.0, 0.2)
        model.save_pretrained(folder / name, max_shard_size="30KB")
        np.save(folder / name / "logits.npy", logits_of(model))
        print(name)


def read(folder):
    failed = False
    for name in CASES:
        model, info = AutoModelForCausalLM.from_pretrained(folder / name / "saved", attn_implementation="eager",
                                                           dtype=torch.float32, output_loading_info=True)
        problems = [key for key, value in info.items() if value]
        difference = np.abs(logits_of(model) - np.load(folder / name / "logits.npy")).max()
        if problems or difference > 1e-6:
            print(f"{name}: {problems} logits differ by {difference:.1e}")
            failed = True
    return failed


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in ("write", "read"):
        sys.exit(__doc__)
    torch.set_num_threads(2)
    folder = pathlib.Path(sys.argv[2])
    if sys.argv[1] == "write":
        write(folder)
    else:
        sys.exit(1 if read(folder) else 0)


if __name__ == "__main__":
    main()
