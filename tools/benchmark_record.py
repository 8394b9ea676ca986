# The samples of one run of bench/compare.py, and what is derived from them.
"""Shared by make_benchmarks.py and benchmark_charts.py. A record is the JSON that bench/compare.py writes."""

NAMES = {"wick": "wick", "onednn": "oneDNN", "openblas": "OpenBLAS", "torch": "PyTorch", "mlx": "MLX",
         "llama.cpp": "llama.cpp"}


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def quartiles(values):
    """The values at a quarter and at three quarters of the order."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(0.25 * last)], ordered[round(0.75 * last)]


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def duration(seconds):
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def times_of(case):
    """Side -> samples in seconds, of the sides that have any."""
    return {side: r["seconds"] for side, r in case["results"].items() if r.get("seconds")}


def ratio(case, side):
    """Time of wick over the time of the side, by medians; None without both."""
    times = times_of(case)
    return median(times["wick"]) / median(times[side]) if side in times and "wick" in times else None


def ratio_text(value):
    """Two decimals, or two digits where that would hide the value."""
    return "-" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def memory_of(case):
    """Side -> peak resident bytes of its process; of a GPU's memory, where the case ran on one."""
    peaks = {side: r["extra"].get("peak_device_bytes", r["extra"].get("peak_rss_bytes"))
             for side, r in case["results"].items() if "extra" in r}
    return {side: peak for side, peak in peaks.items() if peak is not None}


def kind_of(case):
    return case["name"].split(":")[0]


def label_of(case):
    return case["name"].split(":", 1)[1].replace(",", ", ").replace("shape=", "")


def cases_of(record, kind):
    return [case for case in record["cases"] if kind_of(case) == kind and "wick" in times_of(case)]


def case_named(record, name):
    return next((case for case in record["cases"] if case["name"] == name), None)


def sides_of(record):
    """The sides that took part, in the order of NAMES."""
    return [side for side in NAMES if side in record["sides"] and "unavailable" not in record["sides"][side]]


def share_of_flops(rate, machine, precision):
    """" (90 %)" of the machine's limit; a CPU's limit is that of f32, of which products of bf16 numbers are no share."""
    if precision == "medium" and "matmul_gflops_all" not in machine:
        return ""
    return f" ({100 * rate / flop_limit(machine):.0f} %)"


def flop_limit(machine):
    """What the machine's arithmetic reaches at most, in GF/s: its matrix units' rate where it has any."""
    return machine.get("matmul_gflops_all", machine["fma_gflops_all"])
