from contextlib import nullcontext

import torch
from peft import LoraConfig, get_peft_model

from moodpo.models.choice import AsLoaded, WithoutAdapters, adapter_at
from tiny_policies import tiny_model

IDS = torch.arange(40, 60)[None]


def logits(model, within):
    with torch.no_grad(), within:
        return model(input_ids=IDS).logits


def two_adapters():
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(tiny_model(), config, adapter_name="first")
    model.add_adapter("second", config)
    return model.eval()


def test_without_adapters_the_model_under_them_answers():
    model = two_adapters()
    plain = logits(tiny_model(), nullcontext())
    choice = WithoutAdapters(model)
    group = choice.group((0.3, 0.7))
    assert group == choice.group((1.0, 0.0))
    assert torch.equal(logits(model, choice.active(group)), plain)
    assert not torch.equal(logits(model, AsLoaded().active(None)), plain)  # and on again
    bare = tiny_model()
    assert torch.equal(logits(bare, WithoutAdapters(bare).active(None)), plain)


def test_an_adapter_answers_by_its_name():
    model = two_adapters()
    first, second = (logits(model, adapter_at(model, name)) for name in ("first", "second"))
    assert not torch.equal(first, second)
    assert torch.equal(logits(model, adapter_at(model, "first")), first)
