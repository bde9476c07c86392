"""Jobs and images as rows of the database, and what is left of a damaged row. Knows columns; no transactions."""

import re
from dataclasses import fields

import msgspec

from engine.errors import InvalidRequest
from engine.images.metadata import ImageMetadata
from engine.request import (
    MAX_GUIDANCE,
    MAX_LORA_STRENGTH,
    MAX_NORMALIZATION,
    MAX_SEED,
    MAX_STEPS,
    PNG,
    ImageRequest,
)
from server.jobs.job import ImageFile, Job, JobError, JobState, StoredImage
from server.jobs.storage.databases.database import Database, Row, Value

ROW_BYTES = 1 << 10  # estimate of a job's row without its request
SIZE = f"(coalesce({{request_bytes}}, 0) + {ROW_BYTES})"  # bytes of an ended job without its images
SIZE_WITH_IMAGES = (
    f"{SIZE} + (SELECT CAST(coalesce(sum(length(data) + file_bytes), 0) AS {{integer}}) FROM images WHERE job = id)"
    " + (SELECT CAST(coalesce(sum(length(data)), 0) AS {integer}) FROM init_images WHERE job = id)"
)
COLUMNS = (*(field.name for field in fields(Job) if field.name != "sequence"), "lora")
# not *: PostgreSQL refuses a prepared statement whose columns an upgrade by another process has changed
JOB_COLUMNS = ", ".join(("sequence", *COLUMNS))
IMAGE_COLUMNS = "number, media_type, metadata, data, file, file_bytes"
JSON_COLUMNS = ("request", "format", "error")
MAX_IMAGES = 1000  # of a job; the endpoints allow far fewer
MAX_TIME = 1 << 40  # unix seconds
MEDIA_TYPE = re.compile("image/[a-z]+")
FILE_NAME = re.compile(r"[0-9a-z-]+\.[a-z]+")  # nothing that leaves a folder

# whole images of a job, for `job_of_row`
STORED = "(SELECT count(*) FROM images WHERE job = jobs.id AND {whole_image}) AS stored"


def row_of_job(job: Job) -> list[Value]:
    """Return the values of a job, one for each of COLUMNS."""
    values: dict[str, Value] = msgspec.to_builtins(job)
    texts = {name: to_json(getattr(job, name)) for name in JSON_COLUMNS}
    values |= texts | {"durable": int(job.durable), "lora": job.request.lora}
    return [values[name] for name in COLUMNS]


def job_of_row(row: Row) -> Job:
    """Return the job of a row with `STORED`. Fields that are new since it was written have their defaults.

    A damaged row is a failed job with the error job_damaged, so that it hides no other job.
    """
    try:
        values = row | {name: msgspec.json.decode(row[name]) for name in JSON_COLUMNS}
        if row["durable"] in (0, 1):
            values["durable"] = bool(row["durable"])
        job = msgspec.convert(values, Job)
        _check(job, row)
    except (msgspec.MsgspecError, InvalidRequest, RecursionError, TypeError, ValueError) as error:
        return _failed(row, f"The record of this job in the database is damaged ({error}); send the request again.")
    return job


