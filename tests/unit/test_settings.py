"""Where settings come from and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cluster.settings import BY_NAME, SETTINGS, ConfigError, gather

ROOT = Path(__file__).parents[2]


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    """settings.py, first lines."""
    file = tmp_path / "kvorum.toml"
    file.write_text('name = "file"\nheartbeat-interval = 1\nelection-timeout = 2\n')
    environment = {"KVORUM_HEARTBEAT_INTERVAL": "10", "KVORUM_ELECTION_TIMEOUT": "20", "PATH": "/bin"}
    values = gather({"election-timeout": "200", "config-file": str(file)}, environment)
    assert values == {"name": "file", "heartbeat-interval": "10", "election-timeout": "200"}


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text('listen-metrics-urls = ["http://a:1", "http://b:2"]\n')
    assert gather({}, {"KVORUM_CONFIG_FILE": str(file)}) == {"listen-metrics-urls": "http://a:1,http://b:2"}


def test_an_unknown_variable_is_refused_with_the_nearest_setting() -> None:
    """A misspelled setting must not be found out on the day it was needed."""
    with pytest.raises(ConfigError, match=r"KVORUM_ELECTION_TIMOUT.*did you mean election-timeout\?"):
        gather({}, {"KVORUM_ELECTION_TIMOUT": "5000"})


def test_an_unknown_name_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text("snapshot-count = 10000\n")
    with pytest.raises(ConfigError, match=r"'snapshot-count' in .*: no such setting"):
        gather({"config-file": str(file)}, {})


@pytest.mark.parametrize("content", ["name = 1.5\n", "name = true\n", "name = [1]\n", "[name]\nx = 1\n"])
def test_a_value_that_is_no_text_number_or_list_of_texts_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "kvorum.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match="expected a text, a whole number or a list of texts"):
        gather({"config-file": str(file)}, {})


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"name = ", "not TOML"), (b"\xff", "not TOML")]
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "kvorum.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        gather({"config-file": str(file)}, {})


def test_what_kubernetes_puts_beside_a_service_named_kvorum_is_ignored() -> None:
    """Kubernetes sets NAME_SERVICE_HOST and NAME_PORT... in every container of the namespace."""
    environment = {
        "KVORUM_SERVICE_HOST": "10.0.0.1",
        "KVORUM_SERVICE_PORT": "2379",
        "KVORUM_SERVICE_PORT_CLIENT": "2379",
        "KVORUM_PORT": "tcp://10.0.0.1:2379",
        "KVORUM_PORT_2379_TCP": "tcp://10.0.0.1:2379",
        "KVORUM_PORT_2379_TCP_ADDR": "10.0.0.1",
        "KVORUM_0_SERVICE_HOST": "10.0.0.2",
    }
    assert gather({}, environment) == {}


def test_the_sample_file_shows_every_setting_with_its_default() -> None:
    """ops/kvorum.toml is the reference that people copy: nothing may be missing, and it must load."""
    text = (ROOT / "ops/kvorum.toml").read_text()
    shown = tomllib.loads(
        "\n".join(line[1:] if line[:1] == "#" and line[1:2] != " " else line for line in text.splitlines())
    )
    assert list(shown) == [setting.name for setting in SETTINGS]
    for name, value in shown.items():
        text = ",".join(value) if isinstance(value, list) else str(value).lower() if value is False else str(value)
        assert text == BY_NAME[name].default, name
    assert gather({"config-file": str(ROOT / "ops/kvorum.toml")}, {}) == {}, "as shipped it sets nothing"
