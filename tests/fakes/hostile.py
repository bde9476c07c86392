"""Texts that run a script unless they are shown as text. As a script, a server with such names of model and LoRA."""

import sys
from dataclasses import replace

import fakes.loop
import fakes.server

from engine.plan.guide import Guide
from server.serving import ServerOptions, serve
from server.worker.supervisor import WorkerTimeouts
from server.worker.supervisors import WorkerCommand

HOSTILE = (
    "<script>ran=1</script>",
    "<img/src=x/onerror=ran=1>",
    "\"'><svg/onload=ran=1>",
    "'onerror='ran=1'src='x",
    "javascript:ran=1",
    "${ran=1}`+(ran=1)+`",
    "{{ran=1}}",
    "v-html=ran=1:src=ran=1",
    "</script></title></style><script>ran=1</script>",
)
TEXT = " ".join(HOSTILE)
LORA = "</script><img/src=x/onerror=ran=1>{{ran=1}}`${ran=1}`'\""  # at most 64 characters
HOSTILE_SERVER = ("-m", "fakes.hostile")


def main(descriptor: str = "") -> None:
    """Run the server, or its worker, which gets a descriptor."""
    manifest = replace(fakes.loop.MANIFEST, model=replace(fakes.loop.MANIFEST.model, name=TEXT))
    if descriptor:
        fakes.loop.MANIFEST, fakes.loop.LORAS = manifest, (LORA,)
        fakes.loop.main("0.01", descriptor)
        return
    with fakes.server.bind_socket("127.0.0.1", 0) as sock:
        worker = [sys.executable, *HOSTILE_SERVER]
        guide = Guide(about=TEXT, sizes=("96x128", "128x128"), examples=("a cat", TEXT))
        options = ServerOptions(1.0, loras=(LORA,), guide=guide, timeouts=WorkerTimeouts(load=20))
        serve(sock, [WorkerCommand("cpu", worker)], manifest, options)


if __name__ == "__main__":
    main(*sys.argv[1:])
