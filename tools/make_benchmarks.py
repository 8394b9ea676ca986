#!/usr/bin/env python3
# Writes BENCHMARKS.md, its charts and the README's table from the samples in benchmarks/*.json.
"""Usage: make_benchmarks.py [--check] [ROOT]

Nothing in BENCHMARKS.md, or in a table that the README marks, is typed by hand: all comes from benchmarks/cpu.json, which
`./run compare` writes, and from benchmarks/cuda*.json, a file a card, which bench/gpu.sh writes. --check writes nothing and exits with 1 where a
file differs from what the samples give.
"""

import json
import sys
from pathlib import Path

from benchmark_charts import CHARTS
from benchmark_decoding import decoding_section
from benchmark_goals import gain_of, goals_of
from benchmark_gpu import gpu_part, is_gpu, readme_rows
from benchmark_record import (NAMES, case_named, cases_of, duration, kind_of, label_of, median, memory_of,
                              ratio, ratio_text, share_of_flops, sides_of, table, times_of)

BEGIN, END = "<!-- table: tools/make_benchmarks.py -->", "<!-- end of table -->"
CHART_TITLES = {"ratios": "time of wick over time of each peer; left of the line wick is faster",
                "speed": "tokens a second, whole models", "memory": "peak memory of the process, whole models",
                "kernels": "where the time of whole models goes"}

KINDS = [  # kind of case, what it is, what its figure includes and does not include
    ("lora_delta", "LoRA delta",
     "2 (x Aᵀ) Bᵀ for T rows of width d, rank r, f32, written to memory. The frozen product is not included, nor is any "
     "gradient. oneDNN and OpenBLAS: the same two products and nothing else, the scaling folded into the second."),
    ("lora_grouped", "LoRA delta, many adapters over the rows",
     "As above, but row t uses adapter t mod n, as a server with many adapters does."),
    ("lora_linear", "Frozen linear layer with LoRA",
     "x Wᵀ + 2 (x Aᵀ) Bᵀ, f32. oneDNN and OpenBLAS: x Wᵀ alone, without the adapter."),
    ("lora_gradients", "Forward and backward",
     "Delta of B x T rows, cross-entropy over its d outputs, gradients of A and B. No gradient of x, no optimiser."),
    ("lora_step", "Small training step", "As above, then AdamW over A and B."),
    ("adamw", "AdamW", "One step over n = 512 x 512 values, f32, gradients given. PyTorch: the fused optimiser."),
    ("softmax", "Softmax", "T rows of C values, f32, to another place in memory."),
    ("layer_norm", "Layer norm", "T rows of C values, f32, with weight and bias."),
    ("rms_norm", "RMS norm", "T rows of C values, f32, with weight."),
    ("sample", "Drawing a token",
     "From V logits in f32 to an id on the host, random numbers included. wick's times include a copy of the logits, "
     "which its sampler overwrites. PyTorch and MLX: the operations that their users compose for it."),
    ("kv_append", "KV cache append",
     "One token's keys and values, G heads of D, f32, into the caches of so many layers with room for P tokens."),
    ("kv_fill", "KV cache fill", "The same from an empty cache to T tokens, one by one, in all layers."),
    ("gemm", "Products of Qwen2.5-0.5B",
     "x Wᵀ at T rows, f32 arithmetic. wick: weights in bf16, as it keeps a base. The others: f32 weights."),
    ("train_step", "Training step of a whole model",
     "One sequence of T tokens; LoRA of rank r on all seven projections; forward, loss on every token, backward, clipping by "
     "the global norm, AdamW. Random weights in the shape named; reading data and files is not included. PyTorch: PEFT + "
     "transformers, the base in the same type."),
    ("prefill", "Prefill of a whole model", "All T tokens of a prompt into an empty cache, logits of the last; no sampling."),
    ("decode", "Decoding with a whole model",
     "A prompt of so many tokens, then greedy tokens one by one; the prompt is included in the time. r: with a LoRA adapter, "
     "unmerged, on all seven projections. PyTorch: `generate` of transformers."),
]
README_CASES = ["lora_delta:T=64,d=1024,r=8", "lora_linear:T=64,d=1024,r=8", "lora_step:B=4,T=64,d=512,r=8",
                "adamw:n=262144", "rms_norm:T=64,C=1024", "sample:V=32000,mode=top_k,k=50",
                "sample:V=32000,mode=top_p,p=0.9", "train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16",
                "prefill:shape=qwen2.5-0.5b,T=512,dtype=bf16",
                "decode:shape=qwen2.5-0.5b,prompt=16,tokens=32,dtype=bf16"]


