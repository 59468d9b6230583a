"""`HFGenerator`: rollouts by a transformers causal language model, in this process.

One decode loop over `model.forward` with a key-value cache. What makes it fast:

- all completions of a prompt share one prefill;
- prompts are prefilled from the longest to the shortest, in groups of similar length;
- finished sequences leave the batch and waiting prompts take their places, so that the batch
  stays full (on a CPU a step of 4 sequences takes as long as one of 32: the weights must be read);
- the cache grows in place and tokens are drawn by inverse CDF, without a sort or a multinomial.

Left padding aligns the rows, with an explicit mask and explicit positions. Knows nothing of text,
rewards or training. Shapes: B prompts, n completions per prompt, N rows (sequences) decoded at
once, T completion tokens, S cache columns, V tokens in the vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError, GenerationError
from moodpo.generation.base import Completion, SamplingConfig, Who, check_request
from moodpo.generation.cache import DecodingCache, RowMoves, is_reorderable
from moodpo.generation.prefill import prefill_groups
from moodpo.generation.sampling import forbid_tokens, sample_tokens, uniforms
from moodpo.generation.tokens import token_roles
from moodpo.models.modes import rollout_dtype, rollout_mode
from moodpo.records import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["HFGenerator"]

# Rows are dropped, and prompts admitted, when that share of the batch is free: dropping costs a
# small copy per layer, admitting a forward pass that wants many tokens to be efficient.
_FREE_SHARE = 1 / 8

# Cache columns are made room for at once up to that many new tokens.
_MAX_ROOM = 256


class HFGenerator:
    """Samples completions from a transformers causal language model or a PEFT model around one.

    The model is used as it is at each call: its current weights, its device. During a call it is
    in evaluation mode with gradient checkpointing off, and afterwards as before.

    Args:
        model: The policy; any decoder-only model whose forward returns `past_key_values`.
        eos_token_ids: Tokens that end a completion; may be empty.
        pad_token_id: A valid token id to fill the left of shorter prompts with; masked.
        forbidden_token_ids: Tokens that are never drawn, whatever their logits: rows of the
            vocabulary that no token belongs to.
        generation_batch_size: How many sequences are decoded at once, at least 1. A prompt's
            completions always run together.
        progress: Called with (completions done, completions in all) as they finish.
        device: Where inputs go; the input embeddings' device by default.
        dtype: Cast float32 weights to this type for the duration of each call, once. By default
            they are cast to bfloat16 inside a bfloat16 autocast, and otherwise left alone. The
            cast copies take memory beside the weights while the call lasts.
        reference: Yields, while entered, the generator that samples from the reference.

    Raises:
        ConfigError: If the model is an encoder-decoder or uses prompt learning, or a number is
            out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        forbidden_token_ids: Sequence[int] = (),
        generation_batch_size: int = 64,
        progress: Callable[[int, int], None] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reference: Callable[[], AbstractContextManager[HFGenerator]] | None = None,
    ) -> None:
        if generation_batch_size < 1:
            raise ConfigError(
                f"generation_batch_size must be at least 1, got {generation_batch_size}."
            )
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.forbidden_token_ids = tuple(forbidden_token_ids)
        self.generation_batch_size = generation_batch_size
        self.progress = progress
        self.device = device
        self.dtype = dtype
        self._reference = reference
        self._forward = _Forward(model, pad_token_id=pad_token_id)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        reference: Callable[[], AbstractContextManager[nn.Module]] | None = None,
        **options: Any,
    ) -> HFGenerator:
        """The generator of a model whose tokens a tokenizer knows.

        Args:
            model: The policy.
            tokenizer: Says which tokens end a completion, which one pads, which are never drawn.
            reference: Yields, while entered, the model that is the reference then; it may be the
                policy's own module, changed for as long.
            **options: Of the constructor.
        """

        @contextmanager
        def of_reference() -> Iterator[HFGenerator]:
            assert reference is not None
            with reference() as other:
                yield generator if other is model else cls.of(other, tokenizer, **options)

        generator = cls(
            model,
            **token_roles(model, tokenizer),
            **options,
            reference=None if reference is None else of_reference,
        )
        return generator

    def sync(self, version: int) -> None:
        """Nothing to do: the weights are read where they are trained."""

    def close(self) -> None:
        """Nothing to do: everything is in this process."""

    def generate(
        self,
        prompt_ids: Sequence[TokenIds],
        *,
        sampling: SamplingConfig,
        num_completions: int,
        seeds: Sequence[int],
        who: Who = "policy",
    ) -> list[tuple[Completion, ...]]:
        """Samples completions of all prompts; see `Generator.generate`.

        A completion also ends, unfinished, where prompt and completion fill the model's context.

        Args:
            prompt_ids: B prompts, none empty.
            sampling: How tokens are drawn.
            num_completions: n, completions per prompt.
            seeds: B integers; completion j of prompt i depends on `seeds[i]`, j and the prompt.
            who: The policy, or its reference.

        Returns:
            B tuples of n completions.

        Raises:
            GenerationError: If a prompt is empty, fills the context or holds unknown tokens, or
                the model's logits are not finite.
        """
        check_request(prompt_ids, num_completions=num_completions, seeds=seeds)
        if not prompt_ids:
            return []
        if who == "reference":
            if self._reference is None:
                raise GenerationError(
                    "This generator knows no reference. Make it with reference=, or ask the policy."
                )
            with self._reference() as frozen:
                return frozen.generate(
                    prompt_ids, sampling=sampling, num_completions=num_completions, seeds=seeds
                )
        self._forward.check(prompt_ids)
        draws = uniforms(seeds, num_completions=num_completions, num_tokens=sampling.max_new_tokens)
        dtype, steps = rollout_dtype(self.model, self.dtype), sampling.max_new_tokens
        with rollout_mode(self.model, dtype=dtype, steps=steps):
            rollout = _Rollout(self, prompt_ids, draws.flatten(0, 1), sampling, num_completions)
            rollout.run()
        return rollout.completions()