def _check(job: Job, row: Row) -> None:
    """Raise ValueError if the values of a row contradict each other, or could never have been stored."""
    for text in row.values():
        if isinstance(text, str):
            text.encode()  # raises for what was no UTF-8
    times = [time for time in (job.created, job.deadline, job.started, job.finished) if time is not None]
    if not all(0 <= time < MAX_TIME for time in times):
        raise ValueError(f"one of the times {times} is out of range")
    request = job.request
    if not 0 <= request.seed <= MAX_SEED or not 1 <= (request.num_inference_steps or 1) <= MAX_STEPS:
        raise ValueError(f"it asks for the seed {request.seed} and {request.num_inference_steps} steps")
    if not abs(request.lora_strength) <= MAX_LORA_STRENGTH:
        raise ValueError(f"it asks for a LoRA at strength {request.lora_strength}")
    if request.edit is not None and not 0 <= request.edit.strength <= 1:
        raise ValueError(f"it asks for the strength {request.edit.strength}")
    guidance = request.guidance_scale or 0.0, request.cfg_normalization, request.cfg_truncation
    if not all(0 <= value <= most for value, most in zip(guidance, (MAX_GUIDANCE, MAX_NORMALIZATION, 1), strict=True)):
        raise ValueError(f"it asks for the guidance {guidance}")
    if not 1 <= job.image_count <= MAX_IMAGES or job.attempts < 0:
        raise ValueError(f"it has {job.image_count} images and {job.attempts} attempts")
    if min(job.previews, job.cost, job.steps_done) < 0:
        raise ValueError(f"it has {job.previews} previews, the cost {job.cost} and {job.steps_done} steps")
    has_end, has_error = job.finished is not None, job.error is not None
    if has_end != job.state.is_final or has_error != (job.state is JobState.FAILED):
        raise ValueError(f"it is {job.state.value}, with the end {job.finished} and the error {job.error}")
    if job.state is JobState.DONE and (job.started is None or row["stored"] < job.image_count):
        raise ValueError(f"{row['stored']} of its {job.image_count} images are there")


def _failed(row: Row, message: str) -> Job:
    """Return a failed job with what can be read of a damaged row."""
    owner, created = row["owner"], row["created"]
    created = created if isinstance(created, float) and 0 <= created < MAX_TIME else 0.0
    return Job(
        id=_readable(row["id"]) or f"job_{row['sequence']}",
        request=ImageRequest(""),
        image_count=1,
        format=PNG,
        api="",
        owner=None if owner is None else _readable(owner) or "damaged",
        durable=True,
        fingerprint=_readable(row["fingerprint"]),
        created=created,
        state=JobState.FAILED,
        finished=created,
        error=JobError("job_damaged", message),
        sequence=row["sequence"],
    )


def _readable(value: Value) -> str:
    """Return a text that can be sent; an empty one for anything else."""
    return value if isinstance(value, str) and value.isascii() else ""


def insert_image(database: Database, id: str, image: StoredImage) -> int:
    """Insert the row of an image, unless there is one with its index; return the bytes of the image.

    A later file takes the place of an earlier one, which is lost if the image was generated again.
    """
    size = 0 if image.file is None else image.file.bytes
    database.execute(
        "INSERT INTO images (job, number, media_type, metadata, data, file, file_bytes)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job, number) DO UPDATE SET"
        " metadata = excluded.metadata, file = excluded.file, file_bytes = excluded.file_bytes"
        " WHERE images.file IS NOT NULL AND excluded.file IS NOT NULL",
        id,
        image.index,
        image.media_type,
        to_json(image.metadata),
        image.data,
        None if image.file is None else image.file.name,
        size,
    )
    return len(image.data) + size


def image_of_row(row: Row) -> StoredImage | None:
    """Return the image of a row; None if the row is damaged."""
    metadata = metadata_of(row["metadata"])
    index, media_type, data = row["number"], row["media_type"], row["data"]
    is_intact = isinstance(index, int) and index >= 0 and isinstance(data, bytes)
    if metadata is None or not is_intact or not MEDIA_TYPE.fullmatch(str(media_type)):
        return None
    file, size = row["file"], row["file_bytes"]
    if file is None:
        return StoredImage(index, media_type, data, metadata)
    is_file = FILE_NAME.fullmatch(str(file)) and isinstance(size, int)
    return StoredImage(index, media_type, b"", metadata, ImageFile(file, size)) if is_file else None


def metadata_of(text: Value) -> ImageMetadata | None:
    """Return the metadata of an image; None if they are damaged."""
    try:
        return msgspec.json.decode(text, type=ImageMetadata)  # type: ignore[arg-type]  # raises TypeError
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError):
        return None


def owned_by(owner: str | None) -> tuple[str, tuple[Value, ...]]:
    """Return the condition for the jobs of an owner, which an index serves in every dialect, and its values."""
    return ("owner IS NULL", ()) if owner is None else ("owner = ?", (owner,))


def to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
