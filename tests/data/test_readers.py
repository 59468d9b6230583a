from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tiny_files import CONVERSATION, lines_of, property_settings, put, refusal, texts, user
from moodpo.data.csv import write_csv
from moodpo.data.prompts import load_prompts
from moodpo.errors import DataError

LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


# What survives, exactly


def test_csv_keeps_every_text_as_it_is(tmp_path: Path) -> None:
    rows = [
        "NA",
        "null",
        "007",
        "1e5",
        "=cmd",
        "True",
        " padded ",
        'say "hi"',
        "a\nb",
        "x,y",
        "é€😀",
    ]
    with open(tmp_path / "p.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["prompt"], *[[row] for row in rows]])
    loaded = load_prompts(tmp_path / "p.csv")
    assert loaded.prompts == rows
    assert loaded.dataset.features["prompt"] == datasets.Value("string")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_line_ends_and_byte_order_mark(tmp_path: Path, newline: str, mark: bytes) -> None:
    text = newline.join(["prompt,id", "one,1", '"two', 'lines",2', ""])
    loaded = load_prompts(put(tmp_path / "p.csv", mark + text.encode()))
    assert loaded.prompts == ["one", f"two{newline}lines"]
    assert loaded.dataset["id"][:] == ["1", "2"]


def test_csv_cells_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "word " * 60_000
    assert load_prompts(put(tmp_path / "p.csv", f'prompt\n"{long}"\n')).prompts == [long]
    assert csv.field_size_limit() == limit


@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
@property_settings
def test_any_text_survives_a_csv(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [("first", ""), *rows]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("prompt", "note"), *rows])
    loaded = load_prompts(put(tmp_path / "p.csv", buffer.getvalue()))
    assert loaded.prompts == [prompt for prompt, _ in rows if prompt.strip()]
    assert loaded.dataset["note"][:] == [note for prompt, note in rows if prompt.strip()]


@given(rows=st.lists(texts, min_size=1, max_size=5))
@property_settings
def test_any_text_survives_json_and_parquet(tmp_path: Path, rows: list[str]) -> None:
    rows = ["first", *rows]
    objects = [{"prompt": row} for row in rows]
    lines = "\n".join(json.dumps(one, ensure_ascii=False) for one in objects)
    pq.write_table(pa.table({"prompt": rows}), tmp_path / "p.parquet")
    kept = [row for row in rows if row.strip()]
    assert load_prompts(put(tmp_path / "p.jsonl", lines)).prompts == kept
    assert load_prompts(put(tmp_path / "p.json", json.dumps(objects))).prompts == kept
    assert load_prompts(tmp_path / "p.parquet").prompts == kept


def test_json_keeps_types_and_fills_gaps(tmp_path: Path) -> None:
    path = put(
        tmp_path / "p.jsonl", '{"q": "a", "n": 1}\n\n{"q": "b\u2028c", "m": [0.5]}\n{"n": 3}\n'
    )
    loaded = load_prompts(path, prompt_column="q")
    assert loaded.prompts == ["a", "b\u2028c"]
    assert loaded.dataset["n"][:] == [1, None]
    assert loaded.dataset["m"][:] == [None, [0.5]]
    assert (loaded.report.rows_read, loaded.report.empty_dropped) == (3, 1)


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    path = put(tmp_path / "p.json", '{"prompt": "a"}\n{"prompt": "b"}\n')
    assert load_prompts(path).prompts == ["a", "b"]


def test_parquet_categories_and_features(tmp_path: Path) -> None:
    kinds = pa.array(["x", "y", "x"]).dictionary_encode()
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["a", "", "c"], "kind": kinds}), path)
    loaded = load_prompts(path)
    assert loaded.prompts == ["a", "c"]
    assert loaded.dataset["kind"][:] == ["x", "x"]
    assert loaded.dataset.column_names == ["prompt", "kind"]


# Refusals of files