def reached(case, machine):
    """What wick reaches at its fastest, and its share of the machine's limit."""
    times = times_of(case)["wick"]
    cells = []
    if case["flops"] > 0:
        rate = case["flops"] / min(times) * 1e-9
        precision = case["results"]["wick"].get("extra", {}).get("matmul_precision")
        cells.append(f"{rate:.3g} GF/s{share_of_flops(rate, machine, precision) or ' (products of bf16)'}")
    elif case["bytes"] > 0:
        rate = case["bytes"] / min(times) * 1e-9
        # Without a share: the memory's speed changes between the case and the limit. See decoding_section.
        cells.append(f"{rate:.3g} GB/s")
    if case["tokens"] > 0:
        cells.append(f"{case['tokens'] / median(times):.3g} tok/s")
    return ", ".join(cells)


def kind_section(record, kind, title, note):
    cases = cases_of(record, kind)
    if not cases:
        return []
    sides = [side for side in sides_of(record) if any(side in times_of(case) for case in cases)]
    peers = [side for side in sides if side != "wick"]
    rows = []
    for case in cases:
        times = times_of(case)
        row = [f"`{label_of(case)}`"]
        row += [f"{duration(median(times[s]))} ({duration(min(times[s]))})" if s in times else "-" for s in sides]
        row += [ratio_text(ratio(case, p)) for p in peers]
        rows.append(row + [reached(case, record["machine"])])
    header = ["case", *(NAMES[s] for s in sides), *(f"wick / {NAMES[p]}" for p in peers), "wick reaches"]
    return [f"#### {title}", "", note, "", *table(header, rows)]


def memory_section(record, device):
    cases = [case for case in record["cases"] if memory_of(case)]
    if not cases:
        return []
    sides = [side for side in sides_of(record) if any(side in memory_of(case) for case in cases)]
    rows = []
    for case in cases:
        memory = memory_of(case)
        cells = [f"{memory[s] / 2**30:.2f} GiB" if s in memory else "-" for s in sides]
        rows.append([f"`{case['name']}`", *cells])
    return ["### Memory", "", "Peak resident size of the side's process, which runs this one case: the program, building the "
            "model and the weights are included.", "", f"![{CHART_TITLES['memory']}](benchmarks/{device}-memory.svg)", "",
            *table(["case", *(NAMES[s] for s in sides)], rows)]


def kernel_section(record, device):
    """Where the time of whole models goes, from wick's own profiles."""
    if not record.get("profiles"):
        return []
    machine = record["machine"]
    lines = ["### Where the time goes", "", "From `wick bench --profile`, which awaits each kernel. Rates are of the work a "
             "kernel has to do at least: each input read and each output written once. In brackets: share of the machine's "
             "limit.", "", f"![{CHART_TITLES['kernels']}](benchmarks/{device}-kernels.svg)", ""]
    for profile in record["profiles"]:
        rows = []
        for kernel in sorted(profile["kernels"], key=lambda kernel: -kernel["seconds"]):
            share = kernel["seconds"] / profile["wall_seconds"]
            if share < 0.001:
                continue
            flops, moved = (kernel[key] / kernel["seconds"] * 1e-9 for key in ("flops", "bytes"))
            rows.append([kernel["kernel"], f"{kernel['calls'] / profile['calls']:.0f}",
                         duration(kernel["seconds"] / profile["calls"]), f"{100 * share:.1f} %",
                         f"{flops:.3g}{share_of_flops(flops, machine, profile.get('matmul_precision'))}",
                         f"{moved:.3g} ({100 * moved / machine['read_gbs_all']:.0f} %)"])
        outside = profile["wall_seconds"] - sum(kernel["seconds"] for kernel in profile["kernels"])
        rows.append(["outside kernels", "", duration(outside / profile["calls"]),
                     f"{100 * outside / profile['wall_seconds']:.1f} %", "", ""])
        lines += [f"`{profile['name']}`", "", *table(["kernel", "calls", "time a call of the case", "share", "GF/s", "GB/s"],
                                                     rows)]
    return lines


