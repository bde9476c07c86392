"""Contents of deploy/: rendered manifests, the commands that it starts, and their environment."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.processes import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "kubernetes" / "overlays").iterdir())
KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl, for `kubectl kustomize`")
SECRET = {  # the Secret `zimage`, as docs/deployment.md makes it
    "database": "postgresql://zimage:secret@postgres:5432/zimage",
    "broker": "redis://:secret@redis:6379/0",
    "api-keys": "secret",
    "postgres-password": "secret",
    "redis-password": "secret",
    "rabbitmq-password": "secret",
}
ENTRYPOINTS = {"zimage-api": "zimage-serve", "zimage-worker": "zimage-worker"}  # of the images


@dataclass(frozen=True, slots=True)
class Command:
    """A command that deploy/ starts.

    Attributes:
        where: file or manifest that says so.
        name: zimage-serve or zimage-worker.
    """

    where: str
    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    seconds_to_stop: float

    def __str__(self) -> str:
        return f"{self.where} {self.name}"


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return the manifests of an overlay, as kubectl renders them."""
    return rendered_folder(DEPLOY / "kubernetes" / "overlays" / overlay)


def rendered_folder(folder: Path) -> list[dict[str, Any]]:
    assert KUBECTL is not None
    done = subprocess.run([KUBECTL, "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


def commands() -> Iterator[Command]:
    """Yield every command that deploy/ starts, with the environment that it gets."""
    yield from _of_compose()
    yield from _of_systemd()
    for overlay in OVERLAYS if KUBECTL else ():
        yield from _of_kubernetes(overlay)


def image_environment(image: str) -> dict[str, str]:
    """Return what the Dockerfile of zimage-api or zimage-worker sets."""
    text = (DEPLOY / "images" / f"{image.removeprefix('zimage-')}.Dockerfile").read_text()
    (block,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in block.replace("\\\n", " ").split())


def compose(*files: str) -> dict[str, Any]:
    """Return the services of compose files with the variables of example.env, the later files over the earlier."""
    services: dict[str, Any] = {}
    for file in files:
        text = (DEPLOY / "compose" / file).read_text()
        text = re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", _substituted, text)
        services = _merged(services, yaml.safe_load(text)["services"])
    return services


def example_environment() -> dict[str, str]:
    return variables((DEPLOY / "compose" / "example.env").read_text())


def variables(text: str) -> dict[str, str]:
    """Return the variables of an environment file."""
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))


def _of_compose() -> Iterator[Command]:
    for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")):
        for name, service in compose(*files).items():
            if service["image"] in ENTRYPOINTS:
                environment = {key: str(value) for key, value in service["environment"].items()}
                yield Command(
                    f"{files[-1]} {name}",
                    ENTRYPOINTS[service["image"]],
                    tuple(service.get("command", ())),
                    image_environment(service["image"]) | environment,
                    float(service["stop_grace_period"].removesuffix("s")),
                )


def _of_systemd() -> Iterator[Command]:
    folder = DEPLOY / "systemd"
    for unit in sorted(folder.glob("*.service")):
        lines = [line.split("=", 1) for line in unit.read_text().splitlines() if re.match(r"\w+=", line)]
        environment: dict[str, str] = {}
        for key, value in lines:
            if key == "EnvironmentFile" and "%i" not in value:  # later files override earlier ones
                environment |= variables((folder / Path(value.lstrip("-")).name).read_text())
        settings = dict(lines)
        program, *arguments = settings["ExecStart"].replace("%i", "all").split()
        yield Command(unit.name, Path(program).name, tuple(arguments), environment, float(settings["TimeoutStopSec"]))


def _of_kubernetes(overlay: str) -> Iterator[Command]:
    manifests = rendered(overlay)
    configs = {each["metadata"]["name"]: each["data"] for each in manifests if each["kind"] == "ConfigMap"}
    for each in manifests:
        if each["kind"] == "Deployment":
            pod = each["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            image = container["image"].rpartition("/")[2].partition(":")[0]
            environment = image_environment(image)
            for source in container["envFrom"]:
                environment |= configs[source["configMapRef"]["name"]]
            for variable in container["env"]:
                value = variable.get("value")
                environment[variable["name"]] = (
                    SECRET[variable["valueFrom"]["secretKeyRef"]["key"]] if value is None else value
                )
            yield Command(
                f"{overlay} {each['metadata']['name']}",
                ENTRYPOINTS[image],
                tuple(container.get("args", ())),
                environment,
                float(pod["terminationGracePeriodSeconds"]),
            )


def _substituted(match: re.Match[str]) -> str:
    name, kind, value = match.groups()
    found = example_environment().get(name)
    if found is None and kind != "-":
        raise AssertionError(f"compose.yaml needs {name}, which example.env does not set")
    return value if found is None else found


def _merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _merged(below.get(key), value) for key, value in above.items()}
    return above
