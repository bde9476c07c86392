"""Prepared LoRAs of other versions, for other plans, or damaged: each is refused with the reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from fakes.manifest import MANIFEST

from engine.array import Array
from engine.errors import LoraMismatch
from engine.plan.delta import Dense, Kronecker, LowRank
from engine.plan.lora import FORMAT, About, PreparedLora, Scaling, _digest, is_prepared
from engine.plan.manifest import Manifest, RefitWeight

JOINED = RefitWeight("qkv", ("q", "k"), True, 0, "float32", (5, 8), 0)  # [in, out] of two parts
SCALE = RefitWeight("eps", (), False, 0, "float32", (), 0)
NORM = RefitWeight("norm", ("n",), False, 0, "float32", (5,), 0)


def plans() -> Manifest:
    denoiser = replace(MANIFEST.graphs["denoiser"], refittable=(JOINED, SCALE, NORM))
    return replace(MANIFEST, graphs=MANIFEST.graphs | {"denoiser": denoiser}, refittable=True)


def lora() -> PreparedLora:
    precisions = {name: graph.precision for name, graph in plans().graphs.items()}
    scaling = Scaling(1.0, {"qkv": 0, "norm": 0}, {"eps": 1e-5})
    about = About(MANIFEST.model.weights_sha256, precisions, (scaling,), keys=1 << 20)
    kronecker = Kronecker(single(2, 1), single(2, 5), np.arange(4, dtype=np.int32))
    deltas = (LowRank(single(2, 5), single(4, 2)), kronecker, Dense.of(single(4, 5)))
    return PreparedLora(about, {"k": deltas, "n": (Dense.of(single(5)),)})


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
    metadata = {"format": FORMAT, "about": text, "sha256": _digest(text, sorted(kept), kept.__getitem__)}
    file.write_bytes(safetensors.numpy.save(kept, metadata))


def edited(**changes: object) -> str:
    """Return the text about a LoRA with other values, at the top or in its scaling."""
    found = json.loads(msgspec.json.encode(lora().about))
    [scaling] = found["scalings"]
    scaling |= {name: value for name, value in changes.items() if name in scaling}
    return json.dumps(found | {name: value for name, value in changes.items() if name not in scaling})


def single(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def half(*shape: int) -> Array:
    return np.ones(shape, np.float16)


def test_prepared_lora_is_read_and_fits(file: Path) -> None:
    read = PreparedLora.read(file)
    read.require_match(plans())
    assert read.about == lora().about
    assert {name: [type(delta) for delta in deltas] for name, deltas in read.deltas.items()} == {
        "k": [LowRank, Kronecker, Dense],
        "n": [Dense],
    }


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an older version": (
        lambda f: f.write_bytes(f.read_bytes().replace(FORMAT.encode(), b"zimage-trt lora 1")),
        f"another version of zimage-lora, in the format 'zimage-trt lora 1', this zimage-trt reads '{FORMAT}'",
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
    "an unknown key": (lambda f: rewrite(f, tensors={"k": single(1)}), "not as zimage-lora writes it"),
    "no up": (
        lambda f: rewrite(f, tensors={"k.0.up": None}),
        "not as zimage-lora writes it: a change has down float32",
    ),
    "no down": (
        lambda f: rewrite(f, tensors={"k.0.down": None}),
        "not as zimage-lora writes it: a change has up float",
    ),
    "no scale": (lambda f: rewrite(f, tensors={"k.2.scale": None}), "writes it: a change has , values F16"),
    "other weights": (lambda f: rewrite(f, edited(weights_sha256="0")), "prepared for other weights"),
    "other precisions": (lambda f: rewrite(f, edited(precisions={})), "the LoRA was prepared for {}, the plans have"),
    "another version's weights": (lambda f: rewrite(f, edited(exponents={})), "plans of another version of zimage-trt"),
    "a scale for a weight": (
        lambda f: rewrite(f, edited(exponents={"norm": 0}, scales={"eps": 1.0, "qkv": 1.0})),
        "plans of another version of zimage-trt",
    ),
    "another rank": (
        lambda f: rewrite(f, tensors={"k.0.down": single(3, 5)}),
        r"has down float32 \[3, 5\], up float32",
    ),
    "no rank": (
        lambda f: rewrite(f, tensors={"k.0.down": single(0, 5), "k.0.up": single(4, 0)}),
        r"float32 \[0, 5\], up",
    ),
    "a number": (lambda f: rewrite(f, tensors={"k.0.down": single()}), r"has down float32 \[\], up"),
    "other dtypes": (lambda f: rewrite(f, tensors={"k.0.up": half(4, 2)}), "up float16 "),
    "values of another dtype": (lambda f: rewrite(f, tensors={"k.2.values": single(4, 5)}), "values F32"),
    "a row that there is not": (
        lambda f: rewrite(f, tensors={"k.1.order": np.array([0, 1, 2, 4], np.int32)}),
        r"writes it: a change has order int32 \[4\], w1",
    ),
    "other columns": (
        lambda f: rewrite(f, tensors={"k.0.down": single(2, 4)}),
        r"changes \[4, 4\] numbers of k, which has \[4, 5\] in these plans; prepare it again",
    ),
    "other rows": (lambda f: rewrite(f, tensors={"k.0.up": single(8, 2)}), r"changes \[8, 5\] numbers of k, which"),
    "other rows of a product": (
        lambda f: rewrite(f, tensors={"k.1.order": np.zeros(3, np.int32)}),
        r"changes \[3, 5\] numbers of k, which",
    ),
    "other values": (lambda f: rewrite(f, tensors={"k.2.values": half(5, 4)}), r"changes \[5, 4\] numbers of k, which"),
    "factors of a vector": (
        lambda f: rewrite(f, tensors={"n.1.down": single(1, 1), "n.1.up": single(5, 1)}),
        r"changes \[5, 1\] numbers of n, which has \[5\]",
    ),
    "an unknown layer": (
        lambda f: rewrite(f, tensors={"x.0.down": single(2, 5), "x.0.up": single(4, 2)}),
        "the LoRA changes x, which these plans do not have; prepare it again",
    ),
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


@pytest.mark.parametrize("own", [plans(), plans().without_image_input()])
def test_lora_fits_plans_with_and_without_images_as_inputs(own: Manifest) -> None:
    """It changes the weights of two graphs; the precisions of others do not matter."""
    lora().about.require_match(own)
    about = replace(lora().about, precisions={"denoiser": "fp16"})
    about.require_match(own)
    with pytest.raises(LoraMismatch, match="the plans have"):
        replace(about, precisions={"denoiser": "bf16"}).require_match(own)