class _Forward:
    """The model's forward pass: which arguments it knows, what it can take."""

    def __init__(self, model: nn.Module, *, pad_token_id: int) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        base: Any = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
        if hasattr(base, "get_base_model"):  # PEFT's
            _refuse_prompt_learning(base)
            base = base.get_base_model()
        if getattr(base.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"{type(base).__name__} is an encoder-decoder; generation needs a decoder-only "
                "causal language model (AutoModelForCausalLM)."
            )
        self._embeddings = base.get_input_embeddings
        text_config = base.config.get_text_config()
        self.max_length: int | None = getattr(text_config, "max_position_embeddings", None)
        self.last_position = sys.maxsize if self.max_length is None else self.max_length - 1
        self._known = inspect.signature(base.forward).parameters.keys()
        # Whether prompts can join a running batch, once the first prefill has shown the cache.
        self.growing: bool | None = None

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        device: torch.device = self._embeddings().weight.device
        return device

    def check(self, prompt_ids: Sequence[TokenIds]) -> None:
        """Refuses prompts that the model cannot read, naming the first."""
        vocabulary = len(self._embeddings().weight)
        for index, prompt in enumerate(prompt_ids):
            if self.max_length is not None and len(prompt) >= self.max_length:
                raise GenerationError(
                    f"Prompt {index} has {len(prompt)} tokens, but the model's context is "
                    f"{self.max_length}: no room for a completion. Shorten or drop the prompt."
                )
            low, high = min(prompt), max(prompt)
            if low < 0 or high >= vocabulary:
                raise GenerationError(
                    f"Prompt {index} holds token {min(low, 0) or high}, but the embeddings have "
                    f"{vocabulary} rows. Use the model's own tokenizer, or resize the embeddings."
                )

    def limit(self, prompt: TokenIds, max_new_tokens: int) -> int:
        """How many tokens may follow a prompt."""
        if self.max_length is None:
            return max_new_tokens
        return min(max_new_tokens, self.max_length - len(prompt))

    def prefill(
        self, prompts: Sequence[TokenIds], repeats: int, device: torch.device
    ) -> tuple[Tensor, Any]:
        """Reads prompts: the logits `[b, V]` of the token after each, and the model's cache.

        A cache whose rows cannot be repeated afterwards comes with b * repeats rows, as do the
        logits: each prompt is then read once per completion.
        """
        logits, states = self._read(prompts, device)
        if repeats > 1 and not is_reorderable(states):
            return self._read([prompt for prompt in prompts for _ in range(repeats)], device)
        return logits, states

    def _read(self, prompts: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Any]:
        width = max(map(len, prompts))
        rows = [[self.pad_token_id] * (width - len(p)) + list(p) for p in prompts]
        ids = torch.tensor(rows, device=device)  # [b, L]
        pads = torch.tensor([width - len(p) for p in prompts], device=device)
        columns = torch.arange(width, device=device)
        mask = columns >= pads[:, None] if min(map(len, prompts)) < width else None
        return self(ids, mask, (columns - pads[:, None]).clamp_min(0), None)

    def __call__(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, states: Any
    ) -> tuple[Tensor, Any]:
        """The logits `[N, V]` at the last of `ids` `[N, q]`, and the cache that now holds them.

        Args:
            ids: Token ids `[N, q]`.
            mask: `[N, S + q]` bool, false on padding; None when there is none.
            positions: `[N, q]`.
            states: The cache of S columns, or None at prefill.
        """
        # An index rather than `1`: a slice of the last column is not contiguous, and for it torch
        # multiplies a frozen output layer as a batch of matrices (50 times slower).
        last = ids.new_full((1,), ids.shape[1] - 1)
        # Router logits feed an auxiliary loss, which decoding has not.
        optional: dict[str, Tensor | bool] = {"output_router_logits": False}
        optional |= {"position_ids": positions, "logits_to_keep": last}
        output = self.model(
            input_ids=ids,
            attention_mask=None if mask is None else mask.long(),
            past_key_values=states,
            use_cache=True,
            return_dict=True,
            **{name: value for name, value in optional.items() if name in self._known},
        )
        states = getattr(output, "past_key_values", None)
        if states is None:
            raise GenerationError(
                f"{type(self.model).__name__} returned no past_key_values although use_cache was "
                "set, so it cannot be decoded step by step. Use a model with a key-value cache."
            )
        return output.logits[:, -1], states