def threads_section(record):
    rows = [[f"`{case['name']}`", duration(median(case["one_seconds"])), duration(median(case["all_seconds"])),
             f"{gain_of(case):.2f}", f"{min(case['one_seconds']) / min(case['all_seconds']):.2f}",
             f"{gain_of(case, 'bare_'):.2f}" if "bare_one_seconds" in case else "-"] for case in record.get("scaling", [])]
    if not rows:
        return []
    return ["### One thread and all", "", f"Every case of 1 Mflop or more, with one thread and with {record['threads']}, taking "
            "turns. Bare work, in the same turns as each small case: threads that each add up an array of their own in the second "
            "cache and share nothing, so what they gain is what the machine gave while the case ran; a virtual machine shares "
            "its cores and their caches with others. Smaller cases than these run on one thread by choice: waking another costs more than it gains.", "",
            *table(["case", "one thread", "all", "gain", "gain of minima", "gain of bare work"], rows)]


def neighbour_section(record):
    rows = []
    for case in record.get("neighbour", []):
        quiet, busy = median(case["quiet_seconds"]), median(case["busy_seconds"])
        rows.append([f"`{case['name']}`", duration(quiet), duration(busy), f"{busy / quiet:.2f}"])
    if not rows:
        return []
    return ["### With a busy neighbour", "", "The same cases while another process keeps one core busy, in turns with quiet "
            "rounds.", "", *table(["case", "quiet", "busy neighbour", "times as long"], rows)]


def limits_text(machine):
    """The machine's measured limits in a sentence."""
    parts = [f"f32 multiply-add {machine['fma_gflops_one']:.0f} GF/s on one thread and {machine['fma_gflops_all']:.0f} on "
             "all" if "fma_gflops_one" in machine else f"f32 multiply-add {machine['fma_gflops_all']:.0f} GF/s"]
    if "matmul_gflops_all" in machine:
        parts.append(f"matrix products {machine['matmul_gflops_all']:.0f} GF/s")
    parts.append(f"memory read {machine['read_gbs_one']:.1f} GB/s on one thread and {machine['read_gbs_all']:.1f} on all"
                 if "read_gbs_one" in machine else f"memory read {machine['read_gbs_all']:.0f} GB/s")
    return "; ".join(parts)


def configuration(record):
    machine = record["machine"]
    rows = []
    for side in NAMES:
        info = record["sides"].get(side, {"unavailable": "not asked for"})
        version = info.get("unavailable")
        version = f"not measured: {version}" if version else f"{info.get('version', '')} {info.get('detail', '')}".strip()
        rows.append([NAMES[side], version])
    # Highway calls AVX-512 and what followed it AVX3.
    instructions = f", {machine['instruction_set'].replace('AVX3', 'AVX-512')}" if "instruction_set" in machine else ""
    return ["### Configuration", "",
            f"{machine['processor']}{instructions}, {machine['system']}; {record['threads']} threads a side. Limits, measured "
            f"in the same run: {limits_text(machine)}.", "", *table(["side", "version and kernels"], rows)]


def goals_section(record, device):
    """On the CPU alone: the goals are ratios to peers there."""
    goals = goals_of(record) if device == "cpu" else []
    rows = [[what, goal, reached, "yes" if enough else "**no**"] for what, goal, reached, enough in goals]
    return ["### Goals", "", "What wick is held to, and the worst case of this run.", "",
            *table(["what", "goal", "worst case", "reached"], rows)] if rows else []


