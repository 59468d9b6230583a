"""`moodpo evaluate`: a policy under many weights, against the model before training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moodpo.baselines import is_baseline
from moodpo.cli.console import fail, note
from moodpo.cli.flags import CommandParser
from moodpo.cli.policies import (
    add_policy_flags,
    add_sampling_flags,
    baseline_manifest,
    check_request,
    load_baseline_policy,
    load_policy,
    quick_manifest,
)
from moodpo.cli.prompts import read_prompts
from moodpo.conditioning.instruction import Conditioner
from moodpo.errors import ConfigError, RewardSpecError
from moodpo.manifest import MANIFEST_NAME
from moodpo.models.find import EMBEDDED_NAME, recorded_base
from moodpo.rewards import check_data, check_reward_specs, rebuild_specs
from moodpo.rewards.specs import parse_spec

if TYPE_CHECKING:
    from moodpo.data.prompts import LoadedPrompts
    from moodpo.evaluation.results import FloatArray, SweepResult
    from moodpo.manifest import RunManifest
    from moodpo.policy import SteerablePolicy
    from moodpo.protocols import Policy

__all__ = ["parse_thresholds", "run"]

DONE, FELL_SHORT = 0, 1
JOURNAL = "sweep.jsonl"


def run(argv: Sequence[str]) -> int:
    """Evaluates a policy; returns the exit code, 1 if a threshold was missed."""
    args = _parser().read(argv)
    thresholds = parse_thresholds(args.fail_under)
    if is_baseline(args.policy):
        manifest: RunManifest | None = baseline_manifest(args.policy)
    else:
        manifest = quick_manifest(args.policy, args.base_model)
    if args.sensitivity and is_baseline(args.policy):
        raise ConfigError(
            "--sensitivity asks a steerable policy in other ways; a baseline knows only its own."
        )
    specs = _specs(args, manifest)
    objectives = manifest.objectives if manifest else tuple(parse_spec(s).name for s in specs)
    check_reward_specs(args.held_out_reward_models, minimum=0)
    check_request(args)
    if args.seed < 0 or (args.num_prompts is not None and args.num_prompts < 1):
        raise ConfigError(
            "--seed must be at least 0 and --num_prompts at least 1; got "
            f"{args.seed} and {args.num_prompts}."
        )
    prompts = read_prompts(
        args.csv_path,
        column=args.prompt_column,
        embedded="heldout",
        split=args.dataset_split,
    )
    check_data([*specs, *args.held_out_reward_models], prompts)
    if thresholds:
        from moodpo.evaluation.analysis import check_measures, measure_names

        compared = _baseline_name(args, manifest) is not None
        check_measures(thresholds, measure_names(objectives, baseline=compared))
    folder = _folder(args)
    result = _evaluate(args, manifest, specs, objectives, prompts, folder)
    return _report(result, thresholds, folder)


def parse_thresholds(given: Sequence[str]) -> dict[str, float]:
    """Reads `steerability=0.5`.

    Args:
        given: `NAME=NUMBER` each.

    Raises:
        ConfigError: If one is not of that form.
    """
    thresholds = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            thresholds[name.strip()] = float(number)
        except ValueError:
            raise ConfigError(
                f"--fail-under {text!r}: write NAME=NUMBER, as in steerability=0.5."
            ) from None
    return thresholds


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="moodpo evaluate",
        description="Sweeps a policy over weights on held-out prompts and writes results.json, "
        "front.png and report.html. An interrupted evaluation goes on where it stopped.",
    )
    add_policy_flags(parser)
    group = parser.add_argument_group("sweep")
    layout = group.add_mutually_exclusive_group()
    layout.add_argument(
        "--weights_per_objective", type=int, metavar="N", help="levels of the lattice of weights"
    )
    layout.add_argument("--weights", metavar="FILE", help="a CSV or JSON of weight vectors")
    group.add_argument(
        "--csv_path",
        default=EMBEDDED_NAME,
        metavar="FILE",
        help="held-out prompts (default: the embedded ones)",
    )
    group.add_argument("--prompt_column", default="prompt", metavar="NAME")
    group.add_argument("--dataset_split", default="test", metavar="NAME", help="of a Hub dataset")
    group.add_argument(
        "--num_prompts", type=int, metavar="N", help="at most so many, evenly spread"
    )
    _add_reward_flags(group)
    group.add_argument(
        "--fail-under",
        "--fail_under",
        dest="fail_under",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=X",
        help="exit with 1 if a measure is below, as in steerability=0.5",
    )
    add_sampling_flags(parser)
    return parser


def _add_reward_flags(group: argparse._ArgumentGroup) -> None:
    """Adds what answers are measured by, and where the measures go."""
    group.add_argument(
        "--reward_models",
        nargs="+",
        metavar="SPEC",
        help="one per objective (default: those of training)",
    )
    group.add_argument(
        "--held_out_reward_models",
        nargs="+",
        default=[],
        metavar="SPEC",
        help="rewards that training never saw: the check against over-optimization",
    )
    group.add_argument("--reward_batch_size", type=int, default=16, metavar="N")
    group.add_argument(
        "--baseline",
        default="auto",
        metavar="POLICY|none",
        help="what to compare with (default: the model before training)",
    )
    group.add_argument(
        "--sensitivity",
        action="store_true",
        help="sweep again with weights written otherwise, and with forged prompts (4 more sweeps)",
    )
    group.add_argument(
        "--output_dir",
        metavar="DIR",
        help="default: POLICY/evaluation; for a model that moodpo did not train, "
        "outputs/NAME/evaluation",
    )


def _specs(args: argparse.Namespace, manifest: RunManifest | None) -> list[str]:
    """Reward specs, one per objective."""
    if args.reward_models is None:
        if manifest is None:
            raise ConfigError(
                f"{args.policy} has no moodpo.json: its objectives are unknown. Pass "
                "--reward_models, one per objective."
            )
        specs = rebuild_specs(manifest.rewards)
    else:
        specs = list(args.reward_models)
    check_reward_specs(specs)
    names = [parse_spec(spec).name for spec in specs]
    if manifest is not None and sorted(names) != sorted(manifest.objectives):
        raise RewardSpecError(
            f"{args.policy} was trained for {', '.join(manifest.objectives)}, but --reward_models "
            f"names {', '.join(names)}. Pass one per objective, as in "
            f"{manifest.objectives[0]}=<spec>."
        )
    return specs


def _baseline_name(args: argparse.Namespace, manifest: RunManifest | None) -> str | None:
    if args.baseline == "none":
        return None
    if args.baseline != "auto":
        return str(args.baseline)
    return recorded_base(manifest)


def _evaluate(
    args: argparse.Namespace,
    manifest: RunManifest | None,
    specs: Sequence[str],
    objectives: Sequence[str],
    prompts: LoadedPrompts,
    folder: Path,
) -> SweepResult:
    from moodpo.cli.outputs import sweep_progress
    from moodpo.evaluation.plan import SweepPlan, pick_prompts
    from moodpo.evaluation.sensitivity import measure_sensitivity
    from moodpo.evaluation.sweep import evaluate_policy, run_sweep
    from moodpo.rewards import RewardPanel, load_rewards

    weights = _weights(args, tuple(objectives))
    count = len(prompts) if args.num_prompts is None else args.num_prompts
    asked, columns = pick_prompts(prompts.dataset, count)
    policy: SteerablePolicy
    if is_baseline(args.policy):
        policy = load_baseline_policy(args)
    else:
        policy = load_policy(args, objectives)
    baseline = _load_baseline(args, manifest, policy)
    options: dict[str, Any] = {"device": args.device, "batch_size": args.reward_batch_size}
    panel = RewardPanel(load_rewards(specs, **options))
    held_out = None
    if args.held_out_reward_models:
        held_out = RewardPanel(load_rewards(args.held_out_reward_models, **options))
    folder.mkdir(parents=True, exist_ok=True)
    note(f"sweep: {len(weights)} weight vectors × {len(asked)} prompts of {prompts.report.source}")
    sampling = policy.sampling_with(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p
    )
    plan = SweepPlan(weights=weights, seed=args.seed, columns=columns, sampling=sampling)
    with sweep_progress() as progress:
        result = evaluate_policy(
            policy,
            asked,
            panel,
            plan,
            held_out=held_out,
            baseline_policy=baseline,
            resume_path=folder / JOURNAL,
            progress=progress,
            data_source=prompts.report.source,
        )
    if not args.sensitivity:
        return result

    def again(variant: SteerablePolicy, order: Sequence[int]) -> SweepResult:
        note("sweep: the same weights, written otherwise")
        return run_sweep(variant, asked, panel, plan, weights=weights[:, list(order)])

    return measure_sensitivity(policy, result, again)


def _weights(args: argparse.Namespace, objectives: tuple[str, ...]) -> FloatArray:
    from moodpo.evaluation.weights import default_weights, load_weights_file

    if args.weights is not None:
        return load_weights_file(args.weights, objectives)
    return default_weights(len(objectives), args.weights_per_objective)


def _load_baseline(
    args: argparse.Namespace, manifest: RunManifest | None, policy: SteerablePolicy
) -> Policy | None:
    from moodpo.policy import SteerablePolicy

    if _baseline_name(args, manifest) is None:
        return None
    if args.baseline == "auto":
        return policy.base_policy()
    # A saved baseline may write no weights; the model it is compared with reads them.
    conditioner = Conditioner.from_dict(manifest.conditioning) if manifest else policy.conditioner
    return SteerablePolicy.from_pretrained(
        args.baseline,
        conditioner=conditioner,
        device=args.device,
        dtype=args.dtype,
        generation_batch_size=args.generation_batch_size,
    )


def _folder(args: argparse.Namespace) -> Path:
    if args.output_dir is not None:
        return Path(args.output_dir).expanduser()
    policy = Path(args.policy).expanduser()
    if is_baseline(policy) or (policy / MANIFEST_NAME).is_file():
        return policy / "evaluation"
    # Nothing is written into a model folder that is not ours.
    return Path("outputs") / (policy.resolve().name or "model") / "evaluation"


def _report(result: SweepResult, thresholds: Mapping[str, float], folder: Path) -> int:
    from moodpo.cli.outputs import list_files, show_sweep, write_sweep
    from moodpo.evaluation.analysis import check_thresholds

    write_sweep(result, folder)
    (folder / JOURNAL).unlink(missing_ok=True)
    show_sweep(result)
    list_files(folder)
    failures = check_thresholds(result, thresholds)
    for failure in failures:
        fail(failure)
    return FELL_SHORT if failures else DONE
