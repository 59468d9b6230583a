"""What the commands that ask a policy share: flags that name it, and loading it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moodpo.cli.console import quiet_loading
from moodpo.cli.flags import CommandParser
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError
from moodpo.generation.base import SamplingConfig
from moodpo.limits import check_range
from moodpo.models.chat_templates import read_template_kwargs

if TYPE_CHECKING:
    from moodpo.baselines import BaselinePolicy
    from moodpo.manifest import RunManifest
    from moodpo.policy import SteerablePolicy

__all__ = [
    "add_policy_flags",
    "add_sampling_flags",
    "baseline_manifest",
    "check_request",
    "load_baseline_policy",
    "load_policy",
    "quick_manifest",
]


def add_policy_flags(parser: CommandParser) -> None:
    """Adds POLICY and the flags that say how it is loaded."""
    parser.add_argument(
        "policy", metavar="POLICY", help="an output_dir, a checkpoint, a model folder or a Hub id"
    )
    group = parser.add_argument_group("loading")
    group.add_argument("--base_model", metavar="PATH", help="the model under its adapter, if moved")
    group.add_argument("--device", metavar="NAME", help="default: the first accelerator, else cpu")
    group.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights"
    )
    group.add_argument(
        "--chat_template_kwargs",
        metavar="JSON",
        help="values for the chat template of a model that moodpo did not train; a trained policy "
        "remembers its own",
    )
    group.add_argument(
        "--generation_batch_size",
        type=int,
        default=64,
        metavar="N",
        help="answers that are sampled at once (default: %(default)s)",
    )


def add_sampling_flags(parser: CommandParser) -> None:
    """Adds how answers are sampled; what is not given is as in training."""
    group = parser.add_argument_group("sampling (default: as in training)")
    group.add_argument("--max_new_tokens", type=int, metavar="N", help="longest answer in tokens")
    group.add_argument("--temperature", type=float, metavar="X", help="0 is greedy")
    group.add_argument("--top_p", type=float, metavar="X", help="nucleus mass")
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="another seed, other answers"
    )


def check_request(args: argparse.Namespace) -> None:
    """Refuses numbers out of their range, before a policy loads.

    Args:
        args: With any of the flags of `add_policy_flags` and `add_sampling_flags`.

    Raises:
        ConfigError: Naming the number.
    """
    for name in ("generation_batch_size", "reward_batch_size"):
        check_range(name, getattr(args, name, None), 1)
    names = ("max_new_tokens", "temperature", "top_p")
    SamplingConfig(max_new_tokens=1).changed(**{n: getattr(args, n, None) for n in names})


def quick_manifest(policy: str, base_model: str | None) -> RunManifest | None:
    """The policy's `moodpo.json`, before anything heavy is imported; None where there is none.

    Raises:
        ManifestError: If there is no such policy.
    """
    from moodpo.models.find import find_policy

    return find_policy(policy, base_model=base_model).manifest


def baseline_manifest(folder: str) -> RunManifest:
    """What a saved baseline's record says, in the words of a `moodpo.json`."""
    from moodpo.baselines.record import BaselineRecord
    from moodpo.manifest import RunManifest

    record = BaselineRecord.load(folder)
    return RunManifest(
        objectives=record.objectives,
        rewards=record.rewards,
        conditioning=record.conditioning,
        scalarization="linear",
        normalizer={},
        reference={"kind": "base", "path": record.base_model},
        base_model={"path": record.base_model},
        sampling=record.sampling,
    )


def load_baseline_policy(args: argparse.Namespace) -> BaselinePolicy:
    """The saved baseline that the flags name."""
    from moodpo.baselines import load_baseline

    check_request(args)
    quiet_loading()
    return load_baseline(
        args.policy,
        base_model=args.base_model,
        device=args.device,
        dtype=args.dtype,
        generation_batch_size=args.generation_batch_size,
    )


def load_policy(args: argparse.Namespace, objectives: Sequence[str] | None) -> SteerablePolicy:
    """The policy that the flags name.

    Args:
        args: With the flags of `add_policy_flags`.
        objectives: For a model without a `moodpo.json`; ignored otherwise.

    Raises:
        ConfigError: If values for the chat template cannot be read, or are given for a policy
            that has those it was trained with.
    """
    check_request(args)

    from moodpo.policy import SteerablePolicy
    from moodpo.rewards.words import words_of

    quiet_loading()
    known = quick_manifest(args.policy, args.base_model) is not None
    template_kwargs = read_template_kwargs(args.chat_template_kwargs)
    if known and template_kwargs:
        raise ConfigError(
            f"{args.policy} is asked as it was trained, with the chat_template_kwargs in its "
            "moodpo.json. Leave --chat_template_kwargs out."
        )
    conditioner = None
    if template_kwargs and objectives:
        conditioner = Conditioner(
            objectives=tuple(objectives),
            **words_of(objectives),
            chat_template_kwargs=template_kwargs,
        )
    return SteerablePolicy.from_pretrained(
        args.policy,
        objectives=None if known else objectives,
        conditioner=conditioner,
        base_model=args.base_model,
        device=args.device,
        dtype=args.dtype,
        generation_batch_size=args.generation_batch_size,
    )
