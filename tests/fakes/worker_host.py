"""Worker hosts whose engines generate plain colours, in processes of their own. As a script: such a host."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
from fakes.loop import MANIFEST
from fakes.processes import PYTHONPATH, ROOT
from fakes.server import SHORT_TIMEOUTS

from server.fleet.celery_app import create_celery, queues_of_host
from server.fleet.host import HostOptions, WorkerHost
from server.hosting import run_host
from server.jobs.storage.fleet_store import FleetStore
from server.worker.supervisor import Supervisor

FLEET = "test"
READY_SECONDS = 60.0


class HostProcess:
    """A worker host in a process.

    Attributes:
        id: of the host in the fleet.
        url: of its probes.
    """

    def __init__(self, process: subprocess.Popen[bytes], id: str, port: int) -> None:
        self.process, self.id, self.url = process, id, f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        until = time.monotonic() + READY_SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            try:
                if httpx.get(f"{self.url}/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the host {self.id} is not ready; status {self.process.poll()}")

    def health(self) -> dict[str, object]:
        answer: dict[str, object] = httpx.get(f"{self.url}/health", timeout=5).json()
        return answer

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def host_process(
    broker: str,
    database: str,
    *,
    devices: int = 1,
    seconds_per_step: float = 0.0,
    grace: float = 20.0,
    plan_id: str = MANIFEST.plan_id,
    loras: tuple[str, ...] = (),
    wait: bool = True,
    prefix: tuple[str, ...] = (),
) -> Iterator[HostProcess]:
    """Run a host until the end of the block. `prefix`: a command that runs it, such as faketime."""
    host_id = f"host-{uuid.uuid4().hex[:8]}"
    with socket.create_server(("127.0.0.1", 0)) as probes:
        settings = {
            "id": host_id,
            "broker": broker,
            "database": database,
            "devices": devices,
            "seconds_per_step": seconds_per_step,
            "grace": grace,
            "plan_id": plan_id,
            "loras": loras,
            "socket": probes.fileno(),
        }
        command = [*prefix, sys.executable, "-m", "fakes.worker_host", json.dumps(settings)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": PYTHONPATH}, pass_fds=[probes.fileno()]
        )
        host = HostProcess(process, host_id, probes.getsockname()[1])
    try:
        if wait:
            host.wait_until_ready()
        yield host
    finally:
        host.resume()
        host.kill()


def main(text: str) -> None:
    given = json.loads(text)
    manifest, loras = replace(MANIFEST, plan_id=given["plan_id"]), tuple(given["loras"])
    app = create_celery(given["broker"], FLEET, queues_of_host(FLEET, manifest.model.name, manifest.plan_id, loras))
    options = HostOptions(
        id=given["id"],
        host="test",
        version="0",
        broker=given["broker"],
        fleet=FLEET,
        loras=loras,
        grace=given["grace"],
    )

    async def run() -> None:
        host = WorkerHost(FleetStore(given["database"]), manifest, app, 4 * given["devices"], options)
        supervisors = []
        for number in range(given["devices"]):
            queue = host.worker_queue.add_device(str(number))
            command = [sys.executable, "-m", "fakes.loop", str(given["seconds_per_step"])]
            queue.link = Supervisor(command, queue, SHORT_TIMEOUTS)
            supervisors.append(queue.link)
        await run_host(host, supervisors, socket.socket(fileno=given["socket"]))

    asyncio.run(run())


if __name__ == "__main__":
    main(*sys.argv[1:])
