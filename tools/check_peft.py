#!/usr/bin/env python3
"""Checks that PEFT loads an adapter of ours whole and computes our logits from it.

    python3 tools/check_peft.py MODEL ADAPTER LOGITS.npy IDS [MODEL ADAPTER LOGITS.npy IDS ...]

MODEL and ADAPTER are folders, IDS is a list such as 1,2,3, and LOGITS.npy holds [T, V] as `wick
logits --adapter` writes them. Needs torch, transformers and peft. Exits with 1 where a tensor is
missing or unexpected, or a logit is off by more than 1e-4 of the largest.
"""
import sys

import numpy as np
import torch
from peft import PeftConfig, get_peft_model
from peft.utils import load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def check(model_folder, adapter_folder, logits_file, ids):
    base = AutoModelForCausalLM.from_pretrained(model_folder, attn_implementation="eager", dtype=torch.float32)
    model = get_peft_model(base, PeftConfig.from_pretrained(adapter_folder)).eval()
    loaded = set_peft_model_state_dict(model, load_peft_weights(adapter_folder, device="cpu"))
    # Weights of the base are not in the adapter, so PEFT lists them as missing.
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        return f"missing {missing}, unexpected {loaded.unexpected_keys}"
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0].numpy()
        with model.disable_adapter():
            without = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    ours = np.load(logits_file)
    if ours.shape != theirs.shape:
        return f"our logits are {ours.shape}, PEFT's {theirs.shape}"
    size = np.abs(theirs).max()
    gap = np.abs(ours - theirs).max() / size
    print(f"{adapter_folder}: logits differ by {gap:.1e}, the adapter changes them by {np.abs(without - theirs).max() / size:.1e}")
    return None if gap <= TOLERANCE else f"logits differ by {gap:.1e} of the largest"


def main():
    cases = sys.argv[1:]
    if not cases or len(cases) % 4:
        sys.exit(__doc__)
    torch.set_num_threads(2)
    failed = False
    for i in range(0, len(cases), 4):
        model, adapter, logits, ids = cases[i : i + 4]
        problem = check(model, adapter, logits, [int(part) for part in ids.split(",")])
        if problem:
            print(f"{adapter}: {problem}", file=sys.stderr)
            failed = True
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
