#!/usr/bin/env python3
"""Compares losses of bf16 trainings with exact ones: wick's on a GPU, and PEFT's from the same weights and batches.

    export WICK_TRAINING_RECORDS=FOLDER
    build/cuda/tests/train_bf16_cuda_test; build/cuda/tests/train_bf16_shapes_cuda_test
    python3 tools/compare_bf16_training.py FOLDER [--device cuda|cpu] [--filter TEXT]

FOLDER holds what those tests leave (tests/support/training_comparison.h): a model folder each, with a fresh
adapter and the batches and losses of some trainings. A line a training has, for each way to train, the
difference of its losses to the exact ones, over the loss: the first step's, the root mean square and the
largest. Exact are the losses of wick's CPU kernels in f32; of
trainings that the tests do only for this comparison, those of its CUDA kernels in f32.

  cuda_f32, cuda_bf16   wick on the GPU
  path                  the adapters that cuda_bf16 went through, their losses computed in f32: what parted
                        because other steps were taken, without the rounding of the loss itself
  exact                 PEFT in float64
  eager, sdpa, autocast PEFT in bf16, as tools/record_bf16.py says

Needs torch (with a GPU for --device cuda), transformers, peft and safetensors.
"""
import argparse
import json
import pathlib
import re

import torch
from record_bf16 import Model, root_mean_square
from safetensors import safe_open

WICKS = ("cuda_f32", "cuda_bf16", "path")
PEFTS = ("exact", "eager", "sdpa", "autocast")


class Training:
    """A training that a test has recorded, and losses of it by the way they came about."""

    def __init__(self, file):
        with safe_open(file, "pt") as tensors:
            self.batches = tensors.get_tensor("ids")
            metadata = tensors.metadata()
        self.name = file.stem
        self.learning_rate = float(metadata["learning_rate"])
        self.losses = {way: torch.tensor([float(loss) for loss in metadata[way].split()], dtype=torch.float64)
                       for way in WICKS}
        self.reference = "cpu" if metadata["cpu"] else "cuda_f32"
        self.exact = torch.tensor([float(loss) for loss in metadata[self.reference].split()], dtype=torch.float64)

    def kind(self):
        """The name without the number of the run."""
        return re.sub(r",\d+$", "", self.name)

    def differences(self, way):
        return self.losses[way] / self.exact - 1


def print_differences(kind, trainings):
    """All runs of one kind together."""
    first, last = (torch.stack([training.exact for training in trainings])[:, i].mean() for i in (0, -1))
    print(f"  {kind} ({len(trainings)}): loss {first:.4f} to {last:.4f}")
    for way in trainings[0].losses:
        values = torch.stack([training.differences(way) for training in trainings])
        by_step = " ".join(f"{root_mean_square(step):.1e}" for step in values.T)
        print(f"    {way:<10} first {root_mean_square(values[:, 0]):.1e}, rms {root_mean_square(values):.1e}, "
              f"largest {values.abs().max():.1e}; by step {by_step}")


def compare(folder, arguments):
    trainings = [Training(file) for file in sorted((folder / "trainings").glob("*.safetensors"))
                 if arguments.filter in f"{folder.name} {file.stem}"]
    for way in arguments.ways if trainings else ():
        model = Model(folder, way, arguments.device)
        for training in trainings:
            training.losses[way] = model.train(training.batches, training.learning_rate)
        del model
    print(folder.name, flush=True)
    for kind in sorted({training.kind() for training in trainings}):
        print_differences(kind, [training for training in trainings if training.kind() == kind])
    return {f"{folder.name} {training.name}": {training.reference: training.exact.tolist()} |
            {way: losses.tolist() for way, losses in training.losses.items()} for training in trainings}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--ways", nargs="*", default=["sdpa"], choices=PEFTS, help="of PEFT")
    parser.add_argument("--filter", default="", help="only trainings with this in 'MODEL NAME'")
    parser.add_argument("--output", type=pathlib.Path, help="all losses as JSON")
    arguments = parser.parse_args()
    # Sums inside products stay f32, as ours do.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    losses = {}
    for folder in sorted(path for path in arguments.folder.iterdir() if (path / "trainings").is_dir()):
        losses |= compare(folder, arguments)
    if arguments.output:
        arguments.output.write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    main()