def lacks_section(record):
    """Why a peer has no figure where it has none."""
    reasons = {}
    for case in record["cases"]:
        for side, result in case["results"].items():
            if "unavailable" in result:
                reasons.setdefault((side, result["unavailable"]), set()).add(kind_of(case))
    rows = [[NAMES[side], ", ".join(sorted(kinds)), reason] for (side, reason), kinds in sorted(reasons.items())]
    return ["### Not measured, and why", "", *table(["side", "cases", "reason"], rows)] if rows else []


def heading_of(record, device):
    return "CPU" if device == "cpu" else f"CUDA: {record['machine']['processor']}"


def gpu_lines(record, device, cpu):
    lines = [f"## {heading_of(record, device)}", "", *gpu_part(record, cpu)]
    for name in ("speed", "memory"):
        if CHARTS[name](record):
            lines += [f"![{CHART_TITLES[name].replace('of the process', 'of the GPU')}](benchmarks/{device}-{name}.svg)", ""]
    return lines + kernel_section(record, device) + lacks_section(record)


def device_part(record, device):
    unknown = {kind_of(case) for case in record["cases"]} - {kind for kind, _, _ in KINDS}
    if unknown:
        sys.exit(f"benchmarks/{device}.json: say in KINDS what these cases include: {', '.join(sorted(unknown))}")
    charts = [f"![{CHART_TITLES[name]}](benchmarks/{device}-{name}.svg)" for name in ("ratios", "speed")
              if CHARTS[name](record)]
    lines = [f"## {heading_of(record, device)}", "", *configuration(record), "### Results", "",
             f"Small cases: up to {record['rounds']} x {record['samples']} samples a side, taken in {record['rounds']} turns; whole "
             "models: fewer, all in the file of samples. Times are medians, with minima in brackets; ratios are of medians, below 1 where wick is faster.", ""]
    for link in charts:
        lines += [link, ""]
    for kind, title, note in KINDS:
        lines += kind_section(record, kind, title, note)
    return (lines + decoding_section(record) + goals_section(record, device) + memory_section(record, device) + kernel_section(record, device) + threads_section(record)
            + neighbour_section(record) + lacks_section(record))


METHOD = """# Benchmarks

This page is written by `tools/make_benchmarks.py` from the samples in `benchmarks/`; `./run compare` makes both anew. No figure
is typed by hand, and a test checks that page, charts and samples agree.

## How it is measured

- Completed work only: a sample is one call whose result is there when the clock stops (MLX: `mx.eval` every call).
- Both sides do the same operation on the same shapes in the same run, in the same number type unless the case says otherwise. Each
  side is a process that waits while the others work; for every case the sides take turns, in an order that rotates, so that a
  change in the machine's load meets all of them. On the CPU a round goes through all small cases before the next one begins, so that
  some slow seconds of the host meet a part of many cases' samples, and not all of one's. Models that take minutes a call are the
  exception: one side after the other.
- Three calls of a small case, or one of a whole model, come before the samples and are not counted{settled}.
- wick proves the result of each small case against a scalar reference in double precision before it is timed; whole models are
  proved by the test suite against PyTorch.
- What an adapter costs while decoding, and decoding's share of the memory's bandwidth, are ratios of neighbours: in one process a
  token with the adapter, a token without, and passes over memory before and after each take turns, and the median of the pairs'
  ratios counts, shown with its quartiles.
- Every kernel timed is the one that `wick train`, `generate` and `evaluate` run.
- Random weights and inputs; nothing is downloaded. Loading a model is not in any time.
"""

REPRODUCE = """## How to reproduce

```
./run compare                           # everything; installs the peers into build/peers
bench/gpu.sh WICK benchmarks/cuda.json   # on a machine with a GPU, a program of ./run cuda-build
./run compare --filter lora_            # some cases, shown only
wick bench machine                      # the machine's limits
wick bench training                     # wick alone; inference: the other suite
wick bench training --shape qwen2.5-0.5b --profile
tools/compare_bench.py OLD.json NEW.json
```
"""


