from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from evaluation.synthetic_results import make_result
from moodpo.errors import ConfigError
from moodpo.evaluation.report import plots
from moodpo.evaluation.report.plots import plot_front
from moodpo.evaluation.report.series import Series, sweep_series, weight_colors


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, kept instead of written."""
    kept: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: kept.append(figure) or Path(path))
    return kept


def scatters(axis: Any) -> dict[str, np.ndarray]:
    offsets = {one.get_label(): one.get_offsets() for one in axis.collections}
    return {label: places.data for label, places in offsets.items() if places.size}


def texts(figure: Any) -> str:
    found = [text.get_text() for axis in figure.axes for text in axis.texts]
    labels = [a.get_xlabel() + a.get_ylabel() + a.get_title() for a in figure.axes]
    return "\n".join([*found, *labels, figure.get_supxlabel()])


@pytest.mark.parametrize(("K", "divisions"), [(1, 1), (2, 4), (3, 2), (4, 1), (5, 1)])
def test_a_png_is_written_for_every_number_of_objectives(
    tmp_path: Path, K: int, divisions: int
) -> None:
    path = plot_front(make_result(K, divisions), tmp_path / "front.png")
    assert [file.name for file in tmp_path.iterdir()] == ["front.png"]
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 600
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50  # not a blank page


def test_two_objectives_show_points_baseline_and_axes(figures: list[Any]) -> None:
    result = make_result()
    plot_front(result, "front.png")
    axis = figures[0].axes[0]
    assert axis.get_xlabel() == "mean reward: positivity"
    assert axis.get_ylabel() == "mean reward: objectivity"
    drawn = scatters(axis)
    np.testing.assert_allclose(drawn["smollm2-moodpo"], result.points)
    np.testing.assert_allclose(drawn["base model"], result.baseline_points)
    said = texts(figures[0])
    assert "only positivity" in said
    assert "weight of objectivity" in said


def test_error_bars_are_the_intervals(figures: list[Any]) -> None:
    result = make_result(2, 2, baseline=None)
    plot_front(result, "front.png")
    estimate = sweep_series(result).points()
    segments = [
        segment
        for one in figures[0].axes[0].collections
        if hasattr(one, "get_segments")
        for segment in one.get_segments()
    ]
    horizontal = sorted(s[:, 0].tolist() for s in segments if s[0, 1] == s[1, 1])
    expected = sorted(zip(estimate.low[:, 0].tolist(), estimate.high[:, 0].tolist(), strict=True))
    np.testing.assert_allclose(horizontal, expected)


def test_the_caption_states_hypervolume_and_reference_point(figures: list[Any]) -> None:
    bounds = {"value": 3.214, "low": 2.95, "high": 3.481}
    result = make_result(analyzed=False, metrics={"hypervolume": bounds})
    plot_front(result, "front.png")
    plot_front(make_result(analyzed=False), "front.png")
    plot_front(result, "front.png", caption="mine")
    captions = [" ".join(figure.get_supxlabel().split()) for figure in figures]
    assert captions[0].startswith(
        "Hypervolume 3.21 [2.95, 3.48] above the reference point (−1.2, −1.2)"
    )
    assert "Hypervolume" not in captions[1]
    assert captions[2] == "mine"


def test_points_are_colored_by_weight_alone_and_by_sweep_together(figures: list[Any]) -> None:
    result = make_result(2, 3, baseline=None, name="mine")
    plot_front(result, "front.png")
    plot_front([("before", make_result(2, 3, gain=0.1)), ("after", result)], "front.png")
    alone, together = (
        {c.get_label(): c.get_facecolors() for c in figure.axes[0].collections}
        for figure in figures
    )
    assert len(np.unique(alone["mine"], axis=0)) == 4 == len(set(weight_colors(result.weights)))
    assert len(np.unique(together["after"], axis=0)) == 1
    assert not np.allclose(together["after"][0], together["before"][0])


def test_three_objectives_show_triangles_beside_pairs(figures: list[Any]) -> None:
    result = make_result(3, 2)
    plot_front(result, "front.png")
    said = texts(figures[0])
    pairs = [axis for axis in figures[0].axes if axis.get_ylabel().startswith("mean reward")]
    assert len(pairs) == 3
    np.testing.assert_allclose(scatters(pairs[1])["smollm2-moodpo"], result.points[:, [0, 2]])
    colored = [axis.collections for axis in figures[0].axes if "mean reward" in axis.get_title()]
    assert len(colored) == 3
    values = [one.get_array() for one in colored[2] if one.get_array() is not None]
    np.testing.assert_allclose(values[0], result.points[:, 2])
    assert all(name in said for name in result.objectives)


def test_five_objectives_show_a_line_per_weight(figures: list[Any]) -> None:
    result = make_result(5, 1, baseline=None)
    plot_front(result, "front.png")
    lines = [line for line in figures[0].axes[0].lines if len(line.get_ydata()) == 5]
    assert len(lines) == result.num_weights
    heights = np.array([line.get_ydata() for line in lines])
    assert (heights.min(), heights.max()) == (0.0, 1.0)


def test_plain_arrays_can_be_overlaid(figures: list[Any]) -> None:
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])
    before, after = (
        Series(name="x", objectives=("a", "b"), weights=weights, rewards=np.full((2, 3, 2), mean))
        for mean in (1.0, 2.0)
    )
    plot_front([("before", before), ("after", after)], "front.png")
    drawn = scatters(figures[0].axes[0])
    assert drawn["before"].tolist() == [[1.0, 1.0]] * 2
    assert drawn["after"].tolist() == [[2.0, 2.0]] * 2


def test_missing_scores_leave_a_gap(tmp_path: Path) -> None:
    for K in (2, 3, 4):
        result = make_result(K, 2, analyzed=False)
        rewards = result.rewards.copy()
        rewards[0, :, 0] = np.nan
        rewards[:, :, -1] = np.nan
        result = make_result(K, 2, analyzed=False, rewards=rewards)
        plot_front(result, tmp_path / "front.png")


def test_names_are_text_not_mathematics(figures: list[Any]) -> None:
    result = make_result(analyzed=False, objectives=("cost $x^2$", "a" * 60))
    plot_front(result, "front.png")
    FigureCanvasAgg(figures[0]).draw()  # would raise on broken mathtext
    said = texts(figures[0])
    assert r"cost \$x^2\$" in said
    assert "a" * 39 + "…" in said
    assert "a" * 41 not in said


def test_what_cannot_be_drawn_together_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one result"):
        plot_front([], "front.png")
    with pytest.raises(ConfigError, match=r"'b'.*expected"):
        plot_front([("a", make_result(2)), ("b", make_result(3, 2))], "front.png")


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "front.png"
    path.write_bytes(b"old")
    figure_class = type(plots._figure(1, 1))
    monkeypatch.setattr(figure_class, "savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot_front(make_result(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["front.png"]
    assert path.read_bytes() == b"old"


def test_pyplot_is_never_imported() -> None:
    code = (
        "import sys, moodpo.evaluation.report.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
