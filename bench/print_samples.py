#!/usr/bin/env python3
"""Prints the file that bench/compare.py writes as a compact table: medians, and wick's time over PyTorch's."""
import json
import sys


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def cells_of(case):
    results = [case["results"].get(side, {}) for side in ("wick", "torch")]
    times = [median(result["seconds"]) if result.get("seconds") else None for result in results]
    cells = ["-" if time is None else f"{time * 1e6:.2f}" for time in times]
    cells.append("" if None in times else f"{times[0] / times[1]:.3f}")
    if case["tokens"]:
        cells += ["-" if time is None else f"{case['tokens'] / time:.0f} tok/s" for time in times]
        peaks = [result.get("extra", {}).get("peak_device_bytes") for result in results]
        cells += ["-" if peak is None else f"{peak / 2**30:.1f} GiB" for peak in peaks]
        after_prompt = results[0].get("extra", {}).get("seconds_after_prompt")
        if after_prompt:
            cells.append(f"{case['tokens'] / after_prompt:.0f} tok/s after the prompt")
    for side, result in case["results"].items():
        if "unavailable" in result:
            cells.append(f"{side}: {result['unavailable'][:90]}")
    return cells


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        record = json.load(file)
    print(json.dumps(record["machine"]))
    print("case | wick us | torch us | wick/torch")
    for case in record["cases"]:
        print(" | ".join([case["name"], *cells_of(case)]))


if __name__ == "__main__":
    main()
