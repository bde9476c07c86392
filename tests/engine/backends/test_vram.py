"""The VRAM plan: its sums, its table, and refusals before anything is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest
from fakes.manifest import MANIFEST

from engine.backends.vram import RESERVE, VramPlan
from engine.errors import OutOfDeviceMemory

GB = 1_000_000_000
# Z-Image-Turbo in FP16 up to 1024x1024, about
PLAN = VramPlan(
    weights={"prompt_encoder": 8 * GB, "denoiser": 12 * GB, "vae_decoder": GB // 10},
    activations={"prompt_encoder": GB // 2, "denoiser": 4 * GB, "vae_decoder": 3 * GB},
    buffers=GB // 5,
)


def test_arena_is_the_largest_activation_and_all_weights_count() -> None:
    assert PLAN.arena == 4 * GB
    assert PLAN.resident == 20.1 * GB
    assert PLAN.needed == 24.3 * GB + RESERVE


def test_offload_counts_only_the_larger_of_encoder_and_denoiser() -> None:
    assert replace(PLAN, offload=True).resident == 12.1 * GB


def test_table_has_a_row_for_every_part() -> None:
    rows = PLAN.table().splitlines()
    assert [row.split()[0] for row in rows[1:4]] == ["prompt_encoder", "denoiser", "vae_decoder"]
    assert rows[2].split()[1:] == ["12.00", "GB", "4.00", "GB"]
    assert rows[-1].split() == ["needed", "25.11", "GB"]
    assert len({len(row) for row in rows}) == 1


def test_unrecorded_activations_are_shown_as_unknown() -> None:
    unknown = replace(PLAN, activations=dict.fromkeys(PLAN.activations))
    assert "unknown" in unknown.table()
    assert "needed, at least" in unknown.table()
    assert "at least" not in PLAN.table()


def test_activations_are_those_of_the_loaded_profiles(tmp_path: Path) -> None:
    for graph in MANIFEST.graphs.values():
        (tmp_path / graph.file).write_bytes(b"plan")
    of = [VramPlan.of(tmp_path, MANIFEST, profiles, offload=False).arena for profiles in ((0,), (1,), (0, 1))]
    assert of == [123, 456, 456]


def test_plans_with_weights_twice_are_named_in_table_and_message(tmp_path: Path) -> None:
    graphs = {name: replace(graph, weight_bytes=GB) for name, graph in MANIFEST.graphs.items()}
    for name, graph in graphs.items():
        with (tmp_path / graph.file).open("wb") as plan:
            plan.truncate(int((1.66 if name == "denoiser" else 1.01) * GB))
    others = 1.01 * GB * (len(graphs) - 1)
    vram = VramPlan.of(tmp_path, replace(MANIFEST, graphs=graphs), (0,), offload=False)
    assert vram.resident == 1.66 * GB + others, "the plan file counts, not the weights"
    assert [row.split("  ")[0] for row in vram.table().splitlines() if "twice" in row] == ["denoiser, weights twice"]
    with pytest.raises(OutOfDeviceMemory, match="so that the plan of the denoiser holds its weights once"):
        vram.require_fit(GB, ["usual"])
    assert "twice" not in PLAN.table()


def test_plans_that_fit_are_accepted() -> None:
    PLAN.require_fit(PLAN.needed, ["usual"])


def test_plans_that_do_not_fit_are_refused_with_remedies() -> None:
    with pytest.raises(OutOfDeviceMemory) as refusal:
        PLAN.require_fit(24 * GB, ["usual", "large"])
    message = str(refusal.value)
    assert "the plans need 25.11 GB of GPU memory, 24.00 GB are free" in message
    assert PLAN.table() in message
    assert "one at a time (--offload), which needs 17.11 GB" in message
    assert "serve fewer profiles with --profile (now: usual and large)" in message
    assert "build for smaller sizes or batches (build-engines --profile)" in message


def test_remedies_in_use_are_not_suggested() -> None:
    with pytest.raises(OutOfDeviceMemory) as refusal:
        replace(PLAN, offload=True).require_fit(16 * GB, ["usual"])
    assert "--offload" not in str(refusal.value)
    assert "--profile;" not in str(refusal.value)


def test_images_as_inputs_need_memory_that_can_be_saved(tmp_path: Path) -> None:
    graphs = {name: replace(graph, activation_bytes=(GB, GB)) for name, graph in MANIFEST.graphs.items()}
    graphs["vae_encoder"] = replace(graphs["vae_encoder"], activation_bytes=(3 * GB, 4 * GB))
    plans = replace(MANIFEST, graphs=graphs)
    for graph in graphs.values():
        (tmp_path / graph.file).write_bytes(b"plan")
    of = [VramPlan.of(tmp_path, each, (0,), offload=False, slots=2) for each in (plans, plans.without_image_input())]
    whole, without = of
    latents, mask = 16 * 32 * 32 * 4, 32 * 32 * 4
    batched = 4 * (3 * latents + mask)  # latents_to_blend, latents_blended, noise; image_latents take as much again
    tensors = batched + 4 * latents + 256 + latents + 3 * 256 * 256  # ... blend_sigma, posterior_noise, init_image
    assert whole.buffers - without.buffers == tensors + 2 * (2 * latents + mask)  # and those of two slots
    assert (without.image_input, whole.image_input) == (0, whole.needed - without.needed)
    assert whole.image_input == 2 * GB + 2 * len(b"plan") + whole.buffers - without.buffers
    assert "of it for images as inputs" in whole.table() and "inputs" not in without.table()
    with pytest.raises(OutOfDeviceMemory, match=rf"\(--no-image-input\), which needs {without.needed / 1e9:.2f} GB"):
        whole.require_fit(GB, ["usual"])
