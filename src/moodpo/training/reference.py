"""The reference: what the policy is held close to, explicit and always recorded.

Three ways to be a reference, from the cheapest: the policy with its adapter switched off; a
snapshot of the trained parameters, swapped in for the length of one pass; a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moodpo.errors import ConfigError
from moodpo.manifest import hash_weights

__all__ = [
    "AdapterOff",
    "FrozenModel",
    "Reference",
    "Snapshot",
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
    """The base model under an adapter: costs nothing."""

    def __init__(self, model: nn.Module, *, base: str | None = None) -> None:
        self._model, self._base = model, base

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The policy with its adapter disabled."""
        with self._model.disable_adapter():  # type: ignore[operator]
            yield self._model

    def describe(self) -> dict[str, Any]:
        """Kind and base model."""
        return {"kind": "base", "path": self._base}


class Snapshot:
    """Earlier values of the trained parameters: with LoRA, a few megabytes.

    The tensors trade places with the policy's for one pass; nothing is copied or rounded.
    """

    def __init__(self, model: nn.Module, values: dict[str, Tensor], record: dict[str, Any]) -> None:
        self._model, self._values, self._record = model, values, record

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
        """The frozen model."""
        yield self._model

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
) -> Reference:
    """The reference that the user asked for.

    Args:
        kind: `base`, `initial`, or a path to an adapter or model.
        model: The policy as training starts, before any wrapping.
        base: Path or id of the SFT model.
        start: Path of the checkpoint that the policy started from, if not the SFT model.
        ref_model: A model to use as it is, whatever `kind` says.

    Returns:
        The reference.

    Raises:
        ConfigError: If the reference cannot be made for this policy.
    """
    if ref_model is not None:
        return FrozenModel(ref_model, {"kind": "model", "path": _name(ref_model)})
    adapter = hasattr(model, "disable_adapter")
    if kind == "initial" or (kind == "base" and start is None and not adapter):
        record = {"kind": kind, "path": start or base, "sha256": start and hash_weights(start)}
        if start is None and adapter:
            return AdapterOff(model, base=base)  # a fresh adapter changes nothing
        return Snapshot(model, trainable_snapshot(model), record)
    if kind == "base":
        if adapter:
            return AdapterOff(model, base=base)
        if base is None:
            raise ConfigError(
                "reference=base needs the SFT model's path. Pass sft_model_path, or ref_model."
            )
        kind = base
    return _reference_from_path(kind, model)


def trainable_snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all trainable parameters, by name."""
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _reference_from_path(path: str, model: nn.Module) -> Reference:
    record = {"kind": "path", "path": path, "sha256": hash_weights(path)}
    if not (Path(path) / "adapter_config.json").is_file():
        from transformers import AutoModelForCausalLM

        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
        device = next(model.parameters()).device
        return FrozenModel(loaded.to(device), record)
    if not hasattr(model, "disable_adapter"):
        raise ConfigError(
            f"reference={path} is a LoRA adapter but the policy is trained in full. Merge it first "
            "or pass a full model."
        )
    return Snapshot(model, _adapter_values(path, model), record)


def _adapter_values(path: str, model: nn.Module) -> dict[str, Tensor]:
    """An adapter's weights under the policy's own parameter names."""
    from peft import load_peft_weights, set_peft_model_state_dict

    current = trainable_snapshot(model)
    try:
        set_peft_model_state_dict(model, load_peft_weights(path, device="cpu"))
    except RuntimeError as error:
        raise ConfigError(
            f"The adapter at reference={path} does not fit the policy's adapter: {error}. Use the "
            "same LoRA rank and target modules."
        ) from error
    values = trainable_snapshot(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in current:
                parameter.copy_(current[name])
    return values


def _name(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None)
