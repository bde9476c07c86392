"""Jobs and images as rows of the database. Knows columns; no transactions."""

import sqlite3
from dataclasses import fields

import msgspec

from engine.images.metadata import ImageMetadata
from server.jobs.job import Job, StoredImage
from server.jobs.storage.database import SQLiteValue

COLUMNS = tuple(field.name for field in fields(Job) if field.name != "sequence")
JSON_COLUMNS = ("request", "format", "error")


def row_of_job(job: Job) -> dict[str, SQLiteValue]:
    """Return the values of a job by column."""
    values: dict[str, SQLiteValue] = msgspec.to_builtins(job)
    return values | {name: to_json(getattr(job, name)) for name in JSON_COLUMNS}


def job_of_row(row: sqlite3.Row) -> Job:
    """Return the job of a row; fields that are new since it was written have their defaults."""
    values = {**row, "durable": bool(row["durable"])} | {name: msgspec.json.decode(row[name]) for name in JSON_COLUMNS}
    return msgspec.convert(values, Job)


def image_of_row(row: sqlite3.Row) -> StoredImage:
    metadata = msgspec.json.decode(row["metadata"], type=ImageMetadata)
    return StoredImage(row["number"], row["media_type"], row["data"], metadata)


def to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
