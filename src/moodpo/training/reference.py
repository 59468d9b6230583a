"""The reference: what the policy is held close to, explicit and always recorded.

Three ways to be a reference, from the cheapest: the policy with its adapter switched off; a
snapshot of the trained parameters, swapped in for the length of one pass; a model of its own. None
is assumed to be what was asked for: an adapter that is switched off need not leave the base model
(PiSSA rewrites it, trained biases stay on), and one on disk need not compute under the policy's
adapter what it computes by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError
from moodpo.files import ADAPTER_CONFIG, hash_weights
from moodpo.models.adapters import (
    FreshAdapter,
    adapter_differences,
    adapter_misfits,
    load_config,
    other_base,
    rewrites_base,
    switched_off,
)
from moodpo.models.find import whole_model
from moodpo.models.load import load_model
from moodpo.models.probe import gap, probe_logps, tolerance

__all__ = [
    "AdapterOff",
    "FrozenModel",
    "Reference",
    "Snapshot",
    "check_agreement",
    "known_base",
    "make_reference",
    "trainable_snapshot",
]


class Reference(Protocol):
    """Yields, inside `active()`, a module whose forward pass is the reference's."""

    def active(self) -> AbstractContextManager[nn.Module]:
        """Within it, the yielded module computes reference logits."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `moodpo.json` records: kind, path and hash where there is one."""
        ...


class AdapterOff:
    """The model under an adapter: costs nothing."""

    def __init__(self, model: nn.Module, record: Mapping[str, Any], *, agrees: bool) -> None:
        self._model, self._record = model, dict(record)
        self.agrees = agrees  # whether it equals the policy as training starts

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with its adapter disabled."""
        with self._model.disable_adapter():  # type: ignore[operator]
            yield self._model

    def describe(self) -> dict[str, Any]:
        """What it stands for, and the base model."""
        return dict(self._record)


class Snapshot:
    """Earlier values of the trained parameters: with LoRA, a few megabytes.

    The tensors trade places with the policy's for one pass; nothing is copied or rounded.
    """

    def __init__(
        self, model: nn.Module, values: dict[str, Tensor], record: dict[str, Any], *, agrees: bool
    ) -> None:
        self._model, self._values, self._record = model, values, record
        self.agrees = agrees  # whether it equals the policy as training starts

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with its trained parameters as they were."""
        self._swap()
        try:
            yield self._model
        finally:
            self._swap()

    def describe(self) -> dict[str, Any]:
        """Where the values came from."""
        return dict(self._record)

    def _swap(self) -> None:
        for name, parameter in self._model.named_parameters():
            if name in self._values:
                parameter.data, self._values[name] = self._values[name], parameter.data


