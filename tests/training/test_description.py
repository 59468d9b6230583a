from moodpo.manifest import RunManifest
from tiny_policies import save_tiny_policy
from tiny_trainers import make_trainer


def test_a_run_is_described_by_its_settings_and_where_it_comes_from(tmp_path):
    sft = str(save_tiny_policy(tmp_path / "sft"))
    folder = tmp_path / "run"
    trainer = make_trainer(folder, lora=True, base=sft, max_steps=1, beta=0.3, top_k=7)
    trainer.train()
    trainer.save_model()
    described = RunManifest.load(folder)
    assert described.training == trainer.manifest().training
    assert described.objectives == ("vowels", "capitals")
    assert described.base_model == {"path": sft, "start": None}
    assert (described.training["peft"], described.training["steps"]) == (True, 1)
    assert described.training["beta"] == 0.3
    assert described.sampling["top_k"] == 7
    assert described.reference["kind"] == "base"
    assert {"moodpo", "torch", "peft"} <= described.versions.keys()
