"""Settings of a server: their sources, units, help and error messages."""

from pathlib import Path

import pytest

from engine.options import SLOTS, RuntimeOptions
from engine.plan.guide import Guide
from server import settings, settings_sources
from server.cli import server_options
from server.jobs.storage.images.archive import Archive
from server.jobs.storage.retention import DAY, Retention
from server.serving import ServerOptions

ENGINES = ["--engines", "plans"]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(settings.PREFIX + name.upper(), raising=False)


def options(given: settings.Settings) -> ServerOptions:
    return server_options(given, (), Guide())


def error_message(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        settings_sources.read(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_flags_override_the_environment_and_that_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.env"
    file.write_text("ZIMAGE_ENGINES=from-file\nZIMAGE_PORT=1\nZIMAGE_QUEUE=1\nZIMAGE_GRACE=1\n")
    monkeypatch.setenv("ZIMAGE_SETTINGS", str(file))
    monkeypatch.setenv("ZIMAGE_QUEUE", "2")
    monkeypatch.setenv("ZIMAGE_GRACE", "2")
    monkeypatch.setenv("ZIMAGE_HOST", "")  # counts as unset
    given = settings_sources.read(["--grace", "3"])
    assert (given.engines, given.port, given.queue, given.grace) == (Path("from-file"), 1, 2, 3)
    assert given.host == "127.0.0.1"


def test_lists_are_split_at_spaces_not_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_PROFILE", "512,1024x1536:2 256")
    monkeypatch.setenv("ZIMAGE_WARM_UP", "64x32,128")
    given = settings_sources.read(ENGINES)
    assert given.runtime().profiles == ("512,1024x1536:2", "256")
    assert given.runtime().warm_up == ((64, 32), (128, 128))
    given = settings_sources.read(
        [*ENGINES, "--profile", "512,1024x1536:2", "--profile", "256", "--keys", "first-key second"]
    )
    assert given.profile == ("512,1024x1536:2", "256")
    assert options(given).keys == ("first-key", "second")
    assert "first-key" not in repr(given) + repr(options(given))


def test_names_and_origins_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_CORS_ORIGINS", "https://App.example.com/ *")
    monkeypatch.setenv("ZIMAGE_MODEL_NAME", "z-image gpt-image-1")
    serving = options(settings_sources.read([*ENGINES, "--strict-model"]))
    assert serving.cors_origins == ("https://app.example.com", "*")
    assert (serving.model_names, serving.strict_model) == (("z-image", "gpt-image-1"), True)


def test_defaults_are_those_of_the_options_classes() -> None:
    given = settings_sources.read(ENGINES)
    assert given.runtime() == RuntimeOptions(slots=SLOTS)
    assert options(given) == ServerOptions()


def test_days_and_mebibytes_become_seconds_and_bytes() -> None:
    days_and_mb = "--archive a --archive-days 2 --archive-mb 3 --history-days 0.5 --history-mb 4 --min-free-mb 5"
    serving = options(settings_sources.read([*ENGINES, *days_and_mb.split(), "--hang-seconds", "6"]))
    assert serving.archive == Archive(Path("a"), Retention(2 * DAY, 3 << 20))
    assert serving.limits.history == Retention(DAY / 2, 4 << 20)
    assert (serving.limits.free_bytes, serving.timeouts.silence) == (5 << 20, 6)


def test_image_input_and_its_limit_reach_worker_and_server() -> None:
    given = settings_sources.read([*ENGINES, "--no-image-input", "--max-upload", "7"])
    assert (given.runtime().image_input, options(given).image_input) == (False, False)
    assert options(given).max_upload == 7 << 20


def test_loras_and_guide_of_the_plans_reach_the_server() -> None:
    guide = Guide(about="It draws shapes.")
    found = server_options(settings_sources.read(ENGINES), (("ink", Path("ink.lora")),), guide)
    assert (found.loras, found.guide) == (("ink",), guide)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "--port: "),
        (["--max-upload", "0"], "--max-upload: "),
        (["--host", " "], "--host: must not be empty"),
        (["--rate", "often"], "--rate: must be a number per second, minute, hour or day"),
        (["--keys", ""], "--keys: is empty"),
        (["--hosts", " "], "--hosts: is empty"),
        (["--hosts", "https://images.example.com/"], "--hosts: must be host names such as images.example.com"),
        (["--trusted-proxies", ""], "--trusted-proxies: is empty"),
        (["--trusted-proxies", "*"], "--trusted-proxies: must be addresses or networks such as 127.0.0.1"),
        (["--trusted-proxies", "10.0.0.1/8"], "10.0.0.1/8 has host bits set"),
        (["--keys", "schlüssel"], "--keys: an API key must consist of 1 to 255 visible ASCII"),
        (["--cors-origins", "app.example.com"], "--cors-origins: must be origins such as https://app.example.com"),
        (["--cors-origins", "https://a/b"], "without paths, or *; got 'https://a/b'"),
        (["--public-url", "images.example.com"], "--public-url: must be a URL such as https://example.com"),
        (["--public-url", "https://bücher.example/x"], "--public-url: must have a host name such as example.com"),
        (["--warm-up", "64xbig"], "--warm-up: size must be WIDTHxHEIGHT"),
        (["--offload", "--warm-up", "64"], "--offload unloads what --warm-up prepares"),
        (["--settings", "nowhere.env"], "--settings: nowhere.env is not a file"),
        (["--prot", "1"], "unrecognized arguments: --prot"),
    ],
)
def test_invalid_setting_is_reported_by_its_flag(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in error_message(capsys, *ENGINES, *arguments)


@pytest.mark.parametrize("name", settings_sources.PROTECTING)
@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("source", ["environment", "small letters", "file"])
def test_empty_value_of_a_protecting_setting_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    source: str,
) -> None:
    variable = settings.PREFIX + name.upper()
    (file := tmp_path / "settings.env").write_text(f'{variable}="{value}"\n' if source == "file" else "")
    if source != "file":
        monkeypatch.setenv(variable.lower() if source == "small letters" else variable, value)
    message = error_message(capsys, *ENGINES, "--settings", str(file))
    flag = f"--{name.replace('_', '-')}"
    assert f"{flag}: " in message
    if name != "rate" or not value:
        assert "is empty" in message and "unset it to do without" in message


