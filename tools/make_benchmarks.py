#!/usr/bin/env python3
# Writes BENCHMARKS.md, its charts and the README's table from the samples in benchmarks/*.json.
"""Usage: make_benchmarks.py [--check]

Nothing in BENCHMARKS.md, or in a table that the README marks, is typed by hand: both come from benchmarks/cpu.json, which
`./run compare` writes. --check writes nothing and exits with 1 where a file differs from what the JSON gives.
"""

import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "cpu.json"
BEGIN, END = "<!-- table: tools/make_benchmarks.py -->", "<!-- end of table -->"
NAMES = {"wick": "wick", "onednn": "oneDNN", "openblas": "OpenBLAS", "torch": "PyTorch", "mlx": "MLX"}
COLOURS = {"onednn": "#8c6d31", "openblas": "#7b4173", "torch": "#d62728", "mlx": "#1f77b4"}
KINDS = [  # kind of case, what it is, what it includes
    ("lora_delta", "LoRA delta", "2 (x Aᵀ) Bᵀ for 64 rows, f32. oneDNN and OpenBLAS: the same two products, nothing else."),
    ("lora_grouped", "LoRA delta, 32 adapters over the rows", "Row t uses adapter t mod 32."),
    ("lora_linear", "Frozen linear layer with LoRA",
     "x Wᵀ + 2 (x Aᵀ) Bᵀ, f32. oneDNN and OpenBLAS: x Wᵀ alone, without the adapter."),
    ("lora_gradients", "Forward and backward",
     "Delta, cross-entropy over its outputs, gradients of A and B."),
    ("lora_step", "Training step", "As above, then AdamW over A and B."),
    ("adamw", "AdamW", "One step over 512 x 512 values, f32."),
    ("softmax", "Softmax", "64 rows of 1024, f32."),
    ("layer_norm", "Layer norm", "64 rows of 1024, f32."),
    ("rms_norm", "RMS norm", "64 rows of 1024, f32."),
    ("sample", "Drawing a token",
     "From f32 logits to an id on the host. wick's times include a copy of the logits, which its sampler overwrites."),
    ("kv_append", "KV cache append", "One token's keys and values, 2 heads of 64; wick f32, PyTorch bf16."),
    ("gemm", "Products of Qwen2.5-0.5B at 512 rows",
     "wick: weights in bf16, f32 arithmetic. The others: f32 weights."),
    ("train_step", "Training step of a whole model",
     "Random weights in the shape named; LoRA on all seven projections; forward, loss on every token, backward, clipping, "
     "AdamW. PyTorch: PEFT + transformers."),
    ("prefill", "Prefill of a whole model", "All tokens of a prompt, logits of the last."),
    ("decode", "Decoding with a whole model", "Prompt of 16, then greedy tokens one by one; r: with a LoRA adapter unmerged."),
]


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def duration(seconds):
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def measured(case):
    """Side -> (median, minimum, result), of the sides that gave a time."""
    return {side: (median(r["seconds"]), min(r["seconds"]), r)
            for side, r in case["results"].items() if r.get("seconds")}


def ratio(case, side):
    """Time of wick over the time of the side, by medians; None without both."""
    times = measured(case)
    return times["wick"][0] / times[side][0] if side in times and "wick" in times else None


def kind_of(case):
    return case["name"].split(":")[0]


def sides_of(record):
    return [side for side in NAMES if side in record["sides"] and "unavailable" not in record["sides"][side]]


def case_label(case):
    return case["name"].split(":", 1)[1].replace(",", ", ").replace("shape=", "")


def rate_cell(case, machine):
    """What wick reaches at its fastest, as a share of the machine's limit."""
    best = measured(case)["wick"][1]
    cells = []
    if case["flops"] > 0:
        rate = case["flops"] / best * 1e-9
        cells.append(f"{rate:.3g} GF/s ({100 * rate / machine['fma_gflops_all']:.0f} %)")
    elif case["bytes"] > 0:
        cells.append(f"{case['bytes'] / best * 1e-9:.3g} GB/s")
    if case["tokens"] > 0:
        cells.append(f"{case['tokens'] / measured(case)['wick'][0]:.3g} tok/s")
    return ", ".join(cells)


def section(record, kind, title, note):
    cases = [case for case in record["cases"] if kind_of(case) == kind and "wick" in measured(case)]
    if not cases:
        return []
    sides = [side for side in sides_of(record) if any(side in measured(case) for case in cases)]
    peers = [side for side in sides if side != "wick"]
    lines = [f"### {title}", "", note, ""]
    header = ["case"] + [NAMES[side] for side in sides] + [f"wick / {NAMES[p]}" for p in peers] + ["wick reaches"]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for case in cases:
        times = measured(case)
        row = [f"`{case_label(case)}`"]
        row += [f"{duration(times[s][0])} ({duration(times[s][1])})" if s in times else "-" for s in sides]
        row += ["-" if ratio(case, p) is None else f"{ratio(case, p):.2f}" for p in peers]
        row.append(rate_cell(case, record["machine"]))
        lines.append("| " + " | ".join(row) + " |")
    memory = [(case, s, r["extra"]["peak_rss_bytes"]) for case in cases
              for s, (_, _, r) in measured(case).items() if "extra" in r]
    if memory:
        lines += ["", "Peak memory of the process:", ""]
        lines += [f"- `{case_label(case)}`, {NAMES[side]}: {size / 2**30:.2f} GiB" for case, side, size in memory]
    return lines + [""]


