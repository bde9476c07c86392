"""Engines that take turns in the device's memory, for GPUs that do not hold them all."""

import logging
import time
from collections.abc import Callable

from engine.backends.base import Bindings, Engine
from engine.plan.lora import PreparedLora

log = logging.getLogger(__name__)


class ResidentSlot:
    """Which of several engines is on the device."""

    def __init__(self) -> None:
        self._owner: OffloadedEngine | None = None

    def take(self, engine: "OffloadedEngine") -> None:
        """Makes room for the engine."""
        if self._owner is not None and self._owner is not engine:
            self._owner.close()
        self._owner = engine


class OffloadedEngine(Engine):
    """An engine that is loaded when it is used and leaves when another of its `turn` is.

    Leaving waits for what is running: a new prompt costs the loading of both, every image after it nothing.
    """

    def __init__(self, load: Callable[[], Engine], turn: ResidentSlot) -> None:
        self._load, self._slot = load, turn
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
            log.info("took its turn on the GPU in %.2f s", time.perf_counter() - started)
        self._engine.enqueue(stream, bindings)

    def refit(self, lora: PreparedLora | None) -> None:
        self._lora = lora
        if self._engine is not None:
            self._engine.refit(lora)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
