"""Checkpoint: a sequence classifier, read whole or refused. Token rows → logits.

The scored position is chosen here, from the true length of each input, because transformers' own
choice for decoders has changed between releases. Knows neither texts nor what is scored.

Shapes: N inputs, T tokens, L labels, H hidden units.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError, RewardSpecError
from moodpo.models.chat_templates import chat_template_of
from moodpo.models.tokens import first_valid_id
from moodpo.rewards.cache import new_serial
from moodpo.rewards.checks import check_config, own_code
from moodpo.rewards.inputs import TokenRow
from moodpo.rewards.presets import INPUTS, InputTemplate, Pooling
from moodpo.rewards.scoring import ClassifierSpec, Scoring
from moodpo.rewards.sharing import equal_backbones, once, tokenizer_fingerprint
from moodpo.rewards.weight_files import find_damage

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Checkpoint", "load_checkpoint", "pad_rows", "share_backbone"]


_HARMLESS = re.compile(
    r"(^|\.)(position_ids|inv_freq|version|num_batches_tracked|masked_bias"
    r"|(attn|attention|self_attention)\.bias"
    r"|lm_head|embed_out|cls|pooler|predictions|lm_predictions|mask_predictions"
    r"|vocab_transform|vocab_layer_norm|vocab_projector|final_logits_bias"
    r"|(generator|discriminator)_\w+)(\.|$)"
)


def pad_rows(rows: Sequence[TokenRow], *, pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded int64 tensors `[N, T]`, with the `attention_mask` of the true lengths."""
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    width = int(lengths.max())
    padded = {"attention_mask": (torch.arange(width) < lengths[:, None]).long()}
    for key in rows[0]:
        filler = pad_token_id if key == "input_ids" else 0
        padded[key] = torch.tensor(
            [[*row[key], *[filler] * (width - len(row[key]))] for row in rows]
        )
    return padded


