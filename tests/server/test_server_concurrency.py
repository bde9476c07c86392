"""Several clients of one server, over real HTTP."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES, official_client, pixels, serving


def test_health_and_refusals_do_not_wait_for_a_running_image() -> None:
    fake = FakeLoop(seconds_per_step=0.2)
    with serving(fake) as url, ThreadPoolExecutor() as pool, httpx.Client(base_url=url) as http:
        image = pool.submit(httpx.post, url + IMAGES, json={"prompt": "a cat"}, timeout=10)
        assert fake.pending.wait(5)
        assert http.get("/health").status_code == 200
        refused = http.post(IMAGES, json={"prompt": "a cat", "size": "1x1"})
        assert refused.status_code == 400
        assert not image.done()
        assert image.result().status_code == 200


def test_concurrent_requests_get_their_own_images_one_after_the_other() -> None:
    fake = FakeLoop(seconds_per_step=0.02)
    with serving(fake) as url, official_client(url) as client, ThreadPoolExecutor() as pool:
        prompts = ["a cat", "two dogs"]
        answers = list(pool.map(lambda p: client.images.generate(prompt=p, n=2, extra_body={"seed": len(p)}), prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert [item.seed for item in answer.data] == [len(prompt), len(prompt) + 1]
        assert [pixels(answer, i)[0, 0].tolist() for i in range(2)] == [
            [len(prompt) + i, 8, len(prompt)] for i in range(2)
        ]
    images = [fake.log[i : i + 8] for i in range(0, len(fake.log), 8)]
    assert all(image == [(image[0][0], step) for step in range(1, 9)] for image in images)
    assert len(images) == 4


def test_disconnected_client_cancels_its_request() -> None:
    fake = FakeLoop(seconds_per_step=0.1)
    with serving(fake) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.post, url + IMAGES, json={"prompt": "first", "num_inference_steps": 100}, timeout=0.5)
        assert fake.pending.wait(5)
        second = pool.submit(httpx.post, url + IMAGES, json={"prompt": "second"}, timeout=0.2)  # leaves the queue
        for disconnected in (first, second):
            with pytest.raises(httpx.ReadTimeout):
                disconnected.result()
        third = httpx.post(url + IMAGES, json={"prompt": "third", "num_inference_steps": 1}, timeout=5)
        assert third.status_code == 200
    generated = [prompt for prompt, _ in fake.log]
    assert generated.count("first") < 12
    assert "second" not in generated
    assert generated[-1] == "third"
