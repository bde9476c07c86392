"""The table of graphics cards, from made-up plans: its sums are those of the VRAM plan at load."""

from dataclasses import replace

import pytest
from fakes.manifest import MANIFEST

from benchmarks.vram import CARDS, TAKEN, Measured, Row, rows_of, table
from engine.plan.manifest import GraphName

GB = 10**9
WEIGHTS: dict[GraphName, int] = {"prompt_encoder": 8 * GB, "denoiser": 12 * GB, "vae_decoder": GB // 10}
ACTIVATIONS = {"prompt_encoder": (GB // 5, GB // 20), "denoiser": (2 * GB, 2 * GB), "vae_decoder": (3 * GB, 8 * GB)}


@pytest.fixture
def rows() -> list[Row]:
    """The default build, whose profiles are usual and large."""
    graphs = {
        name: replace(graph, file=f"{name}.plan", weight_bytes=GB, activation_bytes=ACTIVATIONS[name])
        for name, graph in MANIFEST.graphs.items()
        if name in WEIGHTS
    }
    return list(rows_of((), {name: Measured(graph, 1.02) for name, graph in graphs.items()}, WEIGHTS))


def test_every_way_to_serve_a_build_has_a_row(rows: list[Row]) -> None:
    assert [(row.serve, row.vram.offload) for row in rows] == [
        ((), False),
        ((), True),
        (("usual",), False),
        (("usual",), True),
    ]


def test_whole_weights_are_larger_by_the_measured_ratio_and_activations_are_as_measured(rows: list[Row]) -> None:
    whole, _, usual, offloaded = (row.vram for row in rows)
    assert whole.resident == int(20.1 * 1.02 * GB)
    assert offloaded.resident == int(12.1 * 1.02 * GB)
    assert (whole.arena, usual.arena, whole.repeated) == (8 * GB, 3 * GB, ())
    assert whole.buffers > usual.buffers > 0


def test_card_fits_if_what_the_driver_leaves_is_enough(rows: list[Row]) -> None:
    row = rows[0]
    assert [card for card in CARDS if row.fits(card)] == [32, 80]
    exact = replace(row.vram, buffers=row.vram.buffers + 24 * 2**30 - TAKEN - row.vram.needed)
    assert replace(row, vram=exact).fits(24)
    assert not replace(row, vram=replace(exact, buffers=exact.buffers + 1)).fits(24)


def test_table_names_options_and_cards(rows: list[Row]) -> None:
    head, _, first, *_, last = table(rows)
    assert head.count("GiB") == len(CARDS) and "| 24 GiB |" in head
    assert first.startswith("| default | default | 20.5 | 8.0 |") and first.endswith("| no | no | no | yes | yes |")
    assert last.startswith("| default | `--profile usual --offload` | 12.3 | 3.0 |")
    assert last.endswith("| no | yes | yes | yes | yes |")
