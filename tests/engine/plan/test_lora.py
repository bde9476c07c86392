"""Prepared LoRAs of other versions, for other plans, or damaged: each is refused with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from fakes.manifest import MANIFEST

from engine.array import Array
from engine.errors import LoraMismatch
from engine.plan.lora import FORMAT, About, PreparedLora, _digest, is_prepared
from engine.plan.manifest import Manifest, RefitWeight

JOINED = RefitWeight("qkv", ("q", "k"), True, 0, "float32", (5, 8), 0)  # [in, out] of two parts
SCALE = RefitWeight("eps", (), False, 0, "float32", (), 0)
NORM = RefitWeight("norm", ("n",), False, 0, "float32", (5,), 0)


def plans() -> Manifest:
    denoiser = replace(MANIFEST.graphs["denoiser"], refittable=(JOINED, SCALE, NORM))
    return replace(MANIFEST, graphs=MANIFEST.graphs | {"denoiser": denoiser}, refittable=True)


def lora() -> PreparedLora:
    precisions = {name: graph.precision for name, graph in plans().graphs.items()}
    about = About(MANIFEST.model.weights_sha256, precisions, {"qkv": 0, "norm": 0}, keys=1 << 20)
    factors = {"k": (np.ones((2, 5), np.float32), np.ones((4, 2), np.float32))}
    return PreparedLora(about, factors, {"eps": np.array(1e-5, np.float32)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.lora").write_bytes(lora().encode())
    return tmp_path / "a.lora"


def rewrite(file: Path, about: str | None = None, tensors: dict[str, Array | None] | None = None) -> None:
    """Change a file and its digest, as another writer could."""
    with safetensors.safe_open(file, "np") as opened:
        found = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  not a dict
        text = opened.metadata()["about"] if about is None else about
    kept: dict[str, Any] = {key: tensor for key, tensor in (found | (tensors or {})).items() if tensor is not None}
    metadata = {"format": FORMAT, "about": text, "sha256": _digest(text, kept)}
    file.write_bytes(safetensors.numpy.save(kept, metadata))


def edited(**changes: object) -> str:
    """Return the text about a LoRA with other values."""
    about = lora().about
    found = {"weights_sha256": about.weights_sha256, "precisions": about.precisions, "exponents": about.exponents}
    return json.dumps(found | {"keys": about.keys} | changes)


def single(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def test_prepared_lora_is_read_and_fits(file: Path) -> None:
    read = PreparedLora.read(file)
    read.require_match(plans())
    assert read.about == lora().about
    assert read.factors.keys() == {"k"} and read.scales.keys() == {"eps"}


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an older version": (
        lambda f: f.write_bytes(f.read_bytes().replace(FORMAT.encode(), b"zimage-trt lora 1")),
        "another version of zimage-lora, in the format 'zimage-trt lora 1', this zimage-trt reads 'zimage-trt lora 2'",
    ),
    "altered": (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"x"), "was altered after zimage-lora wrote it"),
    "cut": (lambda f: f.write_bytes(f.read_bytes()[:-1]), "cannot read"),
    "empty": (lambda f: f.write_bytes(b""), "cannot read"),
    "no JSON": (lambda f: rewrite(f, "nonsense"), "not as zimage-lora writes it: JSON is malformed"),
    "keys missing": (lambda f: rewrite(f, "{}"), "not as zimage-lora writes it: .*weights_sha256"),
    "many levels": (lambda f: rewrite(f, '{"a":' * 50_000), "not as zimage-lora writes it: .*recursion"),
    "a wrong type": (lambda f: rewrite(f, edited(exponents={"qkv": "x"})), "zimage-lora writes it: Expected `int`"),
    "a huge exponent": (lambda f: rewrite(f, edited(exponents={"qkv": 10**6})), "zimage-lora writes it: .*<= 127"),
    "an unknown precision": (lambda f: rewrite(f, edited(precisions={"denoiser": "int4"})), "writes it: .*int4"),
    "no up": (lambda f: rewrite(f, tensors={"k.up": None}), "not as zimage-lora writes it: 'k.up'"),
    "no down": (lambda f: rewrite(f, tensors={"k.down": None}), "not as zimage-lora writes it: 'k.down'"),
    "other weights": (lambda f: rewrite(f, edited(weights_sha256="0")), "prepared for other weights"),
    "other precisions": (lambda f: rewrite(f, edited(precisions={})), "the LoRA was prepared for {}, the plans have"),
    "another version's weights": (lambda f: rewrite(f, edited(exponents={})), "plans of another version of zimage-trt"),
    "another rank": (
        lambda f: rewrite(f, tensors={"k.down": single(3, 5)}),
        r"has float32 \[3, 5\] and float32 \[4, 2\] for k, these plans need float32 \[rank, 5\] and \[4, rank\]",
    ),
    "no rank": (lambda f: rewrite(f, tensors={"k.down": single(0, 5)}), r"has float32 \[0, 5\] and"),
    "other columns": (lambda f: rewrite(f, tensors={"k.down": single(2, 4)}), r"has float32 \[2, 4\] and"),
    "other rows": (lambda f: rewrite(f, tensors={"k.up": single(8, 2)}), r"has .* \[8, 2\] for k"),
    "a number": (lambda f: rewrite(f, tensors={"k.down": single()}), r"has float32 \[\] and"),
    "other dtypes": (lambda f: rewrite(f, tensors={"k.up": np.ones((4, 2), np.float16)}), "and float16 "),
    "factors of a vector": (lambda f: rewrite(f, tensors={"n.down": single(1), "n.up": single(5, 1)}), "for n, these"),
    "an unknown layer": (
        lambda f: rewrite(f, tensors={"x.down": single(2, 5), "x.up": single(4, 2)}),
        "the LoRA changes x, which these plans do not have; prepare it again",
    ),
    "a scale of another shape": (lambda f: rewrite(f, tensors={"eps": single(3)}), r"has float32 \[3\] for eps, these"),
    "a scale of another dtype": (lambda f: rewrite(f, tensors={"eps": np.array(1.0)}), r"has float64 \[\] for eps"),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_wrong_lora_is_refused_with_the_reason(file: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(file)
    with pytest.raises(LoraMismatch, match=message):
        PreparedLora.read(file).require_match(plans())


def test_lora_of_another_version_is_still_told_from_other_files(file: Path) -> None:
    """So that the server names it as unusable instead of ignoring it."""
    FAULTS["an older version"][0](file)
    assert is_prepared(file)
    FAULTS["empty"][0](file)
    assert not is_prepared(file)
