"""Free memory with and without a container, and refusals when it is low."""

import errno
from pathlib import Path

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES, serving

from server.jobs.admission import free_memory as module
from server.jobs.admission.admission import Limits
from server.jobs.admission.free_memory import MAX_AGE, FreeMemory, free_memory

MIB = 1 << 20


def cgroup(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{30 * MIB}\n")
    (folder / "memory.stat").write_text(f"anon {5 * MIB}\ninactive_file {10 * MIB}\nactive_file {9 * MIB}\n")
    return folder


def test_in_a_container_the_rest_of_its_limit_is_free(tmp_path: Path) -> None:
    assert free_memory(cgroup(tmp_path, str(50 * MIB))) == 30 * MIB


def test_without_a_limit_the_machines_memory_is_free(tmp_path: Path) -> None:
    machine = free_memory(tmp_path / "none")
    assert machine > 100 * MIB
    assert free_memory(cgroup(tmp_path, "max")) == pytest.approx(machine, rel=0.2)


def test_reading_is_reused_for_max_age(tmp_path: Path) -> None:
    read = FreeMemory(cgroup(tmp_path, str(50 * MIB)))
    assert read() == 30 * MIB
    cgroup(tmp_path, str(40 * MIB))
    assert read() == 30 * MIB
    read._due -= MAX_AGE
    assert read() == 20 * MIB


def test_last_reading_is_used_while_no_file_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = FreeMemory(cgroup(tmp_path, str(50 * MIB)))
    assert read() == 30 * MIB

    def fail(_: Path) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "free_memory", fail)
    read._due -= MAX_AGE
    assert read() == 30 * MIB


def test_low_memory_refuses_jobs_and_leaves_the_server_ready() -> None:
    with serving(FakeLoop(), Limits(free_bytes=1 << 60)) as url:
        answer = httpx.post(url + IMAGES, json={"prompt": "a cat"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "out_of_memory")
        assert int(answer.headers["retry-after"]) > 0
        assert httpx.get(f"{url}/ready").status_code == 200
