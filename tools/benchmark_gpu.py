# The part of BENCHMARKS.md about one GPU, from the samples of `bench/compare.py --device cuda`.
"""Small cases are there twice, awaited and in a graph; each row stands beside the least time that the machine's measured
ceilings allow. Whole models are in tokens a second. make_benchmarks.py calls this."""

from benchmark_record import (case_named, cases_of, duration, kind_of, label_of, median, ratio, ratio_text, table, times_of)

IN_GRAPH = ",in=graph"
KINDS = [  # kind of case, what it is, what its figure includes
    ("lora_delta", "LoRA delta", "2 (x Aᵀ) Bᵀ for T rows of width d, rank r, written over what was there (wick) or to new memory "
     "(PyTorch). In bf16: PyTorch's factors too, while wick's stay f32."),
    ("lora_linear", "Frozen linear layer with LoRA",
     "x Wᵀ + 2 (x Aᵀ) Bᵀ. n: as many adapters, each row using another; PyTorch gathers their factors."),
    ("gemm", "The frozen layer alone", "x Wᵀ, what the row of 4096 rows above costs without its adapter."),
    ("lora_gradients", "Forward and backward", "Delta, cross-entropy over its d outputs, gradients of A and B, f32."),
    ("lora_step", "Small training step", "As above, then AdamW over A and B. PyTorch: the fused optimiser."),
    ("adamw", "AdamW", "One step over n = 512 x 512 values, f32, gradients given. PyTorch: the fused optimiser."),
    ("attention", "Attention", "B sequences of T tokens, causal, H heads of D over G heads of keys and values. PyTorch: the fastest of its "
     "ways (cuDNN's kernels, its own flash attention, its memory-efficient one)."),
    ("attention_gradients", "Attention, forward and backward", "The same, and the gradients of queries, keys and values."),
    ("softmax", "Softmax", "T rows of C values, f32."),
    ("layer_norm", "Layer norm", "T rows of C values, f32, with weight and bias."),
    ("rms_norm", "RMS norm", "T rows of C values, f32, with weight."),
    ("sample", "Drawing a token", "From V logits in f32 to an id: on the host where awaited, in the GPU's memory in a graph. wick's "
     "times include a copy of the logits, which its sampler overwrites. PyTorch: the operations that its users compose."),
    ("kv_append", "KV cache append", "One token's keys and values, G heads of D, into the caches of so many layers."),
]
MODELS = [
    ("train_step", "Training steps of whole models",
     "B sequences of T tokens (B = 1 where none is named); LoRA of rank r on all seven projections; forward, loss on every token, "
     "backward, clipping by the global norm, AdamW. No checkpointing. PyTorch: PEFT + transformers, attention by its sdpa."),
    ("decode", "Decoding with whole models",
     "One sequence: a prompt, then greedy tokens one by one; the prompt is included, but in the last column. r: with a LoRA adapter, unmerged, on all "
     "seven projections. PyTorch: `generate` of transformers, timed over fewer tokens and set in proportion."),
]
AGAINST_CPU = [("lora_delta:T=64,d=512,r=8", "LoRA forward"), ("lora_delta:T=64,d=1024,r=8", "LoRA forward"),
               ("lora_delta:T=64,d=2048,r=8", "LoRA forward"), ("softmax:T=64,C=1024", "softmax"),
               ("layer_norm:T=64,C=1024", "layer norm"), ("rms_norm:T=64,C=1024", "RMS norm")]
