"""Manifests: reading, verification, and the choice of profiles."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.manifest import BANNER, LARGE, MANIFEST, USUAL
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import PlanCorrupt, PlanError, PlanMismatch, PlanNotFound, UnsupportedShape
from engine.plan.directory import CURRENT, MANIFEST_FILE, encode, read, read_manifest, resolve, sha256
from engine.plan.manifest import SCHEMA_VERSION, File, GraphName, Manifest, MergedLora, Profile, Target, padded
from engine.size import Size


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A finished plan directory with a few bytes in each file."""
    directory = tmp_path / "plans"
    (directory / "tokenizer").mkdir(parents=True)
    names = [graph.file for graph in MANIFEST.graphs.values()] + ["tokenizer/tokenizer.json"]
    for name in names:
        (directory / name).write_bytes(name.encode())
    files = (File(name, len(name), sha256(directory / name)) for name in names)
    write(directory, replace(MANIFEST, files=tuple(files)))
    return directory


def write(directory: Path, manifest: Manifest) -> None:
    (directory / MANIFEST_FILE).write_bytes(encode(manifest))


def edit(directory: Path, old: str, new: str) -> None:
    path = directory / MANIFEST_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def names_outside(directory: Path, path: str) -> None:
    manifest = read(directory)
    write(directory, replace(manifest, files=(*manifest.files, File(path, 0, sha256(Path("/dev/null"))))))


def test_what_is_written_is_read(plans: Path) -> None:
    manifest = read(plans)
    assert replace(manifest, files=(), checksum="") == MANIFEST
    assert len(manifest.files) == len(MANIFEST.graphs) + 1
    assert encode(manifest) == (plans / MANIFEST_FILE).read_bytes()


def test_plans_without_graphs_for_images_as_inputs_are_read(plans: Path) -> None:
    assert read(plans).has_image_input
    without = read(plans).without_image_input()
    assert [name for name in MANIFEST.graphs if name not in without.graphs] == ["vae_encoder", "blend"]
    write(plans, without)
    assert not read(plans).has_image_input


def without_graph(directory: Path, name: GraphName) -> None:
    manifest = read(directory)
    write(directory, replace(manifest, graphs={key: graph for key, graph in manifest.graphs.items() if key != name}))


