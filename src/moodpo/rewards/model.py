"""Model: sequence classifiers as rewards. Text → the classifier's own tokens → logits → one score.

The boundary to the policy is text: every reward model tokenizes for itself, and text that spells a
control token (`</s>`, `<|endoftext|>`) stays text, or a policy could write itself a new position
to be scored at. Knows no objective weights, and not how a classifier is loaded or run.

Shapes: N inputs, L labels.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from moodpo.rewards.base import (
    Columns,
    Description,
    RewardRowError,
    as_scores,
    call_scorer,
    check_lengths,
)
from moodpo.rewards.cache import ScoreIdentity
from moodpo.rewards.checks import resolve_label
from moodpo.rewards.inputs import Inputs, encode_inputs
from moodpo.rewards.scoring import ClassifierSpec, ScoreKind
from moodpo.rewards.sharing import once

if TYPE_CHECKING:
    from moodpo.records import Prompt
    from moodpo.rewards.checkpoint import Checkpoint

__all__ = ["ModelReward", "first_sentence", "label_scores"]

logger = logging.getLogger(__name__)


class ModelReward:
    """One score of one classifier.

    Args:
        spec: How inputs are written and logits become a score.
        checkpoint: The loaded classifier; several rewards may share it.
        batch_size: Inputs per forward pass.

    Raises:
        RewardSpecError: If the checkpoint is not what the preset promises, or the scored label
            is unclear.
    """

    def __init__(
        self, spec: ClassifierSpec, checkpoint: Checkpoint, *, batch_size: int = 16
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.scoring = spec.scoring
        self.label = resolve_label(checkpoint.labels, spec)
        self.template = checkpoint.template(self.scoring)
        self.max_tokens = min(self.scoring.max_tokens, checkpoint.max_tokens)
        checkpoint.check_pooling(self.scoring, spec)
        self._cut = self._read = 0
        self._warned = False

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        columns: Columns | None = None,
    ) -> Tensor:
        """Scores `[N]`, NaN for an input of no tokens at all. See `Reward.score`.

        A conversation is read whole, and cut before the response is; see `moodpo.rewards.inputs`.
        The first inputs that are cut are warned of.

        Raises:
            RewardError: If the forward pass failed, or gave NaN or an infinity for a text.
        """
        check_lengths(prompts, completions, columns)
        inputs = self.encode(prompts, completions)
        rows = inputs.rows
        self._count_cuts(inputs)
        ask = self.checkpoint.logits
        logits = call_scorer(self.name, ask, rows, batch_size=self.batch_size)  # [N, L]
        scores = label_scores(logits, label=self.label, kind=self.scoring.score)
        for index, row in enumerate(rows):
            if row["input_ids"] and scores[index].isnan():
                raise RewardRowError(
                    f"Reward {self.name!r} answered NaN",
                    index,
                    ": the model overflowed. Load it with dtype=torch.float32, or check its "
                    "weights.",
                    scores=scores.nan_to_num(math.nan, math.nan, math.nan).tolist(),
                )
        return as_scores(self.name, scores, count=len(completions))

    def pop_cuts(self) -> tuple[int, int]:
        """How many inputs were cut to fit, out of how many that were read; starts anew."""
        counts = self._cut, self._read
        self._cut = self._read = 0
        return counts

    def encode(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Inputs:
        """The N inputs, exactly as the classifier reads them, unpadded."""
        responses = [text.strip() for text in completions]
        if self.scoring.response == "first-sentence":
            responses = [first_sentence(text) for text in responses]
        tokenizer, max_tokens = self.checkpoint.tokenizer, self.max_tokens
        reader = self.checkpoint.tokenizer_identity
        return once(
            ("tokens", max_tokens, self.template, reader, responses, list(prompts)),
            lambda: encode_inputs(
                tokenizer, self.template, prompts, responses, max_tokens=max_tokens
            ),
        )

    def _count_cuts(self, inputs: Inputs) -> None:
        self._read += len(inputs.rows)
        self._cut += inputs.cut
        if not inputs.cut or self._warned:
            return
        self._warned = True
        limit = self.checkpoint.max_tokens
        logger.warning(
            "Reward %r: %d of %d inputs are longer than %d tokens and were cut%s. %s",
            self.name,
            inputs.cut,
            len(inputs.rows),
            self.max_tokens,
            f", {inputs.cut_responses} of them in the response itself"
            if inputs.cut_responses
            else " in the prompt; responses are whole",
            f"Its model reads up to {limit}: raise #max_tokens=."
            if self.max_tokens < limit
            else "Its model reads no more (#max_tokens= cannot be raised): pass shorter prompts.",
        )

    @property
    def score_identity(self) -> ScoreIdentity | None:
        """What a score follows from besides the text; None where it may change.

        A model that was passed as an object may be trained on by its owner, a subclass may score
        in other ways, and a chat template may write today's date.
        """
        checkpoint = self.checkpoint
        dated = self.template.chat and "strftime_now" in str(checkpoint.tokenizer.chat_template)
        if type(self) is not ModelReward or not checkpoint.rebuildable or dated:
            return None
        facts = {k: v for k, v in self.describe().items() if k not in ("name", "spec")}
        return ScoreIdentity(json.dumps([facts, checkpoint.serial], sort_keys=True))

    def describe(self) -> Description:
        """What was loaded and how it is read; `revision` is the commit, where there is one."""
        checkpoint, scoring = self.checkpoint, self.scoring
        return {
            "name": self.name,
            "kind": self.spec.kind,
            "spec": self.spec.rebuildable if checkpoint.rebuildable else None,
            "revision": checkpoint.revision,
            "checkpoint": checkpoint.source,
            "architecture": type(checkpoint.model).__name__,
            "input": self.template.name,
            "label": self.label,
            "label_name": checkpoint.labels[self.label],
            "score": scoring.score,
            "response": scoring.response,
            "pooling": checkpoint.pooling,
            "max_tokens": self.max_tokens,
            "dtype": str(checkpoint.model.dtype).removeprefix("torch."),
        }


def first_sentence(text: str) -> str:
    """Up to the first period, period included, whatever follows: the cut of Rewarded Soups."""
    return text.split(".")[0] + "."


def label_scores(logits: Tensor, *, label: int, kind: ScoreKind) -> Tensor:
    """One score per input.

    Args:
        logits: `[N, L]`.
        label: Index of the scored label.
        kind: `logit`, the raw logit; or `margin`, the logit minus the log-sum-exp of the others,
            which for two labels is `logit[1] - logit[0]`.

    Returns:
        `[N]`.
    """
    if kind == "logit":
        return logits[:, label]
    others = [index for index in range(logits.shape[1]) if index != label]
    return logits[:, label] - logits[:, others].logsumexp(dim=-1)
