"""Entry point of a worker process: loads the plans, warms up and generates for one server.

When the server closes its end of the socket, the process ends at once. When the device fails, the process reports that
and ends; the server starts another.

Its arguments: PLANS OPTIONS LOG_FORMAT LOG_LEVEL DEVICE DESCRIPTOR
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from engine.errors import DeviceError, PlanCorrupt, ZImageError
from engine.options import RuntimeOptions
from engine.pipeline import Pipeline
from engine.plan.directory import resolve
from engine.request import ImageRequest
from engine.scheduler.batch_measurement import BatchMeasurement
from engine.scheduler.loop import EngineLoop
from engine.scheduler.lora_registry import LoraRegistry
from engine.scheduler.table_files import TableFile
from server import logs
from server.worker import messages
from server.worker.idle_measurement import LONGEST_PASS, IdleMeasurement
from server.worker.messages import WINDOW, encode_frame
from server.worker.worker import Worker

log = logging.getLogger(__name__)

DEVICE_LOST = 3  # exit status


def main(argv: list[str]) -> None:
    """Load plans and generate until the server stops the process; its last message says why it ended."""
    started = time.perf_counter()
    directory, options, descriptor = Path(argv[0]), RuntimeOptions.decode(argv[1]), int(argv[5])
    for kind in (signal.SIGINT, signal.SIGTERM):  # may go to the whole process group; the server sends Stop
        signal.signal(kind, signal.SIG_IGN)
    logs.configure("json" if argv[2] == "json" else "text", argv[3], process=f"worker {argv[4]}".strip())
    if options.cpus:
        os.sched_setaffinity(0, options.cpus)
    with ExitStack() as owned:
        sock = owned.enter_context(socket.socket(fileno=descriptor))
        threading.Thread(target=_exit_with_server, args=[sock], daemon=True).start()
        try:
            pipeline = owned.enter_context(Pipeline.load(directory, options))
            loras = LoraRegistry(pipeline, dict(options.loras), options.lora_versions)
            unusable = loras.check()
            loop = EngineLoop(pipeline, loras=loras)
            measurement = idle_measurement(directory, loop) if options.batching == "auto" else None
            generate_smallest(loop)
        except (ZImageError, OSError) as error:
            sock.sendall(encode_frame(messages.StartFailed(str(error))))
            return
        try:
            worker = Worker(loop, pipeline.manifest, sock, measurement=measurement)
            slots = WINDOW if measurement is None else measurement.window
            worker.run(time.perf_counter() - started, unusable, min(slots, options.slots))
        except (DeviceError, PlanCorrupt) as error:
            log.error("%s", error)
            sys.exit(DEVICE_LOST)


def idle_measurement(directory: Path, loop: EngineLoop) -> IdleMeasurement:
    """Have a loop use the batch table of its device, or else return a measurement that will measure it."""
    file = TableFile.of(resolve(directory), loop.pipeline)
    table = file.read()
    if table is None:
        log.info("images are generated one at a time until it is measured, in idle time, which batches gain")
    else:
        loop.use_table(table)
    measurement = BatchMeasurement(loop.pipeline, longest_pass=LONGEST_PASS)
    return IdleMeasurement(table, measurement, file, loop.use_table, loop.pipeline.memory.slots)


def generate_smallest(loop: EngineLoop) -> None:
    """Generate the smallest image in one step, so that plans that cannot run fail before anything is served."""
    smallest = min(loop.pipeline.manifest.profiles, key=lambda p: p.height.min * p.width.min)
    loop.generate(ImageRequest("warm-up", smallest.width.min, smallest.height.min, num_inference_steps=1))
    loop.save_kernels()


def _exit_with_server(sock: socket.socket) -> None:
    """End this process if the server ends while the plans load."""
    if len(sock.recv(1, socket.MSG_PEEK)) == 0:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