FAULTS: dict[str, tuple[Callable[[Path], object], type[PlanError], str]] = {
    "truncated": (
        lambda d: (d / "denoiser.onnx").write_bytes(b"denoiser"),
        PlanCorrupt,
        "denoiser.onnx has 8 bytes, its manifest says 13; build again",
    ),
    "altered, of the same size": (
        lambda d: (d / "denoiser.onnx").write_bytes(b"denoiser.onny"),
        PlanCorrupt,
        "denoiser.onnx has sha256 .*, its manifest says .*; build again",
    ),
    "missing": (
        lambda d: (d / "tokenizer" / "tokenizer.json").unlink(),
        PlanCorrupt,
        "tokenizer.json is missing; build again",
    ),
    "a directory instead": (
        lambda d: ((d / "denoiser.onnx").unlink(), (d / "denoiser.onnx").mkdir()),
        PlanCorrupt,
        "denoiser.onnx is missing",
    ),
    "no guidance": (
        lambda d: without_graph(d, "guidance"),
        PlanCorrupt,
        "manifest.json lists no file for the guidance; build again",
    ),
    "a VAE encoder without the blend": (
        lambda d: without_graph(d, "blend"),
        PlanCorrupt,
        "manifest.json lists no file for the blend; build again",
    ),
    "manifest cut off": (
        lambda d: (d / MANIFEST_FILE).write_bytes((d / MANIFEST_FILE).read_bytes()[:-100]),
        PlanCorrupt,
        "manifest.json is damaged: .*; build again",
    ),
    "manifest empty": (
        lambda d: (d / MANIFEST_FILE).write_bytes(b""),
        PlanCorrupt,
        "manifest.json is damaged: .*; build again",
    ),
    "manifest not UTF-8": (
        lambda d: (d / MANIFEST_FILE).write_bytes((d / MANIFEST_FILE).read_bytes().replace(b"Fake", b"F\xffke")),
        PlanCorrupt,
        "manifest.json is damaged: .*; build again",
    ),
    "a wrong type": (
        lambda d: edit(d, '"vae_scale": 8', '"vae_scale": "8"'),
        PlanCorrupt,
        r"manifest.json is damaged: Expected `int`, got `str` - at `\$.model.vae_scale`; build again",
    ),
    "an unknown flavor": (
        lambda d: edit(d, '"flavor": "onnx"', '"flavor": "coreml"'),
        PlanCorrupt,
        r"manifest.json is damaged: .*coreml.*\$.target.flavor",
    ),
    "another schema": (
        lambda d: edit(d, f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 98'),
        PlanMismatch,
        rf"plans has manifest schema 98, this zimage-trt reads {SCHEMA_VERSION}; update it, or build again with: "
        r"build-engines --model Z-Image-Fake --fp32 --flavor onnx --output \S+$",
    ),
    "an older schema": (
        lambda d: edit(d, f'"schema_version": {SCHEMA_VERSION}', f'"schema_version": {SCHEMA_VERSION - 1}'),
        PlanMismatch,
        rf"schema {SCHEMA_VERSION - 1}, this zimage-trt reads {SCHEMA_VERSION}; build again with: build-engines",
    ),
    "another schema that also looks otherwise": (
        lambda d: (d / MANIFEST_FILE).write_text('{"schema_version": 99, "plans": []}'),
        PlanMismatch,
        "schema 99",
    ),
    "no schema": (
        lambda d: (d / MANIFEST_FILE).write_text("{}"),
        PlanCorrupt,
        "manifest.json is damaged: .*schema_version",
    ),
    "a schema of many digits": (
        lambda d: (d / MANIFEST_FILE).write_text(f'{{"schema_version": {"9" * 6000}}}'),
        PlanMismatch,
        "schema 999999999,",
    ),
    "a manifest of many levels": (
        lambda d: (d / MANIFEST_FILE).write_text('{"a":' * 50_000),
        PlanCorrupt,
        "manifest.json is damaged: .*recursion.*; build again",
    ),
    "a number of the manifest": (
        lambda d: edit(d, '"schedule_shift": 3.0', '"schedule_shift": 4.0'),
        PlanCorrupt,
        "manifest.json was altered after it was written; build again",
    ),
    "no denoiser": (
        lambda d: edit(d, '"denoiser": {', '"prompt_encoder": {'),
        PlanCorrupt,
        "manifest.json lists no file for the denoiser; build again",
    ),
    "a graph's file without a hash": (
        lambda d: edit(d, '"file": "denoiser.onnx"', '"file": "../denoiser.onnx"'),
        PlanCorrupt,
        "manifest.json lists no file for the denoiser; build again",
    ),
    "no profiles": (
        lambda d: write(d, replace(read(d), profiles=())),
        PlanCorrupt,
        "manifest.json has no profiles; build again",
    ),
    "a path that leaves the directory": (
        lambda d: names_outside(d, "../x"),
        PlanCorrupt,
        "manifest.json names '../x', outside its directory; build again",
    ),
    "an absolute path": (
        lambda d: names_outside(d, "/dev/null"),
        PlanCorrupt,
        "manifest.json names '/dev/null', outside its directory",
    ),
    "a link to itself": (
        lambda d: ((d / "denoiser.onnx").unlink(), (d / "denoiser.onnx").symlink_to("denoiser.onnx")),
        PlanCorrupt,
        "denoiser.onnx is missing; build again",
    ),
    "a link that leaves the directory": (
        lambda d: ((d.parent / "x").touch(), (d / "link").symlink_to(d.parent / "x"), names_outside(d, "link")),
        PlanCorrupt,
        "manifest.json names 'link', outside its directory",
    ),
}


@pytest.mark.parametrize(("damage", "error", "message"), FAULTS.values(), ids=FAULTS)
def test_each_fault_raises_its_own_error(
    plans: Path, damage: Callable[[Path], object], error: type[PlanError], message: str
) -> None:
    damage(plans)
    with pytest.raises(error, match=message) as refusal:
        read(plans)
    assert refusal.type is error
    assert str(plans) in str(refusal.value)


def test_read_without_verify_compares_only_sizes(plans: Path) -> None:
    (plans / "denoiser.onnx").write_bytes(b"denoiser.onny")
    assert read(plans, verify=False).model == MANIFEST.model
    (plans / "denoiser.onnx").write_bytes(b"denoiser")
    with pytest.raises(PlanCorrupt, match="8 bytes"):
        read(plans, verify=False)


@settings(deadline=None)
@given(st.data())
def test_damaged_manifest_raises_only_plan_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    raw = bytearray(encode(MANIFEST))
    for position, byte in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)))):
        raw[position] = byte
    (directory / MANIFEST_FILE).write_bytes(raw)
    with pytest.raises((PlanCorrupt, PlanMismatch)):  # at best whole, and without files
        read(directory)


