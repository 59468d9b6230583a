"""Plots: the front and the steering curves as PNG, for papers, model cards and terminals.

Draws what `series` prepares, on figures of its own: matplotlib's global state (pyplot, rcParams,
the backend) is never touched, so it is safe inside a training process. Knows nothing of how a
sweep was made. Shapes: W weight vectors of a sweep, N texts, K objectives.

| K | front |
|---|---|
| 2 | scatter, the path of the weights, the attained region, 95 % intervals |
| 3 | each objective's mean over the triangle of weights, and the three pairwise fronts |
| other | parallel coordinates, one line per weight vector |
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from moodpo.errors import ConfigError
from moodpo.evaluation.report.series import (
    NEUTRAL_COLOR,
    Estimate,
    Series,
    baseline_series,
    objective_colors,
    path_order,
    series_colors,
    staircase,
    sweep_series,
    weight_colors,
)
from moodpo.evaluation.results import FloatArray, SweepResult
from moodpo.files import replacing

__all__ = ["plot_front"]

Results: TypeAlias = SweepResult | Series | Sequence[tuple[str, SweepResult | Series]]

INK, MUTED, RULE = "#22262b", "#686e76", "#e3e5e8"
DPI = 200
SMALL, NORMAL = 8, 9.5  # font sizes in points
MARKERS = "osD^vPX"


def plot_front(
    results: Results, path: str | os.PathLike[str], *, caption: str | None = None
) -> Path:
    """Draws the front of one sweep, or the fronts of several over each other.

    One sweep is colored by weight, with its base model hollow; several are colored by sweep, the
    first one muted as the one to compare with.

    Args:
        results: A sweep or a `Series`, or several as (name, sweep or `Series`).
        path: The PNG to write; its folder must exist.
        caption: The line under the figure. By default the hypervolume of a single sweep and what
            the bars mean.

    Returns:
        The path.

    Raises:
        ConfigError: If there is nothing to draw or the sweeps have different objectives.
    """
    drawn, baseline = _series_of(results)
    K = len(drawn[0].objectives)
    draw = {2: _draw_plane, 3: _draw_triangle}.get(K, _draw_parallel)
    figure = draw(drawn, baseline)
    _add_caption(figure, _front_caption(results, K) if caption is None else caption)
    return _save(figure, path)


# --- what is drawn ---


def _series_of(results: Results) -> tuple[list[Series], Series | None]:
    """The series to draw and, for a single sweep only, its base model."""
    if isinstance(results, SweepResult):
        return [sweep_series(results)], baseline_series(results)
    if isinstance(results, Series):
        return [results], None
    drawn = [_named_series(name, item) for name, item in results]
    if not drawn:
        raise ConfigError("There is nothing to plot: expected at least one result, got none.")
    for series in drawn[1:]:
        if series.objectives != drawn[0].objectives:
            raise ConfigError(
                f"Cannot draw {series.name!r} over {drawn[0].name!r}: it has the objectives "
                f"{list(series.objectives)}, expected {list(drawn[0].objectives)} in this order."
            )
    return drawn, None


def _named_series(name: str, item: SweepResult | Series) -> Series:
    if isinstance(item, SweepResult):
        return sweep_series(item, name)
    return replace(item, name=name)


def _front_caption(results: Results, K: int) -> str:
    marks = (
        "Bars: 95 % intervals of the mean"
        if K in (2, 3)
        else "Thick lines: one objective alone. Lines: means"
    )
    if not isinstance(results, SweepResult):
        return f"{marks} over prompts."
    bars = f"{marks} over {results.num_prompts} prompts."
    volume = results.metrics.get("hypervolume")
    if not isinstance(volume, dict) or not np.isfinite(volume.get("value", np.nan)):
        return bars
    text = f"Hypervolume {volume['value']:.3g}"
    if np.isfinite([volume.get("low", np.nan), volume.get("high", np.nan)]).all():
        text += f" [{volume['low']:.3g}, {volume['high']:.3g}]"
    reference = ", ".join(_number(value) for value in results.reference_point)
    return f"{text} above the reference point ({reference}), in normalized units. {bars}"


# --- two objectives ---


def _draw_plane(drawn: list[Series], baseline: Series | None) -> Any:
    single = len(drawn) == 1
    figure = _figure(6.9 if single else 6.2, 5.2)
    axis = figure.add_subplot()
    _draw_pair(axis, drawn, baseline, (0, 1))
    axis.legend(loc="best", **_legend_style())
    _label_corners(axis, max(drawn, key=_reach))  # where the ends are farthest apart
    if single:
        _add_weight_bar(figure, axis, drawn[0].objectives)
    return figure


def _draw_pair(
    axis: Any, drawn: list[Series], baseline: Series | None, pair: tuple[int, int]
) -> None:
    """Two objectives of every series: region, path, intervals, points; base model hollow below."""
    objectives = drawn[0].objectives
    _style(axis)
    axis.set_xlabel(f"mean reward: {_name(objectives[pair[0]])}", **_text(NORMAL))
    axis.set_ylabel(f"mean reward: {_name(objectives[pair[1]])}", **_text(NORMAL))
    if baseline is not None:
        _draw_hollow(axis, baseline, pair)
    for index, series in enumerate(drawn):
        one_color = None if len(drawn) == 1 else series_colors(len(drawn))[index]
        _draw_points(axis, series, pair, one_color, MARKERS[index % len(MARKERS)], z=4 + 3 * index)
    axis.margins(0.09)
    for index, series in enumerate(drawn):
        ink = MUTED if len(drawn) == 1 else series_colors(len(drawn))[index]
        _draw_region(axis, series.points().mean[:, pair], ink)


def _draw_points(
    axis: Any, series: Series, pair: tuple[int, int], one_color: str | None, marker: str, z: float
) -> None:
    estimate = series.points()
    points, halves = estimate.mean[:, pair], _halves(estimate)[:, :, pair]
    colors = weight_colors(series.weights) if one_color is None else [one_color] * len(points)
    if len(series.objectives) == 2:
        path = points[path_order(series.weights)]
        axis.plot(*path.T, color=one_color or MUTED, linewidth=0.9, alpha=0.7, zorder=z)
    for index, color in enumerate(colors):
        x, y = points[index]
        bars = {"xerr": halves[:, index, :1], "yerr": halves[:, index, 1:]}
        axis.errorbar(x, y, **bars, color=color, elinewidth=0.9, alpha=0.35, zorder=z + 1)
    axis.scatter(
        *points.T,
        c=colors,
        s=44,
        marker=marker,
        edgecolors="white",
        linewidths=0.8,
        zorder=z + 2,
        label=_name(series.name),
    )


def _draw_hollow(axis: Any, series: Series, pair: tuple[int, int]) -> None:
    estimate = series.points()
    points, halves = estimate.mean[:, pair], _halves(estimate)[:, :, pair]
    bars = {"xerr": halves[..., 0], "yerr": halves[..., 1], "fmt": "none"}
    axis.errorbar(*points.T, **bars, ecolor=NEUTRAL_COLOR, elinewidth=0.8, alpha=0.25, zorder=2)
    axis.scatter(
        *points.T,
        s=34,
        facecolors="white",
        edgecolors=NEUTRAL_COLOR,
        linewidths=1.1,
        zorder=3,
        label=_name(series.name),
    )


def _halves(estimate: Estimate) -> FloatArray:
    """How far the interval reaches below and above the mean `[2, ...]`; 0 where unknown."""
    reach = np.stack([estimate.mean - estimate.low, estimate.high - estimate.mean])
    return np.clip(np.nan_to_num(reach), 0.0, None)


def _draw_region(axis: Any, points: FloatArray, ink: str) -> None:
    """Everything that some point attains, up to the frame: the front is its edge."""
    corners = staircase(points)
    if not len(corners):
        return
    left, bottom = axis.get_xlim()[0], axis.get_ylim()[0]
    xs = np.concatenate([[left], np.repeat(corners[:, 0], 2)])
    ys = np.concatenate([np.repeat(corners[:, 1], 2), [bottom]])
    axis.fill_between(xs, ys, bottom, color=ink, alpha=0.07, linewidth=0, zorder=1)
    axis.plot(xs, ys, color=ink, linewidth=0.8, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)
    axis.set_xlim(left=left)
    axis.set_ylim(bottom=bottom)


def _reach(series: Series) -> float:
    """The diagonal of the box around a series' points."""
    return float(np.linalg.norm(np.nan_to_num(np.ptp(series.points().mean, axis=0))))


