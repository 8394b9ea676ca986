#!/usr/bin/env python3
# Compares two files of samples and names the cases that got slower by more than their own spread.
"""Usage: compare_bench.py OLD.json NEW.json

Both files come from `wick bench ... --json` or from `./run compare`. A case is slower if its new median exceeds the old
one by more than both 5 % and the spread of the samples (median to 90th percentile, the larger of old and new). Exits
with 1 if any is.
"""

import json
import sys


def samples_of(path):
    """Case name -> wick's samples in seconds."""
    found = {}
    with open(path, encoding="utf-8") as file:
        for case in json.load(file)["cases"]:
            seconds = case.get("seconds") or case.get("results", {}).get("wick", {}).get("seconds")
            if seconds:
                found[case["name"]] = sorted(seconds)
    return found


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def is_slower(old, new):
    spread = max(quantile(s, 0.9) - quantile(s, 0.5) for s in (old, new))
    growth = quantile(new, 0.5) - quantile(old, 0.5)
    return growth > max(0.05 * quantile(old, 0.5), spread)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    old, new = samples_of(sys.argv[1]), samples_of(sys.argv[2])
    slower = 0
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            print(f"{name}: only in the {'new' if name in new else 'old'} file")
            continue
        before, after = quantile(old[name], 0.5), quantile(new[name], 0.5)
        verdict = "SLOWER" if is_slower(old[name], new[name]) else "ok"
        slower += verdict == "SLOWER"
        print(f"{name}: {1e6 * before:.1f} -> {1e6 * after:.1f} us ({after / before:.2f}) {verdict}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
