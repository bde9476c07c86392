"""Plan directories appear whole or not at all, with concurrent, killed and interrupted builds and on a full disk.

The builds here are a few bytes long and go through `export.plan_directory` as `export.build` does.
"""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import pytest
from fakes.manifest import MANIFEST as SAMPLE

from engine.errors import BuildError, PlanNotFound
from engine.plan.directory import MANIFEST_FILE, encode, read, resolve
from engine.plan.manifest import SCHEMA_VERSION, Graph, GraphName
from export import plan_directory

NAME = "miniature-fp32-onnx-0123456789ab"
GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
PLANS = {
    **{f"{graph}.onnx": b"graph" for graph in GRAPHS},
    "denoiser.onnx.data": b"weights" * 1000,
    "tokenizer/tokenizer.json": b"{}",
}
MANIFEST = replace(SAMPLE, graphs={graph: Graph(f"{graph}.onnx", "fp32", (), ()) for graph in GRAPHS})


def build(output: Path, name: str = NAME, midway: Callable[[Path], Any] | None = None) -> bool:
    """Builds a plan directory, or finds it; whether it was built."""
    finished = output / name
    with plan_directory.exclusive(output, name):
        if plan_directory.find_finished(finished):
            plan_directory.make_current(finished)
            return False
        with plan_directory.unfinished(output, name) as directory:
            (directory / "tokenizer").mkdir()
            for file, content in PLANS.items():
                (directory / file).write_bytes(content)
            if midway is not None:
                midway(directory)
            manifest = replace(MANIFEST, files=plan_directory.list_files(directory))
            (directory / MANIFEST_FILE).write_bytes(encode(manifest))
            plan_directory.publish(directory, finished)
    return True


def visible(output: Path) -> list[str]:
    return sorted(path.name for path in output.iterdir() if not path.name.endswith(".lock"))


def assert_good(output: Path, name: str = NAME) -> None:
    assert resolve(output) == (output / name).resolve()
    assert len(read(resolve(output)).files) == len(PLANS)


def test_second_build_finds_the_first(tmp_path: Path) -> None:
    assert build(tmp_path / "new" / "output")
    output = tmp_path / "new" / "output"
    assert visible(output) == ["current", NAME]
    assert_good(output)
    before = {file: file.stat().st_mtime_ns for file in (output / NAME).rglob("*")}
    assert not build(output)
    assert {file: file.stat().st_mtime_ns for file in (output / NAME).rglob("*")} == before


def test_current_points_to_the_plans_requested_last(tmp_path: Path) -> None:
    for name, built in (("one", True), ("two", True), ("one", False)):
        assert build(tmp_path, name) is built
        assert_good(tmp_path, name)
    assert visible(tmp_path) == ["current", "one", "two"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_plans_are_published_and_found_without_symbolic_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(link: Path, _target: str) -> None:
        raise OSError(number, os.strerror(number), str(link))

    assert build(tmp_path, "linked")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("one", "two"):
        assert build(tmp_path, name)
        assert_good(tmp_path, name)
    assert not build(tmp_path, "linked")
    assert_good(tmp_path, "linked")
    assert visible(tmp_path) == ["current", "linked", "one", "two"]
    monkeypatch.undo()
    assert not build(tmp_path, "one")
    assert (tmp_path / "current").is_symlink()


def test_copy_in_the_place_of_the_link_is_kept_under_another_name(tmp_path: Path) -> None:
    assert build(tmp_path / "made")
    copied = shutil.copytree(tmp_path / "made", tmp_path / "copied", symlinks=False)
    assert (copied / "current").is_dir() and not (copied / "current").is_symlink()
    assert build(copied, "newer")
    assert_good(copied, "newer")
    assert visible(copied) == sorted([f"{MANIFEST.plan_id}-copy", "current", NAME, "newer"])


def test_other_folder_in_the_place_of_the_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "mine.txt").touch()
    with pytest.raises(BuildError, match="current is a folder without plans, where a link belongs; remove it"):
        build(tmp_path)
    assert (tmp_path / "current" / "mine.txt").exists()


