from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from evaluation.synthetic_results import make_result
from moodpo.evaluation.comparison import Comparison, compare
from moodpo.evaluation.report.comparison import (
    difference_table,
    measure_table,
    terminal_comparison,
    write_comparison,
)
from moodpo.evaluation.report.tables import format_interval


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    results = [make_result(gain=0.4, name="x"), make_result(seed=1), make_result(seed=2, gain=1.5)]
    return compare([(f"run {i}", result) for i, result in enumerate(results)], num_resamples=40)


def test_tables_show_measures_and_differences(comparison: Comparison) -> None:
    measures, differences = measure_table(comparison), difference_table(comparison)
    assert [row[0] for row in measures.rows] == ["run 0", "run 1", "run 2"]
    assert {len(row) for row in measures.rows} == {len(measures.columns)}
    assert measures.rows[0][-1] == "–"
    assert "reference point (−1.2, −1.2) are those of run 0" in measures.note
    labels = [row[0] for row in differences.rows]
    assert labels[0] == "hypervolume ↑"
    assert "mean objectivity (std) ↑" in labels
    assert "does not cover training" in differences.note
    first_value = differences.rows[0][1].split(" [")[0]
    assert format_interval(comparison.differences[0]["hypervolume"]).startswith(first_value)


def test_terminal_tables_print(comparison: Comparison) -> None:
    console = Console(width=150, color_system=None)
    with console.capture() as capture:
        for table in terminal_comparison(comparison):
            console.print(table)
    assert "Difference from run 0" in capture.get()
    assert "steerability" in capture.get()


def test_four_files_are_written(comparison: Comparison, tmp_path: Path) -> None:
    paths = write_comparison(comparison, tmp_path / "new" / "folder")
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "comparison.png",
    ]
    content = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert (content["schema"], content["version"]) == ("moodpo.comparison", 1)
    assert content["first"] == "run 0"
    assert list(content["differences"]) == ["run 1", "run 2"]
    assert content["policies"][0]["policy"]["name"] == "x"
    assert content["ruler"]["reference_point"] == [-1.2, -1.2]
    assert content["bootstrap"] == {"seed": 0, "num_resamples": 40}
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    markdown = paths["md"].read_text(encoding="utf-8")
    assert markdown.startswith("## run 0, run 1, run 2\n\n![Fronts](comparison.png)")
    assert "### Difference from run 0" in markdown
    page = paths["html"].read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert [series["name"] for series in data["series"]] == ["run 0", "run 1", "run 2"]
    assert len(data["comparison"]["tables"]) == 2
    assert [source["name"] for source in data["samples"]["sources"]] == ["run 0", "run 1", "run 2"]