def test_command_that_replaces_old_plans_has_their_options(plans: Path) -> None:
    profiles = (USUAL, replace(LARGE, name="512,1024x1536:2"))
    target = Target("rtx", "tensorrt_rtx 1.3.0", ("8.9", "12.0"))
    older = replace(MANIFEST, schema_version=5, precision="bf16", target=target, profiles=profiles, refittable=True)
    loras = (MergedLora("a style.safetensors", "", 0.5),)
    model = replace(older.model, name="Tongyi-MAI/Z-Image-Turbo", loras=loras)
    write(plans, replace(older, model=model, accumulation="fp16"))
    with pytest.raises(PlanMismatch) as refusal:
        read(plans)
    command = str(refusal.value).partition(" with: build-engines ")[2]
    assert command == (
        "--model Tongyi-MAI/Z-Image-Turbo --bf16 --flavor rtx --compute-capability 8.9,12.0 "
        "--profile 512,1024x1536:2 --accumulate fp16 --lora 'a style.safetensors:0.5' --refittable "
        f"--output {plans.parent}"
    )


def test_plan_directory_resolves_to_itself(plans: Path) -> None:
    assert resolve(plans) == plans.resolve()


def test_output_directory_resolves_to_its_newest_plans(plans: Path) -> None:
    (plans.parent / CURRENT).symlink_to(plans.name)
    assert resolve(plans.parent) == plans.resolve()
    assert read(resolve(plans.parent)).model == MANIFEST.model


@pytest.mark.parametrize("text", ["{}", "{}\n", " {}\r\n"])
def test_current_may_be_a_file_with_the_name_of_the_plans(plans: Path, text: str) -> None:
    shutil.copytree(plans, plans.parent / "other")
    (plans.parent / CURRENT).write_text(text.format(plans.name))
    assert resolve(plans.parent) == plans.resolve()


@pytest.mark.parametrize("content", [None, b"", b"../elsewhere", b"\0", b"\xff" * 9999, b"/"])
def test_only_plans_are_found_without_a_usable_current(plans: Path, content: bytes | None) -> None:
    if content is not None:
        (plans.parent / CURRENT).write_bytes(content)
    assert resolve(plans.parent) == plans.resolve()
    shutil.copytree(plans, plans.parent / "other")
    with pytest.raises(PlanNotFound, match=f"name one of its plan directories .other, {plans.name}."):
        resolve(plans.parent)


def test_current_may_be_a_copy_of_the_plans(plans: Path) -> None:
    shutil.copytree(plans, plans.parent / CURRENT)
    assert resolve(plans.parent) == (plans.parent / CURRENT).resolve()


def test_plans_one_folder_below_are_named(plans: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(plans, output / "engines" / plans.name)
    with pytest.raises(PlanNotFound, match=f"the plans are in {output / 'engines'}; name that folder with --engines"):
        resolve(output)


def leave_nothing(directory: Path) -> None:
    shutil.rmtree(directory)


def leave_it_empty(directory: Path) -> None:
    leave_nothing(directory)
    directory.mkdir()


def leave_a_file(directory: Path) -> None:
    leave_nothing(directory)
    directory.touch()


def leave_an_interrupted_build(directory: Path) -> None:
    leave_it_empty(directory)
    (directory / ".building-model-fp16-rtx").mkdir()
    (directory / ".building-model-fp16-rtx" / "denoiser.onnx").touch()


def leave_a_dangling_link(directory: Path) -> None:
    leave_it_empty(directory)
    (directory / CURRENT).symlink_to("deleted")


def leave_plans_without_a_link(directory: Path) -> None:
    leave_an_interrupted_build(directory)
    shutil.rmtree(directory / ".building-model-fp16-rtx")
    for name in (".building-three", "two", "one"):
        (directory / name).mkdir()
        (directory / name / MANIFEST_FILE).touch()


NOWHERE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (leave_nothing, "no plan directory at .*; build one with: build-engines --model"),
    "a file": (leave_a_file, "is a file; --engines names the folder that build-engines --output wrote"),
    "empty": (leave_it_empty, "has no manifest.json: no finished build; run build-engines again"),
    "no manifest": (
        lambda d: (d / MANIFEST_FILE).unlink(),
        "has no manifest.json: a build that is running or was interrupted; run build-engines again",
    ),
    "an interrupted build": (
        leave_an_interrupted_build,
        "has no manifest.json: a build that is running or was interrupted; run build-engines again",
    ),
    "newest one deleted": (
        leave_a_dangling_link,
        "no manifest.json: its link current points to deleted, which has none",
    ),
    "newest one deleted, without links": (
        lambda d: (leave_it_empty(d), (d / CURRENT).write_text("deleted\n")),
        "no manifest.json: its file current names deleted, which has none",
    ),
    "the newest one is not known": (
        leave_plans_without_a_link,
        "was interrupted; name one of its plan directories .one, two., or run build-engines again",
    ),
}


