"""Weights & Biases never asks, never hangs, never ends a run."""

from __future__ import annotations

import importlib.util
import socket
from types import SimpleNamespace

import pytest

from moodpo.cli import tracking
from moodpo.cli.settings import read_settings

SERVICE = "https://wandb.example:8443"


def chosen(*flags):
    return tracking.choose_trackers(read_settings(list(flags)))


def test_on_where_it_is_installed_and_not_disabled():
    assert chosen("--wandb_name", "mine") == {
        "report_to": ["wandb"],
        "run_name": "mine",
        "project": "moodpo",
    }
    assert chosen("--disable_wandb", "True")["report_to"] == []


def test_off_with_a_word_where_it_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert chosen()["report_to"] == []
    assert capsys.readouterr().err == ""
    assert chosen("--wandb_name", "mine")["report_to"] == []
    assert "wandb is not installed" in capsys.readouterr().err


def test_credentials(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert not tracking.has_credentials(SERVICE)
    netrc.write_text("machine other.example login user password key\n")
    assert not tracking.has_credentials(SERVICE)
    netrc.write_text("machine wandb.example login user password key\n")
    assert tracking.has_credentials(SERVICE)
    netrc.write_text("not a netrc file\n")
    assert not tracking.has_credentials(SERVICE)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert tracking.has_credentials(SERVICE)


class FakeWandb:
    """Records what `init` is asked for; fails online as the service would."""

    def __init__(self, *, online_works):
        self.run, self.calls, self.finished, self._online = None, [], 0, online_works

    def Settings(self, **values):  # noqa: N802 - wandb's own name
        return SimpleNamespace(base_url=SERVICE, **values)

    def init(self, *, mode, **options):
        self.calls.append((mode, options))
        if mode != "offline" and not self._online:
            raise RuntimeError("network says no")
        self.run = SimpleNamespace(settings=SimpleNamespace(mode=mode), dir="somewhere")
        return self.run

    def teardown(self):
        self.run = None

    def finish(self):
        self.finished += 1
        self.run = None


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))

    def install(*, online_works=True):
        fake = FakeWandb(online_works=online_works)
        monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
        return fake

    return install


def start(tmp_path):
    tracking.start_wandb("mine", tmp_path / "out", {"a": 1})


def test_without_a_key_it_logs_offline_and_says_so(fake, tmp_path, capsys):
    wandb = fake()
    start(tmp_path)
    ((mode, options),) = wandb.calls
    assert mode == "offline"
    assert (options["project"], options["name"]) == ("moodpo", "mine")
    assert options["dir"] == str(tmp_path / "out")
    assert "No key is configured" in capsys.readouterr().err


def test_a_service_that_cannot_be_reached_is_not_waited_for(fake, tmp_path, monkeypatch, capsys):
    wandb = fake()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError

    monkeypatch.setattr(socket, "create_connection", refuse)
    start(tmp_path)
    assert asked == [(("wandb.example", 8443), tracking.PROBE_SECONDS)]
    assert [mode for mode, _ in wandb.calls] == ["offline"]
    assert "cannot be reached" in capsys.readouterr().err


def test_a_service_that_fails_is_replaced_by_an_offline_run(fake, tmp_path, monkeypatch, capsys):
    wandb = fake(online_works=False)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")  # reachable only through it: not probed
    start(tmp_path)
    assert [mode for mode, _ in wandb.calls] == [None, "offline"]
    assert wandb.calls[0][1]["settings"].init_timeout == tracking.INIT_SECONDS
    assert "network says no" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_local_mode_is_the_users_choice(fake, tmp_path, monkeypatch, capsys, mode):
    wandb = fake()
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    try:
        start(tmp_path)
    except RuntimeError:
        pytest.fail("a local mode must not go online")
    ((asked, options),) = wandb.calls
    assert (asked, options["project"], options["dir"]) == (mode, "theirs", str(tmp_path))
    assert "warning" not in capsys.readouterr().err


def test_only_the_main_process_starts_and_a_running_run_is_kept(fake, tmp_path, monkeypatch):
    wandb = fake()
    monkeypatch.setenv("RANK", "1")
    start(tmp_path)
    tracking.finish_wandb()
    assert (wandb.calls, wandb.finished) == ([], 0)
    monkeypatch.setenv("RANK", "0")
    start(tmp_path)
    start(tmp_path)
    assert len(wandb.calls) == 1
    tracking.finish_wandb()
    tracking.finish_wandb()
    assert wandb.finished == 1
