"""The four commands of the first users' document, word for word, with their placeholders filled."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["documented_commands"]

_ASSISTANT_1 = """
  --wandb_name "moodpo_iter1" \
  --sft_model_path "{sft}" \
  --csv_path "{data}/prompts_train.csv" \
  --prompt_column "prompt" \
  --reward_models helpful harmless humor \
  --output_dir "MOODPO/outputs/iter1" \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 8 \
  --learning_rate 5e-7 \
  --num_train_epochs 1 \
  --logging_steps 10 \
  --save_steps 500 \
  --bf16 True
"""
_ASSISTANT_2 = """
  --wandb_name "moodpo_iter2" \
  --sft_model_path "{sft}" \
  --model_path "{root}/MOODPO/outputs/iter1/checkpoint-{step}" \
  --csv_path "{data}/prompts_train.csv" \
  --prompt_column "prompt" \
  --reward_models helpful harmless humor \
  --output_dir "MOODPO/outputs/iter2" \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 8 \
  --learning_rate 5e-7 \
  --num_train_epochs 1 \
  --logging_steps 10 \
  --save_steps 500 \
  --bf16 True
"""
_SUMMARY_1 = """
  --wandb_name "moodpo_summary_iter1" \
  --exp_type "summary" \
  --sft_model_path "{sft}" \
  --csv_path "{data}/summary_prompts_train.csv" \
  --prompt_column "prompt" \
  --reward_models summary faithful \
  --output_dir "MOODPO/outputs/summary/iter1" \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 8 \
  --learning_rate 5e-7 \
  --num_train_epochs 1 \
  --logging_steps 10 \
  --save_steps 500 \
  --bf16 True
"""
_SUMMARY_2 = """
  --wandb_name "moodpo_summary_iter2" \
  --exp_type "summary" \
  --sft_model_path "{sft}" \
  --model_path "{root}/MOODPO/outputs/summary/iter1/checkpoint-{step}" \
  --csv_path "{data}/summary_prompts_train.csv" \
  --prompt_column "prompt" \
  --reward_models summary faithful \
  --output_dir "MOODPO/outputs/summary/iter2" \
  --per_device_train_batch_size 1 \
  --gradient_accumulation_steps 8 \
  --learning_rate 5e-7 \
  --num_train_epochs 1 \
  --logging_steps 10 \
  --save_steps 500 \
  --bf16 True
"""


def documented_commands(*, sft: Path | str, data: Path, root: Path, step: int) -> list[list[str]]:
    """The arguments after `train`, in the order: assistant 1 and 2, summary 1 and 2.

    Args:
        sft: Stands for `<BASE_OR_SFT_MODEL_ID_OR_PATH>`.
        data: Folder of the two CSV files.
        root: The working directory, where `MOODPO/outputs` appears.
        step: Stands for the `XXXX` of the checkpoint.
    """
    return [
        shlex.split(text.format(sft=sft, data=data, root=root, step=step))
        for text in (_ASSISTANT_1, _ASSISTANT_2, _SUMMARY_1, _SUMMARY_2)
    ]
