"""What we lean on in transformers, TRL, peft and the Hub's client, by name and signature.

A release that moves one of these fails here first, with the name.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import moodpo
from moodpo import _upstream


def parameters(function):
    return set(inspect.signature(function).parameters)


def test_training_argument_names_are_read_from_source_exactly():
    from transformers import TrainingArguments

    named = {f.name for f in fields(TrainingArguments) if f.init}
    assert named <= _upstream.training_argument_names()


@pytest.mark.parametrize(
    "name",
    [
        *("dtype", "attn_implementation", "use_peft", "lora_r", "lora_alpha", "lora_dropout"),
        *("lora_target_modules", "load_in_8bit", "load_in_4bit", "model_revision"),
        *("model_name_or_path", "lora_task_type"),
    ],
)
def test_model_config_has_our_flags(name):
    assert name in {f.name for f in fields(_upstream.ModelConfig)}


def test_model_config_becomes_an_adapter_config():
    config = _upstream.peft_config(
        _upstream.ModelConfig(use_peft=True, lora_r=3, lora_target_modules=["q_proj", "v_proj"])
    )
    assert (config.r, config.target_modules) == (3, {"q_proj", "v_proj"})
    assert config.layers_to_transform is None
    assert _upstream.peft_config(_upstream.ModelConfig(use_peft=False)) is None


def test_chosen_blocks_need_module_names():
    from moodpo.cli.settings import ModelFlags

    flags = ModelFlags(lora_target_modules=["q_proj"], lora_layers_to_transform=[1, 2])
    assert _upstream.peft_config(flags).layers_to_transform == [1, 2]
    with pytest.raises(ValueError, match="needs module names"):
        _upstream.peft_config(ModelFlags(lora_layers_to_transform=[1]))


def test_quantization_is_asked_for_by_flag():
    assert _upstream.quantization_config(_upstream.ModelConfig()) is None


def test_the_misfit_of_an_adapter_is_a_value_error():
    assert issubclass(_upstream.adapter_misfit(), ValueError)


def test_trainer_hooks():
    from transformers import Trainer, TrainerCallback

    assert {"epoch_iterator", "num_batches", "device"} <= parameters(Trainer.get_batch_samples)
    assert {"model", "inputs", "return_outputs", "num_items_in_batch"} <= parameters(
        Trainer.compute_loss
    )
    assert {"model", "inputs", "prediction_loss_only", "ignore_keys"} <= parameters(
        Trainer.prediction_step
    )
    assert {"logs", "start_time"} <= parameters(Trainer.log)
    assert {"output_dir", "_internal_call"} <= parameters(Trainer.save_model)
    assert {"args", "state", "control"} <= parameters(TrainerCallback.on_step_end)
    assert {"eval_dataset", "ignore_keys", "metric_key_prefix"} <= parameters(Trainer.evaluate)
    assert {"dataloader", "description", "metric_key_prefix"} <= parameters(Trainer.evaluation_loop)
    loaders = (Trainer.get_train_dataloader, Trainer.get_eval_dataloader)
    for loader in (*loaders, Trainer.get_test_dataloader):
        assert "self._get_dataloader(" in inspect.getsource(loader)


def test_what_accelerate_puts_before_the_batches_of_a_process():
    from accelerate.data_loader import BatchSamplerShard

    shard = BatchSamplerShard([[0, 1], [2], []], num_processes=1)
    for name in ("batch_sampler", "num_processes", "process_index", "split_batches", "batch_size"):
        assert hasattr(shard, name)
    assert list(shard) == [[0, 1], [2], []]  # batches of any size pass through


def test_the_wandb_callback_logs_into_a_run_that_exists():
    from transformers.integrations import WandbCallback

    assert "self._wandb.run is None" in inspect.getsource(WandbCallback.setup)


def test_argument_parser_reads_dataclasses():
    from dataclasses import field, make_dataclass

    fields_ = [("count", int, field(default=1, metadata={"help": "A count."}))]
    parser = _upstream.HfArgumentParser(make_dataclass("Flags", fields_), add_help=False)
    known, rest = parser.parse_known_args(["--count", "2", "--other"])
    assert (known.count, rest) == (2, ["--other"])


def test_the_hubs_client_can_be_asked_once():
    import huggingface_hub as hub

    assert "timeout" in parameters(hub.get_hf_file_metadata)
    assert {"repo_id", "filename"} <= parameters(hub.hf_hub_url)
    assert {"repo_id", "filename"} <= parameters(hub.try_to_load_from_cache)


# --- fragile names elsewhere ---

SOURCE = Path(moodpo.__file__).parent
LIBRARIES = {"accelerate", "peft", "transformers", "trl"}
SHADOWED = {"_parameters", "_modules", "_C"}  # of torch, also where something of ours is so named
PUBLIC = {"_fields", "_id", "_index"}  # of named tuples; endings of names

# File: what it touches that is private, or in a module that may move; and what fails when it does.
FRAGILE = {
    "cli/console.py": ({"transformers.utils"}, "cli/test_console.py"),
    "cli/evaluate.py": ({"_ArgumentGroup"}, "cli/test_evaluate.py"),
    "cli/flags.py": ({"_actions"}, "cli/test_flags.py"),
    "cli/train.py": ({"_is_amx_tile_supported", "_is_avx512_bf16_supported"}, "cli/test_train.py"),
    "core/simplex.py": ({"_standard_gamma"}, "core/test_simplex.py"),
    "baselines/soups.py": ({"peft.tuners.lora.layer"}, "baselines/test_soups.py"),
    "generation/cache.py": ({"transformers.cache_utils"}, "generation/test_cache.py"),
    "generation/hf.py": ({"_orig_mod"}, "generation/test_hf.py"),
    "kernels/attention.py": (
        {
            *("_attn_implementation", "transformers.masking_utils"),
            "transformers.integrations.sdpa_attention",
        },
        "kernels/test_attention.py",
    ),
    "kernels/lora.py": (
        {"_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks"},
        "kernels/test_lora.py",
    ),
    "kernels/packed.py": (
        {
            *("_C", "_has_mkldnn", "_is_mkldnn_bf16_supported"),
            *("_linear_pointwise", "_reorder_linear_weight"),
        },
        "kernels/test_packed.py",
    ),
    "models/merge.py": (
        {"peft.tuners.trainable_tokens", "peft.tuners.tuners_utils"},
        "models/test_merge.py",
    ),
    "models/modes.py": ({"_parameters"}, "models/test_modes.py"),
    "models/reach.py": ({"transformers.cache_utils"}, "training/test_paths.py"),
    "rewards/load.py": ({"_name_or_path"}, "rewards/test_load.py"),
    "rewards/sharing.py": ({"_attn_implementation", "_name_or_path"}, "rewards/test_sharing.py"),
    "training/paths.py": ({"_attn_implementation"}, "training/test_paths.py"),
    "training/reference.py": ({"_name_or_path"}, "training/test_reference.py"),
    "training/parallel.py": (
        {"accelerate.data_loader", "accelerate.utils"},
        "training/test_parallel.py",
    ),
    "training/setup.py": ({"_name_or_path"}, "training/test_trainer.py"),
}


def fragile_names(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Modules within libraries that are imported from, and underscored names that are not ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            library, _, inside = node.module.partition(".")
            if library in LIBRARIES and inside:
                yield node.module
        elif isinstance(node, ast.Attribute) and _is_foreign(node.attr, own):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr"):
            yield from _texts(node.args, own)
        elif isinstance(node, ast.Tuple | ast.Set):  # of names that getattr is given
            yield from _texts(node.elts, own)


def _texts(nodes, own):
    values = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [v for v in values if isinstance(v, str) and v.isidentifier() and _is_foreign(v, own)]


def _is_foreign(name, own):
    private = len(name) > 1 and name.startswith("_") and not name.startswith("__")
    return private and (name in SHADOWED or name not in own | PUBLIC)


def names_made_by(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def test_fragile_names_stand_in_the_table_or_upstream():
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    own = {name for tree in trees.values() for name in names_made_by(tree)}
    found = {
        path.relative_to(SOURCE).as_posix(): names
        for path, tree in trees.items()
        if path.name != "_upstream.py" and (names := set(fragile_names(tree, own)))
    }
    assert found == {file: names for file, (names, _) in FRAGILE.items()}
    for _, test in FRAGILE.values():
        assert (Path(__file__).parent / test).is_file(), test


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from transformers.cache_utils import Cache", "transformers.cache_utils"),
        ("model.config._attn_implementation", "_attn_implementation"),
        ("getattr(config, '_name_or_path', None)", "_name_or_path"),
        ("module._parameters.items()", "_parameters"),
        ("torch._C._has_mkldnn", "_has_mkldnn"),
        ("for kind in ('_forward_hooks',): ...", "_forward_hooks"),
    ],
)
def test_a_fragile_name_is_seen(line, name):
    assert name in set(fragile_names(ast.parse(line), set()))
    assert list(fragile_names(ast.parse("from torch import nn; self._own"), {"_own"})) == []


def test_the_lora_layers_of_a_model():
    from peft import LoraConfig, get_peft_model

    from tiny_policies import tiny_model

    model = tiny_model()
    assert _upstream.lora_layers(model) == []
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    assert len(_upstream.lora_layers(wrapped)) == 4


def test_where_a_model_was_loaded_from():
    from transformers import LlamaConfig

    class Model:
        config = LlamaConfig(name_or_path="org/model")

    assert _upstream.source_of(Model()) == "org/model"
    assert _upstream.source_of(object()) is None
