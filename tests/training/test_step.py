"""How far one training step of the default path reaches: a reader has to follow it."""

import sys
from pathlib import Path

import moodpo
from tiny_trainers import make_trainer

ROOT = Path(moodpo.__file__).parent
# Rooms that a reader of the method need not enter: how tokens are decoded, and what is only faster.
ASIDE = ("generation/", "kernels/", "models/modes.py")


def entered(trainer):
    """The files of ours that the second step enters, each with its functions."""
    found: dict[str, set[str]] = {}

    def note(frame, event, _):
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(ROOT)):
            functions = found.setdefault(Path(path).relative_to(ROOT).as_posix(), set())
            if "<" not in frame.f_code.co_name:  # comprehensions are no stay of their own
                functions.add(frame.f_code.co_qualname)

    first = trainer.get_batch_samples

    def watched(*args):
        if trainer.state.global_step == 1:
            sys.setprofile(note)
        return first(*args)

    trainer.get_batch_samples = watched
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    return {file: names for file, names in found.items() if not file.startswith(ASIDE)}


def test_a_step_stays_within_few_files(tmp_path):
    found = entered(make_trainer(tmp_path, lora=True, max_steps=2, logging_steps=2))
    assert "training/learner.py" in found
    assert len(found) <= 34, sorted(found)
    functions = sum(map(len, found.values()))
    assert functions <= 150, functions