class FrozenModel:
    """A model of its own, for references that share nothing with the policy."""

    def __init__(self, model: nn.Module, record: dict[str, Any]) -> None:
        self._model, self._record = model.requires_grad_(False).eval(), record

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The frozen model, without dropout whatever was done to it in between."""
        yield self._model.eval()

    def describe(self) -> dict[str, Any]:
        """Where the model came from."""
        return dict(self._record)


def make_reference(
    kind: str,
    model: nn.Module,
    *,
    base: str | None,
    start: str | None,
    ref_model: nn.Module | None = None,
    fresh: FreshAdapter | None = None,
) -> Reference:
    """The reference that the user asked for.

    Args:
        kind: `base`, `initial`, or a path to an adapter or model.
        model: The policy as training starts, before any wrapping.
        base: Path or id of the SFT model; None where it is not known.
        start: Path of the checkpoint that the policy started from, if not the SFT model.
        ref_model: A model to use as it is, beside the policy, whatever `kind` says.
        fresh: What the policy's adapter did to the model under it, where it was just made: the
            model under it is then the one that `start` names, if any.

    Returns:
        The reference.

    Raises:
        ConfigError: If the reference cannot be made for this policy.
    """
    if ref_model is not None:
        _check_apart(ref_model, model)
        _check_vocabulary(ref_model, model, "ref_model")
        placed = ref_model.to(next(model.parameters()).device)
        return FrozenModel(placed, {"kind": "model", "path": _name(ref_model)})
    if kind == "initial":
        record = {"kind": kind, "path": start or base, "sha256": start and hash_weights(start)}
        if _is_silent(model):
            return AdapterOff(model, record, agrees=True)
        return _as_it_is(model, record)
    if kind != "base":
        return _reference_from_path(kind, model, fresh)
    if not hasattr(model, "disable_adapter"):
        if start is None:
            return _as_it_is(model, {"kind": kind, "path": base, "sha256": None})
    elif start is None or fresh is None:
        return _base_under_adapter(model, base, start, fresh)
    if base is None:
        raise ConfigError(
            "reference=base needs the SFT model's path. Pass sft_model_path, or ref_model."
        )
    return _reference_from_path(base, model, fresh)


def known_base(model: nn.Module, base: str | None, start: str | None) -> str | None:
    """The SFT model's path: the one given, or the model's own name, unless that is the start's.

    Args:
        model: As it is given to be trained, before a fresh adapter is put on it.
        base: What the caller says.
        start: The checkpoint that the model's weights come from, if any.
    """
    if base is not None or (start is not None and not hasattr(model, "peft_config")):
        return base
    return _name(model)


@torch.no_grad()
def check_agreement(model: nn.Module, reference: Reference) -> None:
    """Refuses a reference that disagrees with a policy which it must equal, by one small pass each.

    To be called before the first step of a run that is not resumed: only then is the policy the
    initial one. A reference that may differ then (the base of a later iteration, a path, a model
    of its own) is not asked.

    Args:
        model: The policy before the first step.
        reference: From `make_reference`.

    Raises:
        ConfigError: With both log-probabilities.
    """
    if not getattr(reference, "agrees", False):
        return
    ours = probe_logps(model)
    with reference.active() as frozen:
        theirs = probe_logps(frozen)
    limit = tolerance(model)
    if not gap(ours, theirs) <= limit:
        raise ConfigError(
            f"The reference ({reference.describe().get('kind')}) must equal the policy before the "
            f"first step, but of a few tokens the policy says {ours.sum().item():.4f} nats and the "
            f"reference {theirs.sum().item():.4f}: {gap(ours, theirs):.2g} apart per token, where "
            f"rounding explains {limit:g}. If the policy's weights were changed after the trainer "
            "was made, make the trainer afterwards; otherwise pass ref_model."
        )


def trainable_snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all trainable parameters, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _as_it_is(model: nn.Module, record: dict[str, Any]) -> Snapshot:
    return Snapshot(model, trainable_snapshot(model), record, agrees=True)


# --- what an adapter that is switched off leaves ---------------------------------------------


def _base_under_adapter(
    model: nn.Module, base: str | None, start: str | None, fresh: FreshAdapter | None
) -> Reference:
    """The base model where the policy carries an adapter of it: switched off, or as it began."""
    limit = tolerance(model)
    record = {"kind": "base", "path": base}
    rewritten = _rewritten(model, fresh, limit)
    on = fresh.on if fresh is not None else _distance_when_off(model)
    known = fresh is not None or rewritten is None  # whether `on` is the distance from the base
    at_base = start is None and known and on <= limit
    if rewritten is None and not _moves_when_off(model):
        return AdapterOff(model, record, agrees=at_base)
    if at_base:
        return _as_it_is(model, record)
    why = (
        f"the adapter rewrites the weights under it ({rewritten})"
        if rewritten
        else "weights of the base model itself are trained, as by bias='all'"
    )
    raise ConfigError(
        f"reference=base: switching the policy's adapter off does not give the base model, for "
        f"{why}. Pass the base model as ref_model, reference=initial, or an adapter without that."
    )


def _rewritten(model: nn.Module, fresh: FreshAdapter | None, limit: float) -> str | None:
    """What says that the weights under the adapter are not the base model's."""
    if fresh is None:
        found = (rewrites_base(config) for config in _configs(model))
        return next((what for what in found if what is not None), None)
    if fresh.off <= limit:
        return None
    return f"switched off it is {fresh.off:.2g} nats per token from the model before"


def _distance_when_off(model: nn.Module) -> float:
    on = probe_logps(model)
    with switched_off(model):
        return gap(probe_logps(model), on)


