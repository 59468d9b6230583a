"""`moodpo train`: flags → checks → prompts → model → rewards → training → what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from moodpo.cli import checks
from moodpo.cli.console import is_main_process, note, print_out, quiet_loading, warn
from moodpo.cli.prompts import read_prompts
from moodpo.cli.settings import TrainSettings, read_settings, train_help
from moodpo.cli.tracking import choose_trackers, finish_wandb, start_wandb
from moodpo.conditioning.instruction import Conditioner
from moodpo.data.lengths import check_lengths, fit_prompts, max_positions
from moodpo.errors import ConfigError
from moodpo.manifest import RunManifest, check_continuation
from moodpo.models.find import PolicyFiles, check_reference, find_model
from moodpo.recipes import get_task
from moodpo.rewards import check_data
from moodpo.training.inherited import check_script_flags
from moodpo.training.settings import Settings

if TYPE_CHECKING:
    from moodpo.data.prompts import LoadedPrompts
    from moodpo.training.config import MOODPOConfig
    from moodpo.training.trainer import MOODPOTrainer

__all__ = ["run"]

DONE, INTERRUPTED = 0, 130


def run(argv: Sequence[str]) -> int:
    """Trains a policy; returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print_out(train_help())
        return DONE
    settings = read_settings(argv)
    checks.check_settings(settings)
    numbers = checks.check_numbers(settings.trainer_arguments)
    source = find_model(str(settings.run.sft_model_path), flag="--sft_model_path")
    check_lengths(
        source.path,
        max_positions(source.config),
        max_prompt_length=int(numbers.get("max_prompt_length", Settings.max_prompt_length)),
        max_new_tokens=int(numbers.get("max_new_tokens", Settings.max_new_tokens)),
    )
    start = checks.find_start(settings, source)
    resume = checks.resume_checkpoint(settings)
    checks.check_output(settings, resume)
    prompts, held_out = _read_all(settings)

    args = _training_config(settings)  # from here on torch is loaded
    conditioner = _conditioner(settings, args)
    _check_against(settings, args, conditioner, start, resume, held_out)
    checks.clear_output(settings)
    return _train(settings, args, conditioner, source, start, resume, prompts, held_out)


def _read_all(settings: TrainSettings) -> tuple[LoadedPrompts, LoadedPrompts | None]:
    run = settings.run
    prompts = read_prompts(
        str(run.csv_path),
        column=run.prompt_column,
        embedded="train",
        split=run.dataset_split,
        max_samples=run.max_samples,
    )
    held_out = None
    if run.eval_csv_path is not None:
        held_out = read_prompts(run.eval_csv_path, column=run.prompt_column, embedded="heldout")
    check_data(run.reward_models or (), prompts, held_out)
    return prompts, held_out


def _training_config(settings: TrainSettings) -> MOODPOConfig:
    import torch

    computed = choose_trackers(settings)
    if not torch.accelerator.is_available():
        computed["use_cpu"] = True  # transformers refuses bf16 on a CPU that is not asked for
    if settings.embedded:
        computed["bf16"] = _multiplies_bf16()
    return settings.training_config(**computed)


