from __future__ import annotations

import pytest

from moodpo.rewards.grammar import objective_name, split_body, split_revision


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/models/my-rm/", "my-rm"),
        ("org/rm.v2", "rm_v2"),
        ("org/7b-rm", "reward_7b-rm"),
        ("pkg.mod:f", "f"),
        ("<lambda>", "_lambda_"),
    ],
)
def test_default_names(target: str, name: str) -> None:
    assert objective_name(target) == name


@pytest.mark.parametrize("url", ["http://me@host:80/score?a=b", "https://host/@me/score"])
def test_an_address_keeps_its_signs(url: str) -> None:
    assert split_body(f"{url}#timeout=5") == (url, {"timeout": "5"})
    assert split_revision(url) == (url, None)
