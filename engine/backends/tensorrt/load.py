"""Loading of TensorRT plans onto a device.

The VRAM plan is checked before anything is loaded. All graphs run on one stream, one after the other, so their contexts
share one arena.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from engine.backends.base import Backend, Engine
from engine.backends.cuda import Cuda
from engine.backends.device_memory import DeviceMemory
from engine.backends.memory import ALIGNMENT
from engine.backends.tensorrt.engine import StreamResources, TensorRtEngine
from engine.backends.tensorrt.offload import OffloadedEngine, ResidentEngine
from engine.backends.tensorrt.plan import Plan
from engine.backends.vram import OFFLOADED, VramPlan
from engine.errors import DeviceError
from engine.options import RuntimeOptions
from engine.plan.manifest import GraphName, Manifest, Profile
from engine.plan.shapes import dimensions

log = logging.getLogger(__name__)


def load_plans(
    cuda: Cuda, open_plan: Callable[[GraphName], Plan], directory: Path, manifest: Manifest, options: RuntimeOptions
) -> Backend:
    """Load the engines of a plan directory, and allocate the memory between them.

    Args:
        open_plan: loads a graph's plan onto the device.

    Raises:
        OutOfDeviceMemory: the plans do not fit; the message has a table of sizes and ways to make them fit.
        PlanCorrupt: TensorRT cannot load a plan.
    """
    profiles = dict(sorted(manifest.choose_profiles(options.profiles).items(), key=lambda item: item[1].area))
    _require_fit(cuda, directory, manifest, profiles, options)
    offloaded = OFFLOADED if options.offload else ()
    with ExitStack() as owned:
        memory = DeviceMemory(cuda, manifest, tuple(profiles.values()), options.slots)
        owned.callback(memory.close)
        plans, arena_bytes = _open_plans(owned, open_plan, manifest, profiles, offloaded)
        arena = cuda.allocate(arena_bytes)
        owned.callback(cuda.free, arena)
        resources = StreamResources(cuda, memory.stream, arena, arena_bytes, options.cuda_graphs)

        def engine(name: GraphName, plan: Plan | None = None) -> Engine:
            bounds = {index: dimensions(name, profile, manifest.model) for index, profile in profiles.items()}
            return TensorRtEngine(resources, plan or open_plan(name), manifest.graphs[name], bounds, directory)

        engines: dict[GraphName, Engine] = {name: engine(name, plan) for name, plan in plans.items()}
        resident = ResidentEngine()
        engines |= {name: OffloadedEngine(partial(engine, name), resident) for name in offloaded}
        for each in engines.values():
            owned.callback(each.close)
        log.info("%.2f GB of GPU memory free after loading", cuda.memory_info()[0] / 1e9)
        return Backend(memory, engines, partial(_close, owned.pop_all()))


def _require_fit(
    cuda: Cuda, directory: Path, manifest: Manifest, profiles: Mapping[int, Profile], options: RuntimeOptions
) -> None:
    """Compare the VRAM plan of these profiles with the free memory, and log it."""
    vram = VramPlan.of(directory, manifest, profiles, offload=options.offload, slots=options.slots)
    free, _ = cuda.memory_info()
    vram.require_fit(free, [profile.name for profile in profiles.values()])
    log.info("GPU memory, %.2f GB free:\n%s", free / 1e9, vram.table())


def _open_plans(
    owned: ExitStack,
    open_plan: Callable[[GraphName], Plan],
    manifest: Manifest,
    profiles: Iterable[int],
    offloaded: Collection[GraphName],
) -> tuple[dict[GraphName, Plan], int]:
    """Open every plan; keep those that are not offloaded.

    Args:
        owned: closes the plans that are kept.
        profiles: indices of the profiles to serve.

    Returns:
        The plans that are kept, and the bytes of an arena for all.
    """
    plans: dict[GraphName, Plan] = {}
    arena_bytes = ALIGNMENT
    for name in sorted(manifest.graphs, key=lambda name: name not in offloaded):  # those to be closed again first
        plan = open_plan(name)
        arena_bytes = max(arena_bytes, *(plan.activation_bytes(index) for index in profiles))
        if name in offloaded:
            plan.close()  # opened only to check it and to learn its activation bytes
        else:
            plans[name] = plan
            owned.callback(plan.close)
    return plans, arena_bytes


def _close(owned: ExitStack) -> None:
    try:
        owned.close()
    except DeviceError as error:
        if not error.sticky:
            raise
        log.warning("GPU resources were not freed: %s", error)  # the process must be replaced anyway