@dataclass(slots=True, kw_only=True)
class Checkpoint:
    """A loaded classifier: evaluation mode, no gradients, its own tokenizer.

    Attributes:
        source: Folder or Hub id, for people.
        revision: The commit that was loaded, None for folders and objects.
        pad_token_id: What fills up shorter inputs; never looked at again, masks come from lengths.
        rebuildable: Whether `source` still holds these very weights (False for objects).
        serial: Of this very object: a folder may hold other weights when it is loaded again.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    revision: str | None
    pad_token_id: int
    rebuildable: bool
    serial: int = field(init=False, default_factory=new_serial)
    _fingerprint: object = field(init=False, default=None, repr=False)

    @property
    def tokenizer_identity(self) -> object:
        """Equal for checkpoints whose tokenizers read every text alike.

        Computed once, so by content only for tokenizers that nobody else holds and could change.
        """
        if not self.rebuildable:
            return self.tokenizer
        if self._fingerprint is None:
            self._fingerprint = tokenizer_fingerprint(self.tokenizer) or self.tokenizer
        return self._fingerprint

    @property
    def backbone(self) -> nn.Module:
        """What `_forward` runs: all but the head of a decoder, the whole of an encoder."""
        whole = self.pooling == "head"
        module: nn.Module = self.model if whole else self.model.base_model
        return module

    @property
    def labels(self) -> list[str]:
        """L names, in order of the logits."""
        names = self.model.config.id2label
        return [str(names[index]) for index in sorted(names)]

    @property
    def pooling(self) -> Pooling:
        """Decoders have a linear `score` over all positions; encoders a head of their own."""
        return "last_token" if isinstance(getattr(self.model, "score", None), nn.Linear) else "head"

    @property
    def max_tokens(self) -> int:
        """The longest input that tokenizer and position embeddings allow."""
        positions = getattr(self.model.config, "max_position_embeddings", None) or 0
        positions = positions if positions > 0 else sys.maxsize  # XLNet's -1 is "any"
        for name, module in self.model.named_modules():
            # RoBERTa and its kin count positions from padding_idx + 1.
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                positions -= 0 if module.padding_idx is None else module.padding_idx + 1
                break
        return int(min(positions, self.tokenizer.model_max_length))

    def template(self, scoring: Scoring) -> InputTemplate:
        """The input that was asked for, else the chat template, else (prompt, response)."""
        if scoring.input is not None and not INPUTS[scoring.input].chat:
            return INPUTS[scoring.input]
        try:
            chat = chat_template_of(self.tokenizer) is not None
        except ConfigError as error:
            raise RewardSpecError(f"{self.source}: {error} Or use input=prompt-response.") from None
        template = INPUTS[scoring.input or ("chat" if chat else "prompt-response")]
        if template.chat and not chat:
            raise RewardSpecError(
                f"{self.source} has no chat template. Use input=prompt-response, or save one with "
                "its tokenizer."
            )
        return template

    def check_pooling(self, scoring: Scoring, spec: ClassifierSpec) -> None:
        """Refuses an architecture that reads its score elsewhere than the preset says."""
        if scoring.pooling not in (None, self.pooling):
            raise RewardSpecError(
                f"{self.source} is a {type(self.model).__name__} (score at {self.pooling}), but "
                f"{spec.name!r} expects a score at {scoring.pooling}. The checkpoint has changed: "
                "pin the revision that you know (preset@<commit>)."
            )

    def logits(self, rows: Sequence[TokenRow], *, batch_size: int) -> Tensor:
        """Logits `[N, L]` float32 on the CPU, in the order of the rows; NaN for empty rows.

        Equal rows are computed once. Batches hold rows of like length, longest first, so that
        little is padding and a lack of memory shows at once. Rewards of one panel that need the
        same rows of the same backbone share its forward passes.
        """
        keys = [tuple(tuple(row[key]) for key in sorted(row)) for row in rows]
        distinct = {key: row for key, row in zip(keys, rows, strict=True) if row["input_ids"]}
        ordered = sorted(distinct.items(), key=lambda item: -len(item[1]["input_ids"]))
        inputs = [row for _, row in ordered]
        batches = once(
            ("features", batch_size, self.pad_token_id, self.backbone, inputs),
            lambda: [
                self._forward(inputs[start : start + batch_size])
                for start in range(0, len(inputs), batch_size)
            ],
        )
        found = [self._head(features).to("cpu", torch.float32) for features in batches]
        table = torch.cat([*found, torch.full((1, len(self.labels)), torch.nan)])
        place = {key: index for index, (key, _) in enumerate(ordered)}
        return table[[place.get(key, len(ordered)) for key in keys]]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[TokenRow]) -> Tensor:
        """What the head reads: activations `[N, H]` of a decoder, an encoder's logits `[N, L]`."""
        padded = pad_rows(rows, pad_token_id=self.pad_token_id)
        inputs = {key: value.to(self.model.device) for key, value in padded.items()}
        if self.pooling == "head":
            return torch.as_tensor(self.model(**inputs).logits)
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state  # [N, T, H]
        last = inputs["attention_mask"].sum(dim=1) - 1  # [N]: of the true length, whatever token
        return torch.as_tensor(hidden[torch.arange(len(rows), device=hidden.device), last])

    @torch.inference_mode()
    def _head(self, features: Tensor) -> Tensor:
        """Logits `[N, L]` of what `_forward` gave."""
        if self.pooling == "head":
            return features
        return torch.as_tensor(self.model.score(features))

    @classmethod
    def from_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        source: str,
        revision: str | None = None,
        rebuildable: bool = False,
    ) -> Checkpoint:
        """Wraps a classifier: evaluation mode, no gradients, a padding token."""
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(source, revision)
        padding_idx = getattr(model.get_input_embeddings(), "padding_idx", None)
        named = [model.config.pad_token_id, tokenizer.pad_token_id, padding_idx]
        if isinstance(getattr(model, "score", None), nn.Linear):
            named.append(tokenizer.eos_token_id)  # not where encoders find their score
        pad = first_valid_id(named, model)
        # transformers refuses batches of a decoder classifier that names no padding token.
        model.config.pad_token_id = pad
        model.eval().requires_grad_(False)
        return cls(
            model=model,
            tokenizer=tokenizer,
            source=source,
            revision=revision,
            pad_token_id=pad,
            rebuildable=rebuildable,
        )


