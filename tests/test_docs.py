"""Documents tell today's truth: links lead somewhere, code compiles, flags and commands exist."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

import moodpo
from moodpo.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.md"))  # the log names flags of its time
OTHER_TOOLS = {"--strict"}  # mypy's


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def known_flags():
    import contextlib
    import io

    pages = io.StringIO()
    with contextlib.redirect_stdout(pages):
        for command in ("train", "evaluate", "compare", "generate", "chat", "score", "export"):
            with contextlib.suppress(SystemExit):
                main([command, "--help"])
    texts = [pages.getvalue(), *(p.read_text() for p in (ROOT / "benchmarks").glob("*.py"))]
    texts += [p.read_text() for p in (ROOT / "examples").glob("*.py")]
    return {flag for text in texts for flag in re.findall(r"--[\w-]+", text)} | OTHER_TOOLS


@pytest.mark.parametrize("path", [*DOCUMENTS, *BENCHMARKS], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_flag_exists(path, known_flags):
    for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", path.read_text()):
        assert flag in known_flags, flag


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_python_compiles_and_imports_what_exists(path):
    for code in blocks(path, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("moodpo"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        for target in re.findall(r"\bmake ([a-z-]+)(?=`|\s+#|$)", path.read_text(), re.MULTILINE):
            assert target in targets, target


def test_the_documented_weight_sampler_draws_each_row_by_its_own_seed():
    code, *_ = blocks(ROOT / "docs" / "weights.md", "python")
    names = {"MOODPOTrainer": lambda model, **options: options, "model": None, "rewards": []}
    exec(code, names)
    draw = names["trainer"]["weight_sampler"]
    assert draw([1, 2, 4]).tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert draw([4]).tolist() == draw([1]).tolist()


def test_every_table_behind_the_log_has_rows_and_is_named_in_it():
    log = (ROOT / "benchmarks" / "LOG.md").read_text()
    tables = sorted((ROOT / "benchmarks" / "recorded" / "log").glob("*.json"))
    assert tables
    for path in tables:
        assert json.loads(path.read_text())["rows"], path.name
        assert f"recorded/log/{path.name}" in log


def test_the_map_leads_through_code_that_exists():
    step = r"^\| \d+ \| [^|]+ \| `(\S+)\.py` \| `([\w.]+)` \|"
    rows = re.findall(step, (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert len(rows) == 14
    listed = re.findall(r"^ ?\d+  \S+ +(\S+)\.py +([\w.]+)$", moodpo.__doc__, re.MULTILINE)
    assert listed == rows
    for file, function in rows:
        place = importlib.import_module(f"moodpo.{file.replace('/', '.')}")
        for name in function.split("."):
            place = getattr(place, name)


def test_the_map_names_every_room_and_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text()
    source = ROOT / "src" / "moodpo"
    rooms = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+/)` \|", page, re.MULTILINE)) == rooms
    for file in re.findall(r"`([\w/]+\.py)`", page):
        assert (source / file).exists() or (ROOT / file).exists(), file