@pytest.mark.parametrize(("damage", "message"), NOWHERE.values(), ids=NOWHERE)
def test_directory_without_plans_is_refused_with_the_reason(
    plans: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(plans)
    with pytest.raises(PlanNotFound, match=message) as refusal:
        resolve(plans)
    assert str(plans) in str(refusal.value)


@pytest.mark.parametrize(
    ("shape", "param", "message"),
    [
        ((65, 64, 1), "height", "height must be a multiple of 16, got 65"),
        ((64, 72, 1), "width", "width must be a multiple of 16, got 72"),
        ((48, 64, 1), "height", "height must be between 64 and 512 .the plans., got 48"),
        ((64, 528, 1), "width", "width must be between 64 and 512 .the plans., got 528"),
        ((0, 64, 1), "height", "got 0"),
        ((64, -64, 1), "width", "got -64"),
        ((64, 64, 5), "batch", "batch must be between 1 and 4 .the plans., got 5"),
        ((64, 64, 0), "batch", "got 0"),
        (
            (512, 256, 2),
            "size",
            "no profile covers 256 x 512 .width x height. at batch 2; "
            "the plans cover 64..256 x 64..256 at batch 1..4, 64..512 x 64..512 at batch 1..1",
        ),
    ],
)
def test_shapes_outside_the_profiles_are_refused(shape: tuple[int, int, int], param: str, message: str) -> None:
    with pytest.raises(UnsupportedShape, match=message) as refusal:
        height, width, batch = shape
        MANIFEST.profile_for(Size(width, height), batch)
    assert refusal.value.param == param


def test_size_between_profiles_is_refused_with_the_list_of_profiles() -> None:
    manifest = replace(MANIFEST, profiles=(USUAL, BANNER))
    with pytest.raises(UnsupportedShape, match=r"no profile covers 512 x 64 .*64..256 x 64..256.*768..1024 x 64..128"):
        manifest.profile_for(Size(512, 64))


def test_tightest_profile_is_chosen() -> None:
    manifest = replace(MANIFEST, profiles=(LARGE, USUAL))
    assert manifest.profile_for(Size(256, 256)) == USUAL
    assert manifest.profile_for(Size(272, 256)) == LARGE
    assert manifest.profile_for(Size(64, 64), 4) == USUAL


def test_default_size_is_that_of_the_first_profile() -> None:
    assert MANIFEST.default_size == (256, 256)
    assert replace(MANIFEST, profiles=(BANNER, USUAL)).default_size == (1024, 64)


pixels = st.integers(-2, 70).map(lambda n: 16 * n) | st.integers(-10, 1100)


@settings(deadline=None)
@given(st.permutations([USUAL, LARGE, BANNER]), pixels, pixels, st.integers(-1, 6))
def test_chosen_profile_is_the_smallest_that_covers_the_shape(
    profiles: list[Profile], height: int, width: int, batch: int
) -> None:
    covers = [p for p in profiles if p.covers(Size(width, height), batch)]
    try:
        chosen = replace(MANIFEST, profiles=tuple(profiles)).profile_for(Size(width, height), batch)
    except UnsupportedShape as refusal:
        assert not covers or height % 16 or width % 16
        assert refusal.param in ("height", "width", "batch", "size")
    else:
        assert chosen in covers
        assert chosen.area == min(p.area for p in covers)


@given(st.integers(0, 10**6))
def test_padded_is_the_next_multiple_of_32(tokens: int) -> None:
    assert padded(tokens) % 32 == 0
    assert 0 <= padded(tokens) - tokens < 32


def test_manifest_can_be_read_without_the_plans_and_is_still_checked(plans: Path) -> None:
    whole = read(plans)
    for file in whole.files:
        (plans / file.path).unlink()
    assert read_manifest(plans) == whole
    with pytest.raises(PlanCorrupt, match="is missing"):
        read(plans, verify=False)
    edit(plans, '"fp16"', '"fp32"')
    with pytest.raises(PlanCorrupt, match="was altered"):
        read_manifest(plans)
