"""Tiny reward models with the architectures of the presets, built without a network.

Vocabularies are written out rather than trained and weights come from a seeded generator, so that
token ids and scores are the same on every machine and can be frozen in tests.
"""

from __future__ import annotations

import hashlib
import shutil
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BartTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Tokenizer,
)

__all__ = [
    "build_tiny_bart_reward",
    "build_tiny_deberta_reward",
    "build_tiny_distilbert_reward",
    "build_tiny_gpt2_reward",
    "install_in_hub_cache",
    "seed_weights",
    "tiny_gpt2_tokenizer",
]

BYTES = sorted(ByteLevel.alphabet())  # 256 printable stand-ins for bytes: Ġ is a space, Ċ a newline
MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("Ċ", "Ċ"), ("a", "n"), ("e", "r")]
MERGED = ["".join(pair) for pair in MERGES]
LETTERS = list(string.ascii_lowercase + string.digits + string.punctuation)
WORDS = ["the", "joke", "good", "human", "assistant", "penguin"]


def build_tiny_gpt2_reward(
    path: Path | str,
    *,
    seed: int = 0,
    labels: Sequence[str] = ("LABEL_0",),
    max_positions: int = 128,
) -> Path:
    """Like `helpful`, `harmless` and `summary`: names no padding token; bos is eos."""
    tokenizer = tiny_gpt2_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=max_positions,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **_labels(labels),
    )
    return _save(path, _build(GPT2ForSequenceClassification, config, seed), tokenizer)


def build_tiny_distilbert_reward(
    path: Path | str, *, seed: int = 0, labels: Sequence[str] = ("NO_HUMOR", "HUMOR")
) -> Path:
    """Like `humor`: WordPiece, two labels."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab += [*LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    tokenizer = DistilBertTokenizer(vocab=_numbered(vocab), model_max_length=96)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=96,
        dim=16,
        hidden_dim=32,
        n_layers=2,
        n_heads=2,
        pad_token_id=0,
        **_labels(labels),
    )
    return _save(path, _build(DistilBertForSequenceClassification, config, seed), tokenizer)


def build_tiny_bart_reward(
    path: Path | str, *, seed: int = 0, labels: Sequence[str] = ("HALLUCINATED", "FAITHFUL")
) -> Path:
    """Like `faithful`: encoder and decoder, scored at the last `</s>`."""
    vocab = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, *MERGED, "<mask>"]
    tokenizer = BartTokenizer(vocab=_numbered(vocab), merges=MERGES, model_max_length=128)
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        **_labels(labels),
    )
    return _save(path, _build(BartForSequenceClassification, config, seed), tokenizer)


def build_tiny_deberta_reward(
    path: Path | str, *, seed: int = 0, labels: Sequence[str] = ("LABEL_0",)
) -> Path:
    """Like `deberta` (v3): Unigram pieces, disentangled attention, no token types."""
    pieces = [("▁", -2.0), *((letter, -4.0) for letter in LETTERS + list(string.ascii_uppercase))]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    specials = [(token, 0.0) for token in ("[PAD]", "[CLS]", "[SEP]", "[UNK]")]
    tokenizer = DebertaV2Tokenizer(
        vocab=[*specials, *pieces, ("[MASK]", 0.0)], unk_id=3, model_max_length=96
    )
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=96,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        pooler_hidden_size=16,
        **_labels(labels),
    )
    return _save(path, _build(DebertaV2ForSequenceClassification, config, seed), tokenizer)


def tiny_gpt2_tokenizer() -> GPT2Tokenizer:
    """Bytes, a few merges, and `<|endoftext|>` as the only special token."""
    vocab = [*BYTES, *MERGED, "<|endoftext|>"]
    return GPT2Tokenizer(vocab=_numbered(vocab), merges=MERGES, model_max_length=1024)


def install_in_hub_cache(path: Path | str, repo_id: str, cache_dir: Path | str) -> str:
    """Lays a checkpoint into a Hub cache, as a download would: `from_pretrained(repo_id)` finds it.

    Args:
        path: The checkpoint's folder.
        repo_id: owner/name.
        cache_dir: What `from_pretrained(cache_dir=...)` takes: `$HF_HOME/hub`.

    Returns:
        The commit of the one snapshot, 40 hexadecimal digits.
    """
    files = sorted(file for file in Path(path).iterdir() if file.is_file())
    digest = hashlib.sha1(repo_id.encode())
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    commit = digest.hexdigest()
    repo = Path(cache_dir) / f"models--{repo_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    for file in files:
        shutil.copyfile(file, snapshot / file.name)
    return commit


def seed_weights(model: torch.nn.Module, seed: int) -> None:
    """Fills a model from a seeded generator, strongly enough for scores to differ between texts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if parameter.dim() == 1 and name.endswith("weight"):  # of a layer norm
                parameter.add_(1.0)


def _build(architecture: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):  # transformers initializes from the global generator
        model = architecture(config)
    seed_weights(model, seed)
    return model.eval()


def _save(path: Path | str, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return Path(path)


def _numbered(vocab: Sequence[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(vocab)}


def _labels(labels: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}
