#!/usr/bin/env python3
"""Records how far PEFT itself is from exact arithmetic when it trains in bf16: the yardstick for ours.

    python3 tools/record_bf16.py [GOLDEN_FOLDER] [--device cuda|cpu] [--dry-run]

The models and adapters are those of tests/golden, their weights rounded to bf16. For each, three ways in
which people run PEFT in bf16 (its adapters stay f32) are compared with float64 on the same weights:

  eager     attention as transformers writes it out
  sdpa      attention by PyTorch's kernels: the default, and what is recorded
  autocast  the same under torch.autocast(bfloat16), as Trainer(bf16=True) runs it

Writes <family>/bf16.safetensors (tests/golden/README.md says what is in it) unless --dry-run. Needs torch
(with a GPU for --device cuda), transformers, peft and safetensors.
"""
import argparse
import contextlib
import pathlib

import torch
from peft import PeftModel
from record_goldens import FAMILIES, VOCAB, lora_parameters
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

# Sequences whose gradients are taken one by one: enough that the root mean square of an error is good to
# a few percent whatever the tensor.
SEQUENCES, LENGTH = 64, 24
RUNS = 16  # short trainings, each on a batch of its own of these sequences
TRAINING = dict(steps=10, learning_rate=2e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01,
                max_grad_norm=1.0)
WAYS = ("eager", "sdpa", "autocast")
RECORDED = "sdpa"


class Model:
    """A recorded model with its adapter, in one number type and on one device."""

    def __init__(self, folder, way, device):
        exact = way == "exact"
        base = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager" if exact or way == "eager" else "sdpa", dtype=torch.bfloat16)
        if exact:
            base = base.double()
        model = PeftModel.from_pretrained(base.to(device), folder / "adapter", is_trainable=True)
        self.model = (model.double() if exact else model).eval()
        self.device = device
        self.weights = lora_parameters(self.model)
        expected = torch.float64 if exact else torch.float32
        assert all(weight.dtype == expected for weight in self.weights.values())
        self.autocast = way == "autocast"

    def loss(self, sequences):
        """Mean cross-entropy over all next tokens of the sequences [S, T]; from f32 logits, as transformers does it."""
        ids = sequences.to(self.device, torch.int64)
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            logits = self.model(input_ids=ids).logits[:, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def logits(self, ids):
        """[T, V] of one sequence."""
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            return self.model(input_ids=ids[None].to(self.device, torch.int64)).logits[0].double().cpu()

    def gradients(self, ids):
        self.model.zero_grad()
        self.loss(ids[None]).backward()
        return {name: weight.grad.detach().double().cpu() for name, weight in self.weights.items()}

    def train(self, batches, learning_rate=TRAINING["learning_rate"]):
        """The loss before each AdamW step, one a batch; the adapter is as before afterwards."""
        start = {name: weight.detach().clone() for name, weight in self.weights.items()}
        optimizer = torch.optim.AdamW(self.weights.values(), lr=learning_rate,
                                      betas=(TRAINING["beta1"], TRAINING["beta2"]), eps=TRAINING["epsilon"],
                                      weight_decay=TRAINING["weight_decay"])
        losses = []
        for sequences in batches:
            optimizer.zero_grad()
            loss = self.loss(sequences)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.weights.values(), TRAINING["max_grad_norm"])
            optimizer.step()
            losses.append(loss.detach().double().cpu())
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(start[name])
        return torch.stack(losses)


def gradient_errors(model, sequences, exact):
    """Of each tensor [S]: the Frobenius norm of its gradient's error over that of the gradient."""
    errors = {name: [] for name in exact[0]}
    for ids, reference in zip(sequences, exact):
        for name, gradient in model.gradients(ids).items():
            errors[name].append((gradient - reference[name]).norm() / reference[name].norm())
    return {name: torch.stack(values) for name, values in errors.items()}


def logit_errors(model, sequences, exact):
    """[S]: the Frobenius norm of the logits' error over that of the logits."""
    return torch.stack([(model.logits(ids) - reference).norm() / reference.norm()
                        for ids, reference in zip(sequences, exact)])


def steps_on(batch):
    return [batch] * TRAINING["steps"]


def root_mean_square(values):
    return float(values.square().mean().sqrt())


def record(folder, device):
    generator = torch.Generator().manual_seed(7)
    sequences = torch.randint(3, VOCAB, (SEQUENCES, LENGTH), generator=generator)
    runs = sequences.view(RUNS, SEQUENCES // RUNS, LENGTH)
    reference = Model(folder, "exact", "cpu")
    exact = [reference.gradients(ids) for ids in sequences]
    exact_logits = [reference.logits(ids) for ids in sequences]
    exact_losses = torch.stack([reference.train(steps_on(run)) for run in runs])

    print(f"{folder.name}: error of a gradient over its norm, root mean square of {SEQUENCES} sequences; "
          f"largest difference of a loss in {RUNS} runs of {TRAINING['steps']} steps over the loss")
    out = {"ids": sequences.to(torch.int32)}
    errors = {}
    for way in WAYS:
        model = Model(folder, way, device)
        errors[way] = gradient_errors(model, sequences, exact)
        logits = logit_errors(model, sequences, exact_logits)
        differences = torch.stack([model.train(steps_on(run)) for run in runs]) / exact_losses - 1
        if way == RECORDED:
            out |= {f"error.{name}": values.float() for name, values in errors[way].items()}
            out["logit_errors"] = logits.float()
            out["loss_differences"] = differences.float()
        print(f"  {way:<9} logits {root_mean_square(logits):.1e}, largest {logits.max():.1e}; loss {differences.abs().max():.1e}, root mean square {root_mean_square(differences):.1e}")
    print(f"  {'':<44}" + "".join(f"{way:>10}" for way in WAYS))
    for name in errors[RECORDED]:
        print(f"  {name:<44}" + "".join(f"{root_mean_square(errors[way][name]):10.4f}" for way in WAYS))
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tests/golden", type=pathlib.Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    # Sums inside products stay f32, as ours do.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.set_num_threads(1)  # the models are tiny
    for family in FAMILIES:
        out = record(arguments.folder / family, arguments.device)
        if not arguments.dry_run:
            save_file(out, arguments.folder / family / "bf16.safetensors",
                      metadata={"format": "pt"} | {name: str(value) for name, value in TRAINING.items()})


if __name__ == "__main__":
    main()
