"""Every command that deploy/ starts, read by the command's own parser with the environment that it gets."""

import pytest
from fakes.deployment import ENTRYPOINTS, Command, commands

from server import settings_sources
from server.fleet.host.host_options import GRACE_SECONDS
from server.settings import PREFIX, Settings
from server.settings_sources import SERVE
from server.worker_cli import WORK

PARSERS = {"zimage-serve": SERVE, "zimage-worker": WORK}
COMMANDS = list(commands())

every_command = pytest.mark.parametrize("command", COMMANDS, ids=str)


@every_command
def test_settings_exist_and_are_valid(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(command, monkeypatch)
    assert settings_sources.unknown(command.environment) == []
    assert given.broker is not None and str(given.database).startswith("postgresql://")
    assert str(given.engines).endswith("/engines")


@every_command
def test_what_stops_a_command_waits_longer_than_it_takes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(command, monkeypatch)
    draining = given.drain_seconds if command.name == "zimage-serve" else 0.0
    assert given.grace + draining + 2 <= command.seconds_to_stop


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.name == "zimage-worker"], ids=str)
def test_hosts_have_the_grace_period_that_the_documentation_names(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_of(command, monkeypatch).grace == GRACE_SECONDS == 300


@every_command
def test_replicas_ask_for_keys_and_hosts_have_devices(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings_of(command, monkeypatch)
    if command.name == "zimage-serve":
        assert given.keys and given.devices is None
    else:
        assert given.devices in ("all", "cpu:1") and not given.keys


def test_all_kinds_of_deployment_are_read() -> None:
    places = {command.where.split()[0] for command in COMMANDS}
    assert {"compose.yaml", "compose.gpu.yaml", "zimage-serve.service", "zimage-worker@.service"} <= places
    assert {command.name for command in COMMANDS} == set(ENTRYPOINTS.values())


def settings_of(command: Command, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in (*Settings.model_fields, "settings"):
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    return settings_sources.read(list(command.arguments), PARSERS[command.name])
