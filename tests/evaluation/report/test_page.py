from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.synthetic_results import make_result
from moodpo.errors import ConfigError
from moodpo.evaluation.report import page as report
from moodpo.evaluation.report.page import report_data, write_page, write_report
from moodpo.evaluation.report.series import sweep_series
from moodpo.evaluation.results import SweepResult

HOSTILE = (
    "</script><script>alert(1)</script><!--<script>",
    '<img src=x onerror="alert(1)"> ]]> & &amp; \u2028 \x00 $title',
    "https://example.com/tracker.png",
)


class Page(HTMLParser):
    """Tags, attributes and the text of script, style and title elements."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in self.texts:
            self.open = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self.open = ""

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open][-1] += data

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


def written(result: SweepResult, folder: Path, **options: Any) -> Page:
    path = write_report(result, folder / "report.html", **options)
    assert [file.name for file in folder.iterdir()] == ["report.html"]
    return Page(path.read_text(encoding="utf-8"))


def hostile_result() -> SweepResult:
    result = make_result(analyzed=False)
    completions = [list(row) for row in result.completions]
    for n, text in enumerate(HOSTILE):
        completions[0][n] = text
    return make_result(
        completions=tuple(map(tuple, completions)),
        prompts=tuple(HOSTILE * 4),
        policy={"name": HOSTILE[0], "path": HOSTILE[1], "lineage": [{"x": HOSTILE[0]}]},
        warnings=(HOSTILE[0],),
    )


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(hostile_result(), tmp_path_factory.mktemp("hostile"))


def test_hostile_texts_add_no_element(hostile_page: Page, tmp_path: Path) -> None:
    harmless = written(make_result(), tmp_path)
    assert hostile_page.tags == harmless.tags
    assert hostile_page.tags["script"] == 2
    assert hostile_page.texts["title"] == [HOSTILE[0]]
    data = hostile_page.data
    texts = data["samples"]["texts"]
    assert [texts[index] for index in data["samples"]["sources"][0]["texts"][0][:3]] == list(
        HOSTILE
    )
    assert data["samples"]["prompts"][:3] == list(HOSTILE)
    assert data["warnings"][0] == HOSTILE[0]
    assert "<" not in hostile_page.texts["script"][0]


@given(st.text(alphabet=st.sampled_from("<>/!-scriptSCRIPT \n\"'&\\u{}$"), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_the_page(text: str) -> None:
    encoded = report._embedded_json({"text": text})
    page = Page(f'<script type="application/json">{encoded}</script><p>')
    assert page.tags == {"script": 1, "p": 1}
    assert page.data == {"text": text}


def test_nothing_is_loaded_from_elsewhere(hostile_page: Page, tmp_path: Path) -> None:
    page = written(make_result(3, 2), tmp_path)
    loading = [(tag, name) for tag, name, _ in page.attributes if name in ("src", "href", "data")]
    assert loading == [("a", "href")]  # the skip link
    code = page.texts["style"][0] + page.texts["script"][1]
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttpRequest|import\(", code)
    assert "innerHTML" not in code
    assert "http" not in (tmp_path / "report.html").read_text(encoding="utf-8").replace(
        "http-equiv", ""
    )
    assert hostile_page.tags["link"] == hostile_page.tags["img"] == 0


def test_the_policy_allows_only_the_pages_own_script_and_style(hostile_page: Page) -> None:
    policy = next(
        value for _, name, value in hostile_page.attributes if name == "content" and "src" in value
    )

    def sha(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{sha(hostile_page.texts['style'][0])}'" in policy
    assert f"script-src 'sha256-{sha(hostile_page.texts['script'][1])}'" in policy
    assert "unsafe" not in policy


def test_series_hold_the_points_and_intervals() -> None:
    result = make_result(3, 2)
    policy, baseline = report_data(result)["series"]
    estimate = sweep_series(result).points()
    np.testing.assert_allclose(policy["mean"], estimate.mean, rtol=1e-4)
    np.testing.assert_allclose(policy["low"], estimate.low, rtol=1e-4)
    _, curve = sweep_series(result).curve(1)
    np.testing.assert_allclose(policy["curves"][1]["mean"], curve.mean, rtol=1e-4)
    np.testing.assert_allclose(baseline["mean"], result.baseline_points, rtol=1e-4)
    assert (policy["role"], baseline["role"]) == ("policy", "baseline")


def test_samples_hold_each_answer_with_its_rewards() -> None:
    result = make_result()
    samples = report_data(result)["samples"]
    policy, baseline = samples["sources"]
    assert result.baseline is not None
    for source, completions, rewards in (
        (policy, result.completions, result.rewards),
        (baseline, result.baseline.completions, result.baseline.rewards),
    ):
        shown = tuple(tuple(samples["texts"][i] for i in row) for row in source["texts"])
        assert shown == completions
        np.testing.assert_allclose(source["rewards"], rewards, rtol=1e-4)
    assert [extra["name"] for extra in policy["extra"]] == ["tokens", "KL", "held_out_judge"]
    assert policy["extra"][0]["values"] == result.lengths.tolist()
    assert len(samples["texts"]) == len(set(samples["texts"]))
    assert samples["start"] == [[0, 0], [0, result.num_weights - 1]]


def test_everything_a_reader_needs_is_on_the_page() -> None:
    result = make_result(warnings=("Length: too long.",))
    data = report_data(result)
    assert data["title"] == "smollm2-moodpo"
    assert data["warnings"][0] == "Length: too long."
    assert [fact["label"] for fact in data["facts"]] == [
        "Steerability",
        "Hypervolume",
        "Mean utility",
        "Utility win rate",
    ]
    assert [table["title"] for table in data["tables"]] == ["Front", "Steerability", "By weight"]
    record = {row[0]: row[1] for part in data["provenance"] for row in part["rows"]}
    assert record["path"] == "outputs/smollm2-moodpo"
    assert record["lineage 1"].startswith("path: outputs/iter1; adapter_sha256: 9f2c")
    assert record["temperature"] == "1.0"
    assert record["seeds"] == "100, 101, 102, … (12, one per prompt)"
    assert record["sha256"] == "4be1" * 16
    assert record["torch"] == "2.13.0"
    assert record["reference point"] == "−1.2, −1.2"


def test_a_bare_sweep_has_a_page_too(tmp_path: Path) -> None:
    rewards = np.full((1, 1, 1), np.nan)
    result = make_result(
        1, 1, 1, analyzed=False, rewards=rewards, baseline=None, kl=None, held_out=None, policy={}
    )
    data = written(result, tmp_path).data
    assert data["title"] == "policy"
    assert data["series"][0]["mean"] == [[None]]
    assert data["facts"] == []
    assert [table["title"] for table in data["tables"]] == ["By weight"]
    assert data["samples"]["sources"][0]["rewards"] == [[[None]]]


def test_an_undecodable_answer_is_written(tmp_path: Path) -> None:
    result = make_result(1, 1, 1, analyzed=False, completions=(("half \ud83d a pair",),))
    samples = written(result, tmp_path).data["samples"]
    assert samples["texts"][samples["sources"][0]["texts"][0][0]] == "half ? a pair"


def test_a_large_sweep_stays_below_a_megabyte_and_says_what_it_left_out(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 10**9, size=(2, 15, 64, 60)).astype(str)
    ours, base = ([[" ".join(cell) for cell in row] for row in half] for half in words)
    small = make_result(3, 4, 64, analyzed=False)
    assert small.baseline is not None
    baseline = type(small.baseline)(
        name="base", rewards=small.baseline.rewards, completions=tuple(map(tuple, base))
    )
    result = make_result(3, 4, 64, completions=tuple(map(tuple, ours)), baseline=baseline)
    page = written(result, tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
    samples = page.data["samples"]
    kept = len(samples["prompts"])
    assert 20 < kept < 64
    assert f"it holds {kept} of the 64 prompts" in page.data["notes"]["samples"]
    numbers = samples["numbers"]
    assert numbers[0] == 1
    assert numbers[-1] == 64
    assert max(np.diff(numbers)) - min(np.diff(numbers)) <= 1
    assert samples["prompts"] == [result.prompts[number - 1] for number in numbers]


def test_the_usual_sweep_is_complete_and_below_a_megabyte(tmp_path: Path) -> None:
    page = written(make_result(3, 4, 64), tmp_path)
    assert len(page.data["samples"]["prompts"]) == 64
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_repeated_texts_are_stored_once() -> None:
    same = (("always",) * 12,) * 5
    result = make_result(completions=same, baseline=None, analyzed=False)
    assert report_data(result)["samples"]["texts"] == ["always"]


def test_others_are_overlaid_and_read_beside_it(tmp_path: Path) -> None:
    other, elsewhere = make_result(seed=1), make_result(prompts=tuple("abcdefghijkl"))
    options = {"others": [("soups", other), ("elsewhere", elsewhere)]}
    data = written(make_result(), tmp_path, **options).data
    assert [series["name"] for series in data["series"]] == ["smollm2-moodpo", "soups", "elsewhere"]
    assert len({series["color"] for series in data["series"]}) == 3
    assert [source["name"] for source in data["samples"]["sources"]] == ["smollm2-moodpo", "soups"]
    assert data["samples"]["start"] == [[0, 0], [1, 0]]


def test_other_objectives_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'three'.*brevity"):
        report_data(make_result(), others=[("three", make_result(3, 2))])


def test_a_number_that_json_lacks_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write_page({"title": "t", "x": float("inf")}, path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
