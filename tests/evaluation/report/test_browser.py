"""The report in a real browser: Chromium, driven over its debugging pipe.

The pipe (`--remote-debugging-pipe`, JSON between NUL bytes on file descriptors 3 and 4) needs
nothing but the standard library. `MOODPO_CHROMIUM` names another browser than those on PATH.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.synthetic_results import make_result
from moodpo.evaluation.comparison import compare
from moodpo.evaluation.report.comparison import write_comparison
from moodpo.evaluation.report.page import write_report
from moodpo.evaluation.results import SweepResult
from moodpo.evaluation.weights import default_weights

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
CHROMIUM = os.environ.get("MOODPO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
HOSTILE = '<img src=x onerror="document.title=\'pwned\'"><script>document.title="pwned"</script>'
WIDTHS = (1280, 400)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason="no Chromium on PATH: install it (Debian: apt-get install chromium), or set "
        "MOODPO_CHROMIUM to its path",
    ),
]

# Text elements of one figure that overlap, or that leave the page on the left or right.
FAULTS = """
[...document.querySelectorAll('.chart svg')].flatMap((root) => {
  const texts = [...root.querySelectorAll('text:not(.letter)')].filter((t) => t.textContent);
  const boxes = texts.map((t) => [t.textContent, t.getBoundingClientRect()]);
  const faults = boxes.filter(([, b]) => b.left < -0.5 || b.right > innerWidth + 0.5)
    .map(([text]) => text + ' leaves the page');
  boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([two, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && tall > 3) faults.push(one + ' overlaps ' + two);
  }));
  return faults;
})
"""


class Browser:
    """One headless Chromium with one tab."""

    def __init__(self, executable: str, profile: Path) -> None:
        (child_in, self._out), (self._in, child_out) = os.pipe(), os.pipe()
        # Bash moves the pipe's ends to the descriptors that Chromium expects.
        command = f'exec "$0" "$@" 3<&{child_in} 4>&{child_out}'
        arguments = [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", command, *arguments],
            pass_fds=(child_in, child_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(child_in)
        os.close(child_out)
        self._ids, self._buffer, self._session = itertools.count(1), b"", None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        message = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self._read()

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], deadline - time.monotonic())
            chunk = os.read(self._in, 1 << 16) if ready else b""
            assert chunk, "Chromium stopped answering"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        if "method" in answer:
            self.events.append(answer)
        return answer

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")
        self.two_frames()

    def two_frames(self) -> None:
        """Waits until what has just been asked for is drawn, and its events have been sent."""
        self.evaluate(
            "new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => go(1))))"
        )

    def evaluate(self, expression: str) -> Any:
        options = {"returnByValue": True, "awaitPromise": True}
        answer = self.send("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> list[Any]:
        """Exceptions, console messages, violations of the security policy, failed loads."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [event["params"] for event in self.events if event["method"] in kinds]

    def requests(self) -> list[str]:
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in sent]

    def center(self, selector: str) -> dict[str, float]:
        """Scrolls an element into view and says where its center is."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
        self.two_frames()
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"({element}.getBoundingClientRect())"
        )
        return {"x": box[0], "y": box[1]}

    def mouse(self, kind: str, selector: str, **options: Any) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, **self.center(selector), **options)

    def click(self, selector: str) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, selector, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def text(self, selector: str) -> str:
        found = self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
        return " ".join(found.split())

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)
        self._process.terminate()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        one = Browser(CHROMIUM, Path(profile))
        yield one
        one.close()


def hostile_result() -> SweepResult:
    plain = make_result(2, 10, analyzed=False)
    completions = (tuple([HOSTILE] * plain.num_prompts), *plain.completions[1:])
    policy = {**plain.policy, "name": HOSTILE}
    return make_result(2, 10, completions=completions, policy=policy, warnings=(HOSTILE,))


def with_gaps() -> SweepResult:
    """One objective without any score, another without one under the first weights."""
    rewards = make_result(3, 2, analyzed=False).rewards.copy()
    rewards[:, :, 1] = np.nan
    rewards[0, :, 2] = np.nan
    return make_result(3, 2, rewards=rewards)


def with_long_names(num_objectives: int, divisions: int) -> SweepResult:
    """Names that fill a line and rewards of many digits."""
    plain = make_result(num_objectives, divisions, analyzed=False)
    names = tuple(f"helpfulness of {letter} as a judge saw it" for letter in "abcde")
    changes = {"rewards": plain.rewards * 1e5, "prompts": tuple("w" * 300 for _ in plain.prompts)}
    return make_result(
        num_objectives, divisions, objectives=names[:num_objectives], baseline=None, **changes
    )


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    results = {
        "1": make_result(1, 1, baseline=None, held_out=None, kl=None),
        "2": make_result(2, 10),
        "3": make_result(3, 4),
        "5": make_result(5, weights=default_weights(5)),
        "hostile": hostile_result(),
        "flat": make_result(2, 4, rewards=np.ones((5, 12, 2)), baseline=None),
        "gaps": with_gaps(),
    }
    for K, divisions in ((2, 4), (3, 3), (5, 1)):
        results[f"long {K}"] = with_long_names(K, divisions)
    paths = {key: write_report(one, folder / f"{key}.html") for key, one in results.items()}
    for K, divisions in ((2, 4), (3, 2), (4, 1)):
        policies = [(name, make_result(K, divisions, seed=i)) for i, name in enumerate("abc")]
        compared = compare(policies, num_resamples=20)
        paths[f"compared {K}"] = write_comparison(compared, folder / f"compared{K}")["html"]
    return paths


PAGES = (
    *("1", "2", "3", "5", "hostile", "flat", "gaps", "long 2", "long 3", "long 5"),
    *("compared 2", "compared 3", "compared 4"),
)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_drawn_without_complaint(
    browser: Browser, reports: dict[str, Path], page: str, width: int
) -> None:
    browser.open(reports[page], width=width, dark=page == "3")
    assert browser.complaints() == []
    assert browser.requests() == [reports[page].as_uri()]  # the file and nothing else
    sections = (
        "[...document.querySelectorAll('section:not([hidden]) > h2')].map((h) => h.innerText)"
    )
    shown = ["The front", "Steering", "Samples", "Numbers", "The run"]
    if page.startswith("compared"):
        shown.insert(1, "The comparison")
    assert browser.evaluate(sections) == shown
    empty = "[...document.querySelectorAll('.chart')].filter((c) => !c.querySelector('svg .mark'))"
    assert browser.evaluate(f"{empty}.length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.body.innerText.match(/NaN|undefined|null|Infinity/)") is None


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_no_label_overlaps_another_or_leaves_the_page(
    browser: Browser, reports: dict[str, Path], page: str, width: int
) -> None:
    browser.open(reports[page], width=width)
    assert browser.evaluate(FAULTS) == []


@pytest.mark.parametrize(
    ("page", "selector", "weights"),
    [
        ("2", '#front [data-key="0-3"] circle', ("positivity 0.70", "objectivity 0.30")),
        ("3", '#front [data-key="0-4"] circle', ("positivity 0.50", "brevity 0.25")),
        ("5", '#front [data-key="0-2"] circle:nth-of-type(3)', ("positivity 0.00", "brevity 1.00")),
    ],
)
def test_hovering_a_point_shows_its_weights(
    browser: Browser, reports: dict[str, Path], page: str, selector: str, weights: tuple[str, ...]
) -> None:
    browser.open(reports[page])
    assert browser.evaluate("document.getElementById('tooltip').hidden") is True
    browser.mouse("mouseMoved", selector)
    shown = browser.text("#tooltip")
    assert all(part in shown for part in weights), shown
    assert "smollm2-moodpo" in shown
    twins = browser.evaluate("document.querySelectorAll('.mark.on').length")
    assert twins == browser.evaluate(
        f"document.querySelectorAll(document.querySelector('{selector}')"
        ".closest('.mark').dataset.key.replace(/.*/, '[data-key=\"$&\"]')).length"
    )
    browser.mouse("mouseMoved", "h1")
    assert browser.evaluate("document.getElementById('tooltip').hidden") is True


def test_points_can_be_reached_by_keyboard(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["2"])
    browser.evaluate("document.querySelector('#front .mark[tabindex=\"0\"]').focus()")
    assert "positivity 1.00" in browser.text("#tooltip")
    browser.press("ArrowRight", 39)
    assert "positivity 0.90" in browser.text("#tooltip")
    assert browser.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "smollm2-moodpo. Weights: positivity 0.90 · objectivity 0.10. Mean rewards: positivity"
    )
    browser.press("Enter", 13)
    assert browser.text("#column-1 .asked-text") == "positivity 0.90 · objectivity 0.10"
    browser.press("Escape", 27)
    assert browser.evaluate("document.getElementById('tooltip').hidden") is True
    assert browser.evaluate("document.querySelectorAll('#front [tabindex=\"0\"]').length") == 1


def test_clicking_a_point_shows_its_sample(browser: Browser, reports: dict[str, Path]) -> None:
    result = make_result(2, 10)
    browser.open(reports["2"])
    browser.click('#front [data-key="0-4"] circle')
    browser.click('.picker button[aria-label="Next prompt"]')
    assert browser.text("#prompt-text") == result.prompts[1]
    assert browser.text("#column-1 .completion") == result.completions[4][1]
    assert browser.text("#column-0 .completion") == result.completions[0][1]
    shown = browser.text("#column-1 .scores dd:last-child").replace("−", "-")
    assert float(shown) == pytest.approx(result.rewards[4, 1, 1], abs=0.01)
    letters = "[...document.querySelectorAll('#front .letter')].map((l) => l.textContent).join('')"
    assert sorted(browser.evaluate(letters)) == ["A", "B"]


def test_sliders_and_lists_choose_what_is_read(browser: Browser, reports: dict[str, Path]) -> None:
    result = make_result(2, 10)
    browser.open(reports["2"])
    browser.evaluate("document.querySelector('#column-0 input').focus()")
    browser.press("ArrowRight", 39)
    assert browser.text("#column-0 .completion") == result.completions[1][0]
    assert browser.evaluate("document.activeElement.getAttribute('aria-valuetext')") == (
        "positivity 0.90 · objectivity 0.10"
    )
    browser.evaluate(
        "(() => { const s = document.querySelector('#column-1 select'); s.value = 1;"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert result.baseline is not None
    assert browser.text("#column-1 .completion") == result.baseline.completions[10][0]


def test_hostile_texts_are_only_read(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["hostile"])
    browser.mouse("mouseMoved", '#front [data-key="0-0"] circle')
    assert browser.text("#column-0 .completion") == HOSTILE
    assert browser.text("h1") == HOSTILE
    assert browser.text("#tooltip h3") == HOSTILE
    assert browser.evaluate("document.title") == HOSTILE
    assert browser.evaluate("document.querySelectorAll('img, iframe, object, link').length") == 0
    assert browser.evaluate("document.scripts.length") == 2
    assert browser.complaints() == []


def test_the_page_follows_the_color_scheme(browser: Browser, reports: dict[str, Path]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(reports["2"], dark=True)
    dark = browser.evaluate(paper)
    browser.open(reports["2"])
    assert (dark, browser.evaluate(paper)) == ("rgb(21, 24, 28)", "rgb(255, 255, 255)")


def test_a_printed_page_leaves_the_controls_out(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["2"], dark=True)
    browser.send("Emulation.setEmulatedMedia", media="print")
    hidden = "getComputedStyle(document.querySelector('#column-0 input')).display"
    assert browser.evaluate(hidden) == "none"
    pages = browser.send("Page.printToPDF", printBackground=True)["data"]
    browser.send("Emulation.setEmulatedMedia", media="")
    assert len(pages) > 20_000
