"""The picture: each ratio by workload on a logarithmic axis, and how cost grows."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator
from ratios import RATIOS, Ratio, Runs, figure, growth, names

KEPT, MISSED, PLAIN = "#0072B2", "#D55E00", "#555555"
GROWTH_COLOURS = {"kerasflax": "#0072B2", "flax_eager": "#E69F00", "flax_jit": "#009E73"}
PER_ROW = 4
# The ticks of an axis, by the range that it spans.
TICKS = {
    2.6: (0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.2, 1.5, 2),
    20: (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    float("inf"): (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
}

mpl.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def write(runs: Runs, path: Path) -> None:
    workloads = names(runs)
    ratios = [ratio for ratio in RATIOS if any(ratio.of(runs, workload) for workload in workloads)]
    series = {
        family: sizes
        for family, sizes in growth(runs).items()
        if any("build_s" in run for run in runs if run["workload"] in sizes.values())
    }
    rows = -(-(len(ratios) + len(series)) // PER_ROW)
    picture = Picture(
        figsize=(13, 0.5 + rows * (1.1 + 0.22 * max(len(workloads), 4))), layout="constrained"
    )
    panels = iter(
        [picture.add_subplot(rows, PER_ROW, i + 1) for i in range(len(ratios) + len(series))]
    )
    for i, ratio in enumerate(ratios):
        draw_ratio(next(panels), ratio, runs, workloads, is_left=i % PER_ROW == 0)
    for family, sizes in series.items():
        draw_growth(next(panels), family, sizes, runs)
    picture.suptitle(
        "kerasflax compared with the others: median ratio and range of the rounds "
        "(left of 1, kerasflax is better)"
    )
    picture.savefig(path, dpi=130)


def draw_ratio(
    axes: Axes, ratio: Ratio, runs: Runs, workloads: list[str], *, is_left: bool
) -> None:
    for row, workload in enumerate(workloads):
        value = ratio.of(runs, workload)
        if value is None:
            axes.text(
                0.02,
                row,
                "no comparison",
                transform=axes.get_yaxis_transform(),
                va="center",
                color="#999999",
                size=7,
            )
            continue
        colour = PLAIN if ratio.target is None else KEPT if value.median <= ratio.target else MISSED
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.5, clip_on=False)
        axes.plot(value.median, row, "o", color=colour, markersize=5, clip_on=False)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low / 1.05, 0.75), max(high * 1.05, 1.34))
    axes.axvline(1, color="#999999", linewidth=1)
    target = ""
    if ratio.target is not None:
        axes.axvline(ratio.target, color=MISSED, linewidth=1, linestyle="--")
        target = f", target {ratio.target:g}"
    axes.set_title(f"{ratio.title}{target}\n/ {ratio.against}", size=8.5, loc="left")
    axes.set_yticks(range(len(workloads)), workloads if is_left else [""] * len(workloads))
    axes.set_ylim(len(workloads) - 0.5, -0.5)
    low, high = axes.get_xlim()
    ticks = next(ticks for span, ticks in TICKS.items() if high / low < span)
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)


def draw_growth(axes: Axes, family: str, sizes: dict[int, str], runs: Runs) -> None:
    words = {"weights": "weights", "depth": "Dense layers", "size": "numbers in one weight"}
    for contender, colour in GROWTH_COLOURS.items():
        found = {size: figure(runs, name, contender, "build_s") for size, name in sizes.items()}
        points = {size: value.median for size, value in found.items() if value}
        axes.plot(
            list(points),
            list(points.values()),
            "o-",
            color=colour,
            label=contender.replace("_", ", "),
            markersize=4,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"Build (s) against {words[family]}", size=8.5, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=7)
