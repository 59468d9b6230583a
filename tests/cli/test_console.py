"""Who speaks, and where."""

from __future__ import annotations

import pytest

from moodpo.cli import console


def test_results_on_stdout_notes_on_stderr(capsys):
    console.print_out("result")
    console.note("note")
    console.warn("look")
    console.fail("broken")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "note\nwarning: look\nmoodpo: error: broken\n"


@pytest.mark.parametrize("rank", ["1", "7"])
def test_other_processes_are_silent(capsys, monkeypatch, rank):
    from rich.table import Table

    monkeypatch.setenv("RANK", rank)
    assert not console.is_main_process()
    console.print_out("result")
    console.print_table(Table("x"))
    console.note("note")
    console.warn("look")
    assert capsys.readouterr() == ("", "")


def test_tables_in_a_pipe_are_not_folded_at_80(capsys):
    from rich.table import Table

    table = Table("x")
    table.add_row("y" * 120)
    console.print_table(table)
    assert "y" * 120 in capsys.readouterr().out