def _label_corners(axis: Any, series: Series) -> None:
    """Names the points of the single-objective requests, away from the others."""
    points = series.points().mean
    known = points[~np.isnan(points).any(axis=1)]
    center = known.sum(axis=0) / max(1, len(known))
    span = np.array([np.ptp(axis.get_xlim()), np.ptp(axis.get_ylim())])
    for objective, name in enumerate(series.objectives):
        index = int(np.argmax(series.weights[:, objective]))
        away = (points[index] - center) / span
        if series.weights[index, objective] < 1 or not np.isfinite(away).all():
            continue
        above = away[1] > 0 or (objective == 0 and away[1] == 0)  # apart even if all are one point
        axis.annotate(
            f"only {_name(name)}",
            points[index],
            xytext=(9 if away[0] > 0 else -9, 7 if above else -7),
            textcoords="offset points",
            ha="right" if away[0] > 0 else "left",
            va="bottom" if above else "top",
            color=INK,
            fontsize=SMALL,
            zorder=20,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )


def _add_weight_bar(figure: Any, axis: Any, objectives: tuple[str, ...]) -> None:
    steps = np.linspace(0.0, 1.0, 256)
    ramp = ListedColormap(weight_colors(np.stack([1 - steps, steps], axis=1)))
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), ramp), ax=axis, shrink=0.6, aspect=28, pad=0.02
    )
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "¼", "½", "¾", "1"])
    bar.set_label(f"weight of {_name(objectives[1])}", **_text(NORMAL))
    _style_bar(bar)


