"""Samples of servers with fake metrics and a fake nvidia-smi."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.metrics_server import metrics_server, write_nvidia_smi
from fakes.server import IMAGES, serving
from fakes.waiting import wait_until

from benchmarks.load.samplers import GpuSampler, parse, scrape, tree_memory
from benchmarks.load.server_samples import ServerSamples
from server.jobs.metrics import Metrics
from server.worker.messages import Heartbeat

OTHER_SERVER = "# TYPE vllm:requests counter\nvllm:requests_total 3\nprocess_resident_memory_bytes 5e6\n"


class Served:
    """The metrics of a server with one device."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self._metrics.add_device("0", os.getpid)

    def run(self, *passes: tuple[int, float]) -> str:
        """Count passes of (images, seconds), and return all metrics."""
        self._metrics.heartbeat("0", Heartbeat(list(passes), 0, 0, {}))
        return self._metrics.text().decode()


def test_batches_and_pass_times_are_those_between_the_first_and_the_last_sample() -> None:
    served = Served()
    with metrics_server(served.run((1, 9.0), (4, 9.0))) as server:
        with ServerSamples(server.url, interval=60) as samples:
            server.text = served.run((1, 0.1), (2, 0.3), (2, 0.5))
        found = samples.figures()
    assert found is not None
    assert found["batch"] == {"mean": pytest.approx(5 / 3), "counts": {"1": 1, "2": 2}}
    assert found["pass_s"] == {"all": {"1": pytest.approx(0.1), "2": pytest.approx(0.4)}}
    assert found["busy_percent"] > 100  # 0.9 s of passes in a moment
    assert found["missed"] == 0


def test_part_of_a_run_leaves_out_the_passes_of_other_parts() -> None:
    served = Served()
    with metrics_server(served.run()) as server, ServerSamples(server.url, interval=0.01) as samples:
        server.text = served.run((3, 1.0))
        wait_until(lambda: len(samples._sampler.samples) > 8)
        start = time.monotonic()
        server.text = served.run((2, 0.5))
        wait_until(lambda: samples._sampler.samples[-1].at > start + 0.05)
        found = samples.figures(start, time.monotonic())
    assert found is not None
    assert found["batch"]["counts"] == {"2": 1}


def test_counters_of_a_restarted_server_begin_again() -> None:
    with metrics_server(Served().run((1, 100.0))) as server, ServerSamples(server.url, interval=0.01) as samples:
        restarted = Served()
        server.text = restarted.run((2, 1.0))
        wait_until(lambda: samples._sampler.samples[-1].metrics.pass_seconds[2] == 1.0)  # type: ignore[union-attr]
        server.text = restarted.run((2, 3.0))
        wait_until(lambda: samples._sampler.samples[-1].metrics.pass_seconds[2] == 4.0)  # type: ignore[union-attr]
        found = samples.figures()
    assert found is not None
    assert found["pass_s"] == {"all": {"2": pytest.approx(3.0)}}


def test_stage_means_are_of_images_between_two_samples() -> None:
    text = '# TYPE zimage_forward_seconds counter\nzimage_forward_seconds_total{{device="0"}} {}\n' + (
        '# TYPE zimage_stage_seconds histogram\nzimage_stage_seconds_bucket{{stage="encode",le="+Inf"}} {}\n'
        'zimage_stage_seconds_count{{stage="encode"}} {}\nzimage_stage_seconds_sum{{stage="encode"}} {}\n'
    )
    with metrics_server(text.format(1, 2, 2, 8.0)) as server:
        with ServerSamples(server.url, interval=60) as samples:
            server.text = text.format(2, 6, 6, 9.0)
        found = samples.figures()
    assert found is not None
    assert found["stage_s"] == {"encode": pytest.approx(0.25)}