def load_checkpoint(
    spec: ClassifierSpec, *, device: torch.device, dtype: torch.dtype
) -> Checkpoint:
    """Loads the classifier of a spec, after its `config.json` has been found to be one.

    Raises:
        RewardSpecError: If it cannot be found or is damaged, is no sequence classifier (refused
            before any weight is read), lacks weights that would have been made up at random, or
            has weights that its score would leave out.
    """
    from transformers import AutoModelForSequenceClassification

    source = spec.checkpoint
    config = load_config(source, spec.pinned)
    check_config(config.to_dict(), spec)
    # Every file of one state, even while a branch moves.
    revision = find_commit(source, spec.pinned) or spec.pinned
    tokenizer = load_tokenizer(source, revision)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # damaged files and odd configurations raise anything
        raise _cannot_load(source, error, revision) from error
    if missing := sorted(report["missing_keys"]):
        raise RewardSpecError(
            f"{source} lacks the weights {', '.join(missing[:4])}: they would be random, and so "
            "would the scores. Pass a checkpoint that was trained as a sequence classifier."
        )
    if unused := unused_weights(report["unexpected_keys"]):
        raise RewardSpecError(
            f"{source} has the weights {', '.join(unused[:4])}, which a {type(model).__name__} "
            "does not use: another architecture computed its scores. Pass a checkpoint that is "
            "one, or score with it in a function of yours."
        )
    keep_head_in_float32(model)
    return Checkpoint.from_model(
        model.to(device),
        tokenizer,
        source=source,
        revision=revision,
        rebuildable=True,
    )


def unused_weights(unexpected: Iterable[str]) -> list[str]:
    """Of the tensors that a class does not use, those that a score should have followed from.

    Buffers that old releases saved are none, nor are the heads of pretraining and the poolers that
    fine-tuned classifiers carry along.
    """
    return sorted(name for name in unexpected if not _HARMLESS.search(name))


def share_backbone(checkpoint: Checkpoint, others: Iterable[Checkpoint]) -> None:
    """Puts a decoder's head on the backbone of an earlier one, if theirs are equal in every weight.

    Saves the memory of a copy, and lets both heads read one forward pass. An encoder's head reads
    its backbone in ways of its own, so encoders stay apart.

    Args:
        checkpoint: Just loaded; its model is changed in place.
        others: Loaded before, held by nobody who could change them.
    """
    for other in others:
        both_decode = checkpoint.pooling == other.pooling == "last_token"
        if both_decode and equal_backbones(checkpoint.model, other.model):
            model = checkpoint.model
            setattr(model, model.base_model_prefix, other.model.base_model)
            return


def find_commit(source: str, revision: str | None) -> str | None:
    """The commit that a revision stands for in the Hub cache; None for folders."""
    return None if (folder := _folder_of(source, revision)) == Path(source) else folder.name


def load_config(source: str, revision: str | None) -> PreTrainedConfig:
    """The checkpoint's configuration, or a RewardSpecError that says what to do."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(source, error, revision) from error


def load_tokenizer(source: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer, or a RewardSpecError that says what to do."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load(source, error, revision) from error


def keep_head_in_float32(model: PreTrainedModel) -> None:
    """Computes the last projection in float32, whatever the model computes in.

    In bfloat16 a score near 3 moves in steps of 1/64: different completions would tie.
    """
    if model.dtype == torch.float32:
        return
    wide = [m for m in model.modules() if isinstance(m, nn.Linear)]
    heads = [m for m in wide if m.out_features == model.config.num_labels]
    for head in heads[-1:]:
        head.float().register_forward_pre_hook(_inputs_to_float32)


def _inputs_to_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) else x for x in inputs)


def _cannot_load(source: str, error: Exception, revision: str | None) -> RewardSpecError:
    if "trust_remote_code" in str(error):
        return own_code(source)
    if damage := find_damage(_folder_of(source, revision)):
        return RewardSpecError(f"Cannot load the reward model {source!r}: {damage}")
    said = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    if not isinstance(error, (OSError, ValueError, RuntimeError)):
        said = f"{type(error).__name__}: {said}"
    reason = said if said.endswith((".", "!", "?", ":")) else f"{said}."
    return RewardSpecError(
        f"Cannot load the reward model {source!r}: {reason} Check the name and, without a "
        "network, download it first (hf download) and pass its folder: name=/path#like=preset "
        "keeps a preset's format."
    )


def _folder_of(source: str, revision: str | None) -> Path:
    """Where the files of a checkpoint are: its folder, or the Hub cache's of the revision."""
    from huggingface_hub import try_to_load_from_cache

    found = None
    if not Path(source).exists():
        found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else Path(source)
