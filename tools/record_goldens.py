#!/usr/bin/env python3
"""Records tests/golden: small random models with PEFT adapters, and what PyTorch computes from them.

    python3 tools/record_goldens.py [OUTPUT_FOLDER]

needs torch, transformers, peft and safetensors. tests/golden/README.md describes the files. The
arithmetic is float64 (transformers itself keeps norms and softmax in float32); the results are
stored as float32.
"""
import json
import pathlib
import shutil
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HIDDEN, INTERMEDIATE, VOCAB, LAYERS = 32, 48, 96, 2
LENGTHS = (24, 11)  # tokens of the two sequences
PROMPTS = (5, 0)  # their leading tokens that are no targets
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

FAMILIES = {
    "llama": dict(
        config=dict(
            num_key_value_heads=2,
            # The original context is short, so that the bands of the scaling fall inside the test.
            rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0,
                                 high_freq_factor=4.0, original_max_position_embeddings=32),
        ),
        adapter=dict(r=4, lora_alpha=8, target_modules="all-linear"),
    ),
    "llama2": dict(
        type="llama",
        config=dict(tie_word_embeddings=True, num_key_value_heads=4),
        adapter=dict(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    ),
    "mistral": dict(
        config=dict(sliding_window=6, num_key_value_heads=1),
        adapter=dict(r=4, lora_alpha=6, use_rslora=True, target_modules=ALL_LINEAR,
                     rank_pattern={"q_proj": 2, "layers.1.mlp.down_proj": 8},
                     alpha_pattern={r"layers\.\d+\.self_attn\.[qk]_proj": 12}),
    ),
    "qwen2": dict(
        config=dict(num_key_value_heads=2, rope_theta=1000000.0),
        adapter=dict(r=4, lora_alpha=8, target_modules=r".*\.layers\.\d+\.(self_attn|mlp)\.[a-z]+_proj",
                     exclude_modules=["layers.0.mlp.up_proj"]),
        old_config=True,
        train=True,
    ),
    "qwen3": dict(
        config=dict(num_key_value_heads=2, head_dim=16, rope_theta=1000000.0, tie_word_embeddings=True),
        adapter=dict(r=4, lora_alpha=10, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj"],
                     layers_to_transform=[1]),
        stored=torch.bfloat16,
    ),
}

TRAINING = dict(steps=10, learning_rate=0.01, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1,
                max_grad_norm=4.0)


