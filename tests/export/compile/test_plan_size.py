"""The lines about a plan's size beside its weights'."""

from dataclasses import replace

from fakes.manifest import MANIFEST

from export.compile.plan_size import describe

GRAPH = replace(MANIFEST.graphs["denoiser"], weight_bytes=377_793_816)  # one full-width block


def test_plan_that_holds_each_weight_once_takes_one_line() -> None:
    assert list(describe("denoiser", GRAPH, 382_980_644)) == [
        "denoiser: a plan of 383.0 MB for 377.8 MB of weights, ratio 1.01"
    ]


def test_weights_stored_twice_are_warned_of_with_the_cure() -> None:
    _, warning = describe("denoiser", GRAPH, 628_727_452)
    assert warning.startswith("warning: the plan of the denoiser holds weights twice")
    assert "the same largest batch" in warning


def test_kernels_of_a_small_model_are_not_taken_for_weights() -> None:
    assert len(list(describe("denoiser", replace(GRAPH, weight_bytes=13_938_112), 36_077_092))) == 1


def test_graph_without_weights_has_no_ratio() -> None:
    guidance = replace(GRAPH, weight_bytes=0)
    assert list(describe("guidance", guidance, 300_000)) == ["guidance: a plan of 0.3 MB for no weights"]


def test_unknown_activations_are_warned_of() -> None:
    _, warning = describe("denoiser", replace(GRAPH, activation_bytes=()), 382_980_644)
    assert "the memory that the denoiser works in is unknown" in warning
