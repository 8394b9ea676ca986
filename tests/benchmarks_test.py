#!/usr/bin/env python3
# The tools around the benchmark samples: pages follow from the samples, and slower cases are found.
import copy
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import compare_bench  # noqa: E402
import make_benchmarks  # noqa: E402

RECORD = {
    "machine": {"processor": "Test Processor", "instruction_set": "AVX2", "threads": 2, "fma_gflops_one": 100.0,
                "fma_gflops_all": 200.0, "read_gbs_one": 10.0, "read_gbs_all": 20.0, "system": "Test System"},
    "threads": 2, "rounds": 1, "samples": 3, "settle_seconds": 0.01,
    "sides": {"wick": {"version": "1"}, "torch": {"version": "2"}, "mlx": {"unavailable": "no wheel"}},
    "cases": [
        {"name": "lora_delta:T=64,d=1024,r=8", "suite": "inference", "flops": 2e6, "bytes": 1e6, "tokens": 0, "heavy": False,
         "results": {"wick": {"seconds": [2e-5, 1e-5, 3e-5]}, "torch": {"seconds": [4e-5, 5e-5, 8e-5]}}},
        {"name": "train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16", "suite": "training", "flops": 1e12, "bytes": 0,
         "tokens": 512, "heavy": True,
         "results": {"wick": {"seconds": [8.0], "extra": {"peak_rss_bytes": 2 << 30}},
                     "torch": {"unavailable": "out of memory"}}},
    ],
    "decoding": {"case": "decode:x,r=16", "bytes_of_token": 1e9, "adapter_bytes_of_token": 2e7,
                 "base_seconds": [0.05, 0.04, 0.1], "adapted_seconds": [0.051, 0.042, 0.101],
                 "base_read_gbs": [25.0, 25.0, 20.0], "adapted_read_gbs": [25.0, 25.0, 20.0]},
    "scaling": [{"name": "gemm:T=1", "one_seconds": [2e-3], "all_seconds": [1e-3],
                 "bare_one_seconds": [1.9e-4], "bare_all_seconds": [1e-4]},
                {"name": "train_step:x", "one_seconds": [9.0], "all_seconds": [5.0]}],  # too long for bare work beside it
    "neighbour": [{"name": "gemm:T=1", "quiet_seconds": [1e-3], "busy_seconds": [1.5e-3]}],
    "profiles": [{"name": "train_step:x", "calls": 2, "wall_seconds": 10.0,
                  "kernels": [{"kernel": "matmul nt", "calls": 20, "seconds": 8.0, "flops": 8e11, "bytes": 8e9}]}],
}