def test_server_that_does_not_answer_is_counted_and_has_no_figures() -> None:
    with metrics_server(None) as server:
        with ServerSamples(server.url, interval=60) as samples:
            pass
        assert samples.figures() is None
        with ServerSamples(server.url, os.getpid(), interval=60) as samples:
            pass
        found = samples.figures()
    assert found is not None
    assert (found["missed"], found["batch"], found["busy_percent"]) == (2, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "<html>",
        "process_resident_memory_bytes +Inf\n",
        "process_resident_memory_bytes NaN\n",
        'zimage_stage_seconds_sum{stage="encode"} 1\nzimage_forward_batch_seconds_total{batch="x"} 1\n',
        '# TYPE zimage_stage_seconds summary\nzimage_stage_seconds_sum{stage="encode"} 1\n',
        'zimage_forward_batch_size_bucket{le="',
    ],
)
def test_metrics_of_any_content_end_no_load(text: str) -> None:
    with metrics_server(text) as server:
        scrape(server.url)


def test_redirect_of_metrics_is_not_followed() -> None:
    with metrics_server(OTHER_SERVER) as other, metrics_server(None, moved_to=f"{other.url}/metrics") as server:
        assert scrape(server.url) is None


def test_metrics_of_another_server_tell_its_memory_only() -> None:
    with metrics_server(OTHER_SERVER) as server:
        with ServerSamples(server.url, interval=60) as samples:
            pass
        found = samples.figures()
    assert found is not None
    assert found["rss_mb"] == {"start": 5.0, "end": 5.0, "max": 5.0}
    assert found["batch"] is found["pass_s"] is found["busy_percent"] is None


def test_memory_is_that_of_server_and_worker_together() -> None:
    text = "process_resident_memory_bytes 5e6\n" + "".join(
        f'zimage_worker_process_resident_memory_bytes{{device="{device}"}} 7e6\n' for device in range(2)
    )
    assert parse(text).memory == 19_000_000


def test_memory_of_a_process_includes_its_children() -> None:
    alone = tree_memory(os.getpid())
    program = "import sys; data = bytearray(b'1') * 40_000_000; print(len(data), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        together, own = tree_memory(os.getpid()), tree_memory(child.pid)
        assert child.stdin is not None
        child.stdin.close()
    assert alone is not None
    assert together is not None
    assert own is not None
    assert own > 40_000_000
    assert together > alone + 30_000_000
    assert tree_memory(child.pid) is None


def test_gpus_are_sampled_through_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["0, NVIDIA L4, 80, 1000, 60.5", "1, NVIDIA L4, [N/A], 2000, [N/A]", "0, NVIDIA L4, 90, 3000, 69.5"]
    write_nvidia_smi(tmp_path, "\n".join([*lines, "1, NVIDIA L4, [N/A], 500, [N/A]", "No devices were found"]))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with metrics_server(None) as server, ServerSamples(server.url, interval=0.5) as samples:
        wait_until(lambda: samples._gpus is not None and len(samples._gpus.samples) == 4)
        samples._sampler.samples.append(samples._sample())
        found = samples.figures()
    assert found is not None
    assert found["gpus"] == [
        {"name": "NVIDIA L4", "utilisation_percent": 85, "memory_mb": pytest.approx(3145.7, 1e-4), "power_w": 65},
        {"name": "NVIDIA L4", "utilisation_percent": None, "memory_mb": pytest.approx(2097.2, 1e-4), "power_w": None},
    ]
    assert "--loop-ms=500" in (tmp_path / "arguments").read_text()


def test_gpus_of_this_machine_are_not_those_of_a_remote_server() -> None:
    assert ServerSamples("https://images.example")._gpus is None
    assert isinstance(ServerSamples("http://[::1]:8000")._gpus, GpuSampler)


def test_running_server_tells_its_batches_stages_and_memory() -> None:
    with serving(FakeLoop(0.01)) as url, ServerSamples(url, interval=60) as samples:
        httpx.post(url + IMAGES, json={"prompt": "a cat", "size": "128x64"}, timeout=20).raise_for_status()
        wait_until(lambda: "zimage_images_total 1.0" in httpx.get(f"{url}/metrics").text)
        samples._sampler.samples.append(samples._sample())
        found = samples.figures()
    assert found is not None
    assert found["batch"] == {"mean": 1, "counts": {"1": pytest.approx(8, abs=1)}}
    assert 0 < found["pass_s"]["all"]["1"] < 1
    assert found["stage_s"]["passes"] > 0
    assert found["rss_mb"]["max"] > 10
    assert 0 < found["busy_percent"] < 101
