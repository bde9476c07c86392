"""Tables and indices of a job store, for SQLite and PostgreSQL, and how an earlier version becomes the next one.

The names in braces are those of `Fragments`.
"""

VERSION = 6
READABLE_FROM = 5  # oldest zimage-trt, by its schema, that can use a database of this one: see `postgres.py`

INIT_IMAGES = """CREATE TABLE init_images (
    job TEXT NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    unpacked_bytes {integer} NOT NULL,
    data {blob} NOT NULL
)"""
NEW_COLUMNS = (  # of `jobs` in version 5
    "client TEXT NOT NULL DEFAULT ''",
    "previews {integer} NOT NULL DEFAULT 0",
    "priority TEXT NOT NULL DEFAULT 'interactive'",
    "model TEXT",
    "plan_id TEXT",
    "lora TEXT",  # of the request
    "cost {real} NOT NULL DEFAULT 0",
    "trace TEXT",
    "worker TEXT",
    "lease {real}",
    "charged {real} NOT NULL DEFAULT 0",  # to its client, by the claim that holds it
    "losses {integer} NOT NULL DEFAULT 0",  # hosts that vanished while they held the job
    "steps_done {integer} NOT NULL DEFAULT 0",
)
FILE = ("file TEXT", "file_bytes {integer} NOT NULL DEFAULT 0")  # of an image that is kept elsewhere; no data then
DELETED_IMAGES = """CREATE TABLE deleted_images (
    job TEXT NOT NULL PRIMARY KEY -- deleted, but its images may still be in the store of images
)"""
# an image is sent before its job is inserted; see `FleetStore.add`
LATE_CHECK = "ALTER TABLE init_images ALTER CONSTRAINT init_images_job_fkey DEFERRABLE INITIALLY DEFERRED"
CHARGED_AT = "charged_at {real} NOT NULL DEFAULT 0"  # time of the last charge
JOBS = f"""CREATE TABLE jobs (
    sequence {{counter}},
    id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    image_count {{integer}} NOT NULL,
    format TEXT NOT NULL,
    api TEXT NOT NULL,
    owner TEXT,
    durable {{integer}} NOT NULL,
    idempotency_key TEXT,
    fingerprint TEXT NOT NULL,
    created {{real}} NOT NULL,
    deadline {{real}},
    state TEXT NOT NULL,
    started {{real}},
    finished {{real}},
    attempts {{integer}} NOT NULL,
    error TEXT NOT NULL,
    bytes {{integer}} NOT NULL DEFAULT 0, -- of an ended job, with its images
    {", ".join(NEW_COLUMNS)},
    CHECK ((finished IS NULL) = (state IN ('queued', 'running')))
)"""
TABLES = (
    JOBS,
    # UNIQUE treats NULLs as distinct; jobs without an owner must share their keys
    """CREATE UNIQUE INDEX jobs_by_key ON jobs (idempotency_key, coalesce(owner, ''))
        WHERE idempotency_key IS NOT NULL""",
    "CREATE INDEX jobs_by_owner ON jobs (owner, sequence)",
    "CREATE INDEX jobs_unfinished ON jobs (sequence) WHERE finished IS NULL",
    # `Pruner` reads nothing but these, so that it stays cheap with many jobs
    "CREATE INDEX jobs_ended ON jobs (finished) WHERE finished IS NOT NULL",
    """CREATE INDEX jobs_without_result ON jobs (finished, sequence, bytes, state)
        WHERE finished IS NOT NULL AND state <> 'done'""",
    "CREATE INDEX jobs_done ON jobs (owner, finished, sequence, bytes, state) WHERE state = 'done'",
    f"""CREATE TABLE images (
        job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
        number {{integer}} NOT NULL,
        media_type TEXT NOT NULL,
        metadata TEXT NOT NULL,
        data {{blob}} NOT NULL,
        {", ".join(FILE)},
        PRIMARY KEY (job, number)
    )""",
    INIT_IMAGES,
    DELETED_IMAGES,
)
POSTGRES_TABLES = (
    # images do not get smaller
    "ALTER TABLE images ALTER data SET STORAGE EXTERNAL",
    "ALTER TABLE init_images ALTER data SET STORAGE EXTERNAL",
    """CREATE TABLE workers (
        id TEXT NOT NULL PRIMARY KEY,
        info TEXT NOT NULL, -- a WorkerInfo
        seen {real} NOT NULL,
        is_draining {integer} NOT NULL DEFAULT 0
    )""",
    LATE_CHECK,
    # what each client has been charged for the jobs of a model; see `JobChoice`
    f"""CREATE TABLE shares (
        model TEXT NOT NULL,
        client TEXT NOT NULL,
        spent {{real}} NOT NULL,
        {CHARGED_AT},
        PRIMARY KEY (model, client)
    )""",
    "CREATE TABLE virtual_times (model TEXT NOT NULL PRIMARY KEY, now {real} NOT NULL)",
    "CREATE TABLE janitor (last_run {real} NOT NULL)",
    "INSERT INTO janitor (last_run) VALUES (0)",
    "CREATE TABLE rates (client TEXT NOT NULL PRIMARY KEY, due {real} NOT NULL)",
    "CREATE INDEX jobs_waiting ON jobs (model, sequence) WHERE finished IS NULL AND worker IS NULL",
    "CREATE INDEX jobs_held ON jobs (worker) WHERE finished IS NULL AND worker IS NOT NULL",
)
UPGRADES = {  # statements that make the next version of one
    3: (INIT_IMAGES,),
    4: (
        *(f"ALTER TABLE jobs ADD COLUMN {column}" for column in NEW_COLUMNS),
        *(f"ALTER TABLE images ADD COLUMN {column}" for column in FILE),
        DELETED_IMAGES,
    ),
    5: (),
}
POSTGRES_UPGRADES = {5: (LATE_CHECK, f"ALTER TABLE shares ADD COLUMN {CHARGED_AT}")}  # beside those
