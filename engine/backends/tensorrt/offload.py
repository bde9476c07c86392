"""Engines of which one at a time is in GPU memory, for GPUs that cannot hold all of them."""

import logging
import time
from collections.abc import Callable

from engine.backends.base import Bindings, Engine
from engine.plan.lora import PreparedLora

log = logging.getLogger(__name__)


class ResidentSlot:
    """The place in GPU memory that several engines share."""

    def __init__(self) -> None:
        self._owner: OffloadedEngine | None = None

    def take(self, engine: "OffloadedEngine") -> None:
        """Unload the engine that is resident, and record the new one."""
        if self._owner is not None and self._owner is not engine:
            self._owner.close()
        self._owner = engine


class OffloadedEngine(Engine):
    """An engine that is loaded when it is used, and unloaded when another engine of its slot is used.

    Unloading waits for what is running. A new prompt costs the loading of both engines; further images cost nothing.
    """

    def __init__(self, load: Callable[[], Engine], slot: ResidentSlot) -> None:
        self._load, self._slot = load, slot
        self._engine: Engine | None = None
        self._lora: PreparedLora | None = None

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        if self._engine is None:
            self._slot.take(self)
            started = time.perf_counter()
            engine = self._load()
            try:
                engine.refit(self._lora)
            except BaseException:
                engine.close()
                raise
            self._engine = engine
            log.info("loaded an offloaded engine in %.2f s", time.perf_counter() - started)
        self._engine.enqueue(stream, bindings)

    def refit(self, lora: PreparedLora | None) -> None:
        self._lora = lora
        if self._engine is not None:
            self._engine.refit(lora)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
