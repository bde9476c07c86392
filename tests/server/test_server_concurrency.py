"""Several clients at one pipeline, over real HTTP."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fakes.loop import FakeLoop
from fakes.server import IMAGES, official_client, pixels, serving


def test_health_answers_while_an_image_is_generated() -> None:
    fake = FakeLoop(seconds_per_step=0.2)
    with serving(fake) as url, ThreadPoolExecutor() as pool, httpx.Client(base_url=url) as http:
        image = pool.submit(httpx.post, url + IMAGES, json={"prompt": "a cat"}, timeout=10)
        assert fake.pending.wait(5)
        started = time.perf_counter()
        assert http.get("/health").status_code == 200
        refused = http.post(IMAGES, json={"prompt": "a cat", "size": "1x1"})
        assert refused.status_code == 400  # nor does a refusal wait for somebody else's image
        assert time.perf_counter() - started < 0.5
        assert not image.done()
        assert image.result().status_code == 200


def test_two_at_once_are_both_right_and_generated_one_after_the_other() -> None:
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


def test_who_hangs_up_is_not_generated_for() -> None:
    fake = FakeLoop(seconds_per_step=0.1)
    with serving(fake) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.post, url + IMAGES, json={"prompt": "first", "num_inference_steps": 100}, timeout=0.5)
        assert fake.pending.wait(5)
        second = pool.submit(httpx.post, url + IMAGES, json={"prompt": "second"}, timeout=0.2)  # leaves the queue
        for hung_up in (first, second):
            with pytest.raises(httpx.ReadTimeout):
                hung_up.result()
        third = httpx.post(url + IMAGES, json={"prompt": "third", "num_inference_steps": 1}, timeout=5)
        assert third.status_code == 200
    generated = [prompt for prompt, _ in fake.log]
    assert generated.count("first") < 12
    assert "second" not in generated
    assert generated[-1] == "third"