def make_model(family, spec, generator):
    """A model whose weights are large enough that every part of it shows in the logits."""
    config = AutoConfig.for_model(
        spec.get("type", family), hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, vocab_size=VOCAB,
        num_hidden_layers=LAYERS, num_attention_heads=4, max_position_embeddings=256, bos_token_id=1,
        eos_token_id=2, pad_token_id=None, **({"tie_word_embeddings": False} | spec["config"]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_((0.0 if name.endswith("bias") else 1.0) + 0.3 * noise)
            elif "embed_tokens" in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(1.5 * noise / weight.shape[1] ** 0.5)
    return model.to(spec.get("stored", torch.float32))


def write_old_config(path):
    """The spelling of transformers 4, which most model folders have."""
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def make_sequence(length, prompt, generator):
    ids = torch.randint(3, VOCAB, (length,), generator=generator)
    labels = ids.clone()
    labels[:prompt] = -100
    return ids, labels


def loss_of(model, sequences):
    """Mean cross-entropy over the target tokens of all sequences."""
    total, count = 0.0, 0
    for ids, labels in sequences:
        logits = model(input_ids=ids[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
        count += int((labels[1:] != -100).sum())
    return total / count


def stored(tensors):
    return {name: t.detach().to(torch.int32 if t.dtype == torch.int64 else torch.float32).contiguous().clone()
            for name, t in tensors.items()}


def load(folder, trainable):
    """The model as double, its adapter on it, exactly as written to disk."""
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64)
    model = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=trainable).double().eval()
    return base, model


def lora_parameters(model):
    """By module path and half: model.layers.0.self_attn.q_proj.lora_A."""
    names = {}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            names[name.removeprefix("base_model.model.").replace(".default.weight", "")] = weight
    return names


def record_gradients(folder, sequences):
    out = {}
    base = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float64).eval()
    for i, (ids, labels) in enumerate(sequences):
        out |= {f"ids.{i}": ids, f"labels.{i}": labels, f"logits.base.{i}": base(input_ids=ids[None]).logits[0]}
    loss = loss_of(base, sequences)
    loss.backward()
    out["loss.base"] = loss[None]
    for name, weight in base.named_parameters():
        out[f"gradient.{name}"] = weight.grad

    _, model = load(folder, trainable=True)
    for i, (ids, _) in enumerate(sequences):
        out[f"logits.adapter.{i}"] = model(input_ids=ids[None]).logits[0]
    loss = loss_of(model, sequences)
    loss.backward()
    out["loss.adapter"] = loss[None]
    for name, weight in lora_parameters(model).items():
        out[f"gradient.{name}"] = weight.grad
    save_file(stored(out), folder / "golden.safetensors", metadata={"format": "pt"})


def record_training(folder, generator):
    """AdamW steps on the adapter, two sequences a step; the norm is clipped in some and not in others."""
    sequences = [make_sequence(n, p, generator) for n, p in ((12, 4), (20, 10), (8, 0), (16, 8))]
    _, model = load(folder, trainable=True)
    weights = lora_parameters(model)
    optimizer = torch.optim.AdamW(weights.values(), lr=TRAINING["learning_rate"],
                                  betas=(TRAINING["beta1"], TRAINING["beta2"]), eps=TRAINING["epsilon"],
                                  weight_decay=TRAINING["weight_decay"])
    order, losses, norms = [], [], []
    for step in range(TRAINING["steps"]):
        order.append([step % 4, (step + 1) % 4])
        loss = loss_of(model, [sequences[i] for i in order[-1]])
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights.values(), TRAINING["max_grad_norm"]))
        optimizer.step()
        losses.append(loss.detach())
    out = {"order": torch.tensor(order), "losses": torch.stack(losses), "gradient_norms": torch.stack(norms)}
    for i, (ids, labels) in enumerate(sequences):
        out |= {f"ids.{i}": ids, f"labels.{i}": labels}
    out |= {f"trained.{name}": weight for name, weight in weights.items()}
    settings = {name: str(value) for name, value in TRAINING.items()}
    save_file(stored(out), folder / "training.safetensors", metadata={"format": "pt"} | settings)
    print("  training losses", [round(float(x), 4) for x in losses], "norms", [round(float(x), 3) for x in norms])


def record(family, spec, output):
    generator = torch.Generator().manual_seed(sum(map(ord, family)))
    folder = output / family
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(family, spec, generator)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if spec.get("old_config"):
        write_old_config(folder / "config.json")

    adapted = get_peft_model(model.float(), LoraConfig(task_type="CAUSAL_LM", **spec["adapter"]))
    with torch.no_grad():
        for name, weight in lora_parameters(adapted).items():
            scale = 1.0 if name.endswith("lora_A") else 0.3
            weight.copy_(scale * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    adapted.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    # PEFT writes the path of this machine; the folder above is where the base lies.
    config_path = folder / "adapter" / "adapter_config.json"
    config = json.loads(config_path.read_text()) | {"base_model_name_or_path": ".."}
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    print(family)
    record_gradients(folder, [make_sequence(n, p, generator) for n, p in zip(LENGTHS, PROMPTS)])
    if spec.get("train"):
        record_training(folder, generator)


def main():
    torch.set_num_threads(2)
    output = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "tests/golden")
    for family, spec in FAMILIES.items():
        record(family, spec, output)


if __name__ == "__main__":
    main()
