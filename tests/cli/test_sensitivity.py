"""`moodpo evaluate --sensitivity`."""

from __future__ import annotations

import json


def test_evaluate_measures_every_variant(run, trained, prompts, tmp_path):
    flags = f"--csv_path {prompts} --weights_per_objective 3 --max_new_tokens 6 --num_prompts 4"
    outcome = run("evaluate", trained, *flags.split(), "--sensitivity", "--output_dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "Sensitivity to how weights are written" in outcome.out
    measured = json.loads((tmp_path / "results.json").read_text())["steerability"]["sensitivity"]
    assert measured.keys() == {"decimal", "percent", "reordered", "forged"}
    for report in measured.values():
        assert report["mean"]["mean_difference"] >= 0
        assert report.keys() == {"mean", "brevity", "detail"}
    assert "Sensitivity to how weights" in (tmp_path / "report.html").read_text()
