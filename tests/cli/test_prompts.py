from moodpo.cli.prompts import read_prompts


def test_embedded_prompts_and_files(tmp_path):
    train = read_prompts("embedded", column="anything", embedded="train")
    held_out = read_prompts("embedded", column="anything", embedded="heldout")
    assert len(train) > len(held_out) > 0
    assert not set(train.prompts) & set(held_out.prompts)
    path = tmp_path / "p.csv"
    path.write_text("prompt\none\ntwo\n", encoding="utf-8")
    assert read_prompts(str(path), column="prompt", embedded="train").prompts == ["one", "two"]
    limited = read_prompts(str(path), column="prompt", embedded="train", max_samples=1)
    assert limited.prompts == ["one"]
