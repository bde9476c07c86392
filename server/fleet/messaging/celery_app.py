"""The Celery application of a fleet: its queues, its task and its settings for RabbitMQ and Redis.

Knows brokers and messages; not what a job is worth. A ticket is the message that wakes a worker host for a job. The
row of the job decides what happens: a ticket that is lost, doubled or delivered again does no harm.
"""

import logging
from collections.abc import Iterable

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import KombuError

from server.fleet.messaging.broker import Broker
from server.jobs.job import Job

log = logging.getLogger(__name__)

TASK = "zimage.generate"
ANY_MODEL = "any"  # in names of queues, for jobs that ask for no model
PRIORITIES = ("interactive", "batch")
# Redis delivers a ticket again after this time without an acknowledgement. A host holds none for so long, see
# `server.fleet.host.claims.HOLD_SECONDS`
VISIBILITY_SECONDS = 6 * 3600
REDIS_SECONDS = 3  # for one attempt at a command, of which redis-py makes four
HEARTBEAT_SECONDS = 10  # of AMQP; two that are missed end the connection
IDLE_QUEUE_SECONDS = 24 * 3600.0  # after which RabbitMQ deletes a queue without consumers, as of plans that are gone
RETRIES = {"max_retries": 2, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 0.5}
TICKETS = {  # Celery's settings of tasks
    "task_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_default_queue_type": "quorum",
    "task_publish_retry_policy": RETRIES,
}
CONSUMING = {  # Celery's settings of workers
    "worker_prefetch_multiplier": 1,
    "worker_detect_quorum_queues": True,
    "worker_enable_remote_control": False,  # its queues are neither durable nor quorum queues
    "worker_enable_prefetch_count_reduction": False,  # after a reconnection it may stay reduced
    "worker_cancel_long_running_tasks_on_connection_loss": False,  # the row, not the ticket, says who draws a job
    "worker_hijack_root_logger": False,
}
CONNECTING = {  # Celery's settings of connections: they are made again for ever
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_channel_error_retry": True,  # such as RabbitMQ's limit for acknowledgements
    "broker_heartbeat": HEARTBEAT_SECONDS,
    "broker_pool_limit": 4,
}


def create_celery(broker: str, fleet: str, queues: Iterable[str] = ()) -> Celery:
    """Return the application of a fleet, with neither connections nor tasks.

    Args:
        broker: URL of RabbitMQ or Redis; see `Broker`.
        fleet: name that keeps fleets on one broker apart.
        queues: names of the queues to consume; see `queues_of_host`.

    Raises:
        InvalidBroker: the URL cannot be used.
    """
    server = Broker(broker, fleet)
    server.refuse_compression()
    app = Celery(fleet, broker=server.plain_url, set_as_current=False)
    app.conf.update(
        TICKETS | CONSUMING | CONNECTING,
        task_default_queue=default_queue(fleet),
        task_queues=[queue(name) for name in queues] or None,
        task_publish_retry=server.kind == "rabbitmq",  # redis-py repeats a command by itself
        broker_use_ssl=server.ssl,
        broker_transport_options=_transport_options(server),
    )
    return app


def _transport_options(broker: Broker) -> dict[str, object]:
    if broker.kind == "rabbitmq":
        return broker.transport_options
    return broker.transport_options | {
        "visibility_timeout": VISIBILITY_SECONDS,
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
        "health_check_interval": REDIS_SECONDS,
        "max_retries": 0,  # of the connection for a ticket; those of consumers are retried for ever
        "priority_steps": [0],  # queues have priorities, not messages; the fewer keys, the cheaper a BRPOP
    }


def default_queue(fleet: str) -> str:
    """Return the name of the queue for jobs that ask for no model, which every host consumes."""
    return f"{fleet}.{ANY_MODEL}.{PRIORITIES[0]}"


def queue_of(job: Job, fleet: str) -> str:
    """Return the name of the queue whose consumers can generate a job."""
    model = job.model or ANY_MODEL
    if job.plan_id is not None:
        return _plan_queue(fleet, job.plan_id)
    if job.request.lora is not None:
        return _lora_queue(fleet, model, job.request.lora)
    return f"{fleet}.{model}.{job.priority}"


def queues_of_host(fleet: str, model: str, plan_id: str, loras: Iterable[str]) -> list[str]:
    """Return the names of the queues that a host consumes: those of all jobs that it can generate."""
    models = (ANY_MODEL, model)
    usual = [f"{fleet}.{name}.{priority}" for name in models for priority in PRIORITIES]
    return [*usual, _plan_queue(fleet, plan_id), *(_lora_queue(fleet, name, lora) for lora in loras for name in models)]


def _plan_queue(fleet: str, plan_id: str) -> str:
    return f"{fleet}.plan.{plan_id}"


def _lora_queue(fleet: str, model: str, lora: str) -> str:
    return f"{fleet}.{model}.lora.{lora}"


def queue(name: str) -> Queue:
    """Return a queue as every side declares it: on RabbitMQ a quorum queue, which survives the loss of a node.

    RabbitMQ refuses to declare a queue again with other arguments, so a change of the arguments needs other names.
    """
    return Queue(
        name,
        Exchange(name, "direct"),
        routing_key=name,
        queue_arguments={"x-queue-type": "quorum"},
        expires=IDLE_QUEUE_SECONDS,
    )


def send_ticket(app: Celery, job: Job) -> bool:
    """Send the ticket of a queued job. False: the broker cannot be reached, and a host that polls will find the job.

    It blocks, for some seconds if the broker is away: call it in a thread.
    """
    name = queue_of(job, app.main)
    headers = {} if job.trace is None else {"traceparent": job.trace}
    try:
        app.send_task(TASK, (job.id,), queue=queue(name), headers=headers, ignore_result=True)
    except (KombuError, OSError) as error:
        log.warning("no ticket for %s: %s; worker hosts find the job without it", job.id, error)
        return False
    return True
