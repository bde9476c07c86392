"""Prepared LoRAs in files, at strengths, and merged into weights of every layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.manifest import MANIFEST

from engine.command_line import parse_lora
from engine.errors import LoraMismatch
from engine.plan.delta import Delta, Dense, Kronecker, LowRank
from engine.plan.lora import About, PreparedLora, Scaling
from engine.plan.manifest import RefitWeight

ROWS, COLUMNS = 6, 8
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, np.float32)


def low_rank() -> tuple[Delta, np.ndarray]:
    down, up = numbers(2, COLUMNS), numbers(ROWS, 2)
    return LowRank(down, up), up @ down


def kronecker() -> tuple[Delta, np.ndarray]:
    """Some rows of a larger product, in another order."""
    w1, w2, order = numbers(4, 2), numbers(3, 4), np.array([11, 3, 0, 7, 5, 2], np.int32)
    return Kronecker(w1, w2, order), np.kron(w1, w2)[order]


def dense() -> tuple[Delta, np.ndarray]:
    values = numbers(ROWS, COLUMNS)
    return Dense.of(values), values


KINDS = {"low rank": low_rank, "kronecker": kronecker, "dense": dense}


def prepared(deltas: dict[str, tuple[Delta, ...]], *names: str) -> PreparedLora:
    exponents = dict.fromkeys(names, 0)
    return PreparedLora(About("", {}, (Scaling(1.0, exponents), Scaling(-1.0, exponents))), deltas)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_joined_weight_get_their_deltas(tmp_path: Path, kind: str, transposed: bool) -> None:
    """The first part has one delta, the second none, the third two that overlap; in a file and read again."""
    (first, one), (third, two), (again, three) = KINDS[kind](), KINDS[kind](), low_rank()
    parts = ("a", "b", "c")
    shape = (COLUMNS, 3 * ROWS) if transposed else (3 * ROWS, COLUMNS)
    joined = RefitWeight("abc", parts, transposed=transposed, exponent=0, dtype="float32", shape=shape, offset=0)
    base = numbers(3 * ROWS, COLUMNS)
    np.ascontiguousarray(base.T if transposed else base).tofile(tmp_path / "weights")
    graph = replace(MANIFEST.graphs["denoiser"], refittable=(joined,), weights_file="weights")
    lora = prepared({"a": (first,), "c": (third, again)}, "abc")
    (tmp_path / "a.lora").write_bytes(lora.encode())
    expected = base + -0.5 * np.vstack([one, np.zeros_like(one), two + three])
    for found in (lora, PreparedLora.read(tmp_path / "a.lora")):
        ((name, merged),) = found.at(-0.5).weights(graph, tmp_path)
        assert name == "abc" and merged.shape == shape
        np.testing.assert_allclose(merged.T if transposed else merged, expected, rtol=1e-3, atol=1e-3)


def test_small_dense_values_keep_their_precision() -> None:
    values = 1e-6 * numbers(ROWS, COLUMNS)  # FP16 itself has no such numbers
    delta = Dense.of(values)
    delta.place(0, 0, False).write(slice(0, ROWS), out := np.empty((ROWS, COLUMNS), np.float32))
    np.testing.assert_allclose(out, values, rtol=2.0**-11, atol=2.0**-25 * np.abs(values).max())


def test_weight_of_one_dimension_gets_its_difference(tmp_path: Path) -> None:
    base, values = numbers(10).astype(np.float16), numbers(5)
    base.tofile(tmp_path / "weights")
    weight = RefitWeight("mn", ("m", "n"), transposed=False, exponent=0, dtype="float16", shape=(10,), offset=0)
    graph = replace(MANIFEST.graphs["denoiser"], refittable=(weight,), weights_file="weights")
    ((_, merged),) = prepared({"n": (Dense.of(values),)}, "mn").weights(graph, tmp_path)
    assert merged.shape == (10,)
    np.testing.assert_allclose(merged, np.append(base[:5], base[5:] + values), rtol=1e-2, atol=1e-3)


def test_values_as_large_as_a_weight_are_read_only_to_check_and_to_merge(tmp_path: Path) -> None:
    file = tmp_path / "a.lora"
    file.write_bytes(prepared({"a": (dense()[0],)}, "a").encode())
    (delta,) = PreparedLora.read(file).deltas["a"]
    assert isinstance(delta, Dense)
    assert delta.load() is not delta.load(), "kept in memory"


def test_strength_outside_the_prepared_range_is_refused() -> None:
    lora = PreparedLora(About("", {}, (Scaling(1.0, {}), Scaling(2.0, {}))), {})
    assert lora.about.strengths == (0.0, 2.0)
    for strength in (-0.1, 2.1, np.nan):
        with pytest.raises(LoraMismatch, match="at strengths from 0 to 2, not at"):
            lora.at(strength)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.lora", ("a.lora", 1.0)),
        ("a.lora:0.8", ("a.lora", 0.8)),
        ("a:b.lora", ("a:b.lora", 1.0)),
        (":1", (":1", 1.0)),
    ],
)
def test_argument_is_a_file_and_a_strength(text: str, expected: tuple[str, float]) -> None:
    assert parse_lora(text) == (Path(expected[0]), expected[1])
