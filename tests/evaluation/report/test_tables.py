from __future__ import annotations

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from evaluation.synthetic_results import make_result
from moodpo.evaluation.report.tables import (
    Column,
    Table,
    escape_markdown,
    format_interval,
    format_number,
    format_weights,
    markdown_table,
    metrics_table,
    rich_table,
    steerability_table,
    terminal_table,
    weights_table,
)


def printed(table: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.123456, None, "0.12"),
        (0.123456, 0.01, "0.123"),
        (-18.04, 2.0, "−18.0"),
        (1234.5, 100.0, "1234"),
        (0.968254, 0.0005, "0.9683"),  # four digits are enough for anybody
        (0.0, None, "0.00"),
        (-0.0001, 0.1, "0.00"),  # no negative zero
        (math.nan, 0.1, "–"),
        (None, None, "–"),
    ],
)
def test_format_number(value: float | None, unit: float | None, text: str) -> None:
    assert format_number(value, unit) == text


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_a_formatted_number_is_close_in_its_unit(value: float, unit: float) -> None:
    read = float(format_number(value, unit).replace("−", "-"))
    assert abs(read - value) <= max(0.051 * unit, 0.00051 * abs(value))


def test_format_interval() -> None:
    assert format_interval({"value": 0.5, "low": 0.4, "high": 0.65}) == "0.50 [0.40, 0.65]"
    assert format_interval({"value": 0.5, "low": math.nan, "high": math.nan}) == "0.50"
    assert format_interval(None) == "–"


def test_format_weights() -> None:
    assert format_weights(np.array([0.75, 0.25])) == "0.75 / 0.25"


def test_metrics_stand_beside_the_base_models() -> None:
    result = make_result()
    table = metrics_table(result)
    assert table is not None
    assert [column.label for column in table.columns] == ["", "policy", "base model", "difference"]
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["hypervolume ↑"] == (
        format_interval(result.metrics["hypervolume"]),
        format_interval(result.metrics["baseline_hypervolume"]),
        format_interval(result.metrics["gain_hypervolume"]),
    )
    assert cells["utility win rate ↑"][0] == format_interval(result.metrics["utility_win_rate"])
    assert "held out: held_out_judge (raw) ↑" in cells
    assert {len(row) for row in table.rows} == {4}
    assert "(−1.2, −1.2)" in table.note


def test_metrics_without_a_baseline_have_two_columns() -> None:
    table = metrics_table(make_result(baseline=None))
    assert table is not None
    assert {len(row) for row in table.rows} == {2} == {len(table.columns)}


def test_nothing_measured_is_no_table() -> None:
    bare = make_result(analyzed=False)
    assert metrics_table(bare) is None
    assert steerability_table(bare) is None
    assert len(weights_table(bare).rows) == bare.num_weights


def test_steerability_has_a_row_per_objective() -> None:
    result = make_result(3, 2)
    table = steerability_table(result)
    assert table is not None
    assert [row[0] for row in table.rows] == [*result.objectives, "mean"]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    own = result.steerability["objectives"]["brevity"]["spearman_within_prompt"]
    assert table.rows[2][1] == format_interval(own)


def test_weights_table_has_everything_per_weight() -> None:
    result = make_result()
    table = weights_table(result)
    labels = [column.label for column in table.columns]
    for label in ("weights", "positivity", "win rate: objectivity", "tokens", "duplicates",
                  "KL (nats)", "held out: held_out_judge"):  # fmt: skip
        assert label in labels
    assert table.rows[0][0] == "1.00 / 0.00"
    kl = [row[labels.index("KL (nats)")] for row in table.rows]
    assert result.kl is not None
    assert [float(cell) for cell in kl] == pytest.approx(result.kl.mean(axis=1), abs=0.06)


def test_markdown_has_one_cell_per_column_whatever_the_text() -> None:
    table = Table(
        title="a|b",
        columns=(Column("<b>", numeric=False), Column("n")),
        rows=(("x | [y](z)\nw", "1"),),
        note="*n*",
    )
    lines = markdown_table(table).splitlines()
    assert lines[0] == r"### a\|b"
    assert lines[2] == r"| \<b\> | n |"
    assert lines[3] == "| --- | ---: |"
    assert lines[4] == r"| x \| \[y\](z) w | 1 |"
    assert lines[6] == r"\*n\*"


@given(st.text())
def test_escaped_markdown_is_one_line_without_a_bare_bar(text: str) -> None:
    escaped = escape_markdown(text)
    assert len(escaped.splitlines()) <= 1
    assert "|" not in escaped.replace("\\|", "")


def test_rich_tables_print_markup_as_text() -> None:
    table = Table(title="t", columns=(Column("[red]c"),), rows=(("[bold]x[/bold]",),))
    text = printed(rich_table(table))
    assert "[red]c" in text
    assert "[bold]x[/bold]" in text


def test_terminal_table_shows_means_and_the_headline() -> None:
    result = make_result()
    text = printed(terminal_table(result))
    assert "smollm2-moodpo: 5 weight vectors × 12 prompts" in text
    assert "0.75 / 0.25" in text
    assert " ± " in text
    assert f"hypervolume {format_interval(result.metrics['hypervolume'])}" in text
    assert "tokens" in text
    assert "KL (nats)" in text


def test_terminal_table_of_missing_scores_and_one_prompt() -> None:
    rewards = np.full((2, 1, 2), 0.5)
    rewards[0, 0, 1] = np.nan
    result = make_result(2, 1, 1, analyzed=False, rewards=rewards)
    text = printed(terminal_table(result))
    assert "0.50" in text
    assert "–" in text
    assert "±" not in text
