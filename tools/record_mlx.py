#!/usr/bin/env python3
"""Records tests/golden/mlx_formats and tests/golden/qwen3_mlx4: weights that MLX has quantised.

    python3 tools/record_mlx.py MODEL_FOLDER [OUTPUT_FOLDER]

needs mlx, numpy, torch and transformers; MODEL_FOLDER is a Qwen3 that MLX has quantised
(tiny_qwen3_sharded of the test data). tests/golden/README.md describes the files.
"""
import json
import pathlib
import sys

import mlx.core as mx
import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

IDS = [(i * 37 + 11) % 256 for i in range(24)]
TYPES = {"F32": mx.float32, "BF16": mx.bfloat16, "F16": mx.float16}


def record_formats(folder):
    """One module for every format that MLX has, and one that is not quantised."""
    generator = np.random.default_rng(5)
    stored, expected, quantization = {}, {}, {"bits": 4, "group_size": 64, "mode": "affine"}
    for i, (bits, group_size) in enumerate((b, g) for b in (2, 3, 4, 5, 6, 8) for g in (32, 64, 128)):
        module = f"b{bits}.g{group_size}"
        values = mx.array(generator.normal(size=(3, 128)).astype(np.float32))
        packed, scales, biases = mx.quantize(values, group_size=group_size, bits=bits)
        scale_type = list(TYPES.values())[i % 3 if bits != 4 else 0]
        scales, biases = scales.astype(scale_type), biases.astype(scale_type)
        stored |= {module + ".weight": packed, module + ".scales": scales, module + ".biases": biases}
        expected[module + ".weight"] = mx.dequantize(packed, scales.astype(mx.float32), biases.astype(mx.float32),
                                                     group_size=group_size, bits=bits)
        if (bits, group_size) != (4, 64):
            quantization[module] = {"bits": bits, "group_size": group_size}
    quantization["plain"] = False
    stored["plain.weight"] = expected["plain.weight"] = mx.arange(6, dtype=mx.float32).reshape(2, 3)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization": quantization}, indent=2) + "\n")
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    mx.save_safetensors(str(folder / "golden.safetensors"), expected)


def plain_weights(source, format):
    stored = {}
    for shard in sorted(source.glob("*.safetensors")):
        stored |= mx.load(str(shard))
    weights = {}
    for name, value in stored.items():
        module, _, kind = name.rpartition(".")
        if module + ".scales" in stored:
            if kind != "weight":
                continue
            value = mx.dequantize(value, stored[module + ".scales"], stored[module + ".biases"], **format)
        weights[name] = torch.from_numpy(np.array(value.astype(mx.float32))).double()
    return weights


def record_model(source, folder):
    """What transformers computes in float64 from the weights as mlx.core.dequantize gives them."""
    config = json.loads((source / "config.json").read_text())
    format = config.pop("quantization")
    model = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="eager")).double().eval()
    model.load_state_dict(plain_weights(source, {k: format[k] for k in ("bits", "group_size")}))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([IDS])).logits[0]
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "golden.safetensors"),
                        {"ids": mx.array(IDS, dtype=mx.int32), "logits": mx.array(logits.float().numpy())})


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    goldens = pathlib.Path(sys.argv[2] if len(sys.argv) > 2 else pathlib.Path(__file__).parent.parent / "tests/golden")
    record_formats(goldens / "mlx_formats")
    record_model(pathlib.Path(sys.argv[1]), goldens / "qwen3_mlx4")