@torch.no_grad()
def _moves_when_off(model: nn.Module) -> bool:
    """Whether training moves the model even where its adapter is switched off: tried."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    values = [parameter.data for parameter in trained]
    with switched_off(model):
        before = probe_logps(model)
        try:
            for parameter in trained:
                parameter.data = _moved(parameter.data)
            after = probe_logps(model)
        finally:
            for parameter, value in zip(trained, values, strict=True):
                parameter.data = value
    return not gap(before, after) <= tolerance(model)


def _moved(value: Tensor) -> Tensor:
    """Other values, not all by as much: a norm or a softmax would take that back."""
    steps = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float32, device=value.device)
    return value + steps.view_as(value).to(value.dtype)


def _is_silent(model: nn.Module) -> bool:
    """Whether the policy is a plain LoRA adapter that changes nothing yet.

    Then the adapter switched off is where training begins. Whatever else it may be (trained
    before, DoRA, biases, whole modules, another kind of adapter), a snapshot is as right.
    """
    if not hasattr(model, "disable_adapter"):
        return False
    for name, parameter in model.named_parameters():
        kind = next((k for k in ("lora_A", "lora_B", "lora_embedding_A") if f".{k}." in name), None)
        factor = kind is not None or ".lora_embedding_B." in name
        if parameter.requires_grad and not factor:
            return False
        # The factor that begins at zero, of frozen adapters beside it too.
        if kind in ("lora_B", "lora_embedding_A") and bool(parameter.any()):
            return False
    return not _distance_when_off(model) > tolerance(model)


# --- references on disk ----------------------------------------------------------------------


def _reference_from_path(path: str, model: nn.Module, fresh: FreshAdapter | None) -> Reference:
    record = {"kind": "path", "path": path, "sha256": hash_weights(path)}
    if not (Path(path) / ADAPTER_CONFIG).is_file():
        loaded = _load_frozen(path, model)
        _check_vocabulary(loaded, model, f"reference={path}")
        return FrozenModel(loaded, record)
    if not hasattr(model, "disable_adapter"):
        raise ConfigError(
            f"reference={path} is a LoRA adapter but the policy is trained in full. Merge it first "
            "or pass a full model."
        )
    return Snapshot(model, _adapter_values(path, model, fresh), record, agrees=False)


def _load_frozen(path: str, model: nn.Module) -> nn.Module:
    first = next(p for p in model.parameters() if p.is_floating_point())
    loaded: nn.Module = load_model(
        whole_model(path), dtype=first.dtype, device=first.device, adapter=None
    )
    return loaded


def _adapter_values(path: str, model: nn.Module, fresh: FreshAdapter | None) -> dict[str, Tensor]:
    """An adapter's weights under the policy's own parameter names."""
    from peft import load_peft_weights, set_peft_model_state_dict

    (name, *others) = _active(model)
    state = load_peft_weights(path, device="cpu")
    theirs, problems = load_config(path), []
    if others:
        problems.append(f"the policy has several active adapters ({', '.join([name, *others])})")
    ours: Any = model.peft_config[name]  # type: ignore[index]
    problems += adapter_differences(theirs, ours)
    if other := other_base(theirs, ours):
        problems.append(other)
    if (what := rewrites_base(theirs)) is not None:
        problems.append(f"it lies on a rewritten base model ({what})")
    if (what := _rewritten(model, fresh, tolerance(model))) is not None:
        problems.append(f"the policy's adapter rewrites the weights under it ({what})")
    if problems := problems or adapter_misfits(state, model, name):
        raise ConfigError(
            f"The adapter at reference={path} does not compute under the policy's adapter what it "
            f"computes by itself: {'; '.join(problems)}. Train an adapter of the same rank, scale "
            "and modules, or merge the reference first (`moodpo export`) and pass the full model."
        )
    held = {
        key: parameter.detach().clone()
        for key, parameter in model.named_parameters()
        if name in key.split(".") or parameter.requires_grad
    }
    set_peft_model_state_dict(model, state, adapter_name=name)
    values = {key: p.detach().clone() for key, p in model.named_parameters() if key in held}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key in held:
                parameter.copy_(held[key])
    return values


# --- references that are given ---------------------------------------------------------------


def _check_apart(ref_model: nn.Module, model: nn.Module) -> None:
    """Refuses a reference that training would move, or that would freeze the policy."""
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    if ref_model is model or any(p.data_ptr() in trained for p in ref_model.parameters()):
        raise ConfigError(
            "ref_model shares trained parameters with model: it would move as the policy does. "
            "Pass a model of its own (copy.deepcopy before the adapter is added), or leave it out: "
            "reference=base or initial needs none."
        )


def _check_vocabulary(reference: nn.Module, model: nn.Module, name: str) -> None:
    ours, theirs = _vocabulary(model), _vocabulary(reference)
    if None not in (ours, theirs) and ours != theirs:
        raise ConfigError(
            f"{name} has a vocabulary of {theirs} tokens and the policy one of {ours}: the same "
            "ids mean other tokens. Pass a model with the policy's tokenizer, resized alike "
            "(resize_token_embeddings)."
        )


def _vocabulary(model: nn.Module) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    size: int | None = getattr(config, "vocab_size", None)
    return size


def _active(model: nn.Module) -> list[str]:
    names: Any = model.active_adapters
    return list(names() if callable(names) else names)


def _configs(model: nn.Module) -> list[Any]:
    configs: Any = model.peft_config
    return list(configs.values())


def _name(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None
