"""Batching does not change an image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.loop_builder import (
    BATCHING,
    DEVICES,
    RED,
    Arrival,
    Device,
    LoopBuilder,
    loop_builder,
    run_workload,
    workloads,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.pipeline import Pipeline
from engine.request import ImageRequest
from engine.sampling.schedule import sigmas
from engine.scheduler.batch_table import BatchTable
from engine.scheduler.loop import EngineLoop
from engine.size import Size


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=workloads(None, None, "a", "b"),
    min_slice=st.sampled_from([0.0, 3600.0]),
    table=st.sampled_from([BATCHING, BatchTable()]),
)
@example(
    arrivals=[Arrival(ImageRequest("a", 64, 64, lora=lora)) for lora in (None, "a", "a")],
    min_slice=0.0,
    table=BATCHING,
)
@pytest.mark.parametrize("device", DEVICES)
def test_image_in_any_workload_equals_image_alone(
    fake_plans: Path, device: Device, arrivals: list[Arrival], min_slice: float, table: BatchTable
) -> None:
    """Bit for bit, with other images under any LoRA that join at any step and are cancelled at any step, with short
    and with long time slices. No image is lost."""
    builder = loop_builder(fake_plans, device)
    outcomes = run_workload(builder.loop(table, min_slice), arrivals)
    for number, arrival in enumerate(arrivals):
        if arrival.cancel_at is None:
            alone = builder.loop().generate(arrival.request, init_image=arrival.init_image)
            assert np.array_equal(outcomes[number].pixels, alone.pixels), arrival
    builder.pipeline.close()


def test_loop_equals_pipeline(fakes: LoopBuilder) -> None:
    for request in (RED, replace(RED, prompt="a blue star", height=96, num_inference_steps=1)):
        assert np.array_equal(fakes.loop().generate(request).pixels, fakes.pipeline.generate(request).pixels)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=workloads(None))
def test_nano_image_in_any_workload_equals_image_alone(nano: Pipeline, arrivals: list[Arrival]) -> None:
    """ONNX Runtime in FP32. Measured: no pixel differs; one level is allowed, for machines with other kernels."""
    outcomes = run_workload(EngineLoop(nano, BATCHING), arrivals)
    for number, arrival in enumerate(arrivals):
        if arrival.cancel_at is None:
            alone = EngineLoop(nano).generate(arrival.request, init_image=arrival.init_image).pixels.astype(int)
            assert np.abs(outcomes[number].pixels - alone).max() <= 1, arrival


def test_nano_latents_in_batch_equal_latents_alone(nano: Pipeline) -> None:
    """Relative to the largest latent: the tiles of a matrix product depend on the number of rows."""
    prompts = [nano.tokenize(prompt) for prompt in ("a red circle", "a blue star", "a green ring", "two stars")]
    noise = np.concatenate([nano.noise(seed, Size(96, 64)) for seed in range(4)])
    schedule = sigmas(8, 3.0)
    batched = nano.denoise(nano.encode_prompt(prompts), noise, schedule).copy()
    for row, prompt in enumerate(prompts):
        alone = nano.denoise(nano.encode_prompt([prompt]), noise[row : row + 1], schedule)[0]
        assert np.abs(batched[row] - alone).max() <= 1e-5 * np.abs(alone).max()
