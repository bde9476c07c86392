"""The devices of this machine that `--devices` names, and what their workers need to use only them.

Knows environment variables and processors; neither engines nor jobs.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from engine.errors import BackendUnavailable
from engine.module_command import module_command
from engine.plan.manifest import Flavor
from engine.processor import usable_cpus

HELP = (
    "Devices that generate images, each with a worker of its own: all GPUs (all), some of them by index or UUID (0,1), "
    "or N workers on the CPU (cpu:N) (default: the first GPU, or one worker on the CPU)"
)
VISIBLE = "CUDA_VISIBLE_DEVICES"
MAX_WORKERS = 64
COUNT_SECONDS = 60.0  # for the driver to load; a machine with many GPUs takes seconds
NODES = Path("/sys/devices/system/node")
GPU = re.compile(r"\d{1,3}|(?:GPU|MIG)-[\w/-]{1,80}")


@dataclass(frozen=True, slots=True)
class Device:
    """A device with one worker.

    Attributes:
        name: such as "cuda:0" or "cpu:0"; without --devices "cuda" or "cpu".
        environment: variables of the worker, beside those of the server.
        threads: of the worker's graphs on a CPU; None for those of the options.
        cpus: that the worker may use; empty for all.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestedDevices:
    """Devices that `--devices` asks for: some GPUs, all of them, or a number of workers on the CPU.

    Attributes:
        gpus: indices or UUIDs; empty for all, unless `cpu_workers` is given.
        cpu_workers: 0 for GPUs.
    """

    gpus: tuple[str, ...] = ()
    cpu_workers: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of `--devices`. Raises ValueError with what is wrong."""
        name, colon, number = text.strip().partition(":")
        if name == "all" and not colon:
            return cls()
        if name == "cpu" and colon:
            if not number.isascii() or not number.isdigit() or not 1 <= int(number[:4]) <= MAX_WORKERS:
                raise ValueError(f"cpu:N must have an N from 1 to {MAX_WORKERS}; got {text!r}")
            return cls(cpu_workers=int(number))
        gpus = tuple(part.strip() for part in text.split(","))
        if not all(map(GPU.fullmatch, gpus)):
            raise ValueError(f"must be all, GPUs such as 0,1, or cpu:N; got {text!r}")
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"must name each GPU once; got {text!r}")
        return cls(gpus)

    def devices(self, flavor: Flavor, threads: int = 0) -> list[Device]:
        """Return the devices for plans of a flavor.

        Args:
            threads: of each worker on the CPU; 0 divides the cores among the workers.

        Raises:
            BackendUnavailable: the plans do not run on these devices, or there are no such GPUs.
        """
        if flavor == "onnx":
            if not self.cpu_workers:
                raise BackendUnavailable("--devices names GPUs, but these plans run on the CPU; use --devices cpu:N")
            return _cpu_devices(self.cpu_workers, threads)
        if self.cpu_workers:
            raise BackendUnavailable(
                "--devices cpu:N needs plans for the CPU (build-engines --flavor onnx); these run on GPUs"
            )
        return [Device(f"cuda:{name}", {VISIBLE: visible}) for name, visible in _gpus(self.gpus)]


def default_device(flavor: Flavor) -> Device:
    """Return the device that is used without `--devices`."""
    return Device("cpu" if flavor == "onnx" else "cuda")


def _gpus(wanted: Sequence[str]) -> list[tuple[str, str]]:
    """Return names of GPUs, each with the value of CUDA_VISIBLE_DEVICES that shows only it; of all if none is named.

    An index counts the GPUs that this process sees, as in CUDA, so a server within a scheduler's CUDA_VISIBLE_DEVICES
    uses no others.
    """
    inherited = os.environ.get(VISIBLE)
    if wanted and inherited is None:
        return [(name, name) for name in wanted]
    visible = [] if inherited is None else [part.strip() for part in inherited.split(",")]
    if not wanted:
        wanted = [str(index) for index in range(_count_gpus())]
    found = []
    for name in wanted:
        if inherited is None or not name.isdigit():
            found.append((name, name))
        elif int(name) < len(visible):
            found.append((name, visible[int(name)]))
        else:
            raise BackendUnavailable(f"--devices: there is no GPU {name}; {VISIBLE} shows {len(visible)} ({inherited})")
    return found


def _count_gpus() -> int:
    """Return the number of GPUs that CUDA finds, in a process of its own, so that this one has no CUDA context."""
    try:
        command = module_command("server.worker.count_gpus")
        done = subprocess.run(command, capture_output=True, text=True, timeout=COUNT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendUnavailable(f"the NVIDIA driver did not count its GPUs within {COUNT_SECONDS:.0f} s") from error
    if done.returncode:
        raise BackendUnavailable(f"--devices all: {done.stderr.strip().rpartition(chr(10))[2]}")
    return int(done.stdout)


def _cpu_devices(workers: int, threads: int) -> list[Device]:
    """Return workers on the CPU. If there are several NUMA nodes, each worker stays on one, with its memory."""
    nodes = _numa_nodes()
    if workers == 1 or workers < len(nodes):
        nodes = [sorted(usable_cpus())]
    on_node = [index * len(nodes) // workers for index in range(workers)]
    devices = []
    for index, node in enumerate(on_node):
        cores = len(nodes[node]) // on_node.count(node)
        cpus = tuple(nodes[node]) if len(nodes) > 1 else ()
        devices.append(Device(f"cpu:{index}", threads=threads or max(cores, 1), cpus=cpus))
    return devices


def _numa_nodes() -> list[list[int]]:
    """Return the CPUs of each NUMA node that this process may use."""
    allowed = usable_cpus()
    nodes = []
    for folder in sorted(NODES.glob("node[0-9]*"), key=lambda path: int(path.name.removeprefix("node"))):
        if cpus := sorted(allowed & _cpu_list((folder / "cpulist").read_text())):
            nodes.append(cpus)
    return nodes or [sorted(allowed)]


def _cpu_list(text: str) -> set[int]:
    """Read a list of CPUs such as "0-3,8-11"."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
