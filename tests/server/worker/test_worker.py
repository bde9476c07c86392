"""The worker, in this process."""

import dataclasses
import queue
import threading
import time
from contextlib import AbstractContextManager

import pytest
from fakes.jobs import init_image
from fakes.loop import MANIFEST, FakeLoop
from fakes.worker_socket import WorkerSocket, running
from msgspec.structs import replace

from engine.request import ImageFormat, ImageRequest
from engine.sampling.tokenizer import TokenizedPrompts
from engine.scheduler.events import Event
from server.worker import life_signs
from server.worker import worker as worker_module
from server.worker.life_signs import LifeSigns
from server.worker.messages import (
    Alive,
    Cancel,
    Failed,
    Finished,
    Generate,
    Started,
    Tokenizing,
)
from server.worker.packed_image import pack
from server.worker.worker import Worker

CAT = ImageRequest("a cat", 64, 64, num_inference_steps=2)


def working(loop: FakeLoop) -> AbstractContextManager[WorkerSocket]:
    return running(lambda sock, abandon: Worker(loop, MANIFEST, sock, abandon))


class SlowTokenizer(FakeLoop):
    """A loop whose tokenizer waits for the test at each prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenized: queue.Queue[str] = queue.Queue()
        self.permits = threading.Semaphore(0)
        self.submitted: list[str] = []

    def tokenize(self, request: ImageRequest) -> TokenizedPrompts:
        self.tokenized.put(request.prompt)
        self.permits.acquire()
        return super().tokenize(request)

    def submit(self, key: str, request: ImageRequest, previews: int = 0, **options: object) -> None:
        self.submitted.append(key)
        super().submit(key, request, previews, **options)


def prompt(text: str, client: str = "") -> Generate:
    return Generate(text, ImageRequest(text, 64, 64, num_inference_steps=2), ImageFormat(), client=client)


def test_job_cancelled_before_its_prompt_is_tokenized_is_not_submitted() -> None:
    loop = SlowTokenizer()
    with working(loop) as server:
        server.send(prompt("first"))
        assert loop.tokenized.get(timeout=20) == "first"
        server.send(prompt("a"), prompt("b"), Cancel("a"), Cancel("first"), prompt("c"))
        while "c:0" not in server.worker._prompts._waiting:  # until all messages are read
            time.sleep(0.001)
        loop.permits.release(9)
        assert {server.receive(Finished).key for _ in range(2)} == {"b:0", "c:0"}
    assert loop.submitted == ["b:0", "c:0"]
    assert list(loop.tokenized.queue) == ["b", "c"]


def test_kernels_are_saved_once_each_time_the_worker_becomes_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.01)
    loop = FakeLoop()
    with working(loop) as server:
        for saves in (1, 2, 3):
            for _ in range(5000):
                if loop.saves == saves:
                    break
                time.sleep(0.001)
            time.sleep(0.05)
            assert loop.saves == saves, "not once"
            server.send(replace(prompt("a"), job=f"job {saves}"))
            server.receive(Finished)


class LongChange(FakeLoop):
    """A loop whose change of LoRAs takes 30 ticks in ten portions; then a step hangs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.portions, self.hangs = 10, threading.Event()
        self.life_signs: LifeSigns | None = None

    def step(self) -> list[Event]:
        if self.portions == 0:
            self.hangs.wait(20)
            return super().step()
        assert self.life_signs is not None
        began = self.life_signs._ticks
        while self.life_signs._ticks < began + 3:
            time.sleep(0.001)
        self.portions -= 1
        return []


def test_portions_of_a_change_of_loras_are_signs_of_life_and_one_that_hangs_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(life_signs, "EVERY", 0.02)
    loop = LongChange()
    with working(loop) as server:
        loop.life_signs = server.worker._life_signs
        server.send(prompt("a"))
        busy = []
        while loop.portions:
            busy.append(server.receive(Alive).busy)
        assert max(busy) < 15 * 0.02, busy
        while server.receive(Alive).busy < 30 * 0.02:
            pass
        loop.hangs.set()
        server.receive(Finished)


def test_images_are_generated_while_a_prompt_is_tokenized() -> None:
    loop = SlowTokenizer()
    with working(loop) as server:
        loop.permits.release()
        server.send(Generate("quick", CAT, ImageFormat(), indices=(0, 1, 2)), prompt("slow"))
        assert {server.receive(Finished).key for _ in range(3)} == {"quick:0", "quick:1", "quick:2"}
        assert "slow:0" not in loop.submitted
        loop.permits.release()
        assert server.receive(Finished).key == "slow:0"


def test_prompts_of_one_job_are_tokenized_once() -> None:
    loop = SlowTokenizer()
    loop.permits.release(9)
    with working(loop) as server:
        server.send(Generate("a", CAT, ImageFormat(), indices=(0, 2, 5)))
        images = [server.receive(Finished) for _ in range(3)]
    assert loop.tokenized.qsize() == 1
    assert sorted((image.key, image.metadata.seed) for image in images) == [("a:0", 0), ("a:2", 2), ("a:5", 5)]


