"""deploy/compose: read by docker compose itself where it is installed, and what the files say of each other."""

import ipaddress
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml
from fakes.deployment import DEPLOY, compose, example_environment, variables
from fakes.nginx import checked, needs_nginx

FOLDER = DEPLOY / "compose"


@cache
def client() -> tuple[str, ...] | None:
    """Return the command of docker compose; no engine has to run."""
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]) and subprocess.run([*command, "version"], capture_output=True).returncode == 0:
            return command
    return None


@pytest.mark.skipif(client() is None, reason="needs docker compose, or Debian's package docker-compose")
@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")], ids=len)
def test_docker_compose_reads_the_files_as_this_test_does(files: tuple[str, ...]) -> None:
    command = [*(client() or ()), "--env-file", "example.env", *(f"--file={file}" for file in files)]
    done = subprocess.run([*command, "config"], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    ours = compose(*files)
    assert services.keys() <= ours.keys() and {"api-1", "api-2", "worker", "nginx", "postgres"} <= services.keys()
    for name, service in services.items():
        environment = {key: str(value) for key, value in service.get("environment", {}).items()}
        assert environment == {key: str(value) for key, value in ours[name].get("environment", {}).items()}


def test_variables_are_those_of_the_example() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required <= set(example_environment())
    commented = variables((FOLDER / "example.env").read_text().replace("#", ""))
    assert set(commented) - {"COMPOSE_FILE", "COMPOSE_PROFILES"} <= set(re.findall(r"\$\{(\w+)", text))


def test_each_broker_of_the_example_is_a_service_of_its_profile() -> None:
    text = (FOLDER / "example.env").read_text()
    pairs = re.findall(r"COMPOSE_PROFILES=(\w+)\n#?ZIMAGE_BROKER=\w+://\S*@(\w+):\d+", text)
    assert [profile for profile, _ in pairs] == ["redis", "rabbitmq"]
    for profile, host in pairs:
        assert compose("compose.yaml")[host]["profiles"] == [profile]


def test_nginx_knows_the_addresses_of_the_replicas() -> None:
    services = compose("compose.yaml")
    addresses = {
        name: service["networks"]["fleet"]["ipv4_address"]
        for name, service in services.items()
        if isinstance(service["networks"], dict)
    }
    listed = re.findall(r"server ([\d.]+):8000 ", (FOLDER / "upstream.conf").read_text())
    assert listed == [addresses["api-1"], addresses["api-2"]]
    assert {services[name]["environment"]["ZIMAGE_TRUSTED_PROXIES"] for name in ("api-1", "api-2")} == {
        addresses["nginx"]
    }
    (network,) = yaml.safe_load((FOLDER / "compose.yaml").read_text())["networks"]["fleet"]["ipam"]["config"]
    assert all(ipaddress.ip_address(each) in ipaddress.ip_network(network["subnet"]) for each in addresses.values())


@needs_nginx
def test_nginx_reads_its_configuration_with_the_replicas_of_compose(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    volumes = [volume.split(":")[:2] for volume in compose("compose.yaml")["nginx"]["volumes"]]
    for source, target in volumes:
        shutil.copy(FOLDER / source, tmp_path / "conf.d" / Path(target).name)
    assert "syntax is ok" in checked(tmp_path)


def test_files_and_folders_that_are_mounted_or_built_exist() -> None:
    for service in compose("compose.yaml").values():
        for volume in service.get("volumes", ()):
            if volume.startswith("."):
                assert (FOLDER / volume.split(":")[0]).is_file(), volume
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
