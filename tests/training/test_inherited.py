"""Every inherited setting does what it says, or is refused: none is silently ignored."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from transformers import TrainingArguments

from moodpo.errors import ConfigError
from moodpo.training.config import MOODPOConfig
from moodpo.training.inherited import SCRIPT_FLAGS, UNWORKABLE
from tiny_trainers import assert_same, config, make_trainer, parameters

REFUSED = {
    "train_sampling_strategy": ["group_by_length", "batch_rebalance"],
    "length_column_name": ["tokens"],
    "label_smoothing_factor": [0.3],
    "include_num_input_tokens_seen": [True, "all", "non_padding"],
    "remove_unused_columns": [True],
    "label_names": [["labels"]],
    "include_for_metrics": [["inputs"]],
    "batch_eval_metrics": [True],
    "eval_do_concat_batches": [False],
    "eval_use_gather_object": [True],
    "average_tokens_across_devices": [False],
    "use_liger_kernel": [True],
    "torch_compile": [True],
    "torch_compile_backend": ["eager"],
    "torch_compile_mode": ["default"],
    "fp16_full_eval": [True],
    "bf16_full_eval": [True],
    "fsdp": ["full_shard"],
    "deepspeed": [{"zero_optimization": {"stage": 2}}],
    "parallelism_config": ["any"],
    # Refused for the device, the launch, or their range.
    "fp16": [True],
    "accelerator_config": [{"split_batches": True}, {"dispatch_batches": True}],
    "neftune_noise_alpha": [-1.0, 1e6],
    "seed": [-1, 2**32],
    "data_seed": [-1],
    "learning_rate": [-1.0, float("inf"), float("nan")],
    "num_train_epochs": [-1],
    "weight_decay": [-0.1],
    "max_grad_norm": [-1.0],
    "warmup_steps": [-1],
    "dataloader_num_workers": [-1],
    "per_device_train_batch_size": [0],
    "per_device_eval_batch_size": [0],
    "gradient_accumulation_steps": [0],
}

CHANGING = {  # what comes out differs
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 1,
    "max_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "optim": "sgd",
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1e-6,
    "bf16": True,
    "neftune_noise_alpha": 5.0,
    "seed": 4,
    "data_seed": 4,
    "train_sampling_strategy": "sequential",
}

KEEPING = [  # what comes out is the same: these are about time, memory and logs
    {
        "per_device_eval_batch_size": 3,
        "activation_checkpointing": True,
        "use_cache": True,
        "torch_empty_cache_steps": 1,
        "logging_steps": 2,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "log_on_each_node": False,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_delay": 1,
        "eval_on_start": True,
        "prediction_loss_only": True,
        "eval_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 1,
        "save_only_model": True,
        "dataloader_drop_last": True,
        "auto_find_batch_size": True,
        "ignore_data_skip": True,
    },
    {
        "logging_strategy": "no",
        "dataloader_num_workers": 1,
        "dataloader_in_order": False,
        "dataloader_persistent_workers": True,
        "dataloader_prefetch_factor": 1,
    },
]
NEEDS = {
    "adam_beta2": {"max_steps": 3},
    "weight_decay": {"max_steps": 3},
    "warmup_steps": {"lr_scheduler_type": "linear"},
}

ELSEWHERE = {  # paths, launchers, trackers, the Hub, and what only other settings read
    *("output_dir", "run_name", "project", "report_to", "disable_tqdm", "trackio_space_id"),
    *("trackio_bucket_id", "trackio_static_space_id", "resume_from_checkpoint", "local_rank"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "fsdp_config"),
    *("use_cpu", "tf32", "debug", "save_on_each_node", "enable_jit_checkpoint"),
    *("restore_callback_states_from_checkpoint", "load_best_model_at_end", "greater_is_better"),
    *("metric_for_best_model", "lr_scheduler_kwargs", "optim_args", "optim_target_modules"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing", "liger_kernel_config"),
    *("gradient_checkpointing_kwargs", "dataloader_pin_memory"),
    *("dataloader_multiprocessing_context", "full_determinism", "skip_memory_metrics"),
    *("log_level", "log_level_replica"),
}


def test_every_inherited_setting_is_decided():
    known = {*REFUSED, *CHANGING, *SCRIPT_FLAGS, *ELSEWHERE}.union(*KEEPING)
    assert {field.name for field in fields(TrainingArguments)} == known
    assert REFUSED.keys() >= UNWORKABLE.keys()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_what_cannot_work_is_refused_at_the_door(name, value, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name}.*(cannot work here|must be|needs a GPU)"):
        MOODPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})


@pytest.mark.parametrize("setting", [{}, {"include_num_input_tokens_seen": False}])
def test_defaults_are_not_refused(setting, tmp_path):
    plain = {name: getattr(TrainingArguments, name, None) for name in UNWORKABLE}
    plain |= {"label_names": None, "include_for_metrics": [], "remove_unused_columns": False}
    MOODPOConfig(output_dir=str(tmp_path), **{**plain, **setting})


BASE = {"optim": "adamw_torch", "reward_normalization": "none", "max_new_tokens": 5}


def trained(folder, **settings):
    held_out = [{"prompt": "Say less."}] if "eval" in str(settings) else None
    trainer = make_trainer(folder, eval_dataset=held_out, **{**BASE, **settings})
    trainer.train()
    return parameters(trainer)


@pytest.fixture(scope="module")
def plainly(tmp_path_factory):
    known = {}

    def get(**needs):
        key = str(needs)
        if key not in known:
            known[key] = trained(tmp_path_factory.mktemp("plain"), **needs)
        return known[key]

    return get


@pytest.mark.parametrize(("name", "value"), CHANGING.items())
def test_what_is_to_change_training_does(name, value, tmp_path, plainly):
    needs = NEEDS.get(name, {})
    ours, plain = trained(tmp_path, **needs, **{name: value}), plainly(**needs)
    assert any(not torch.equal(ours[n], plain[n]) for n in plain)
    assert all(value.isfinite().all() for value in ours.values())


@pytest.mark.parametrize("settings", KEEPING)
def test_what_is_not_to_change_training_does_not(settings, tmp_path, plainly):
    # Steps are of the size of the learning rate, 1e-2.
    assert_same(trained(tmp_path, **settings), plainly(), rtol=0, atol=1e-4)


def test_a_warmup_that_the_schedule_leaves_out_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"warmup_steps=2.*constant_with_warmup"):
        config(tmp_path, lr_scheduler_type="constant", warmup_steps=2)
    config(tmp_path, lr_scheduler_type="constant_with_warmup", warmup_steps=2)
