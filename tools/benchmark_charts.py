# The charts of BENCHMARKS.md as SVG, from a record of samples.
"""Each function takes a record (see benchmark_record.py) and returns the text of an SVG file, or None without data."""

import math
from xml.sax.saxutils import escape

from benchmark_record import NAMES, kind_of, label_of, median, memory_of, ratio, sides_of, times_of

COLOURS = {"wick": "#e07b00", "onednn": "#8c6d31", "openblas": "#7b4173", "torch": "#c23b3b", "mlx": "#2f6fb0",
           "llama.cpp": "#4a8f4a"}
KERNEL_COLOURS = ["#e07b00", "#2f6fb0", "#4a8f4a", "#c23b3b", "#7b4173", "#8c6d31", "#d98cb3", "#7f7f7f"]
LEFT, WIDTH, BAR = 330, 420, 9


def text(x, y, content, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def box(x, y, width, height, colour):
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" fill="{colour}"/>'


def page(parts, height):
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 90}" height="{height:.0f}" '
            'font-family="sans-serif" font-size="11">')
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>", ""])


def legend(names):
    """Coloured names in a row at the top; `names` maps a name to its colour."""
    parts, x = [], 8.0
    for name, colour in names.items():
        parts += [box(x, 8, 10, 10, colour), text(x + 14, 17, name)]
        x += 24 + 6.5 * len(name)
    return parts


def ratio_chart(record):
    """Bars of the ratios wick / peer on a logarithmic axis; left of the line wick is faster."""
    peers = [side for side in sides_of(record) if side != "wick"]
    cases = [case for case in record["cases"] if any(ratio(case, peer) for peer in peers)]
    if not cases:
        return None
    low, high = 1 / 64, 4.0
    rows = sum(sum(ratio(case, peer) is not None for peer in peers) for case in cases)
    height = rows * BAR + len(cases) * 8 + 60

    def x_of(value):
        value = min(max(value, low), high)
        return LEFT + WIDTH * (math.log2(value) - math.log2(low)) / (math.log2(high) - math.log2(low))

    parts = legend({f"wick / {NAMES[peer]}": COLOURS[peer] for peer in peers})
    for power in range(-6, 3):
        x = x_of(2.0 ** power)
        colour = "#333" if power == 0 else "#ddd"
        parts.append(f'<line x1="{x:.1f}" y1="42" x2="{x:.1f}" y2="{height - 10}" stroke="{colour}"/>')
        parts.append(text(x, 36, f"{2 ** power}" if power >= 0 else f"1/{2 ** -power}", "middle"))
    y = 50
    for case in cases:
        present = [peer for peer in peers if ratio(case, peer) is not None]
        parts.append(text(LEFT - 6, y + BAR * len(present) / 2 + 4, case["name"], "end"))
        for peer in present:
            one, here = x_of(1.0), x_of(ratio(case, peer))
            parts.append(box(min(one, here), y, abs(here - one), BAR - 1, COLOURS[peer]))
            y += BAR
        y += 8
    return page(parts, height)


def bars(record, values_of, describe):
    """A bar a side for every whole model: values_of(case) maps a side to its value, describe(value) labels it."""
    rows = [(case, values_of(case)) for case in record["cases"] if case["heavy"] and values_of(case)]
    if not rows:
        return None
    parts = legend({NAMES[side]: COLOURS[side] for side in sides_of(record)
                    if any(side in values for _, values in rows)})
    y = 34
    for kind in dict.fromkeys(kind_of(case) for case, _ in rows):  # each kind has an axis of its own
        group = [(case, values) for case, values in rows if kind_of(case) == kind]
        most = max(max(values.values()) for _, values in group)
        for case, values in group:
            parts.append(text(LEFT - 6, y + (BAR + 3) * len(values) / 2 + 4, f"{kind}: {label_of(case)}", "end"))
            for side in (side for side in NAMES if side in values):
                parts.append(box(LEFT, y, WIDTH * values[side] / most, BAR + 1, COLOURS[side]))
                parts.append(text(LEFT + WIDTH * values[side] / most + 4, y + BAR, describe(values[side])))
                y += BAR + 3
            y += 8
        y += 10
    return page(parts, y)


def speed_chart(record):
    def speeds(case):
        return {side: case["tokens"] / median(seconds) for side, seconds in times_of(case).items()}

    return bars(record, speeds, lambda value: f"{value:.3g} tok/s")


def memory_chart(record):
    return bars(record, memory_of, lambda value: f"{value / 2**30:.2f} GiB")


def kernel_chart(record):
    """Where the time of whole models goes: a stacked bar a profile, the seven longest kernels named."""
    profiles = record.get("profiles", [])
    if not profiles:
        return None
    parts, y = [], 14
    for profile in profiles:
        wall = profile["wall_seconds"]
        kernels = sorted(profile["kernels"], key=lambda kernel: -kernel["seconds"])
        shown = [(kernel["kernel"], kernel["seconds"]) for kernel in kernels[:7]]
        shown.append(("everything else", wall - sum(seconds for _, seconds in shown)))
        parts.append(text(8, y, profile["name"]))
        x = 8.0
        for (name, seconds), colour in zip(shown, KERNEL_COLOURS):
            width = (LEFT + WIDTH + 70) * seconds / wall
            parts.append(box(x, y + 6, width, 22, colour))
            x += width
        for i, ((name, seconds), colour) in enumerate(zip(shown, KERNEL_COLOURS)):
            at, line = 8 + 205 * (i % 4), y + 36 + 16 * (i // 4)
            parts += [box(at, line, 10, 10, colour), text(at + 14, line + 9, f"{name} {100 * seconds / wall:.1f} %")]
        y += 92
    return page(parts, y)


CHARTS = {"ratios": ratio_chart, "speed": speed_chart, "memory": memory_chart, "kernels": kernel_chart}
