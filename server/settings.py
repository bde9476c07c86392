"""Settings of a server: names, units, limits and help. `settings_sources` reads them.

Knows not what the settings do. Defaults come from the classes that use them.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from engine.errors import ZImageError
from engine.files import version
from engine.options import HELP, MAX_THREADS, SLOTS, Batching, CudaGraphs, RuntimeOptions
from engine.plan.manifest import Flavor
from server.api.dialects.names import DIALECTS
from server.jobs.admission.admission import Limits
from server.jobs.storage.retention import DAY, Retention
from server.logs import LogFormat
from server.serving import ServerOptions
from server.setting_types import (
    BrokerUrl,
    DatabasePlace,
    DevicesText,
    Dialects,
    FleetName,
    Host,
    Hosts,
    ImagesUrl,
    Keys,
    Networks,
    Origins,
    PublicUrl,
    RateText,
    Sizes,
    UserPath,
    Words,
)
from server.worker.devices import HELP as DEVICES_HELP
from server.worker.devices import Device, RequestedDevices, default_device
from server.worker.supervisor import WorkerTimeouts

PREFIX = "ZIMAGE_"
MIB = 1 << 20
MAX_DAYS = 36_500
MAX_UPLOAD_MIB = 1024

FoundLoras = tuple[tuple[str, Path], ...]  # name and file of each LoRA

RUNTIME, SERVER, LIMITS, TIMEOUTS = RuntimeOptions(), ServerOptions(), Limits(), WorkerTimeouts()
ARCHIVED = Retention()
HOST_SETTINGS = ("metrics_host", "metrics_port")  # of zimage-worker alone


class Settings(BaseSettings):
    """All settings. Lists are words separated by spaces."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, validate_default=False)

    engines: UserPath = Field(description=HELP["engines"], title="DIR")
    host: Host = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one")
    hosts: Hosts = Field(
        SERVER.hosts,
        description="Public names of the server, such as images.example.com, separated by spaces; requests to other "
        "names are refused (default: on a loopback address only localhost, 127.0.0.1 and [::1], elsewhere every name)",
    )
    trusted_proxies: Networks = Field(
        SERVER.trusted_proxies,
        description="Addresses or networks of reverse proxies, such as 127.0.0.1 or 10.0.0.0/8, separated by spaces; "
        "X-Forwarded-For, -Proto, -Host and -Prefix of all others are ignored (default: nobody is trusted)",
        title="ADDRESSES",
    )
    public_url: PublicUrl | None = Field(
        None,
        description="Address of the server for its clients, such as https://example.com/images, for URLs in answers "
        "and for the page (default: from X-Forwarded-Proto, -Host and -Prefix of trusted proxies, else from Host)",
        title="URL",
    )
    connections_per_address: int = Field(
        SERVER.connections_per_address,
        ge=1,
        description="Maximum number of connections from one IPv4 address or IPv6 /64 network, but not from "
        "trusted proxies",
        title="NUMBER",
    )
    cors_origins: Origins = Field(
        SERVER.cors_origins,
        description="Origins whose pages may call the API from a browser, such as https://app.example.com, separated "
        "by spaces; * for every one (default: none but this server's page)",
        title="ORIGINS",
    )
    page: bool = Field(SERVER.page, description="Serve a web page at /")
    model_name: Words = Field(
        SERVER.model_names,
        description="Names that /v1/models lists, separated by spaces; answers tell the first one (default: the name "
        "in the plans)",
    )
    strict_model: bool = Field(
        SERVER.strict_model,
        description="Refuse requests for other models with 404, instead of answering them and telling the real model",
    )
    dialects: Dialects = Field(
        SERVER.dialects,
        description="Further APIs to offer, for the clients of other servers, separated by spaces: "
        f"{', '.join(DIALECTS)}; none for OpenAI's API and the tasks API only",
        title="NAMES",
    )

    devices: DevicesText | None = Field(None, description=DEVICES_HELP, title="DEVICES")
    threads: int = Field(RUNTIME.threads, ge=0, le=MAX_THREADS, description=HELP["threads"])
    profile: Words = Field(RUNTIME.profiles, description=f"{HELP['profiles']} (default: all)", title="NAME")
    warm_up: Sizes = Field(RUNTIME.warm_up, description=HELP["warm_up"], title="WxH,...")
    cuda_graphs: CudaGraphs = Field(RUNTIME.cuda_graphs, description=HELP["cuda_graphs"])
    batching: Batching = Field(RUNTIME.batching, description=HELP["batching"])
    offload: bool = Field(RUNTIME.offload, description=HELP["offload"])
    self_test: bool = Field(RUNTIME.self_test, description=HELP["self_test"])
    image_input: bool = Field(
        RUNTIME.image_input, description=f"{HELP['image_input']}, and take images; without, less memory is needed"
    )
    max_upload: int = Field(
        SERVER.max_upload // MIB,
        ge=1,
        le=MAX_UPLOAD_MIB,
        title="MIB",
        description="Maximum size of an image that a client sends, in MiB",
    )
    runtime_cache: UserPath | None = Field(RUNTIME.runtime_cache, description=HELP["runtime_cache"], title="DIR")
    loras: UserPath | None = Field(
        None,
        description="Folder of LoRAs made by zimage-lora; requests name them by file name without the suffix",
        title="DIR",
    )

    database: DatabasePlace | None = Field(
        SERVER.database,
        description="SQLite file for jobs and images, or in a fleet postgresql://USER:PASSWORD@HOST/NAME; prefer the "
        "environment for URLs, since ps shows flags (default: memory, which is lost at a restart)",
        title="FILE|URL",
        repr=False,
    )
    images: ImagesUrl | None = Field(
        SERVER.images,
        description="Where images are stored: file:///FOLDER, which machines may share, or "
        "s3://BUCKET/PREFIX?endpoint=URL&region=NAME with credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
        "Each database needs a place of its own (default: in the database)",
        title="URL",
    )
    history_days: float = Field(
        LIMITS.history.max_age / DAY,
        ge=0,
        le=MAX_DAYS,
        description="Days to keep finished jobs with their images; 0 deletes them at the next cleanup",
    )
    history_mb: int = Field(
        int(LIMITS.history.max_bytes) // MIB,
        ge=0,
        title="MIB",
        description="Maximum size of the job history in MiB, images included, wherever they are stored",
    )
    archive: UserPath | None = Field(
        None, description="Folder for a copy of every image, named generated_YYYYMMDD_HHMMSS_ID.png", title="DIR"
    )
    archive_days: float = Field(
        ARCHIVED.max_age / DAY,
        ge=0,
        le=MAX_DAYS,
        description="Days to keep archived images; 0 keeps them for ever, unlike --history-days 0",
    )
    archive_mb: int | None = Field(
        None,
        gt=0,
        title="MIB",
        description="Maximum size of the archive in MiB; the oldest images are deleted first (default: no limit)",
    )

    keys: Keys = Field(
        SERVER.keys,
        description="API keys that clients may use, separated by spaces; prefer the environment, since ps shows flags "
        "(default: no key is needed)",
        repr=False,
    )
    rate: RateText | None = Field(
        SERVER.rate,
        description="Maximum rate of image requests per API key, or per address without keys, such as 30/minute "
        "(default: no limit)",
    )
    shared_history: bool = Field(
        SERVER.shared_history,
        description="Without keys: list all tasks to everybody, in /v1/tasks and on the page, where anybody may delete "
        "them. With keys, each key always lists its own",
    )
    queue: int = Field(
        LIMITS.queue,
        ge=1,
        description="Maximum number of unfinished jobs, three quarters for one client; more are refused with 429",
    )
    max_wait: float = Field(
        LIMITS.wait,
        ge=0,
        title="SECONDS",
        description="Seconds that a request may wait for others if its client waits for the answer; those that would "
        "wait longer are refused with 429. Less than the timeouts of clients and proxies; 0 for no limit",
    )
    min_free_mb: int = Field(
        LIMITS.free_bytes // MIB,
        ge=0,
        title="MIB",
        description="Free system memory in MiB below which new jobs are refused",
    )
    grace: float = Field(
        SERVER.grace,
        ge=0,
        le=3600,
        description="Seconds to finish the images that clients wait for, after SIGTERM or SIGINT",
    )
    drain_seconds: float = Field(
        SERVER.drain,
        ge=0,
        le=3600,
        description="Seconds to go on after SIGTERM, before --grace begins, while /ready is 503 and connections are "
        "closed, so that load balancers move on",
        title="SECONDS",
    )
    broker: BrokerUrl | None = Field(
        None,
        description="Broker of a fleet, as amqp://USER:PASSWORD@HOST/VHOST (RabbitMQ) or "
        "redis://:PASSWORD@HOST/0; prefer the environment, since ps shows flags (default: no fleet)",
        title="URL",
        repr=False,
    )
    fleet: FleetName = Field(
        "zimage",
        description="Name of the fleet; each fleet of a broker needs its own, and its own database",
        title="NAME",
    )

    hang_seconds: float = Field(
        TIMEOUTS.silence,
        gt=0,
        le=86400,
        description="Seconds without a message, or in a single step, after which a worker is restarted; "
        "must be longer than the longest step",
    )
    load_seconds: float = Field(
        TIMEOUTS.load, gt=0, le=86400, description="Maximum time for a worker to load the plans, in seconds"
    )

    metrics_host: Host = Field(
        "127.0.0.1", description="Address of the port for /health, /ready and /metrics; 0.0.0.0 for every interface"
    )
    metrics_port: int = Field(
        8001, ge=0, le=65535, description="Port for /health, /ready and /metrics; 0 picks a free one"
    )

    log_format: LogFormat = Field("text", description="Format of log lines; json writes one object per line")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level to log")

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        try:
            self.runtime()
        except ZImageError as error:
            raise ValueError(str(error)) from error
        if self.images is not None and self.database is None:
            raise ValueError("--images needs --database, since only the database knows whose images these are")
        if (self.broker is None) == isinstance(self.database, str):
            raise ValueError(
                "--broker and --database postgresql://... need each other: they are the two parts of a fleet"
            )
        if self.broker is not None and self.archive is not None:
            raise ValueError(
                "--archive copies the images of a single server; in a fleet, --images names a shared place"
            )
        return self

    def workers(self, flavor: Flavor) -> list[Device]:
        """Return the devices for plans of a flavor, each of which gets a worker.

        Raises:
            BackendUnavailable: the plans do not run on these devices, or there are no such GPUs.
        """
        if self.devices is None:
            return [default_device(flavor)]
        return RequestedDevices.parse(self.devices).devices(flavor, self.threads)

    def runtime(self, loras: FoundLoras = ()) -> RuntimeOptions:
        """Return the options of the runtime.

        Raises:
            ZImageError: two options exclude each other.
            OSError: a LoRA is not there any more.
        """
        return RuntimeOptions(
            threads=self.threads,
            profiles=self.profile,
            warm_up=self.warm_up,
            cuda_graphs=self.cuda_graphs,
            batching=self.batching,
            offload=self.offload,
            self_test=self.self_test,
            runtime_cache=self.runtime_cache,
            image_input=self.image_input,
            slots=SLOTS,
            loras=loras,
            lora_versions={name: version(file) for name, file in loras},
        )
