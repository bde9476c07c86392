"""The batch table of a worker: read at the start, or measured while there is nothing to generate.

Knows tables and their file; not when the worker is idle.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from engine.errors import DeviceError
from engine.scheduler.batch_table import BatchTable
from server.worker.messages import Batching, BatchingState, MeasuredSize

log = logging.getLogger(__name__)

# Seconds. A request that comes during a measured pass waits for its end, once in the life of a plan directory.
LONGEST_PASS = 1.0
BATCHES = 2
MIN_WINDOW = 4  # images; while one is generated, others are tokenized, encoded as files and on their way


class Measurement(Protocol):
    """`engine.scheduler.batch_measurement.BatchMeasurement`, or a fake."""

    def advance(self) -> bool: ...

    def table(self) -> BatchTable: ...


class TableStore(Protocol):
    """`engine.scheduler.table_files.TableFile`, or a fake."""

    def read(self) -> BatchTable | None: ...

    def write(self, table: BatchTable) -> None: ...


class IdleMeasurement:
    """Measures which batches gain, one forward pass at a time, and has the loop use the result.

    Args:
        table: that was read at the start; None if there is none, so that it is to be measured.
        file: for the table.
        use_table: takes the measured table.
        slots: of the engine.
    """

    def __init__(
        self,
        table: BatchTable | None,
        measurement: Measurement,
        file: TableStore,
        use_table: Callable[[BatchTable], None],
        slots: int,
    ) -> None:
        self._measurement, self._file, self._use_table, self._slots = measurement, file, use_table, slots
        self._table = table
        self._has_failed = False
        self._seconds = 0.0  # that the measurement has taken so far

    @property
    def is_pending(self) -> bool:
        """True if passes are left to measure."""
        return self._table is None and not self._has_failed

    @property
    def window(self) -> int:
        """Slots that the engine makes use of."""
        return window(self._table or BatchTable(), self._slots)

    def advance(self) -> None:
        """Run one forward pass; after the last one, use the table and write it.

        A pass that fails ends the measurement for good.

        Raises:
            DeviceError: the device can generate nothing more.
        """
        assert self.is_pending
        if not self._seconds and (found := self._file.read()) is not None:  # of another worker, since the start
            self._finish(found)
            return
        started = time.perf_counter()
        try:
            is_going_on = self._measurement.advance()
        except DeviceError as error:
            if error.sticky:
                raise
            log.error("which batches gain could not be measured, so images are generated one at a time: %s", error)
            self._has_failed = True
            return
        self._seconds += time.perf_counter() - started
        if not is_going_on:
            table = self._measurement.table()
            best = ", ".join(f"{row.width}x{row.height} {row.best} ({row.speedup:.2f}x)" for row in table.rows)
            log.info("measured in %.1f s which batches gain: %s", self._seconds, best or "none")
            self._finish(table)
            self._write(table)

    def skip(self) -> None:
        """Measure nothing any more."""
        self._has_failed = self._has_failed or self._table is None

    def status(self, *, is_running: bool = False) -> Batching:
        """Return the message about the table."""
        if self._table is None:
            state: BatchingState = "failed" if self._has_failed else "measuring" if is_running else "waiting"
            return Batching(state, self.window)
        sizes = tuple(MeasuredSize(row.width, row.height, row.best, row.speedup) for row in self._table.rows)
        return Batching("measured", self.window, self._table.machine, self._table.measured, sizes)

    def _finish(self, table: BatchTable) -> None:
        self._table = table
        self._use_table(table)

    def _write(self, table: BatchTable) -> None:
        try:
            self._file.write(table)
        except OSError as error:
            log.warning("the batch table is kept in memory and measured again after a restart: %s", error)


def window(table: BatchTable, slots: int) -> int:
    """Return the number of slots that the engine makes use of: of two batches, so that the next one is complete."""
    return min(max(MIN_WINDOW, BATCHES * table.largest_batch), slots)