def chart(record):
    """Bars of the ratios wick / peer on a logarithmic axis; left of the line wick is faster."""
    peers = [side for side in sides_of(record) if side in ("onednn", "torch", "mlx")]
    cases = [case for case in record["cases"] if any(ratio(case, p) for p in peers)]
    left, width, row, low, high = 330, 420, 8, 1 / 64, 4.0
    height = len(cases) * (row * len(peers) + 8) + 60

    def x_of(value):
        value = min(max(value, low), high)
        return left + width * (math.log2(value) - math.log2(low)) / (math.log2(high) - math.log2(low))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{height}" '
             'font-family="sans-serif" font-size="11">',
             f'<rect width="100%" height="100%" fill="white"/>']
    for power in range(-6, 3):
        x = x_of(2.0 ** power)
        label = f"{2 ** power}" if power >= 0 else f"1/{2 ** -power}"
        colour = "#333" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="30" x2="{x:.1f}" y2="{height - 10}" stroke="{colour}"/>')
        parts.append(f'<text x="{x:.1f}" y="24" text-anchor="middle">{label}</text>')
    for i, side in enumerate(peers):
        parts.append(f'<rect x="{8 + 90 * i}" y="8" width="10" height="10" fill="{COLOURS[side]}"/>'
                     f'<text x="{22 + 90 * i}" y="17">/ {NAMES[side]}</text>')
    y = 38
    for case in cases:
        parts.append(f'<text x="{left - 6}" y="{y + row * len(peers) / 2 + 4:.0f}" text-anchor="end">{case["name"]}</text>')
        for side in peers:
            value = ratio(case, side)
            if value is not None:
                one, here = x_of(1.0), x_of(value)
                parts.append(f'<rect x="{min(one, here):.1f}" y="{y}" width="{max(abs(here - one), 1):.1f}" '
                             f'height="{row - 1}" fill="{COLOURS[side]}"/>')
            y += row
        y += 8
    return "\n".join(parts + ["</svg>", ""])


def benchmarks_page(record):
    machine = record["machine"]
    versions = ", ".join(f"{NAMES[s]} {record['sides'][s].get('version', '')}".strip() for s in sides_of(record))
    missing = [f"{NAMES[s]} ({record['sides'][s]['unavailable']})" for s in NAMES
               if s in record["sides"] and "unavailable" in record["sides"][s]]
    missing += [NAMES[s] for s in NAMES if s not in record["sides"]]
    lines = [
        "# Benchmarks", "",
        "This page is written by `tools/make_benchmarks.py` from `benchmarks/cpu.json`; `./run compare` makes both anew.", "",
        "## What is measured", "",
        "- Completed work only: a sample is one call whose result is there when the clock stops (MLX: `mx.eval` every call).",
        "- Both sides do the same operation on the same shapes in the same run. Each side is a process that waits while the "
        "others work; for every case the sides take turns, in an order that rotates.",
        f"- Small cases: {record['rounds']} rounds of {record['samples']} samples a side. Times are medians, minima in "
        "brackets; ratios are of medians, below 1 where wick is faster.",
        "- wick proves the result of each small case against a scalar reference in double precision before it is timed.",
        "- Random weights and inputs; nothing is downloaded.", "",
        "## Machine", "",
        f"{machine['processor']}, {machine['instruction_set']}, {record['threads']} threads on each side. Measured limits: "
        f"f32 multiply-add {machine['fma_gflops_one']:.0f} GF/s on one thread and {machine['fma_gflops_all']:.0f} on all; "
        f"memory read {machine['read_gbs_one']:.0f} and {machine['read_gbs_all']:.0f} GB/s.", "",
        f"Versions: {versions}. " + (f"Not measured: {', '.join(missing)}." if missing else ""), "",
        "## Results", "", "![time of wick over time of each peer](benchmarks/cpu.svg)", "",
    ]
    for kind, title, note in KINDS:
        lines += section(record, kind, title, note)
    lines += ["## How to reproduce", "", "```", "./run compare                      # everything; installs the peers into build/peers",
              "./run compare --filter lora_       # some cases", "wick bench training                # wick alone", "```", ""]
    return "\n".join(lines)


def readme_table(record):
    peers = [side for side in sides_of(record) if side in ("onednn", "torch", "mlx")]
    shown = ["lora_delta:T=64,d=1024,r=8", "lora_linear:T=64,d=1024,r=8", "lora_step:B=4,T=64,d=512,r=8", "adamw:n=262144",
             "rms_norm:T=64,C=1024", "sample:V=32000,mode=top_k,k=50", "sample:V=32000,mode=top_p,p=0.9",
             "train_step:shape=qwen2.5-0.5b,T=512,r=16,dtype=bf16"]
    titles = {kind: title for kind, title, _ in KINDS}
    lines = [BEGIN, "| case | wick | " + " | ".join(NAMES[p] for p in peers) + " |", "|---|---|" + "---|" * len(peers)]
    for case in record["cases"]:
        times = measured(case)
        if case["name"] in shown and "wick" in times:
            cells = [duration(times[p][0]) if p in times else "-" for p in peers]
            lines.append(f"| {titles[kind_of(case)]}, `{case_label(case)}` | {duration(times['wick'][0])} | "
                         + " | ".join(cells) + " |")
    return "\n".join(lines + [END])


def with_table(readme, table):
    """The README with its table replaced; as it is where it has no place marked for one."""
    before, marker, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return before + table + after if marker else readme


def main():
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    pages = {ROOT / "BENCHMARKS.md": benchmarks_page(record),
             ROOT / "benchmarks" / "cpu.svg": chart(record),
             readme: with_table(readme.read_text(encoding="utf-8"), readme_table(record))}
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(f"{path.relative_to(ROOT)}:1: differs from benchmarks/cpu.json: run tools/make_benchmarks.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(pages[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
