"""Worker hosts whose engines generate plain colours, in processes of their own. As a script: such a host."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

import httpx
from fakes.jobs import job
from fakes.loop import MANIFEST
from fakes.processes import PYTHONPATH, ROOT
from fakes.thread_worker import SHORT_TIMEOUTS

from engine.request import ImageRequest
from server.errors import StoreUnavailable
from server.fleet.host import heartbeats
from server.fleet.host.host_options import HostOptions
from server.fleet.messaging import ticket_worker
from server.fleet.messaging.celery_app import create_celery, send_ticket
from server.hosting import run_host
from server.jobs.job import Job, JobState
from server.jobs.storage.fleet import fleet_store
from server.jobs.storage.fleet.fleet_store import FleetStore
from server.worker.supervisors import WorkerCommand

FLEET = "test"
READY_SECONDS = 60.0
LEASE = 2.0  # seconds; these two are short, so that tests need not wait
CONSUME = 8.0


class HostProcess:
    """A worker host in a process.

    Attributes:
        id: of the host in the fleet.
        url: of its probes.
    """

    def __init__(self, process: subprocess.Popen[bytes], id: str, port: int) -> None:
        self.process, self.id, self.url = process, id, f"http://127.0.0.1:{port}"

    def wait_until_ready(self) -> None:
        """Wait until a worker is ready, and the broker delivers tickets."""
        until = time.monotonic() + READY_SECONDS
        while self.process.poll() is None and time.monotonic() < until:
            with suppress(httpx.TransportError):
                is_ready = httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
                if is_ready and self.metric("zimage_host_takes_tickets"):
                    return
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


class Submitter:
    """A stand-in for an API replica: it adds jobs, sends their tickets and waits for their ends.

    While it waits it does the janitor's work.
    """

    def __init__(self, broker: str, database: str) -> None:
        self.store = FleetStore(database)
        self.app = create_celery(broker, FLEET)

    def close(self) -> None:
        self.store.close()
        self.app.pool.force_close_all()
        self.app.close()

    def submit(self, prompt: str = "a cat", *, ticket: bool = True, **fields: object) -> Job:
        request = fields.pop("request", None) or ImageRequest(prompt, 64, 64)
        usual: dict[str, object] = {"request": request, "model": MANIFEST.model.name, "cost": 1.0}
        added = self.store.add(job(**usual | {"created": 0.0} | fields))
        if ticket:
            assert send_ticket(self.app, added)
        return added

    def wait(self, *jobs: Job, state: JobState | None = None, seconds: float = 60.0) -> list[Job]:
        """Wait until jobs have ended, or have a state, and return them."""
        until = time.monotonic() + seconds
        while True:
            self.expire()
            found = [self.get(each) for each in jobs]
            if all(each.state.is_final if state is None else each.state is state for each in found):
                return found
            assert time.monotonic() < until, [(each.id, each.state, each.worker, each.attempts) for each in found]
            time.sleep(0.05)

    def expire(self) -> None:
        with suppress(StoreUnavailable):
            self.store.expire()

    def get(self, of: Job) -> Job:
        while True:
            with suppress(StoreUnavailable):
                found = self.store.get(of.id)
                assert found is not None
                return found
            time.sleep(0.1)


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
    lease: float = LEASE,
    wait: bool = True,
    prefix: tuple[str, ...] = (),
) -> Iterator[HostProcess]:
    """Run a host until the end of the block.

    Args:
        lease: seconds for which it holds jobs, instead of LEASE_SECONDS.
        wait: False to go on before it is ready.
        prefix: a command that runs it, such as faketime.
    """
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
            "lease": lease,
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


class Fleet(Submitter):
    """A broker, a database and the hosts that a test starts, until the end of a stack."""

    def __init__(self, broker: str, database: str, owned: ExitStack) -> None:
        super().__init__(broker, database)
        owned.callback(self.close)
        self.broker, self.database, self._owned = broker, database, owned

    def host(self, **options: object) -> HostProcess:
        """Start a host; see `host_process`."""
        return self._owned.enter_context(host_process(self.broker, self.database, **options))


def main(text: str) -> None:
    given = json.loads(text)
    manifest, loras = replace(MANIFEST, plan_id=given["plan_id"]), tuple(given["loras"])
    ticket_worker.CONSUME_SECONDS = CONSUME
    fleet_store.LEASE_SECONDS, heartbeats.HEARTBEAT_SECONDS = given["lease"], given["lease"] / 5
    options = HostOptions(
        id=given["id"],
        host="test",
        version="0",
        broker=given["broker"],
        fleet=FLEET,
        loras=loras,
        grace=given["grace"],
    )

    command = (sys.executable, "-m", "fakes.loop", str(given["seconds_per_step"]))
    workers = [WorkerCommand(f"cpu:{number}", command) for number in range(given["devices"])]
    probes = socket.socket(fileno=given["socket"])
    run_host(probes, workers, manifest, given["database"], options, timeouts=SHORT_TIMEOUTS)


if __name__ == "__main__":
    main(*sys.argv[1:])