# --- three objectives ---


def _draw_triangle(drawn: list[Series], baseline: Series | None) -> Any:
    if len(drawn) > 1:
        figure = _figure(11.0, 4.2)
        _draw_pairs(figure.subplots(1, 3), drawn, baseline)
        return figure
    figure = _figure(11.0, 7.6)
    triangles, pairs = figure.subplots(2, 3, height_ratios=[1, 1.12])
    for objective, axis in enumerate(triangles):
        _draw_ternary(figure, axis, drawn[0], objective)
    _draw_pairs(pairs, drawn, baseline)
    return figure


def _draw_pairs(axes: Any, drawn: list[Series], baseline: Series | None) -> None:
    for axis, pair in zip(axes, combinations(range(3), 2), strict=True):
        _draw_pair(axis, drawn, baseline, pair)
    axes[0].legend(loc="best", **_legend_style())


def _draw_ternary(figure: Any, axis: Any, series: Series, objective: int) -> None:
    """One objective's mean reward over the triangle of weights: it should rise to its corner."""
    corners = np.array([[0.5, np.sqrt(3) / 2], [0.0, 0.0], [1.0, 0.0]])
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_xlim(-0.2, 1.2)
    axis.set_ylim(-0.16, 1.0)
    axis.set_title(f"mean reward: {_name(series.objectives[objective])}", **_text(NORMAL))
    _draw_ternary_grid(axis, corners)
    marks = axis.scatter(
        *(series.weights @ corners).T,
        c=series.points().mean[:, objective],
        cmap="viridis",
        s=95,
        edgecolors="white",
        linewidths=0.8,
        zorder=3,
    )
    for index, (name, color) in enumerate(zip(series.objectives, objective_colors(3), strict=True)):
        above = index == 0
        axis.annotate(
            _name(name),
            corners[index],
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            color=color,
            fontsize=SMALL + 0.5,
            fontweight="bold" if index == objective else "normal",
        )
    bar = figure.colorbar(marks, ax=axis, orientation="horizontal", shrink=0.5, aspect=24, pad=0.02)
    bar.locator = MaxNLocator(3, steps=[1, 2, 2.5, 5, 10])
    bar.update_ticks()
    _style_bar(bar)


def _draw_ternary_grid(axis: Any, corners: FloatArray) -> None:
    outline = corners[[0, 1, 2, 0]]
    axis.plot(*outline.T, color=MUTED, linewidth=0.9, zorder=1)
    for fraction in (0.25, 0.5, 0.75):
        for corner in range(3):
            one, other = (corners[(corner + step) % 3] for step in (1, 2))
            start = fraction * corners[corner] + (1 - fraction) * one
            end = fraction * corners[corner] + (1 - fraction) * other
            axis.plot(*np.stack([start, end]).T, color=RULE, linewidth=0.8, zorder=0)


# --- any other number of objectives ---


