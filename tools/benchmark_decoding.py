# Decoding in turns of one token: what an adapter costs, and the share of the memory's bandwidth.
"""From the pairs of tokens that `wick bench decoding` took; used by make_benchmarks.py and benchmark_goals.py."""

from benchmark_record import duration, median, quartiles, table


def adapter_costs(decoding):
    """Time of a token with the adapter over that of its neighbour without."""
    return [adapted / base for adapted, base in zip(decoding["adapted_seconds"], decoding["base_seconds"])]


def adapter_bytes(decoding):
    """What a token with the adapter reads over what one without it does."""
    return 1 + decoding["adapter_bytes_of_token"] / decoding["bytes_of_token"]


def bandwidth_shares(decoding, side="base"):
    """A token's bytes a second over those of reading memory right before and after it."""
    moved = decoding["bytes_of_token"] * (adapter_bytes(decoding) if side == "adapted" else 1)
    return [moved / seconds * 1e-9 / limit
            for seconds, limit in zip(decoding[f"{side}_seconds"], decoding[f"{side}_read_gbs"])]


def spread(values, digits=2):
    """"1.04 (1.00-1.08)": median and quartiles."""
    low, high = quartiles(values)
    return f"{median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def decoding_section(record):
    decoding = record.get("decoding")
    if not decoding:
        return []
    rows = []
    for side, name in (("base", "without an adapter"), ("adapted", "with the adapter")):
        seconds, limits = decoding[f"{side}_seconds"], decoding[f"{side}_read_gbs"]
        low, high = quartiles(limits)
        rows.append([name, f"{duration(median(seconds))} ({duration(min(seconds))})",
                     f"{median(limits):.1f} ({low:.1f}-{high:.1f})", spread(bandwidth_shares(decoding, side))])
    pairs = len(decoding["base_seconds"])
    text = (f"`{decoding['case']}`: one text is continued with and without the adapter in turns, one token each, {pairs} pairs; "
            "memory is read by all threads before and after each token, by two passes over 512 MiB on large pages, of which "
            "the faster counts. So each ratio is of neighbours in time: the memory of a shared machine gets faster and slower "
            "by a third within minutes. Without the prompt; tokens with the minimum in brackets, all else medians with "
            "quartiles in brackets.")
    costs = adapter_costs(decoding)
    header = ["", "a token", "reading memory, GB/s", "weights a second, share of that"]
    return ["### Decoding, in turns", "", text, "", *table(header, rows),
            f"Time with the adapter over time without: {spread(costs, 3)} by pairs; its bytes alone: "
            f"{adapter_bytes(decoding):.3f}.", ""]
