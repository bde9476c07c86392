"""Settings of zimage-worker, where they differ from those of zimage-serve."""

import pytest

from server import settings_sources
from server.fleet.host.host_options import GRACE_SECONDS
from server.worker_cli import WORK

FLEET = ("--engines", "plans", "--broker", "redis://broker", "--database", "postgresql://user:secret@database/zimage")


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER", "DATABASE", "ENGINES", "GRACE"):
        monkeypatch.delenv(f"ZIMAGE_{name}", raising=False)


def test_help_shows_what_a_host_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_sources.read(["--help"], WORK)
    text = " ".join(capsys.readouterr().out.split())
    assert "--database URL Database of the fleet" in text and "FILE|URL" not in text
    assert f"(default: {GRACE_SECONDS:g})" in text.partition("--grace GRACE Seconds")[2].partition(" --")[0]
    assert "(required)" in text.partition("--broker URL Broker")[2].partition(" --")[0]


def test_grace_period_is_longer_than_that_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_sources.read(FLEET, WORK).grace == GRACE_SECONDS > settings_sources.read(FLEET).grace
    monkeypatch.setenv("ZIMAGE_GRACE", "7")
    assert settings_sources.read(FLEET, WORK).grace == 7


@pytest.mark.parametrize("database", ["jobs.sqlite", "mysql://user:secret@database/zimage"])
def test_database_that_no_fleet_has_is_refused(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, *FLEET, "--database", database)
    assert "--database: must be the database of the fleet, postgresql://" in message and "secret" not in message


def test_missing_fleet_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--engines", "plans")
    assert "--database: Field required" in message and "--broker: Field required" in message


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        settings_sources.read(arguments, WORK)
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]