def test_clients_take_turns_at_the_tokenizer() -> None:
    loop = SlowTokenizer()
    with working(loop) as server:
        server.send(prompt("first", "flood"))
        assert loop.tokenized.get(timeout=20) == "first"
        server.send(
            *(prompt(f"long {number}" * 99, "flood") for number in range(20)), prompt("b", "b"), prompt("end", "b")
        )
        loop.permits.release(99)
        while server.receive(Tokenizing).job != "end":
            pass
    assert list(loop.tokenized.queue)[:3].count("b") == 1


def test_life_signs_report_a_prompt_that_is_tokenized_for_long() -> None:
    loop = SlowTokenizer()
    with working(loop) as server:
        assert server.receive(Alive).busy == 0
        server.send(prompt("a"))
        assert server.receive(Tokenizing).job == "a"
        while server.receive(Alive).busy < 1:
            pass
        loop.permits.release()
        while server.receive(Alive).busy:
            pass


def test_server_knows_what_is_tokenized_and_what_is_started() -> None:
    with working(FakeLoop()) as server:
        server.send(prompt("a"))
        told = [server.receive(Tokenizing, Started) for _ in range(3)]
    assert told == [Tokenizing("a"), Tokenizing(None), Started("a:0")]


def test_worker_waits_for_a_server_that_does_not_read() -> None:
    """A server that is stopped must not fill the worker's memory with images."""

    class Endless(FakeLoop):
        def submit(self, key: str, request: ImageRequest, previews: int = 0, **options: object) -> None:
            super().submit(key, request, previews, **options)
            self.is_submitted.set()

        is_submitted = threading.Event()

    loop = Endless()
    with working(loop) as server:
        large = ImageRequest("a cat", 256, 256, num_inference_steps=1)
        server.send(Generate("a", large, ImageFormat("webp", 0), indices=tuple(range(1000))))
        assert loop.is_submitted.wait(20)
        before = -1
        while before < (before := len(loop.log)):
            time.sleep(0.5)
        assert before < 900
        server.send(Cancel("a", tuple(range(1000))))
        assert isinstance(server.receive(Finished), Finished)
        server.drain()


OWN = pack(init_image(seed=1)).data


@pytest.mark.parametrize(
    ("packed", "change", "message"),
    [
        (pack(init_image(seed=2)).data, {}, "no such image"),
        (b"damaged", {}, "no such image"),
        (None, {}, "no image came with a request that needs one"),
        (OWN, {"width": 128}, "must be the one that the request describes: 128x"),
    ],
)
def test_job_whose_image_is_not_its_own_fails_by_name_and_the_next_is_generated(
    packed: bytes | None, change: dict[str, int], message: str
) -> None:
    request = ImageRequest("a cat", num_inference_steps=1).starting_from(init_image(seed=1), 1.0)
    with working(FakeLoop()) as server:
        server.send(Generate("wrong", dataclasses.replace(request, **change), ImageFormat(), init_image=packed))  # type: ignore[arg-type]
        server.send(Generate("right", request, ImageFormat(), init_image=OWN))
        failed = server.receive(Failed)
        assert (failed.key, failed.code) == ("wrong:0", "invalid_value") and message in failed.message
        assert server.receive(Finished).key == "right:0"


def test_images_of_one_job_that_come_in_several_messages_are_all_generated() -> None:
    loop = SlowTokenizer()
    with working(loop) as server:
        part = prompt("a")
        server.send(*(replace(part, indices=indices) for indices in ((0, 3), (1,), (2, 4))), prompt("b"))
        while "b:0" not in server.worker._prompts._waiting:  # until all messages are read
            time.sleep(0.001)
        loop.permits.release(9)
        keys = {server.receive(Finished).key for _ in range(6)}
    assert keys == {*(f"a:{index}" for index in range(5)), "b:0"}


def test_cancelling_a_job_stops_what_came_in_all_its_messages() -> None:
    loop = SlowTokenizer(0.01)
    with working(loop) as server:
        part = Generate("a", dataclasses.replace(CAT, num_inference_steps=100), ImageFormat())
        loop.permits.release()
        server.send(part)
        server.receive(Started)
        server.send(*(replace(part, indices=(index,)) for index in (1, 2)))
        assert [loop.tokenized.get(timeout=20) for _ in range(2)] == ["a cat", "a cat"]
        server.send(Cancel("a", (0, 1, 2)), prompt("b"))
        while "b:0" not in server.worker._prompts._waiting:
            time.sleep(0.001)
        loop.permits.release(9)
        assert server.receive(Finished, Failed).key == "b:0"
    assert loop.submitted == ["a:0", "b:0"]
