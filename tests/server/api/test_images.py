"""OpenAI's images endpoint over real HTTP, called by OpenAI's own client."""

import base64
import time

import httpx
import numpy as np
import openai
import pytest
from fakes.loop import MODEL, NAN_PROMPT, WORDS, FakeLoop
from fakes.server import IMAGES, decoded, error_of, pixels

from server.worker import finisher

SLOW = {"num_inference_steps": 60}  # for a third of a second


@pytest.fixture(scope="module")
def fake() -> FakeLoop:
    """An engine that is slow enough for previews to be seen on their way through a broker."""
    return FakeLoop(seconds_per_step=0.005)


def test_image_has_the_requested_size_seed_and_steps(client: openai.OpenAI) -> None:
    response = client.images.generate(
        prompt="a cat", model=MODEL, size="128x64", extra_body={"seed": 7, "num_inference_steps": 3}
    )
    image = pixels(response)
    assert image.shape == (64, 128, 3)
    assert image[0, 0].tolist() == [7, 3, len("a cat")]
    assert (response.size, response.output_format) == ("128x64", "png")
    assert response.data[0].seed == 7
    assert "revised_prompt" not in response.data[0].to_dict()
    assert abs(response.created - time.time()) < 60


def test_usage_counts_the_prompt_once_and_every_image(client: openai.OpenAI) -> None:
    usage = client.images.generate(prompt="one two three", size="64x64", n=2).usage
    assert usage.input_tokens == usage.input_tokens_details.text_tokens == 3
    assert usage.input_tokens_details.image_tokens == 0
    assert usage.output_tokens == 2 * 4 * 4
    assert usage.total_tokens == 3 + 2 * 4 * 4


@pytest.mark.parametrize("size", ["auto", None])
def test_missing_size_is_the_plans_default(client: openai.OpenAI, size: str | None) -> None:
    assert client.images.generate(prompt="a cat", size=size).size == "128x96"


def test_n_images_have_consecutive_seeds(client: openai.OpenAI) -> None:
    response = client.images.generate(prompt="a cat", n=3, extra_body={"seed": 2**64 - 2})
    assert [item.seed for item in response.data] == [2**64 - 2, 2**64 - 1, 0]
    assert [pixels(response, i)[0, 0, 0] for i in range(3)] == [254, 255, 0]


def test_missing_seed_is_random_for_every_request(client: openai.OpenAI) -> None:
    seeds = {client.images.generate(prompt="a cat").data[0].seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_truncated_prompt_is_returned_as_revised_prompt(client: openai.OpenAI) -> None:
    prompt = " ".join(f"word{i}" for i in range(WORDS + 5))
    revised = client.images.generate(prompt=prompt).data[0].revised_prompt
    assert revised == " ".join(f"word{i}" for i in range(WORDS))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_output_format_is_the_format_of_the_file(client: openai.OpenAI, http: httpx.Client, kind: str) -> None:
    seed = {"seed": 200, "num_inference_steps": 3}
    response = client.images.generate(prompt="a cat", output_format=kind, extra_body=seed)
    assert response.output_format == kind
    pixels = decoded(base64.b64decode(response.data[0].b64_json), kind.upper())
    assert np.abs(pixels.astype(int) - [200, 3, 5]).max() < 12
    (image,) = client.images.generate(prompt="a cat", output_format=kind, response_format="url", extra_body=seed).data
    assert image.b64_json is None
    fetched = http.get(image.url)
    assert fetched.headers["content-type"] == f"image/{kind}"
    assert np.array_equal(decoded(fetched.content, kind.upper()), pixels)


def test_unknown_image_url_is_404(http: httpx.Client) -> None:
    for path in ("job_0/0.png", f"job_{'0' * 32}/0.png", "..%2f..%2fetc/passwd"):
        response = http.get(f"/v1/images/{path}")
        assert response.status_code == 404
        error_of(response)


def test_stream_sends_previews_before_the_image(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body=SLOW | {"seed": 9}))
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    shown = decoded(base64.b64decode(events[0].b64_json))
    assert shown.shape == (96, 128, 3)
    assert (shown == 128).all()  # the projection of the fake's latents
    assert decoded(base64.b64decode(events[2].b64_json))[0, 0].tolist() == [9, 60, 5]
    assert (events[2].size, events[2].output_format) == ("128x96", "png")
    assert events[2].usage.output_tokens == 6 * 8


def test_failing_preview_does_not_fail_the_image(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finisher.preview, "project", None)
    events = list(client.images.generate(prompt="a cat", stream=True, partial_images=2))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_stream_without_partial_images_sends_one_event_per_image(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a cat", stream=True, n=2))
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert sorted(event.index for event in events) == [0, 1]


def test_error_in_a_stream_is_raised_by_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="NaN or Inf") as caught:
        list(client.images.generate(prompt=NAN_PROMPT, stream=True))
    assert caught.value.code == "non_finite_output"


def test_retry_with_the_same_idempotency_key_gets_the_same_images(client: openai.OpenAI, fake: FakeLoop) -> None:
    headers, prompt = {"Idempotency-Key": "once"}, "generated once"
    first, again = (client.images.generate(prompt=prompt, extra_headers=headers) for _ in range(2))
    assert first == again
    assert fake.log.count((prompt, 8)) == 1
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.images.generate(prompt="another", extra_headers=headers)
    assert caught.value.code == "idempotency_key_reused"


def test_server_timing_header_has_the_stages(http: httpx.Client) -> None:
    response = http.post(IMAGES, json={"prompt": "a cat"})
    stages = [entry.partition(";dur=") for entry in response.headers["server-timing"].split(", ")]
    assert {"queue", "passes", "encode"} <= {name for name, _, _ in stages}
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in stages)