def test_a_missing_file_names_its_neighbors(tmp_path: Path) -> None:
    put(tmp_path / "prompts_train.csv", "prompt\na\n")
    assert "Did you mean 'prompts_train.csv'" in refusal(tmp_path / "prompt_train.csv")
    assert "nothing in its folder" in refusal(tmp_path / "other.xyz")
    assert "cannot be listed" in refusal(tmp_path / "no" / "p.csv")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    assert "it has none inside" in refusal(tmp_path)
    put(tmp_path / "p.csv", "prompt\na\n")
    assert "pass one of its files: 'p.csv'" in refusal(tmp_path)
    assert "expected a regular file" in refusal(os.devnull)
    assert "is a URL" in refusal("https://example.org/p.csv")
    assert "There is no file ''" in refusal("")
    assert "There is no file" in refusal("a\0.csv")
    assert "cannot be a path" in refusal("x" * 9_000)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", b"", "is empty (0 bytes)"),
        ("p.csv", b"\n\n", "only blank lines"),
        ("p.csv", b"prompt\n", "has 0 rows"),
        ("p.csv", b"prompt\n \n\n", "has 2 rows and none holds text"),
        ("p.txt", b"prompt\na\n", "ends with '.txt'"),
        ("p.csv", b"Prompts,id\na,1\n", "it has 'Prompts', 'id': did you mean 'Prompts'?"),
        ("p.csv", b"PROMPT,id\na,1\n", "did you mean 'PROMPT'?"),
        ("p.csv", b"id,text\n1,a\n", "it has 'id', 'text': pass --prompt_column"),
        ("p.csv", b"id;prompt\n1;a\n", "expected commas between columns, got ';'"),
        ("p.csv", b'"prompt";"kind"\n"a";"b"\n', "expected commas between columns, got ';'"),
        ("p.csv", b'"id"\t"prompt"\r\n1\t"a, b"\r\n', r"expected commas between columns, got '\t'"),
        ("p.csv", b"text|kind\na|b\n", "expected commas between columns, got '|'"),
        ("p.csv", b"text;kind\rHello, you;b\r", "has the header 'text;kind': expected commas"),
        ("p.csv", b"sep=;\nprompt;kind\na;b\n", "line 'sep=;', which names ';' as separator"),
        ("p.csv", b'\xef\xbb\xbf"SEP=\t"\r\nprompt\tkind\r\n', "as separator"),
        ("p.csv", LFS_POINTER, "is a Git LFS pointer"),
        ("p.jsonl", LFS_POINTER, "`git lfs pull`"),
        ("p.json", LFS_POINTER, "`git lfs pull`"),
        ("p.parquet", LFS_POINTER, "is a Git LFS pointer"),
        ("p.csv", b"prompt,prompt\na,b\n", "more than one column 'prompt'"),
        ("p.csv", b"prompt\nok\nHello, you\n", "row 2 (line 3): 2 cells, expected 1"),
        ("p.csv", b'id,prompt\n1,"a\nb"\n2\n', "row 2 (line 4): 1 cells, expected 2"),
        ("p.csv", b'id,prompt\n1,a\n2,"b\n3,c\n', "row 2 (line 3): broken quotes"),
        ("p.csv", b'id,prompt\n1,"a" b\n', "row 1 (line 2): broken quotes"),
        ("p.csv", b'prompt\n"a\n\nb"\n\ncaf\xe9\n', "row 3 (line 6): byte 18 (0xe9) is not UTF-8"),
        ("p.csv", b"\xef\xbb\xbfpr\xe9mpt\na\n", "the header (line 1): byte 5 (0xe9)"),
        ("p.csv", "prompt\na\n".encode("utf-16"), "encoded as UTF-16"),
        ("p.csv", "prompt\na\n".encode("utf-32"), "encoded as UTF-32"),
        ("p.csv", "prompt\na\n".encode("utf-16-le"), "the header (line 1): a NUL"),
        ("p.csv", b"prompt\nok\na\0b\n", "row 2 (line 3): a NUL"),
        ("p.csv", b"PK\x03\x04...", "an Excel workbook"),
        ("p.csv", b"PAR1", "name it .parquet"),
        ("p.jsonl", b"\x1f\x8b\x08", "a gzip archive"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not valid JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n\n["b"]\n', "line 3: expected an object"),
        ("p.jsonl", b'{"prompt": "a"}\ncaf\xe9\n', "line 2: byte 19 (0xe9)"),
        ("p.jsonl", b'{"text": "a"}\n', "no column 'prompt'; it has 'text'"),
        ("p.jsonl", b'{"prompt": "a", "n": 1}\n{"prompt": "b", "n": "x"}', "column 'n'"),
        ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 30 + b"}", "column 'n'"),
        ("p.jsonl", b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", "turn 1 is [[["),
        ("p.jsonl", b"[" * 9999, "line 1: not valid JSON"),
        ("p.json", b"[]", "has 0 rows"),
        ("p.json", b'[{"prompt": "a"}, 3]', "item 2: expected an object"),
        ("p.json", b'{\n"prompt": "a"\n}', "Expected a list [{…}, …], or one whole object"),
        ("p.json", b'[{"prompt": "a"}', "Expected a list of objects"),
        ("p.parquet", b"not parquet at all", "not a readable Parquet file"),
        ("p.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "not a readable Parquet file"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    message = refusal(put(tmp_path / name, content))
    assert name in message
    assert said in message
    assert len(message) < 700


@pytest.mark.parametrize(
    ("content", "column"),
    [
        (b"what; why\na\n", "what; why"),  # one column, whatever its name holds
        (b"prompt;x,kind\na,b\n", "prompt;x"),
        (b"\xef\xbb\xbf\xef\xbb\xbfprompt\na\n", "prompt"),  # exports stack byte order marks
        (b"sep,prompt\n1,a\n", "prompt"),
    ],
)
def test_what_only_looks_like_another_separator(
    tmp_path: Path, content: bytes, column: str
) -> None:
    assert load_prompts(put(tmp_path / "p.csv", content), prompt_column=column).prompts == ["a"]


def test_conversations_in_cells_stay_texts_with_a_warning(tmp_path: Path) -> None:
    talk = json.dumps([user("Hi")])
    write_csv(tmp_path / "p.csv", [{"prompt": talk}, {"prompt": "[1] is a citation"}])
    with pytest.warns(UserWarning, match="1 of 2 prompts look like conversations in JSON"):
        loaded = load_prompts(tmp_path / "p.csv")
    assert loaded.prompts == [talk, "[1] is a citation"]


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "p.parquet")
    assert "no column 'prompt'; it has 'text'" in refusal(tmp_path / "p.parquet")


def test_invalid_text_inside_parquet(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
    assert "not a readable Parquet file (UnicodeDecodeError" in refusal(tmp_path / "p.parquet")


def test_an_unreadable_file_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = put(tmp_path / "p.csv", "prompt\na\n")
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "cannot be read: [Errno 13] Permission denied" in refusal(path)


PIECES = [
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b"\\ud800",
    b"9" * 30,
]


def valid_files() -> dict[str, bytes]:
    table = io.BytesIO()
    columns = {"prompt": ["hello", None, "b"], "n": [1.5, 2.5, None]}
    pq.write_table(pa.table(columns), table, compression="none")
    return {
        "csv": 'prompt,id\r\n"Hello, ""you""\nthere",1\r\ncafé,2\r\nNA,\r\n'.encode(),
        "jsonl": (lines_of(CONVERSATION, [user("é")], []) + "\n").encode(),
        "json": json.dumps([{"prompt": "a", "n": {"x": [1]}}, {"prompt": None}]).encode(),
        "parquet": table.getvalue(),
    }


def load_or_refuse(path: Path) -> None:
    message = path.name
    try:
        loaded = load_prompts(path)
    except DataError as error:
        message = str(error)
    else:
        assert len(loaded.prompts) == loaded.report.kept > 0
    assert path.name in message


@given(extension=st.sampled_from(sorted(valid_files())), content=st.binary(max_size=80))
@property_settings
def test_random_bytes_load_or_are_refused(tmp_path: Path, extension: str, content: bytes) -> None:
    load_or_refuse(put(tmp_path / f"p.{extension}", content))


@given(extension=st.sampled_from(sorted(valid_files())), data=st.data())
@settings(property_settings, max_examples=250)
def test_damaged_files_load_or_are_refused(
    tmp_path: Path, extension: str, data: st.DataObject
) -> None:
    content = valid_files()[extension]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        until = data.draw(st.integers(at, min(len(content), at + 8)))
        content = content[:at] + data.draw(st.sampled_from(PIECES)) + content[until:]
    load_or_refuse(put(tmp_path / f"p.{extension}", content))


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Any, ...]]]:
    """`datasets.load_dataset` itself, pointed at a dataset folder here; yields its calls."""
    folder, calls = tmp_path / "hub", []
    (folder / "poems").mkdir(parents=True)
    card = (
        "---\nconfigs:\n- config_name: plain\n  data_files: '*.parquet'\n"
        "- config_name: poems\n  data_files: 'poems/*.parquet'\n---\n"
    )
    put(folder / "README.md", card)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    columns = {"text": ["NA", "", "hi", "NA"], "label": [0, 1, 1, 0]}
    pq.write_table(
        datasets.Dataset.from_dict(columns, features=features).data.table,
        folder / "train.parquet",
    )
    pq.write_table(pa.table({"text": ["a poem"]}), folder / "poems" / "train.parquet")
    real: Callable[..., Any] = datasets.load_dataset

    def local(name: str, config: str | None = None, *, split: str) -> Any:
        calls.append((name, config, split))
        return real(str(folder), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    yield calls
    if not bars:
        datasets.enable_progress_bars()


def test_a_hub_dataset_with_a_configuration(hub: list[tuple[Any, ...]]) -> None:
    loaded = load_prompts("org/name:plain", prompt_column="text")
    assert hub == [("org/name", "plain", "train")]
    assert loaded.prompts == ["NA", "hi", "NA"]
    assert loaded.dataset["label"][:] == [0, 1, 0]
    assert loaded.dataset.features["label"].names == ["no", "yes"]
    assert str(loaded.report) == (
        "org/name:plain: kept 3 of 4 prompts (empty dropped: 1, duplicates kept: 1)"
    )
    sliced = load_prompts("org/name:plain", prompt_column="text", split="train[2:]", max_samples=1)
    assert sliced.prompts == ["hi"]
    poems = load_prompts("org/name:poems", prompt_column="text")
    assert (poems.prompts, poems.dataset.column_names) == (["a poem"], ["prompt"])


@pytest.mark.parametrize(
    ("source", "options", "said", "remedy"),
    [
        ("org/name", {}, "Config name is missing", "'org/name:config'"),
        ("org/name:no", {}, "BuilderConfig", "'org/name:config'"),
        ("org/name:plain", {"split": "test"}, "Unknown split", "Pass a split"),
        ("org/name:plain", {}, "has no column 'prompt'", "it has 'text', 'label'"),
    ],
)
def test_hub_mistakes(
    hub: list[tuple[Any, ...]], source: str, options: dict[str, str], said: str, remedy: str
) -> None:
    message = refusal(source, **options)
    assert hub
    assert said in message
    assert remedy in message


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ConnectionError("Couldn't reach 'org/name'"), "Check the network, or pass a local file"),
        (datasets.exceptions.DatasetNotFoundError("'org/name' doesn't exist"), "hf auth login"),
        (RuntimeError("anything\nelse"), "Check the id"),
    ],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = refusal("org/name")
    assert remedy in message
    assert f"could not be loaded: {type(error).__name__}: " in message
    assert "\n" not in message


def test_a_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(tmp_path)
    for source in ("data/p.csv", "a/b/c", "name", "./org/name", "../name", "/org/name", "org/n me"):
        assert "There is no file" in refusal(source)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert "is a folder" in refusal("org/name")
