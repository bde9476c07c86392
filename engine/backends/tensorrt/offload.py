"""Engines of which one at a time is in GPU memory, for GPUs that cannot hold all of them."""

import logging
import time
from collections.abc import Callable, Iterator

from engine.backends.base import Bindings, Engine
from engine.plan.lora import PreparedLora

log = logging.getLogger(__name__)


class ResidentEngine:
    """The one of several offloaded engines that is in GPU memory."""

    def __init__(self) -> None:
        self._engine: OffloadedEngine | None = None

    def replace(self, engine: "OffloadedEngine") -> None:
        """Unload the resident engine, and make another one resident."""
        if self._engine is not None and self._engine is not engine:
            self._engine.close()
        self._engine = engine


class OffloadedEngine(Engine):
    """An engine that is loaded when it is used, and unloaded when another one becomes the resident engine.

    Unloading waits for what is running. A new prompt costs the loading of both engines; further images cost nothing.
    """

    def __init__(self, load: Callable[[], Engine], resident: ResidentEngine) -> None:
        self._load, self._resident = load, resident
        self._engine: Engine | None = None
        self._lora: PreparedLora | None = None

    def enqueue(self, stream: int, bindings: Bindings) -> None:
        if self._engine is None:
            self._resident.replace(self)
            started = time.perf_counter()
            engine = self._load()
            try:
                for _ in engine.refit(self._lora):
                    pass
            except BaseException:
                engine.close()
                raise
            self._engine = engine
            log.info("loaded an offloaded engine in %.2f s", time.perf_counter() - started)
        self._engine.enqueue(stream, bindings)

    def refit(self, lora: PreparedLora | None) -> Iterator[None]:
        self._lora = lora
        if self._engine is not None:
            yield from self._engine.refit(lora)

    def save_kernels(self) -> None:
        if self._engine is not None:
            self._engine.save_kernels()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