class Pages(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        (self.root / "benchmarks").mkdir()
        readme = f"# x\n\n{make_benchmarks.BEGIN}\n{make_benchmarks.END}\n\nrest\n"
        (self.root / "README.md").write_text(readme, encoding="utf-8")

    def tearDown(self):
        self.folder.cleanup()

    def write(self, record, device="cpu"):
        (self.root / "benchmarks" / f"{device}.json").write_text(json.dumps(record), encoding="utf-8")

    def run_tool(self, *arguments):
        return subprocess.run([sys.executable, str(TOOLS / "make_benchmarks.py"), *arguments, str(self.root)],
                              capture_output=True, text=True)

    def page(self):
        return (self.root / "BENCHMARKS.md").read_text(encoding="utf-8")

    def test_figures_are_those_of_the_samples(self):
        self.write(RECORD)
        self.assertEqual(self.run_tool().returncode, 0)
        page = self.page()
        # Medians 20 and 50 us, minima 10 and 40; 2 Mflop in 10 us at the fastest, of 200 GF/s.
        self.assertIn("| `T=64, d=1024, r=8` | 20 µs (10 µs) | 50 µs (40 µs) | 0.40 | 200 GF/s (100 %) |", page)
        self.assertIn("turn of a small case, 10 ms of calls on the CPU: a core", page)
        self.assertIn("64 tok/s", page)
        self.assertIn("2.00 GiB", page)
        self.assertIn("| matmul nt | 10 | 4 s | 80.0 % | 100 (50 %) | 1 (5 %) |", page)
        self.assertIn("| outside kernels |  | 1 s | 20.0 % |", page)
        self.assertIn("| `gemm:T=1` | 2 ms | 1 ms | 2.00 | 2.00 | 1.90 |", page)
        self.assertIn("| `gemm:T=1` | 1 ms | 1.5 ms | 1.50 |", page)
        # A gigabyte in 50, 40 and 100 ms is 20, 25 and 10 GB/s, of 25, 25 and 20.
        self.assertIn("| without an adapter | 50 ms (40 ms) | 25.0 (20.0-25.0) | 0.80 (0.50-1.00) |", page)
        self.assertIn("Time with the adapter over time without: 1.020 (1.010-1.050) by pairs; its bytes alone: 1.020.", page)
        self.assertIn("| at least 0.80 of the memory's bandwidth | 0.80 (0.50-1.00) | yes |", page)
        self.assertIn("| at most 1.05 of the time without | 1.020 (1.010-1.050) | yes |", page)
        self.assertIn("not measured: no wheel", page)
        self.assertIn("| PyTorch | train_step | out of memory |", page)
        self.assertIn("| LoRA delta | at most 0.50 of PyTorch's time | 0.40 (`lora_delta:T=64,d=1024,r=8`) | yes |", page)
        self.assertIn("at least 1.85 times as fast | 1.80 (`train_step:x`); 1 of 2 cases reach it; bare work beside them 1.90-1.90 | **no** |", page)
        readme = (self.root / "README.md").read_text(encoding="utf-8")
        self.assertIn("50 µs (0.40)", readme)
        self.assertTrue(readme.endswith("\n\nrest\n"))

    def test_check_finds_a_figure_that_was_changed_by_hand(self):
        self.write(RECORD)
        self.run_tool()
        self.assertEqual(self.run_tool("--check").returncode, 0)
        (self.root / "BENCHMARKS.md").write_text(self.page().replace("20 µs", "10 µs"), encoding="utf-8")
        checked = self.run_tool("--check")
        self.assertEqual(checked.returncode, 1)
        self.assertIn("BENCHMARKS.md:1: differs", checked.stdout)

    def test_check_finds_samples_that_have_no_pages_yet(self):
        self.write(RECORD)
        self.run_tool()
        changed = copy.deepcopy(RECORD)
        changed["cases"][0]["results"]["wick"]["seconds"] = [1e-4]
        self.write(changed)
        stale = self.run_tool("--check").stdout
        for name in ("BENCHMARKS.md", "README.md", "benchmarks/cpu-ratios.svg"):
            self.assertIn(name, stale)
        self.assertNotIn("cpu-memory.svg", stale)

    def test_a_second_device_gets_its_own_part_and_ceilings(self):
        self.write(RECORD)
        other = copy.deepcopy(RECORD)
        other["machine"] = {"processor": "Test Card", "system": "Test System", "fma_gflops_all": 1e4,
                            "matmul_gflops_all": 1e5, "read_gbs_all": 1e3}
        self.write(other, "cuda")
        self.assertEqual(self.run_tool().returncode, 0)
        cpu, cuda = self.page().split("## CUDA: Test Card\n")
        self.assertIn("200 GF/s (100 %)", cpu)
        self.assertIn("200 GF/s (0 %)", cuda)
        self.assertIn("matrix products 100000 GF/s", cuda)
        self.assertTrue((self.root / "benchmarks" / "cuda-ratios.svg").exists())

    def test_a_goal_that_is_missed_is_shown_as_missed(self):
        slow = copy.deepcopy(RECORD)
        slow["cases"][0]["results"]["wick"]["seconds"] = [4e-5]
        self.write(slow)
        self.run_tool()
        self.assertIn("0.80 (`lora_delta:T=64,d=1024,r=8`) | **no** |", self.page())

    def test_a_card_stands_beside_its_ceilings_and_the_cpu(self):
        self.write(RECORD)
        card = copy.deepcopy(RECORD)
        card["machine"] = {"processor": "Test Card", "detail": "Test Card: 80 GiB", "system": "Test System",
                           "fma_gflops_all": 1e4, "matmul_gflops_all": 1e5, "read_gbs_all": 1e3, "launch_seconds": 1e-5,
                           "kernel_seconds": 5e-7}
        delta, step = card["cases"][:2]
        delta["results"] = {"wick": {"seconds": [1e-5]}, "torch": {"seconds": [4e-5]}}
        graph = copy.deepcopy(delta)
        graph["name"] += ",in=graph"
        graph["results"] = {"wick": {"seconds": [2e-6, 2e-6, 4e-6]}, "torch": {"seconds": [8e-6]}}
        step["results"] = {"wick": {"seconds": [0.02], "extra": {"peak_device_bytes": 3 << 30, "peak_rss_bytes": 1}},
                           "torch": {"unavailable": "out of memory"}}
        card["cases"] = [delta, graph, step]
        self.write(card, "cuda-test")
        self.assertEqual(self.run_tool().returncode, 0)
        part = self.page().split("## CUDA: Test Card\n")[1]
        # 2 Mflop take 0.2 us at 10 TF/s, 1 MB takes 1 us at 1 TB/s, longer than one small kernel.
        self.assertIn("| `T=64, d=1024, r=8` | 2 µs (2 µs) | 8 µs (8 µs) | 0.25 | 1 µs (memory) | 50 % | 10 µs (10 µs) | "
                      "40 µs (40 µs) | 0.25 |", part)
        self.assertIn("| LoRA forward, `T=64, d=1024, r=8` | 20 µs | 10 µs | 2.00 | 2 µs | 10.0 |", part)
        self.assertIn("25,600 tok/s | - | - | 20 ms | 10 ms (products) | 50 % | 3.0 GiB | - |", part)
        self.assertIn("| PyTorch | train_step | out of memory |", part)
        readme = (self.root / "README.md").read_text(encoding="utf-8")
        self.assertIn("Test Card, beside PyTorch", readme)
        self.assertIn("| LoRA delta, `T=64, d=1024, r=8, in=graph` | 2 µs | 8 µs (0.25) |", readme)

    def test_without_samples_there_is_nothing_to_check(self):
        self.assertEqual(self.run_tool("--check").returncode, 0)


class Regressions(unittest.TestCase):
    def samples(self, scale, spread):
        return sorted(scale * (1 + spread * i / 20) for i in range(21))

    def test_slower_by_more_than_its_own_spread(self):
        self.assertTrue(compare_bench.is_slower(self.samples(1, 0.02), self.samples(1.1, 0.02)))

    def test_not_slower_within_its_own_spread(self):
        self.assertFalse(compare_bench.is_slower(self.samples(1, 0.5), self.samples(1.1, 0.5)))

    def test_a_few_percent_are_no_regression_however_quiet_the_machine(self):
        self.assertFalse(compare_bench.is_slower(self.samples(1, 0), self.samples(1.03, 0)))

    def test_the_program_names_the_slower_case_and_fails(self):
        with tempfile.TemporaryDirectory() as folder:
            old, new = Path(folder, "old.json"), Path(folder, "new.json")
            old.write_text(json.dumps({"cases": [{"name": "a", "seconds": self.samples(1, 0.01)},
                                                 {"name": "b", "seconds": self.samples(1, 0.01)}]}), encoding="utf-8")
            # A file of ./run compare: wick's samples among those of the peers.
            results = {"wick": {"seconds": self.samples(2, 0.01)}, "torch": {"seconds": [9]}}
            new.write_text(json.dumps({"cases": [{"name": "a", "seconds": self.samples(1, 0.01)},
                                                 {"name": "b", "results": results}]}), encoding="utf-8")
            run = subprocess.run([sys.executable, str(TOOLS / "compare_bench.py"), str(old), str(new)],
                                 capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertRegex(run.stdout, r"a: .* ok\n")
        self.assertRegex(run.stdout, r"b: .* \(2\.00\) SLOWER\n")


if __name__ == "__main__":
    unittest.main()