README_CASES = [("lora_delta:T=64,d=1024,r=8" + IN_GRAPH, "LoRA delta"),
                ("lora_linear:T=64,d=1024,r=8,dtype=bf16" + IN_GRAPH, "Frozen linear layer with LoRA"),
                ("lora_linear:T=4096,d=4096,r=16,dtype=bf16" + IN_GRAPH, "Frozen linear layer with LoRA"),
                ("lora_step:B=4,T=64,d=512,r=8" + IN_GRAPH, "Small training step"),
                ("train_step:shape=qwen2.5-0.5b,B=4,T=2048,r=16,dtype=bf16", "Training"),
                ("train_step:shape=qwen2.5-7b,B=2,T=4096,r=16,dtype=bf16", "Training"),
                ("decode:shape=qwen2.5-0.5b,prompt=16,tokens=256,dtype=bf16,r=16", "Decoding"),
                ("decode:shape=qwen2.5-7b,prompt=16,tokens=256,dtype=bf16,r=16", "Decoding")]


def is_gpu(record):
    return "kernel_seconds" in record["machine"]


def ceilings_text(machine):
    return (f"bf16 products {machine['matmul_gflops_all'] * 1e-3:.0f} TF/s, f32 products {machine['fma_gflops_all'] * 1e-3:.1f} "
            f"TF/s, copy {machine['read_gbs_all'] * 1e-3:.2f} TB/s (bytes read and written), a small kernel in a graph "
            f"{duration(machine['kernel_seconds'])}, launching a graph and awaiting it {duration(machine['launch_seconds'])}")


def floor_of(case, machine):
    """The least seconds that the machine's ceilings allow, and which one binds."""
    narrow = "dtype=bf16" in case["name"]
    rate = machine["matmul_gflops_all"] if narrow else machine["fma_gflops_all"]
    floors = {"products": case["flops"] / rate * 1e-9, "memory": case["bytes"] / machine["read_gbs_all"] * 1e-9,
              "one kernel": machine["kernel_seconds"]}
    binding = max(floors, key=floors.get)
    return floors[binding], binding


def time_cells(case):
    """wick's median and minimum, PyTorch's, and the ratio of medians; dashes where there is no case."""
    times = times_of(case) if case else {}
    cells = [f"{duration(median(times[side]))} ({duration(min(times[side]))})" if side in times else "-"
             for side in ("wick", "torch")]
    return [*cells, ratio_text(ratio(case, "torch")) if case else "-"]


def small_section(record, kind, title, note):
    cases = [case for case in cases_of(record, kind) if not case["name"].endswith(IN_GRAPH)]
    if not cases:
        return []
    rows = []
    for case in cases:
        graph = case_named(record, case["name"] + IN_GRAPH)
        floor, binding = floor_of(case, record["machine"])
        times = times_of(graph).get("wick") if graph else None
        share = f"{100 * floor / min(times):.0f} %" if times else "-"
        rows.append([f"`{label_of(case)}`", *time_cells(graph), f"{duration(floor)} ({binding})", share, *time_cells(case)])
    header = ["case", "wick, in a graph", "PyTorch, in a graph", "ratio", "floor", "floor / wick", "wick, awaited",
              "PyTorch, awaited", "ratio"]
    return [f"#### {title}", "", note, "", *table(header, rows)]


def speed_text(case, seconds):
    speed = case["tokens"] / seconds
    return f"{speed:,.0f} tok/s" if speed >= 100 else f"{speed:.1f} tok/s"


def gib_of(case, side):
    peak = case["results"].get(side, {}).get("extra", {}).get("peak_device_bytes")
    return "-" if peak is None else f"{peak / 2**30:.1f} GiB"


def after_prompt_of(case):
    seconds = case["results"]["wick"].get("extra", {}).get("seconds_after_prompt")
    return speed_text(case, seconds) if seconds else "-"


