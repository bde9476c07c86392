"""Tests of `/v1/model_info` over real HTTP: plans and settings as the page reads them."""

import httpx
import pytest
from fakes.loop import MANIFEST, FakeLoop
from fakes.server import serving

from server.api.access import AccessPolicy


def test_model_info_has_the_sizes_that_the_plans_take(http: httpx.Client) -> None:
    info = http.get("/v1/model_info").json()
    assert info["size_limits"] == [{"min_width": 64, "max_width": 256, "min_height": 64, "max_height": 256}]
    assert (info["sizes"], info["default_size"], info["size_multiple"]) == (["64x64..256x256"], "128x96", 16)
    assert info["num_inference_steps"] == MANIFEST.model.default_steps
    assert info["default_guidance"] == 0


def test_model_info_lists_the_batching_of_the_devices(http: httpx.Client) -> None:
    (batching,) = http.get("/v1/model_info").json()["batching"]
    assert (batching["device"], batching["host"], batching["state"], batching["sizes"]) == ("cpu", None, "none", [])


def test_task_takes_as_many_images_as_model_info_says(http: httpx.Client) -> None:
    most = http.get("/v1/model_info").json()["max_images"]
    for count, status in ((most, 200), (most + 1, 400)):
        assert http.post("/v1/generate", json={"prompt": "a cat", "num_images": count}).status_code == status


@pytest.mark.parametrize(
    ("policy", "needs_key", "history"),
    [
        (AccessPolicy(), False, "browser"),
        (AccessPolicy(shared_history=True), False, "shared"),
        (AccessPolicy(keys=("a-key-of-this-test",)), True, "key"),
        (AccessPolicy(keys=("a-key-of-this-test",), shared_history=True), True, "key"),
    ],
)
def test_model_info_says_whose_tasks_are_listed(policy: AccessPolicy, needs_key: bool, history: str) -> None:
    with serving(FakeLoop(), policy=policy) as url:
        info = httpx.get(f"{url}/v1/model_info").json()
    assert (info["needs_key"], info["history"]) == (needs_key, history)
