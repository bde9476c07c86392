"""Files of batch tables beside the plans, one for each kind of device that has measured one.

Knows what measured times depend on; not how they are measured.
"""

import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from engine.files import require_writable, whole_file
from engine.pipeline import Pipeline
from engine.plan.manifest import Flavor
from engine.scheduler.batch_table import BatchTable

log = logging.getLogger(__name__)

FOLDER = "batching"  # in a plan directory
KEY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class TableKey:
    """All that the times in a table depend on. A table of another key is not used.

    Attributes:
        machine: name of the GPU or of the processor.
        threads: of each graph on a CPU; 0 on a GPU.
        profiles: names of those that were loaded.
    """

    machine: str
    plan_id: str
    flavor: Flavor
    threads: int
    profiles: tuple[str, ...]

    @classmethod
    def of(cls, pipeline: Pipeline) -> Self:
        """Return the key of a loaded pipeline."""
        manifest, backend = pipeline.manifest, pipeline.backend
        profiles = tuple(sorted(profile.name for profile in manifest.profiles))
        return cls(backend.processor, manifest.plan_id, manifest.target.flavor, backend.threads, profiles)

    @property
    def device(self) -> str:
        """The machine in words, with its threads on a CPU."""
        return f"{self.machine}, {self.threads} threads" if self.threads else self.machine

    @property
    def file_name(self) -> str:
        """A name for the file that is unique to this key, and begins with the machine's."""
        digest = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:KEY_DIGITS]
        return f"{re.sub(r'[^a-z0-9]+', '-', self.machine.lower()).strip('-')[:80]}-{digest}.json"


@dataclass(frozen=True, slots=True)
class _Content:
    key: TableKey
    table: BatchTable


class TableFile:
    """The file with the table of one key.

    Attributes:
        path: of the file, which may not exist.
    """

    def __init__(self, plans: Path, key: TableKey) -> None:
        self.key = key
        self.path = plans / FOLDER / key.file_name

    @classmethod
    def of(cls, plans: Path, pipeline: Pipeline) -> Self:
        """Return the file for a pipeline that was loaded from a plan directory."""
        return cls(plans, TableKey.of(pipeline))

    def read(self) -> BatchTable | None:
        """Return the table; None if there is none yet.

        A file that is damaged, unreadable or about another device is reported in the log and counts as none, since the
        table can be measured again.
        """
        try:
            content = msgspec.json.decode(self.path.read_bytes(), type=_Content)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("the batch table %s cannot be read and is to be measured again: %s", self.path, error)
            return None
        if content.key != self.key:
            log.warning("the batch table %s is about %s and is to be measured again", self.path, content.key)
            return None
        return content.table

    def require_writable(self) -> None:
        """Raise the OSError that `write` would raise now."""
        self.path.parent.mkdir(exist_ok=True)
        require_writable(self.path)

    def write(self, table: BatchTable) -> None:
        """Write the table. Raises OSError if the plan directory cannot be written."""
        self.path.parent.mkdir(exist_ok=True)
        with whole_file(self.path) as file:
            file.write(msgspec.json.format(msgspec.json.encode(_Content(self.key, table)), indent=1) + b"\n")
