"""Mixes of requests: what files may hold, what names give, and how often a kind is drawn."""

import random
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.workload.mix import Mix, RequestKind
from benchmarks.workload.scenarios import MIXES, SCENARIOS, named_mix
from engine.size import Size

TOML = """
[[kinds]]
name = "small"
width = 64
height = 128
weight = 3

[[kinds]]
name = "slow"
width = 128
height = 128
steps = 20
guidance_scale = 4.5
lora = "ink"
priority = "batch"
deadline = 30
"""
JSON = '{"kinds": [{"name": "edit", "width": 128, "height": 128, "edit": true, "images": 2}]}'


def test_toml_file_gives_its_kinds(tmp_path: Path) -> None:
    (tmp_path / "mix.toml").write_text(TOML)
    small, slow = Mix.read(tmp_path / "mix.toml").kinds
    assert small == RequestKind(name="small", width=64, height=128, weight=3)
    assert (slow.steps, slow.guidance_scale, slow.lora, slow.priority, slow.deadline) == (20, 4.5, "ink", "batch", 30)


def test_json_file_gives_its_kinds(tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(JSON)
    assert Mix.read(tmp_path / "mix.json").kinds == (
        RequestKind(name="edit", width=128, height=128, edit=True, images=2),
    )


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("mix.toml", TOML + "heigth = 3\n", r"unknown field `heigth` - at `\$.kinds\[1\]`"),
        ("mix.toml", TOML.replace("weight = 3", "weight = 0"), r"`float` > 0.* - at `\$.kinds\[0\].weight`"),
        ("mix.toml", TOML.replace("width = 64", "width = "), r"at line 4"),
        ("mix.toml", TOML.replace('"slow"', '"small"'), r"different names, got 'small' twice"),
        ("mix.json", JSON.replace('"width": 128, ', ""), r"missing required field `width` - at `\$.kinds\[0\]`"),
        ("mix.json", '{"kinds": []}', r"length >= 1 - at `\$.kinds`"),
        ("mix.json", JSON.replace("128", "wide"), r"line 1 column 38"),
        ("mix.json", JSON.replace("true", 'true, "weight": Infinity'), r"`float` <= .* - at `\$.kinds\[0\].weight`"),
        ("mix.json", JSON.replace("true", 'true, "weight": NaN'), r"`\$.kinds\[0\].weight`"),
        ("mix.json", JSON.replace("128", "1000000000"), r"`int` <= 8192 - at `\$.kinds\[0\].width`"),
        ("mix.json", "[" * 100_000, r"recursion"),
    ],
)
def test_wrong_file_is_refused_with_its_line_or_field(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is no mix of requests: .*{named}"):
        Mix.read(tmp_path / name)


def test_kinds_are_drawn_by_weight() -> None:
    kinds = tuple(RequestKind(name=name, width=64, height=64, weight=weight) for name, weight in (("a", 3), ("b", 1)))
    rng, mix = random.Random(1), Mix(kinds)
    drawn = Counter(mix.choose(rng).name for _ in range(4000))
    assert drawn["a"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_sizes_give_one_kind_each() -> None:
    assert [(kind.name, kind.size) for kind in Mix.sizes("64x128, 256").kinds] == [
        ("64x128", (64, 128)),
        ("256x256", (256, 256)),
    ]


def test_named_mixes_keep_to_the_size_and_to_multiples_of_16() -> None:
    kinds = [kind for name in MIXES for kind in named_mix(name, Size(144, 128)).kinds]
    assert all(kind.width <= 144 and kind.height <= 128 for kind in kinds)
    assert all(kind.width % 16 == kind.height % 16 == 0 for kind in kinds)
    assert {kind.name for kind in kinds} == {"square", "small", "wide", "edit", "batch"}
    with pytest.raises(ValueError, match="the mixes are square, sizes, mixed, got 'cubes'"):
        named_mix("cubes", Size(144, 128))


def test_scenarios_are_those_of_known_load_tests() -> None:
    assert {name: (scenario.users, scenario.minutes) for name, scenario in SCENARIOS.items()} == {
        "baseline": ((1,), 5),
        "medium": ((10,), 5),
        "surge": ((30, 40, 50), 5),
        "soak": ((10,) * 6, 10),
        "ladder": ((1, 5, 10, 20, 30, 50), 5),
    }
