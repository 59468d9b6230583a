import pytest

from moodpo.errors import ConfigError
from moodpo.training.config import MOODPOConfig
from moodpo.training.settings import ROOMS, Settings


def test_every_setting_of_ours_has_a_room_and_a_sentence():
    from dataclasses import fields

    from transformers import TrainingArguments

    known = {f.name for f in fields(Settings)} | {f.name for f in fields(TrainingArguments)}
    assert known == {f.name for f in fields(MOODPOConfig)}
    for setting in fields(Settings):
        assert setting.metadata["room"] in {*ROOMS, "trainer"}, setting.name
        assert setting.metadata["help"].endswith("."), setting.name


def test_the_documented_defaults(tmp_path):
    config = MOODPOConfig(output_dir=str(tmp_path))
    assert (config.beta, config.loss_type, config.reference) == (0.1, "sigmoid", "base")
    assert (config.learning_rate, config.reward_normalization) == (5e-7, "calibrate")
    assert config.concentration == [1.0]
    assert MOODPOConfig(output_dir=str(tmp_path), concentration=0.3).concentration == [0.3]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0.0001; got -1.0"),
        ({"temperature": 0.0}, "temperature"),
        ({"per_device_train_batch_size": -3}, "per_device_train_batch_size"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens must be at least 0 and at"),
        ({"top_p": 1.5}, "top_p"),
        ({"beta": 0.0}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"label_temperature": -1.0}, "label_temperature must be at least 0; got -1.0"),
        ({"rpo_alpha": float("nan")}, "rpo_alpha must be at least 0; got nan"),
        ({"concentration": [1.0, -1.0]}, "concentration must be positive"),
        ({"concentration": []}, "concentration"),
        ({"concentration": [float("inf")]}, "concentration"),
        ({"learning_rate": float("inf")}, "learning_rate must be at least 0 and at most 100"),
        ({"learning_rate": 1e30}, "learning_rate"),
        ({"label_temperature": float("inf")}, "label_temperature must be .* and finite; got inf"),
        ({"adam_epsilon": float("inf")}, "adam_epsilon"),
        ({"torch_empty_cache_steps": float("inf")}, "torch_empty_cache_steps must be a finite"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"save_steps": 0}, "save_steps"),
        ({"save_steps": -5}, "save_steps"),
        ({"save_total_limit": -1}, "save_total_limit"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"num_train_epochs": -1}, "num_train_epochs"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"seed": -1}, "seed"),
        ({"loss_type": "kto"}, "loss_type must be one of sigmoid"),
        ({"relabel": "twice"}, "relabel must be one of none, antithetic"),
        ({"reward_normalization": "max"}, "reward_normalization must be one of"),
    ],
)
def test_settings_out_of_range_say_which_and_what(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        MOODPOConfig(output_dir=str(tmp_path), **setting)


def test_no_clipping_is_written_as_zero_or_none(tmp_path):
    assert MOODPOConfig(output_dir=str(tmp_path), max_grad_norm=None).max_grad_norm == 0.0


def test_the_conditioner_is_told_what_the_settings_say(tmp_path):
    config = MOODPOConfig(output_dir=str(tmp_path), weight_format="percent")
    conditioner = config.make_conditioner(["a", "b"], prompt_template="Q: {prompt}")
    assert (conditioner.objectives, conditioner.weight_format) == (("a", "b"), "percent")
    assert conditioner.prompt_template == "Q: {prompt}"
