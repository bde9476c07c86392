"""Chat completions with an image as the answer."""

import base64
from typing import Any

import httpx
import openai
import pytest
from fakes.loop import MODEL, FakeLoop
from fakes.server import IMAGES, decoded, error_of

CHAT = "/v1/chat/completions"
IGNORED = "x-ignored-parameters"

# what vLLM-Omni's load tool sends without options (benchmarks/diffusion/backends.py, commit 0780e45): a first
# request of two steps, then the number of steps that its own models take
WARM_UP = {
    "model": "default",
    "messages": [{"role": "user", "content": "Random prompt 0 for benchmarking diffusion models"}],
    "extra_body": {"num_frames": 1, "num_inference_steps": 2},
}
BENCHMARK = WARM_UP | {"extra_body": {"num_inference_steps": 50}}
# what its example sends (examples/online_serving/text_to_image/openai_chat_client.py, commit be81443), but for the size
EXAMPLE = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "a cup of coffee on the table"}]}],
    "extra_body": {
        "height": 64,
        "width": 128,
        "num_inference_steps": 50,
        "true_cfg_scale": 4.0,
        "seed": 42,
        "negative_prompt": "blue",
        "num_outputs_per_prompt": 1,
    },
}


def ask(http: httpx.Client, text: str = "a cat", **body: Any) -> httpx.Response:
    return http.post(CHAT, json={"messages": [{"role": "user", "content": text}]} | body)


def images(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    parts = answer.json()["choices"][0]["message"]["content"]
    assert all(part["type"] == "image_url" for part in parts)
    urls = [part["image_url"]["url"].split(",", 1) for part in parts]
    assert all(head == "data:image/png;base64" for head, _ in urls)
    return [decoded(base64.b64decode(data)) for _, data in urls]


@pytest.mark.parametrize(
    ("body", "shape", "steps"),
    [(WARM_UP, (96, 128, 3), 2), (BENCHMARK, (96, 128, 3), 50), (EXAMPLE, (64, 128, 3), 50)],
    ids=["warm-up", "benchmark", "example"],
)
def test_load_tool_and_example_of_vllm_omni_get_their_image(
    http: httpx.Client, body: dict[str, Any], shape: tuple[int, int, int], steps: int
) -> None:
    (image,) = images(http.post(CHAT, json=body))
    assert image.shape == shape
    assert image[0, 0, 1] == steps


def test_answer_is_a_completion_with_the_real_model(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "a cat"}]
    raw = client.chat.completions.with_raw_response.create(
        model="gpt-4o", messages=messages, temperature=0.5, max_tokens=100, extra_body={"seed": 7, "size": "128x64"}
    )
    assert raw.headers[IGNORED] == "max_tokens, temperature, model"
    answer = raw.parse()
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 32, 34)
    content: Any = answer.choices[0].message.content
    assert decoded(base64.b64decode(content[0]["image_url"]["url"].split(",")[1]))[0, 0].tolist() == [7, 8, 5]


def test_fields_of_images_without_an_effect_are_reported(http: httpx.Client) -> None:
    answer = ask(http, quality="hd", user="me", extra_body={"style": "vivid"})
    assert answer.headers[IGNORED] == "style, user, quality"


def test_several_images_are_parts_of_one_message(http: httpx.Client) -> None:
    found = images(ask(http, num_outputs_per_prompt=3, seed=7))
    assert [image[0, 0, 0] for image in found] == [7, 8, 9]


def test_last_message_of_the_user_is_the_prompt_and_others_are_reported(http: httpx.Client, fake: FakeLoop) -> None:
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    messages = [
        {"role": "system", "content": "You draw."},
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": picture},
        {"role": "user", "content": [{"type": "text", "text": "a cat"}, {"type": "text", "text": "in blue"}]},
        {"role": "assistant", "content": None},
    ]
    answer = ask(http, messages=messages)
    assert images(answer)[0][0, 0, 2] == len("a cat\nin blue")
    assert fake.log[-1][0] == "a cat\nin blue"
    assert answer.headers[IGNORED] == "messages"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "a cat"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
            "messages",
        ),
        ({"messages": "a cat"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [7]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"text": "a cat"}]}]}, None),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, "messages"),
        ({"prompt": "a cat"}, "prompt"),
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"num_frames": 81}, "num_frames"),
        ({"extra_body": []}, "extra_body"),
        ({"extra_body": {"seeed": 1}}, "seeed"),
        ({"extra_body": {"prompt": "a cat"}}, "prompt"),
        ({"extra_body": {"extra_body": {}}}, "extra_body"),
        ({"extra_body": {"seed": 1}, "seed": 2}, "seed"),
        ({"extra_body": {"size": "128x64", "width": 64}}, "width"),
        ({"num_outputs_per_prompt": 11}, "num_outputs_per_prompt"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(
    http: httpx.Client, body: dict[str, Any], param: str | None
) -> None:
    answer = ask(http, **body)
    assert answer.status_code == 400, answer.text
    assert param is None or error_of(answer)["param"] == param


def test_load_tools_of_sglang_and_aiperf_get_their_image(http: httpx.Client) -> None:
    """SGLang's multimodal_gen/benchmarks/bench_serving.py (00b368b), AIPerf's openai_image_generation.py (0873224)."""
    model = http.get("/v1/model_info").json()["model_path"]  # SGLang's tool asks for it
    assert http.get("/health").status_code == 200
    for body in (
        {"model": model, "prompt": "a cat", "n": 1, "response_format": "b64_json"},
        {"model": "default", "prompt": "a cat", "response_format": "b64_json", "n": 1, "stream": True},
    ):
        answer = http.post(IMAGES, json=body)
        assert answer.status_code == 200
        assert "b64_json" in answer.text
