"""Worker hosts for tests of a fleet's store: what they say about themselves."""

from server.jobs.devices.device_status import DeviceStatus
from server.jobs.storage.fleet.worker_info import WorkerInfo


def device(name: str = "0", *, is_ready: bool = True, jobs: int = 0) -> DeviceStatus:
    return DeviceStatus(name, is_ready, 1, None, jobs)


def worker(id: str = "host-1", *, host: str = "gpu1", devices: tuple[DeviceStatus, ...] = (device(),)) -> WorkerInfo:
    return WorkerInfo(id=id, host=host, version="0.1.0", model="nano", plan_id="plan", window=4, devices=devices)
