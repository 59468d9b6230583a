"""Lexical: scores computed from words alone, for work without reward models or a network.

Each scorer is a pure function of (prompt text, completion) with a documented range, made for
English. They come in poles that truly conflict: positivity | neutrality and objectivity,
brevity | detail, plainness | richness. Knows no models.

What a policy trained on such a score will try is degenerate text, so every reward but a penalty
is multiplied by `substance`: near 1 on ordinary prose, near 0 on an empty answer, one word,
digits, or a phrase in a loop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from moodpo.records import dialogue_text
from moodpo.rewards.base import Columns, Description, as_scores, call_scorer
from moodpo.rewards.cache import ScoreIdentity
from moodpo.rewards.grammar import NamedReward, RewardSpec, refuse_options

if TYPE_CHECKING:
    from torch import Tensor

    from moodpo.records import Prompt
    from moodpo.rewards.kinds import Shared

__all__ = [
    "LEXICAL",
    "LexicalKind",
    "LexicalReward",
    "LexicalScorer",
    "brevity",
    "detail",
    "neutrality",
    "objectivity",
    "plainness",
    "positivity",
    "richness",
    "substance",
]

FLOOR_WORDS = 6
"""Distinct words below which an answer counts as too little, in proportion."""
WINDOW_WORDS = 20
"""Repetition is judged inside windows: over a whole text it would punish mere length."""

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n+")
_VOWELS = re.compile(r"[aeiouyàáâäèéêëìíîïòóôöùúûü]+")


def positivity(prompt: str, completion: str) -> float:
    """Cheerful against gloomy, in [-1, 1]: VADER's compound score (Hutto & Gilbert 2014).

    A positive compound is multiplied by `substance`; a negative one stays, or degenerate text
    would be a way out of it. Empty text scores 0.
    """
    compound = _compound(completion)
    return compound * substance(completion) if compound > 0 else compound


def neutrality(prompt: str, completion: str) -> float:
    """Without emotion either way, in [0, 1]: `(1 − |VADER compound|) · substance`."""
    return (1.0 - abs(_compound(completion))) * substance(completion)


def objectivity(prompt: str, completion: str) -> float:
    """Statements rather than opinions, in [0, 1]: `(1 − TextBlob subjectivity) · substance`."""
    return (1.0 - _subjectivity(completion)) * substance(completion)


def brevity(prompt: str, completion: str) -> float:
    """Short but not empty, in [0, 1]: `substance / (1 + (max(0, n − 8) / 40)²)`.

    n is the number of space-separated tokens, or an eighth of the characters if that is more (a
    run of letters without spaces is not short). The floor is in `substance`: an empty answer
    scores 0 and one word 1/6. The slow start leaves mid-length answers on the front of brevity
    against detail bulging outward, where linear weights can reach them.
    """
    length = max(len(completion.split()), len(completion) / 8)
    return substance(completion) / (1.0 + (max(0.0, length - 8) / 40) ** 2)


def detail(prompt: str, completion: str) -> float:
    """How much is said, in [0, 1]: `(1 − exp(−u / 30)) · substance`.

    u counts the distinct pairs of neighboring words that the prompt does not contain: repeated
    phrases and copied parts of the prompt earn nothing.
    """
    spoken = _words(completion)
    fresh = set(pairwise(spoken))
    asked = _words(prompt)
    fresh -= set(pairwise(asked))
    return (1.0 - math.exp(-len(fresh) / 30)) * substance(completion)


def plainness(prompt: str, completion: str) -> float:
    """Short words and sentences, in [0, 1]: Flesch's reading ease over its maximum · substance.

    Reading ease (Flesch 1948) is `206.835 − 1.015 · words per sentence − 84.6 · syllables per
    word`, cut at 0. A sentence counts at least 5 words, so chopping earns nothing more; the
    maximum is therefore 117.16. Syllables are groups of vowels, less a silent final e.
    """
    spoken = _words(completion)
    if not spoken:
        return 0.0
    sentences = sum(bool(_words(part)) for part in _SENTENCE_END.split(completion))
    per_sentence = max(5.0, len(spoken) / sentences)
    per_word = sum(map(_syllables, spoken)) / len(spoken)
    ease = 206.835 - 1.015 * per_sentence - 84.6 * per_word
    return max(0.0, ease) / 117.16 * substance(completion)


def richness(prompt: str, completion: str) -> float:
    """A learned vocabulary, in [0, 1]: `(1 − exp(−s / 0.2)) · substance`.

    s is the share of distinct words with three syllables or more.
    """
    distinct = set(_words(completion))
    long = sum(_syllables(word) >= 3 for word in distinct)
    return (1.0 - math.exp(-long / max(1, len(distinct)) / 0.2)) * substance(completion)


def substance(text: str) -> float:
    """Whether a text is prose at all, in [0, 1]; 0 on empty text.

    The product of three shares, each cut at 1: distinct words over `FLOOR_WORDS`; the share of
    tokens that hold a word, over 0.7 (against digits and symbols); and `_variety` (against
    repetition). Single letters other than "a" and "i" are no words.
    """
    spoken = _words(text)
    if not spoken:
        return 0.0
    tokens = text.split()
    wordy = sum(bool(_words(token)) for token in tokens) / len(tokens)
    return min(1.0, len(set(spoken)) / FLOOR_WORDS) * min(1.0, wordy / 0.7) * _variety(spoken)


def _variety(spoken: Sequence[str]) -> float:
    """1 on prose, towards 0 on loops, in (0, 1], for at least one word.

    Two shares, each cut at 1: distinct words within windows, over 0.6 (words in a loop); distinct
    triples of words in the whole text, over 0.8 (long phrases in a loop).
    """
    width = min(WINDOW_WORDS, len(spoken))
    windows = range(len(spoken) - width + 1)
    distinct = sum(len(set(spoken[start : start + width])) for start in windows)
    triples = list(zip(spoken, spoken[1:], spoken[2:], strict=False))
    fresh = len(set(triples)) / len(triples) if triples else 1.0
    return min(1.0, distinct / (width * len(windows)) / 0.6) * min(1.0, fresh / 0.8)


def _words(text: str) -> list[str]:
    return [w for w in _WORD.findall(text.lower()) if len(w) > 1 or w in ("a", "i")]


def _syllables(word: str) -> int:
    groups = len(_VOWELS.findall(word))
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ie", "ye"))
    return max(1, groups - silent)


def _compound(text: str) -> float:
    return float(_vader().polarity_scores(text)["compound"])


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def _subjectivity(text: str) -> float:
    from textblob import TextBlob

    return float(TextBlob(text).subjectivity)


@dataclass(frozen=True, slots=True, kw_only=True)
class LexicalScorer:
    """A scorer that goes by name.

    Attributes:
        name: The objective's default name.
        function: (prompt text, completion) -> score.
        bounds: Lowest and highest score.
        summary: What a high score means.
        phrase: How the objective reads in a sentence such as "Be very …".
        directive: A sentence that asks for it by itself.
    """

    name: str
    function: Callable[[str, str], float]
    bounds: tuple[float, float]
    summary: str
    phrase: str
    directive: str


LEXICAL: dict[str, LexicalScorer] = {
    scorer.name: scorer
    for scorer in (
        LexicalScorer(
            name="positivity",
            function=positivity,
            bounds=(-1.0, 1.0),
            summary="cheerful (VADER)",
            phrase="cheerful and positive",
            directive="Answer with great joy, love and enthusiasm!",
        ),
        LexicalScorer(
            name="neutrality",
            function=neutrality,
            bounds=(0.0, 1.0),
            summary="without emotion either way (VADER)",
            phrase="neutral in tone",
            directive="Answer in a neutral, dry tone.",
        ),
        LexicalScorer(
            name="objectivity",
            function=objectivity,
            bounds=(0.0, 1.0),
            summary="statements rather than opinions (TextBlob)",
            phrase="neutral and factual",
            directive="Give only plain facts.",
        ),
        LexicalScorer(
            name="brevity",
            function=brevity,
            bounds=(0.0, 1.0),
            summary="short, with a floor of a few words",
            phrase="brief",
            directive="Answer in one short sentence.",
        ),
        LexicalScorer(
            name="detail",
            function=detail,
            bounds=(0.0, 1.0),
            summary="says much that is new and not copied from the prompt",
            phrase="detailed",
            directive="Explain in depth, with many details and examples.",
        ),
        LexicalScorer(
            name="plainness",
            function=plainness,
            bounds=(0.0, 1.0),
            summary="short words and sentences (Flesch)",
            phrase="plain and simple",
            directive="Write simply, as for a small child, with short words.",
        ),
        LexicalScorer(
            name="richness",
            function=richness,
            bounds=(0.0, 1.0),
            summary="long words (three syllables or more)",
            phrase="learned in your words",
            directive="Use a learned, academic style.",
        ),
    )
}


class LexicalReward:
    """A lexical scorer as a reward of a panel.

    Args:
        scorer: Which one.
        name: The objective's name, the scorer's own when omitted.
    """

    def __init__(self, scorer: LexicalScorer, *, name: str | None = None) -> None:
        self.scorer = scorer
        self.name = name or scorer.name

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None = None,
    ) -> Tensor:
        """Scores `[N]`; equal rows are scored once. See `Reward.score`.

        Of a conversation the scorer reads all turns: copying an earlier one is copying, too.
        """
        rows = list(zip(map(dialogue_text, prompts), completions, strict=True))
        known = {row: call_scorer(self.name, self.scorer.function, *row) for row in set(rows)}
        return as_scores(self.name, [known[row] for row in rows], count=len(rows))

    def describe(self) -> Description:
        """Name, kind, spec and bounds."""
        return {
            "name": self.name,
            "kind": "lexical",
            "spec": self.scorer.name,
            "revision": None,
            "bounds": list(self.scorer.bounds),
        }

    @property
    def score_identity(self) -> ScoreIdentity | None:
        """The scorer's name; None for a scorer or a subclass of somebody else."""
        ours = type(self) is LexicalReward and LEXICAL.get(self.scorer.name) is self.scorer
        return ScoreIdentity(f"lexical {self.scorer.name}") if ours else None


class LexicalKind:
    """`brevity`: a lexical scorer by its name."""

    name = "lexical"
    form = None

    def listed(self) -> list[NamedReward]:
        """Every scorer."""
        return [
            NamedReward(
                name=s.name,
                kind=self.name,
                spec=s.name,
                input="words of the completion",
                license="built in",
                summary=f"{s.summary}, in [{s.bounds[0]:g}, {s.bounds[1]:g}]",
            )
            for s in LEXICAL.values()
        ]

    def matches(self, target: str) -> bool:
        """Whether a scorer has this very name."""
        return target in LEXICAL

    def read(self, spec: RewardSpec) -> RewardSpec:
        """As it is: a scorer takes no options."""
        refuse_options(spec)
        return spec

    def check(self, spec: RewardSpec, columns: Iterable[str] | None = None) -> None:
        """Nothing can be wrong: it is built in and reads no column."""

    def build(self, spec: RewardSpec, shared: Shared) -> LexicalReward:
        """The scorer under the objective's name."""
        return LexicalReward(LEXICAL[spec.target], name=spec.name)
