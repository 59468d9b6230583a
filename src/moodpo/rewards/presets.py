"""Presets: the reward models that go by name, as data. Loads nothing, computes nothing.

Dispatch is by preset name (or by a checkpoint's exact id), never by a part of a path. Sources of
the formats: the model cards, and the reward inputs of Rewards-in-Context (Yang et al. 2024) and
Rewarded Soups (Ramé et al. 2023).

Revisions are None, "whatever the Hub serves", where the commit that the published numbers came
from is unknown to us. Pin one as `helpful@<commit>`; the commit that was really loaded is recorded
in `Reward.describe()` and so in `moodpo.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "INPUTS",
    "PRESETS",
    "InputTemplate",
    "Pooling",
    "Preset",
    "preset_of_checkpoint",
]

Pooling: TypeAlias = Literal["last_token", "head"]
"""Where a score is read: the last attended token (decoders), or as the encoder's head does."""

DEFAULT_MAX_TOKENS = 1024
"""Reward inputs are cut to this many tokens, or to the checkpoint's own limit if that is lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTemplate:
    """How a prompt and a response become a reward model's input.

    Attributes:
        name: What a spec says after `#input=`.
        first: The text, or the first text of a pair. `{prompt}` and `{response}` are replaced once
            (text that looks like a field stays text); `{bos}` is the tokenizer's real bos token.
        second: The second text of a pair; None for a single text.
        chat: The checkpoint's own chat template renders the conversation instead.
        transcript: `{prompt}` is a whole dialogue in the frame of Anthropic HH, of which the
            template writes the beginning and the end.
        keeps: Which part of a prompt that is too long is kept: a dialogue's end is what is
            answered, a document's start says what it is about.
    """

    name: str
    first: str = ""
    second: str | None = None
    chat: bool = False
    transcript: bool = False
    keeps: Literal["start", "end"] = "end"

    @property
    def reads_prompt(self) -> bool:
        """Whether anything of the prompt is in the input."""
        return self.chat or "{prompt}" in f"{self.first}{self.second}"

    def __str__(self) -> str:
        if self.chat:
            return "the checkpoint's chat template"
        texts = [self.first] if self.second is None else [self.first, self.second]
        shown = [text.replace("\n", "\\n") for text in texts]
        return shown[0] if len(shown) == 1 else f"({', '.join(shown)})"


INPUTS: dict[str, InputTemplate] = {
    template.name: template
    for template in (
        # The space before the second line break is on the model cards and in the training data.
        InputTemplate(
            name="hh",
            first="\n\nHuman: {prompt} \n\nAssistant:",
            second="{response}",
            transcript=True,
        ),
        InputTemplate(name="response", first="{response}"),
        InputTemplate(name="tldr", first="{response} {bos} {prompt}", keeps="start"),
        InputTemplate(name="response-prompt", first="{response}", second="{prompt}", keeps="start"),
        InputTemplate(name="prompt-response", first="{prompt}", second="{response}"),
        InputTemplate(name="chat", chat=True),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One named reward model.

    Attributes:
        name: The objective's default name.
        checkpoint: Hub id.
        input: Key of `INPUTS`.
        num_labels: Width of the head; another width is refused at load.
        label: The label whose logit is the score.
        label_name: What the checkpoint's `id2label` must call it, unless it has no names
            (`LABEL_0`, `LABEL_1`); None where there is a single label.
        pooling: Where the score is read; a checkpoint of the other kind is refused.
        revision: Pinned commit, None where unknown.
        license: As on the model card; "unverified" where we could not read one.
        summary: What a high score means.
        phrase: How the objective reads in a sentence such as "Be very …".
        directive: A sentence that asks for it by itself.
    """

    name: str
    checkpoint: str
    input: str
    num_labels: int
    label: int
    label_name: str | None
    pooling: Pooling
    revision: str | None
    license: str
    summary: str
    phrase: str
    directive: str


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="helpful",
            checkpoint="Ray2333/gpt2-large-helpful-reward_model",
            input="hh",
            num_labels=1,
            label=0,
            label_name=None,
            pooling="last_token",
            revision=None,
            license="MIT",
            summary="more helpful, as raters of Anthropic HH see it",
            phrase="helpful",
            directive="Help as much as you can.",
        ),
        Preset(
            name="harmless",
            checkpoint="Ray2333/gpt2-large-harmless-reward_model",
            input="hh",
            num_labels=1,
            label=0,
            label_name=None,
            pooling="last_token",
            revision=None,
            license="MIT",
            summary="more harmless, as raters of Anthropic HH see it",
            phrase="harmless",
            directive="Avoid anything that could do harm.",
        ),
        Preset(
            name="humor",
            checkpoint="mohameddhiab/humor-no-humor",
            input="response",
            num_labels=2,
            label=1,
            label_name="humor",
            pooling="head",
            revision=None,
            license="Apache-2.0",
            summary="the response alone reads as a joke",
            phrase="funny",
            directive="Be funny.",
        ),
        Preset(
            name="deberta",
            checkpoint="OpenAssistant/reward-model-deberta-v3-large-v2",
            input="hh",
            num_labels=1,
            label=0,
            label_name=None,
            pooling="head",
            revision=None,
            license="unverified",
            summary="preferred by human raters, broadly",
            phrase="high-quality",
            directive="Give the best answer you can.",
        ),
        Preset(
            name="summary",
            checkpoint="Tristan/gpt2_reward_summarization",
            input="tldr",
            num_labels=1,
            label=0,
            label_name=None,
            pooling="last_token",
            revision=None,
            license="unverified",
            summary="a better summary of the post (the prompt)",
            phrase="complete",
            directive="Cover everything that matters.",
        ),
        # Raw logit[1] of the whole response, as Rewards-in-Context, is the default: a policy
        # trained on its first sentence alone is free to invent in the second. Rewarded Soups'
        # score is `faithful#score=margin&response=first-sentence`.
        Preset(
            name="faithful",
            checkpoint="CogComp/bart-faithful-summary-detector",
            input="response-prompt",
            num_labels=2,
            label=1,
            label_name="faithful",
            pooling="head",
            revision=None,
            license="CC-BY-SA-4.0",
            summary="says nothing that the post (the prompt) does not",
            phrase="faithful to the text",
            directive="Say only what the text says.",
        ),
    )
}


def preset_of_checkpoint(checkpoint: str) -> Preset | None:
    """The preset whose checkpoint is exactly this Hub id, if any."""
    return next((p for p in PRESETS.values() if p.checkpoint == checkpoint), None)