def _multiplies_bf16() -> bool:
    """Whether bfloat16 products are in hardware here; emulated ones are slower than fp32."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    known = [getattr(torch.cpu, name, None) for name in probes]
    return any(bool(probe()) for probe in known if probe is not None)


def _conditioner(settings: TrainSettings, args: MOODPOConfig) -> Conditioner:
    names = checks.objective_names(settings.run.reward_models or ())
    return args.make_conditioner(
        names, prompt_template=get_task(settings.run.exp_type).prompt_template
    )


def _check_against(
    settings: TrainSettings,
    args: MOODPOConfig,
    conditioner: Conditioner,
    start: PolicyFiles | None,
    resume: str | None,
    held_out: LoadedPrompts | None,
) -> None:
    """Refuses settings that do not fit the objectives, the data, or an earlier iteration."""
    check_script_flags(args, settings.given)
    K = len(conditioner.objectives)
    if len(args.concentration) not in (1, K):
        raise ConfigError(
            f"concentration has {len(args.concentration)} values but there are {K} objectives "
            f"({', '.join(conditioner.objectives)}). Pass one value, or one per objective."
        )
    if args.eval_strategy != "no" and held_out is None:
        raise ConfigError("--eval_strategy needs held-out prompts. Pass --eval_csv_path.")
    if args.disable_dropout and "lora_dropout" in settings.given and settings.model.lora_dropout:
        warn(
            f"--lora_dropout {settings.model.lora_dropout} has no effect: dropout is off. Pass "
            "--disable_dropout False to keep it."
        )
    if args.reference not in ("base", "initial"):
        check_reference(args.reference, flag="--reference")
    earlier = [(start.manifest, start.path)] if start and start.manifest else []
    earlier += [(RunManifest.load(resume), resume)] if resume else []
    for manifest, path in earlier:
        current = replace(
            manifest, objectives=conditioner.objectives, conditioning=conditioner.to_dict()
        )
        check_continuation(manifest, current, source=path)


def _train(
    settings: TrainSettings,
    args: MOODPOConfig,
    conditioner: Conditioner,
    source: PolicyFiles,
    start: PolicyFiles | None,
    resume: str | None,
    prompts: LoadedPrompts,
    held_out: LoadedPrompts | None,
) -> int:
    from moodpo.cli.after import sweep_trained
    from moodpo.training.interrupt import InterruptCallback

    quiet_loading()
    interrupt = InterruptCallback()
    trainer, held_out = _make_trainer(
        settings, args, conditioner, source, start, prompts, held_out, callbacks=[interrupt]
    )
    note(f"objectives  {', '.join(trainer.objectives)}")
    note(f"fast paths  {trainer.fast_paths}")
    note(f"output      {args.output_dir}")
    try:
        if "wandb" in args.report_to:
            start_wandb(args.run_name, settings.output_dir, _wandb_config(settings))
        trainer.train(resume_from_checkpoint=resume)
        if interrupt.interrupted and trainer.state.global_step < trainer.state.max_steps:
            return _interrupted(settings, trainer)
        trainer.save_model()
        trainer.save_state()
    finally:
        finish_wandb()
    if settings.run.sweep_weights and held_out is not None and is_main_process():
        sweep_trained(trainer, settings, held_out)
    print_out(_closing(settings, trainer))
    return DONE


def _make_trainer(
    settings: TrainSettings,
    args: MOODPOConfig,
    conditioner: Conditioner,
    source: PolicyFiles,
    start: PolicyFiles | None,
    prompts: LoadedPrompts,
    held_out: LoadedPrompts | None,
    *,
    callbacks: list[Any],
) -> tuple[MOODPOTrainer, LoadedPrompts | None]:
    """Loads the policy and makes its trainer; the held-out prompts that fit, too."""
    from transformers import set_seed

    from moodpo.cli.models import load_policy
    from moodpo.models.load import load_tokenizer
    from moodpo.models.savable import extend_lineage
    from moodpo.training.datasets import check_batches
    from moodpo.training.trainer import MOODPOTrainer

    tokenizer = load_tokenizer(source)
    limits: dict[str, Any] = {
        "max_prompt_length": args.max_prompt_length,
        "overflow": args.prompt_overflow,
    }
    prompts = fit_prompts(prompts, conditioner, tokenizer, **limits)
    note(f"prompts     {prompts.report}")
    if held_out is not None:
        held_out = fit_prompts(held_out, conditioner, tokenizer, **limits)
        note(f"held out    {held_out.report}")
    check_batches(len(prompts), args)
    set_seed(args.seed)  # a fresh adapter is drawn from the global generator
    loaded = load_policy(settings, source, start, args)
    note(f"policy      {_describe_policy(settings, source, start)}")
    return MOODPOTrainer(
        model=loaded.model,
        ref_model=loaded.ref_model,
        reward_funcs=settings.run.reward_models or (),
        args=args,
        train_dataset=prompts,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=loaded.peft_config,
        conditioner=conditioner,
        lineage=extend_lineage(start) if start else (),
        start=start.path if start else None,
        base=loaded.base,
        task=settings.run.exp_type,
        sweep=_sweep_during(settings, args, held_out),
        callbacks=callbacks,
    ), held_out


def _sweep_during(
    settings: TrainSettings, args: MOODPOConfig, held_out: LoadedPrompts | None
) -> Callable[[MOODPOTrainer], Mapping[str, float]] | None:
    """What each evaluation sweeps, where evaluations are asked for."""
    if args.eval_strategy == "no" or not held_out:
        return None
    from moodpo.evaluation.during import sweep_during

    run = settings.run
    return sweep_during(
        held_out.dataset, num_prompts=run.sweep_prompts, levels=run.sweep_weights or None
    )


def _describe_policy(
    settings: TrainSettings, source: PolicyFiles, start: PolicyFiles | None
) -> str:
    kind = f"LoRA of rank {settings.model.lora_r}" if settings.model.use_peft else "all weights"
    if start is None:
        return f"{source.path}, {kind}"
    if start.adapter:
        return f"{source.path} with the adapter {start.path}"
    return f"{start.path}, {kind}"


def _wandb_config(settings: TrainSettings) -> dict[str, Any]:
    return {
        "exp_type": settings.run.exp_type,
        "reward_models": settings.run.reward_models,
        "sft_model_path": settings.run.sft_model_path,
        "model_path": settings.run.model_path,
        "csv_path": settings.run.csv_path,
    }


def _interrupted(settings: TrainSettings, trainer: MOODPOTrainer) -> int:
    step = trainer.state.global_step
    note(
        f"interrupted after step {step} of {trainer.state.max_steps}; saved "
        f"{settings.output_dir}/checkpoint-{step}. Run the same command with "
        "--resume_from_checkpoint True to go on."
    )
    return INTERRUPTED


def _closing(settings: TrainSettings, trainer: MOODPOTrainer) -> str:
    """Where things are, and what to type next."""
    folder = shlex.quote(str(settings.output_dir))
    names = trainer.objectives
    weights = ",".join(f"{n}={w}" for n, w in zip(names, _example(len(names)), strict=True))
    lines = [
        f"Done: {trainer.state.global_step} steps. The policy is in {folder}. Next:",
        f'  moodpo generate {folder} --weights {weights} "Tell me about your day."',
        f"  moodpo chat {folder}",
    ]
    if settings.run.sweep_weights:
        lines.append(f"  open {folder}/report.html")
    else:
        lines.append(f"  moodpo evaluate {folder} --csv_path HELD_OUT.csv")
    lines.append(f"Next iteration: the same command with --model_path {folder}")
    lines[-1] += " and another --output_dir."
    return "\n".join(lines)


def _example(count: int) -> list[float]:
    first = round(0.7 if count == 2 else 0.6, 2)
    rest = round((1 - first) / (count - 1), 2)
    return [first, *[rest] * (count - 1)]