@dataclass(slots=True)
class _Rows:
    """The sequences in the batch, one entry per row."""

    sequences: Tensor  # [N] i * n + j for completion j of prompt i
    pads: Tensor  # [N] masked columns at the left
    tokens: Tensor  # [N] the last token drawn, not yet in the cache
    alive: Tensor  # [N] bool: still to be continued

    def __len__(self) -> int:
        return len(self.sequences)

    def select(self, order: Tensor) -> _Rows:
        return _Rows(*(getattr(self, name)[order] for name in self.__slots__))

    def join(self, other: _Rows) -> _Rows:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        return _Rows(*(torch.cat(pair) for pair in pairs))


class _Rollout:
    """One call of `generate`: the waiting prompts, the decoding batch, the tokens so far."""

    def __init__(
        self,
        owner: HFGenerator,
        prompt_ids: Sequence[TokenIds],
        draws: Tensor,  # [B * n, T]
        sampling: SamplingConfig,
        num_completions: int,
    ) -> None:
        self.forward = owner._forward
        self.progress = owner.progress or (lambda done, total: None)
        self.sampling = sampling
        self.n = num_completions
        self.prompts = prompt_ids
        # Longest first: whoever is admitted later fits into the columns of those who are there.
        self.waiting = deque(sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i])))
        device = self.device = torch.device(owner.device or self.forward.device)
        self.eos = torch.tensor(owner.eos_token_ids, dtype=torch.long, device=device)
        self.forbidden = torch.tensor(owner.forbidden_token_ids, dtype=torch.long, device=device)
        # Apple's GPUs have no float64.
        self.draws = draws.to(device, torch.float32 if device.type == "mps" else torch.float64)
        total, T = draws.shape
        self.capacity = max(self.n, min(owner.generation_batch_size, total) // self.n * self.n)
        limits = [self.forward.limit(prompt, T) for prompt in prompt_ids]
        self.limits = torch.tensor(limits, device=device).repeat_interleave(self.n)
        # One column more than T: rows that have ended write behind their end until they leave.
        self.tokens = torch.zeros(total, T + 1, dtype=torch.long, device=device)
        self.counts = torch.zeros(total, dtype=torch.long, device=device)
        self.finished = torch.zeros(total, dtype=torch.bool, device=device)
        self.rows: _Rows | None = None
        self.cache: DecodingCache | None = None
        self.columns = 0  # S
        self.padded = False  # whether any row has masked columns
        self.done = 0

    def run(self) -> None:
        """Samples until every completion has ended."""
        while self.waiting or self.rows is not None:
            if self._has_room():
                self._admit()
            else:
                self._step()
            self._retire()

    def completions(self) -> list[tuple[Completion, ...]]:
        """The tokens as B tuples of n completions."""
        tokens, counts, finished = (t.tolist() for t in (self.tokens, self.counts, self.finished))
        flat = [
            Completion(tuple(ids[:count]), ended)
            for ids, count, ended in zip(tokens, counts, finished, strict=True)
        ]
        return [tuple(flat[i : i + self.n]) for i in range(0, len(flat), self.n)]

    def _step(self) -> None:
        """Draws one more token for every row."""
        assert self.rows is not None
        assert self.cache is not None
        rows = self.rows
        columns = torch.arange(self.columns + 1, device=self.device)
        mask = columns >= rows.pads[:, None] if self.padded else None
        # Rows that have ended go on until they are dropped, but not out of the context.
        positions = (self.columns - rows.pads)[:, None].clamp_max(self.forward.last_position)
        logits, _ = self.forward(rows.tokens[:, None], mask, positions, self.cache.states)
        self.columns += 1
        self._draw(rows, logits)

    def _draw(self, rows: _Rows, logits: Tensor) -> None:
        """Draws a token per row from `logits` `[N, V]` and marks the rows that end with it."""
        sampling, sequences = self.sampling, rows.sequences
        counts = self.counts[sequences]
        T = sampling.max_new_tokens
        if self.forbidden.numel():
            logits = forbid_tokens(logits, self.forbidden)
        if sampling.min_new_tokens > 0:
            logits = forbid_tokens(logits, self.eos, counts < sampling.min_new_tokens)
        rows.tokens = sample_tokens(
            logits,
            self.draws[sequences, counts.clamp_max(T - 1)],
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        self.tokens[sequences, counts] = rows.tokens
        counts = counts + rows.alive
        self.counts[sequences] = counts
        ends = torch.isin(rows.tokens, self.eos) & rows.alive
        self.finished[sequences] |= ends
        rows.alive = rows.alive & ~ends & (counts < self.limits[sequences])

    def _retire(self) -> None:
        """Drops ended rows once enough have ended, and the columns that only they needed."""
        if self.rows is None or self.cache is None:
            return
        rows, alive = self.rows, int(self.rows.alive.sum())
        self._report(alive)
        if alive == 0:
            self.rows = self.cache = None
        elif self.cache.can_drop and len(rows) - alive >= _FREE_SHARE * len(rows):
            moves = RowMoves.keeping(rows.alive)
            self.cache.keep(moves)
            self.rows = rows.select(moves.order)
            if self.cache.growing:
                self._trim(self.rows)
            self.padded = bool(self.rows.pads.any())

    def _trim(self, rows: _Rows) -> None:
        assert self.cache is not None
        unused = int(rows.pads.min())
        self.cache.drop_columns(unused)
        self.columns -= unused
        rows.pads = rows.pads - unused

    def _has_room(self) -> bool:
        """Whether enough of the batch is free to admit waiting prompts."""
        if not self.waiting or self.rows is None or self.cache is None:
            return bool(self.waiting)
        free = self.capacity - len(self.rows)
        return self.cache.growing and free >= max(self.n, _FREE_SHARE * self.capacity)

    def _admit(self) -> None:
        """Prefills as many waiting prompts as fit, and draws their first tokens."""
        free = self.capacity - (0 if self.rows is None else len(self.rows))
        chosen = [self.waiting.popleft() for _ in range(min(free // self.n, len(self.waiting)))]
        groups = [chosen] if self.forward.growing is False else self._groups(chosen)
        for index, group in enumerate(groups):
            self._join(group)
            if self.forward.growing is False:  # what follows cannot join: it waits on
                self.waiting.extendleft(reversed(list(chain(*groups[index + 1 :]))))
                return

    def _groups(self, chosen: Sequence[int]) -> list[list[int]]:
        sizes = prefill_groups([len(self.prompts[i]) for i in chosen])
        iterator = iter(chosen)
        return [list(islice(iterator, size)) for size in sizes]

    def _join(self, group: Sequence[int]) -> None:
        """Prefills the prompts of a group and adds n rows for each."""
        prompts = [self.prompts[i] for i in group]
        logits, states = self.forward.prefill(prompts, self.n, self.device)
        repeats = self.n if len(logits) == len(prompts) else 1
        if self.cache is None:
            room = min(self.sampling.max_new_tokens, _MAX_ROOM)
            self.cache = DecodingCache(
                states, num_prompts=len(prompts), repeats=repeats, rows=self.capacity, room=room
            )
            self.forward.growing = self.cache.growing
            self.columns = max(map(len, prompts))
        else:
            self.cache.admit(states, repeats=repeats)
        rows = self._new_rows(group)
        self._draw(rows, logits.repeat_interleave(repeats, dim=0))
        self.rows = rows if self.rows is None else self.rows.join(rows)
        self.padded = bool(self.rows.pads.any())

    def _new_rows(self, group: Sequence[int]) -> _Rows:
        sequences = [i * self.n + j for i in group for j in range(self.n)]
        pads = [self.columns - len(self.prompts[i]) for i in group for _ in range(self.n)]
        return _Rows(
            sequences=torch.tensor(sequences, device=self.device),
            pads=torch.tensor(pads, device=self.device),
            tokens=torch.zeros(len(pads), dtype=torch.long, device=self.device),
            alive=torch.ones(len(pads), dtype=torch.bool, device=self.device),
        )

    def _report(self, alive: int) -> None:
        done = len(self.counts) - len(self.waiting) * self.n - alive
        if done != self.done:
            self.done = done
            self.progress(done, len(self.counts))


def _refuse_prompt_learning(model: Any) -> None:
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ConfigError(
            f"{config.peft_type} adds virtual tokens to the prompt, which generation does not "
            "support. Use LoRA or another adapter that changes weights."
        )