def test_build_engines_finds_what_it_built(
    checkpoint: Path, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from export import build
    from export.progress import BuildProgress

    output = shutil.copytree(engines, tmp_path / "engines", symlinks=True)
    built = resolve(output)
    before = {file: file.stat().st_mtime_ns for file in built.rglob("*")}
    (output / "current").unlink()
    (output / "current").symlink_to("elsewhere")
    monkeypatch.setattr(build, "export_graphs", lambda *_args, **_options: pytest.fail("it builds again"))
    options = build.BuildOptions(str(checkpoint), output, precision="fp32", flavor="onnx")
    assert build.build_engines(options, BuildProgress(Console(quiet=True))) == built
    assert resolve(output) == built
    assert {file: file.stat().st_mtime_ns for file in built.rglob("*")} == before


def test_different_inputs_get_different_plan_ids() -> None:
    others = [
        replace(MANIFEST, precision="fp16"),
        replace(MANIFEST, model=replace(MANIFEST.model, weights_sha256="1" * 64)),
        replace(MANIFEST, profiles=MANIFEST.profiles[:1] * 3),
        replace(MANIFEST, target=replace(MANIFEST.target, compute_capabilities=("12.0",))),
    ]
    assert len({plan_directory.plan_id(encode(manifest)) for manifest in (MANIFEST, MANIFEST, *others)}) == 5


def truncate(directory: Path) -> None:
    os.truncate(directory / "denoiser.onnx.data", 100)


def alter(directory: Path) -> None:
    (directory / "denoiser.onnx.data").write_bytes(b"weightz" * 1000)


def lose(directory: Path) -> None:
    (directory / "tokenizer/tokenizer.json").unlink()


def lose_manifest(directory: Path) -> None:
    (directory / MANIFEST_FILE).unlink()


def garble_manifest(directory: Path) -> None:
    (directory / MANIFEST_FILE).write_bytes(b'{"schema_version": 1, ')


def age(directory: Path) -> None:
    manifest = directory / MANIFEST_FILE
    current = f'"schema_version": {SCHEMA_VERSION}'
    manifest.write_text(manifest.read_text().replace(current, '"schema_version": 0'))


@pytest.mark.parametrize("damage", [truncate, alter, lose, lose_manifest, garble_manifest, age])
def test_damaged_directory_is_built_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    build(tmp_path)
    damage(tmp_path / NAME)
    assert build(tmp_path)
    assert_good(tmp_path)
    assert not build(tmp_path)


@pytest.mark.parametrize("error", [BuildError("no"), KeyboardInterrupt(), MemoryError()])
def test_failed_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail(_directory: Path) -> None:
        raise error

    with pytest.raises(type(error)):
        build(tmp_path, midway=fail)
    assert visible(tmp_path) == []
    assert build(tmp_path)


def test_failed_build_keeps_current(tmp_path: Path) -> None:
    build(tmp_path, "one")
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, "two", midway=lambda _: 1 // 0)
    assert_good(tmp_path, "one")


PROCESSES = multiprocessing.get_context("forkserver")  # imports once, not for each of dozens of processes
PROCESSES.set_forkserver_preload(["export.plan_directory", "fakes.manifest", "pytest"])


def build_slowly(output: Path, name: str, start: Any, answer: Connection) -> None:
    start.wait()
    answer.send(build(output, name, midway=lambda _: time.sleep(0.3)))


def test_two_builders_of_the_same_plans_build_once(tmp_path: Path) -> None:
    assert sorted(at_once(build_slowly, (tmp_path, NAME), (tmp_path, NAME))) == [False, True]
    assert visible(tmp_path) == ["current", NAME]
    assert_good(tmp_path)


def make_current_often(output: Path, name: str, start: Any, answer: Connection) -> None:
    start.wait()
    for _ in range(300):
        plan_directory.make_current(output / name)
    answer.send(True)


def test_builders_of_different_plans_both_publish(tmp_path: Path) -> None:
    names = ("one", "two")
    for name in names:
        build(tmp_path, name)
    assert at_once(make_current_often, *((tmp_path, name) for name in names)) == [True, True]
    assert visible(tmp_path) == ["current", "one", "two"]
    assert resolve(tmp_path).name in names


def at_once(target: Callable[..., None], *arguments: tuple[Path, str]) -> list[Any]:
    """What each process answers; EOFError if one of them died."""
    start = PROCESSES.Barrier(len(arguments))
    pipes = [PROCESSES.Pipe(duplex=False) for _ in arguments]
    children = [
        PROCESSES.Process(target=target, args=(*each, start, pipe[1]))
        for each, pipe in zip(arguments, pipes, strict=True)
    ]
    for child, (_, sender) in zip(children, pipes, strict=True):
        child.start()
        sender.close()
    try:
        return [receiver.recv() for receiver, _ in pipes]
    finally:
        for child in children:
            child.join()


CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.truncate", "shutil.rmtree"}


def die_at(step: int, output: Path) -> None:
    """Build, and be killed just before the given change of the file system."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in CHANGES and str(output) in str(arguments[0]):
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    build(output)


@pytest.mark.slow
def test_builder_killed_at_any_step_leaves_nothing_half_finished(tmp_path: Path) -> None:
    """One process per step."""
    for step in range(1, 100):
        output = tmp_path / str(step)
        child = PROCESSES.Process(target=die_at, args=(step, output))
        child.start()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        try:
            found = resolve(output)
        except PlanNotFound:
            pass
        else:
            assert len(read(found).files) == len(PLANS)
        build(output)
        assert visible(output) == ["current", NAME], step
        assert_good(output)
    assert step > 15


def test_unfinished_directory_is_not_served(tmp_path: Path) -> None:
    def look(directory: Path) -> None:
        for path in (directory, tmp_path):
            with pytest.raises(PlanNotFound, match="a build that is running or was interrupted"):
                resolve(path)

    build(tmp_path, midway=look)


def test_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "output"):
        with pytest.raises(BuildError, match=f"cannot write to {output}: "):
            build(output)


def test_output_that_cannot_be_created_is_refused(tmp_path: Path) -> None:
    """A link to itself: permissions would not stop root."""
    (tmp_path / "engines").symlink_to(tmp_path / "engines")
    with pytest.raises(BuildError, match=f"cannot write to {tmp_path}/engines: "):
        build(tmp_path / "engines")


def test_file_in_place_of_the_plan_directory_is_kept_and_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("mine")
    with pytest.raises(BuildError, match=f"cannot write to {tmp_path}: "):
        build(tmp_path)
    assert (tmp_path / NAME).read_text() == "mine"
    assert visible(tmp_path) == [NAME]


def test_full_disk_is_reported_and_nothing_is_kept(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC."""

    def fill(directory: Path) -> None:
        (directory / "denoiser.plan").symlink_to("/dev/full")
        (directory / "denoiser.plan").write_bytes(b"plan")

    with pytest.raises(BuildError, match=f"no space left for the build in {tmp_path}; nothing was kept"):
        build(tmp_path, midway=fill)
    assert visible(tmp_path) == []


def test_too_little_space_is_refused_before_the_build(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    plan_directory.require_space(tmp_path / "not" / "there" / "yet", free // 2)
    with pytest.raises(BuildError) as caught:
        plan_directory.require_space(tmp_path / "not" / "there" / "yet", 10**18)
    caught.match(f"^{tmp_path}/not/there/yet has [0-9,]+ MB free, the build needs about 1,000,000,000,000 MB; free")


def test_leftovers_are_removed_unless_their_build_is_running(tmp_path: Path) -> None:
    orphan, busy = tmp_path / ".building-orphan", tmp_path / ".building-busy"
    orphan.mkdir()
    with plan_directory.exclusive(tmp_path, "busy"), plan_directory.unfinished(tmp_path, "busy") as directory:
        assert directory == busy
        assert not orphan.exists()
        assert build(tmp_path)
        assert busy.is_dir()