def model_section(record, kind, title, note):
    rows = []
    for case in cases_of(record, kind):
        times = times_of(case)
        speeds = [speed_text(case, median(times[side])) if side in times else "-" for side in ("wick", "torch")]
        floor, binding = floor_of(case, record["machine"])
        rows.append([f"`{label_of(case)}`", *speeds, ratio_text(ratio(case, "torch")), duration(median(times["wick"])),
                     f"{duration(floor)} ({binding})", f"{100 * floor / median(times['wick']):.0f} %",
                     gib_of(case, "wick"), gib_of(case, "torch"), *([after_prompt_of(case)] if kind == "decode" else [])])
    if not rows:
        return []
    header = ["case", "wick", "PyTorch", "time of wick / PyTorch", "wick's time", "floor", "floor / wick", "wick, peak memory",
              "PyTorch, peak memory", *(["wick, after the prompt"] if kind == "decode" else [])]
    return [f"#### {title}", "", note, "", *table(header, rows)]


def against_cpu_section(record, cpu):
    """The same awaited work on both devices: records of two machines, so the ratio says what each is for, no more."""
    rows = []
    for name, title in AGAINST_CPU:
        here, there, graph = case_named(record, name), case_named(cpu, name), case_named(record, name + IN_GRAPH)
        if not here or not there or "wick" not in times_of(here) or "wick" not in times_of(there):
            continue
        times = [median(times_of(case)["wick"]) for case in (there, here)]
        in_graph = times_of(graph).get("wick") if graph else None
        rows.append([f"{title}, `{label_of(here)}`", *map(duration, times), f"{times[0] / times[1]:.2f}",
                     *([duration(median(in_graph)), f"{times[0] / median(in_graph):.1f}"] if in_graph else ["-", "-"])])
    if not rows:
        return []
    header = ["f32", "CPU", "GPU, awaited", "CPU / GPU", "GPU, in a graph", "CPU / GPU"]
    return ["#### GPU against CPU", "", f"wick alone: {record['machine']['processor']} and {cpu['machine']['processor']} "
            f"({cpu['threads']} threads), each from its own run. Awaiting a GPU costs more than this work; inside a graph, as in "
            "a training step, it does not.", "", *table(header, rows)]


def versions_of(record):
    parts = []
    for side, name in (("wick", "wick"), ("torch", "PyTorch")):
        info = record["sides"].get(side, {"unavailable": "not asked for"})
        parts.append(f"{name} {info.get('version', 'not measured: ' + info.get('unavailable', ''))}")
    return ", ".join(parts)


def gpu_part(record, cpu):
    """Lines about one card; `cpu` is the record of the CPU, or None."""
    machine = record["machine"]
    lines = ["### Configuration", "", f"{machine['detail']}; {machine['system']}. {versions_of(record)}. Ceilings, measured in the "
             f"same run through wick's back end: {ceilings_text(machine)}.", "", *([record["note"], ""] if "note" in record else []),
             "### Results", "",
             f"In a graph: 100 repetitions in one CUDA graph that is replayed and awaited; the time is that of one repetition. "
             f"Awaited: one call from the host, and a synchronisation. {record['rounds']} turns of up to {record['samples']} samples "
             "a side; whole models one side after the other, since their memory would not hold both. Medians, minima in brackets; "
             "ratios are times of wick over those of PyTorch. Floor: the longest of flops at the rate of products, bytes at the rate "
             "of a copy (though small cases stay in the cache), and one small kernel.", ""]
    for kind, title, note in KINDS:
        lines += small_section(record, kind, title, note)
    if cpu:
        lines += against_cpu_section(record, cpu)
    for kind, title, note in MODELS:
        lines += model_section(record, kind, title, note)
    return lines


def readme_rows(record):
    """Text about the card, and rows of a table: case, wick, PyTorch."""
    rows = []
    for name, title in README_CASES:
        case = case_named(record, name)
        if not case or "wick" not in times_of(case):
            continue
        times = times_of(case)

        def cell(side):
            if side not in times:
                return "-"
            seconds = median(times[side])
            return speed_text(case, seconds) if case["tokens"] else duration(seconds)

        share = f" ({ratio_text(ratio(case, 'torch'))})" if "torch" in times else ""
        rows.append([f"{title}, `{label_of(case)}`", cell("wick"), cell("torch") + share])
    return rows