def settled(records):
    """What comes before each turn of a small case, for the records that say so."""
    seconds = {(is_gpu(record), record["settle_seconds"]) for record in records.values() if "settle_seconds" in record}
    places = [f"{duration(s)} of calls on {'a GPU' if gpu else 'the CPU'}" for gpu, s in sorted(seconds)]
    if not places:
        return ""
    return (f"; nor are those before each\n  turn of a small case, {' and '.join(places)}: a core that slept may take a millisecond to "
            "come back")


def benchmarks_page(records):
    parts = [METHOD.format(settled=settled(records)).rstrip("\n"), ""]
    for device, record in records.items():
        parts += gpu_lines(record, device, records.get("cpu")) if is_gpu(record) else device_part(record, device)
    return "\n".join(parts + [REPRODUCE])


def readme_gpu_table(record):
    """Of one card; empty where the record is not of one, or has a note, as those of an older tree have."""
    if not is_gpu(record) or "note" in record:
        return []
    about = (f"{record['machine']['processor']}, beside PyTorch (whole models: PEFT + transformers). in=graph: the time of a call "
             "inside a replayed CUDA graph. In brackets time of wick / time of PyTorch.")
    return [about, "", *table(["case", "wick", "PyTorch"], readme_rows(record))]


def readme_table(record, others):
    peers = [side for side in sides_of(record) if side in ("onednn", "torch", "mlx", "llama.cpp")]
    titles = {kind: title for kind, title, _ in KINDS}
    rows = []
    for case in filter(None, (case_named(record, name) for name in README_CASES)):
        times = times_of(case)
        cells = [f"{duration(median(times[p]))} ({ratio_text(ratio(case, p))})" if p in times else "-" for p in peers]
        rows.append([f"{titles[kind_of(case)]}, `{label_of(case)}`", duration(median(times["wick"])), *cells])
    machine = record["machine"]
    header = ["case", "wick", *(NAMES[p] for p in peers)]
    about = (f"{machine['processor']}, {record['threads']} threads a side; in brackets time of wick / time of the peer. "
             "oneDNN: the bare products alone. All cases, what each includes, memory and profiles: [BENCHMARKS.md](BENCHMARKS.md).")
    gpus = [line for other in others for line in readme_gpu_table(other)]
    return "\n".join([BEGIN, "", about, "", *table(header, rows), *gpus, END])


def with_table(readme, text):
    """The README with its table replaced; as it is where it has no place marked for one."""
    before, marker, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + text + after if marker else readme


def make_pages(root):
    """Path -> text of everything that the samples under `root` give; empty without samples."""
    paths = [root / "benchmarks" / "cpu.json", *sorted((root / "benchmarks").glob("cuda*.json"))]
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()}
    pages = {}
    for device, record in records.items():
        for name, draw in CHARTS.items():
            chart = draw(record)
            if chart:
                pages[root / "benchmarks" / f"{device}-{name}.svg"] = chart
    if records:
        pages[root / "BENCHMARKS.md"] = benchmarks_page(records)
    if "cpu" in records:
        readme = root / "README.md"
        pages[readme] = with_table(readme.read_text(encoding="utf-8"), readme_table(records["cpu"], list(records.values())))
    return pages


def stale_pages(root):
    """Paths of what differs from the samples, and of charts that no samples give."""
    pages = make_pages(root)
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return stale, [path for path in sorted((root / "benchmarks").glob("*.svg")) if path not in pages]


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    root = Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent
    stale, left_over = stale_pages(root)
    if "--check" in sys.argv[1:]:
        for path in stale + left_over:
            print(f"{path.relative_to(root)}:1: differs from the samples in benchmarks/: run tools/make_benchmarks.py")
        return 1 if stale or left_over else 0
    pages = make_pages(root)
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    for path in left_over:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
