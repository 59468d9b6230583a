"""Small files of prompts, and what tests of them share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from moodpo.data.prompts import load_prompts
from moodpo.errors import DataError

property_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)

CONVERSATION: list[dict[str, object]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "Bye"},
]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(source: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_prompts(source, **options)
    return str(caught.value)


def user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


def lines_of(*prompts: object) -> str:
    return "\n".join(json.dumps({"prompt": prompt}) for prompt in prompts)
