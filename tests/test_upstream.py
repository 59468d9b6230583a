"""What we lean on in transformers, TRL, peft and the Hub's client, by name and signature.

A release that moves one of these fails here first, with the name.
"""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

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
