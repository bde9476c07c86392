"""Throwaway servers: data survive a kill, a pause holds answers up, and nothing is left at the end."""

import subprocess
import sys
from contextlib import contextmanager

import kombu
import psutil
import psycopg
import pytest
import redis as redis_client
from fakes.processes import ROOT
from fakes.services import PostgreSql, RabbitMq, Redis, Service, new

from benchmarks.services.service import is_alive

KINDS = (PostgreSql, Redis, RabbitMq)


def write(url: str, text: str) -> None:
    """Store a text in a server of any kind."""
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE notes AS SELECT %s::text AS note", (text,))
    elif url.startswith("redis"):
        with redis_client.from_url(url) as client:
            client.set("note", text)
    else:
        options = {"confirm_publish": True}  # without it, a killed broker loses what it has not yet written
        with kombu.Connection(url, transport_options=options) as connection, connection.SimpleQueue("notes") as queue:
            queue.put(text)


def read(url: str) -> str | None:
    """Return the text that `write` has stored, or None."""
    if url.startswith("postgresql"):
        with psycopg.connect(url) as connection:
            if connection.execute("SELECT to_regclass('notes')").fetchone() == (None,):
                return None
            return connection.execute("SELECT note FROM notes").fetchone()[0]
    if url.startswith("redis"):
        with redis_client.from_url(url, decode_responses=True) as client:
            return client.get("note")
    with kombu.Connection(url) as connection, connection.SimpleQueue("notes") as queue:
        try:
            return queue.get(block=False).payload
        except queue.Empty:
            return None


@pytest.mark.parametrize("name", ["postgres", "redis", "rabbitmq"])
def test_fresh_url_is_empty_and_apart_from_others(name: str, request: pytest.FixtureRequest) -> None:
    service = request.getfixturevalue(name)
    first, second = service.fresh_url(), service.fresh_url()
    write(first, "from the first")
    assert read(second) is None
    assert read(first) == "from the first"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_server_returns_with_its_data(kind: type[Service]) -> None:
    with new(kind) as service:
        url, before = service.fresh_url(), service.pid
        write(url, "kept")
        processes = [psutil.Process(before), *psutil.Process(before).children(recursive=True)]
        service.restart()
        assert service.pid != before
        assert read(url) == "kept"
        assert not any(map(is_alive, processes))
        folder, last = service.folder, psutil.Process(service.pid)
    assert not folder.exists()
    assert not is_alive(last)


@pytest.mark.parametrize("kind", [PostgreSql, Redis])
def test_stopped_server_returns_with_its_data(kind: type[Service]) -> None:
    with new(kind) as service:
        write(service.url, "kept")
        service.stop()
        service.start()
        assert read(service.url) == "kept"


@contextmanager
def paused(service: Service):
    service.pause()
    try:
        yield
    finally:
        service.resume()


def test_paused_server_keeps_its_connections() -> None:
    with new(PostgreSql) as service, psycopg.connect(service.url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        with paused(service), pytest.raises(psycopg.errors.ConnectionTimeout):
            psycopg.connect(service.url, connect_timeout=2)
        assert connection.execute("SELECT 2").fetchone() == (2,)


def test_server_that_cannot_start_says_why() -> None:
    with new(Redis) as service:
        service.kill()
        (service.folder / "redis.conf").write_text("no-such-setting 1\n")
        with pytest.raises(RuntimeError, match="no-such-setting"):
            service.start()


def test_server_ends_with_the_process_that_started_it() -> None:
    if Redis.missing():
        pytest.skip("needs redis-server")
    program = (
        "import os; from benchmarks.services.redis import Redis; s = Redis().__enter__();"
        "print(s.pid, s.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    pid, folder = done.stdout.split()
    psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], timeout=20)
    assert not psutil.pid_exists(int(pid))
    subprocess.run(["rm", "-r", folder], check=True)


def test_script_gives_settings_to_a_command_and_ends_with_its_status() -> None:
    if Redis.missing() or PostgreSql.missing():
        pytest.skip("needs redis-server and PostgreSQL")
    program = (
        "import os, redis; from server import settings_sources; from server.worker_cli import WORK\n"
        "given = settings_sources.read(['--engines', '.'], WORK); redis.from_url(given.broker).ping()\n"
        "assert given.database.startswith('postgresql://'); print(given.broker); exit(7)"
    )
    command = [sys.executable, "scripts/services.py", "postgres", "redis", "--", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    with pytest.raises(redis_client.ConnectionError):
        read(done.stdout.strip())


def test_script_prints_one_broker_to_use_and_a_second_one_as_a_comment() -> None:
    if Redis.missing():
        pytest.skip("needs redis-server")
    command = [sys.executable, "scripts/services.py", "redis", "redis"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            lines = [process.stdout.readline() for _ in range(4)]
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert [line.split("redis://")[0] for line in lines[:2]] == [
        "export ZIMAGE_BROKER='",
        "# or export ZIMAGE_BROKER='",
    ]
    assert all(line.startswith("# ") for line in lines[2:])


def test_script_names_what_is_not_installed_or_unknown() -> None:
    done = subprocess.run([sys.executable, "scripts/services.py", "mysql"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "expected postgres, redis, rabbitmq, s3; got mysql" in done.stderr