def test_empty_variable_does_not_matter_where_another_source_has_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "settings.env").write_text("ZIMAGE_KEYS=from-file\n")
    monkeypatch.setenv("ZIMAGE_KEYS", "")
    assert settings_sources.read([*ENGINES, "--settings", str(file)]).keys == ("from-file",)
    assert settings_sources.read([*ENGINES, "--keys", "flag"]).keys == ("flag",)


def test_unknown_names_are_errors_in_a_file_and_listed_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.env"
    file.write_text("ZIMAGE_PROT=1\n")
    assert "ZIMAGE_PROT in the file is not a setting" in error_message(capsys, *ENGINES, "--settings", str(file))
    file.write_text("ZIMAGE_QUEUE=1\nRATE=1/day\nexport port = 2\nMAIL=me\n")
    message = error_message(capsys, *ENGINES, "--settings", str(file))
    assert "--settings: RATE, port in " in message and "names must begin with ZIMAGE_" in message
    assert settings_sources.unknown(["ZIMAGE_PROT", "ZIMAGE_PORT", "ZIMAGE_SETTINGS", "HOME"]) == ["ZIMAGE_PROT"]


def test_help_describes_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_sources.read(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in settings_sources.SERVE.settings:
        field = settings.Settings.model_fields[name]
        assert f"--{name.replace('_', '-')}" in text
        assert field.description is not None and field.description.replace("\n", " ") in text.replace("- ", "-")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_file_of_any_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "settings"
    file.write_bytes("ZIMAGE_ENGINES=/plans/图\r\n# Schlüssel\r\nZIMAGE_PORT=7\r\n".encode(encoding))
    given = settings_sources.read(["--settings", str(file)])
    assert (given.engines, given.port) == (Path("/plans/图"), 7)


def test_file_in_latin_1_is_one_line_with_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings"
    file.write_bytes("ZIMAGE_ENGINES=plans\n# Schlüssel\n".encode("latin-1"))
    with pytest.raises(SystemExit) as left:
        settings_sources.read(["--settings", str(file)])
    assert left.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"--settings: {file} is not UTF-8 text (byte 0xfc in line 2); save it as UTF-8" in last


def test_home_is_expanded_in_flags_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings").write_text("ZIMAGE_DATABASE=~/jobs\nZIMAGE_LORAS=~/loras\n")
    monkeypatch.setenv("ZIMAGE_ARCHIVE", "~/archive")
    given = settings_sources.read(["--settings=~/settings", "--engines=~/plans", "--runtime-cache", "~/cache"])
    found = (given.engines, given.database, given.loras, given.archive, given.runtime_cache)
    assert found == tuple(tmp_path / name for name in ("plans", "jobs", "loras", "archive", "cache"))


@pytest.mark.parametrize("url", ["mysql://user:secret@host/name", "postgresq://user:secret@host/name"])
def test_database_of_another_kind_is_refused_without_its_password(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = error_message(capsys, *ENGINES, "--database", url)
    assert "--database: must be an SQLite file or postgresql://" in message and "secret" not in message
