import pytest

from moodpo.cli import main
from moodpo.errors import ConfigError
from moodpo.removed import REMOVED, refuse_removed
from moodpo.training.config import MOODPOConfig

PLAIN = sorted(name for name in REMOVED if "=" not in name)


@pytest.mark.parametrize("name", PLAIN)
def test_python_says_what_to_use_instead(name, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name} is no longer a setting: .+"):
        MOODPOConfig(output_dir=str(tmp_path), **{name: 1})


@pytest.mark.parametrize("name", PLAIN)
def test_flags_and_files_say_what_to_use_instead(name, capsys, tmp_path):
    said = f"{name} is no longer a setting: "
    config = tmp_path / "run.yaml"
    config.write_text(f"{name}: 1\n")
    for flags in ([f"--{name}", "1"], ["--config", str(config)]):
        assert main(["train", *flags]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("named", sorted(set(REMOVED) - set(PLAIN)))
def test_values_that_went_say_what_to_use_instead(named, tmp_path):
    name, _, value = named.partition("=")
    with pytest.raises(ConfigError, match=f"^{name}={value} is no longer a setting: .+"):
        MOODPOConfig(output_dir=str(tmp_path), **{name: value})


def test_what_is_there_passes():
    refuse_removed(["beta", "relabel=none"])


@pytest.mark.parametrize("named", sorted(set(REMOVED) - set(PLAIN)))
def test_flags_say_it_of_values_too(named, capsys):
    name, _, value = named.partition("=")
    assert main(["train", f"--{name}", value]) == 2
    assert f"{named} is no longer a setting: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["generate", "p", "Hi", "--weights", "a=1"], ["evaluate", "p"]]
)
def test_other_commands_say_it_too(command, capsys):
    assert main([*command, "--lower_bounds", "a=0.3"]) == 2
    assert "lower_bounds is no longer a setting: " in capsys.readouterr().err