def _draw_parallel(drawn: list[Series], baseline: Series | None) -> Any:
    """One vertical scale per objective, one line per weight vector."""
    objectives = drawn[0].objectives
    K = len(objectives)
    figure = _figure(max(4.5, 1.2 + 1.75 * K), 4.8)
    axis = figure.add_subplot()
    every = [*drawn, *([baseline] if baseline is not None else [])]
    low, high = _ranges(np.concatenate([series.points().mean for series in every]))
    if baseline is not None:
        gray = [NEUTRAL_COLOR] * len(baseline.weights)
        _draw_lines(axis, baseline, low, high, gray, NEUTRAL_COLOR, "--")
    for index, series in enumerate(drawn):
        ink = MUTED if len(drawn) == 1 else series_colors(len(drawn))[index]
        colors = weight_colors(series.weights) if len(drawn) == 1 else [ink] * len(series.weights)
        _draw_lines(axis, series, low, high, colors, ink, "-")
    _style_scales(axis, objectives, low, high)
    if len(drawn) > 1 or baseline is not None:
        figure.legend(loc="outside upper right", ncols=4, **_legend_style())
    return figure


def _draw_lines(
    axis: Any,
    series: Series,
    low: FloatArray,
    high: FloatArray,
    colors: list[str],
    ink: str,
    style: str,
) -> None:
    """One line per weight vector on common heights; in the legend as one line of color `ink`."""
    heights = (series.points().mean - low) / (high - low)
    for index in np.argsort(series.weights.max(axis=1)):  # the corners last, on top
        pure = style == "-" and series.weights[index].max() > 0.99
        axis.plot(
            heights[index],
            style,
            color=colors[index],
            linewidth=1.9 if pure else 1.0,
            alpha=(0.95 if pure else 0.6) if style == "-" else 0.35,
            marker="o",
            markersize=4 if pure else 2.6,
        )
    axis.plot([], [], style, color=ink, label=_name(series.name))


def _style_scales(
    axis: Any, objectives: tuple[str, ...], low: FloatArray, high: FloatArray
) -> None:
    axis.set_ylim(-0.06, 1.08)
    axis.set_xlim(-0.35, len(objectives) - 0.65)
    axis.set_yticks([])
    axis.set_xticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    for index, color in enumerate(objective_colors(len(objectives))):
        axis.axvline(index, 0.06 / 1.14, 1.06 / 1.14, color=MUTED, linewidth=0.8, zorder=0)
        name = textwrap.fill(_name(objectives[index]), 16)
        axis.text(index, -0.12, name, ha="center", va="top", color=color, fontsize=NORMAL)
        for height, value in ((0.0, low[index]), (1.0, high[index])):
            axis.text(
                index,
                height + (0.02 if height else -0.02),
                _number(value),
                ha="center",
                va="bottom" if height else "top",
                color=MUTED,
                fontsize=SMALL,
            )


def _ranges(points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Lowest and highest per column, never equal."""
    filled = np.where(np.isnan(points).all(axis=0), 0.0, points)
    low, high = np.nanmin(filled, axis=0), np.nanmax(filled, axis=0)
    return low, np.where(high > low, high, low + 1.0)


# --- ink and paper ---


def _figure(width: float, height: float) -> Any:
    """An empty white figure in inches with a canvas of its own: pyplot never hears of it."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED, labelsize=SMALL, length=3, width=0.7)
    axis.grid(color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _style_bar(bar: Any) -> None:
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=SMALL, length=2, width=0.6)


def _text(size: float) -> dict[str, Any]:
    return {"fontsize": size, "color": INK}


def _legend_style() -> dict[str, Any]:
    return {"frameon": False, "fontsize": SMALL, "labelcolor": INK, "handletextpad": 0.5}


def _name(text: str) -> str:
    """A user's name as plain text: no mathtext, no more than 40 characters."""
    short = text if len(text) <= 40 else text[:39] + "…"
    return short.replace("$", r"\$")


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _add_caption(figure: Any, caption: str) -> None:
    width = int(figure.get_figwidth() * 16)
    lines = textwrap.fill(caption.replace("$", r"\$"), width)
    figure.supxlabel(lines, x=0.015, ha="left", fontsize=SMALL, color=MUTED)


def _save(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Writes the PNG so that a crash leaves the old file or the new, never half."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(path)
