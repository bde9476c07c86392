"""Locations of a checkpoint: on disk, in the hub's cache, or on a hub."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.hub import serve_model

from engine.errors import CheckpointError
from export.checkpoint import hub
from export.checkpoint.files import open_checkpoint

HUB_ID = "Tongyi-MAI/Z-Image-Turbo"
NO_HUB = "http://127.0.0.1:9"
COMMIT = "04cc4abb7c5069926f75c9bfde9ef43d49423021"
SIZES = {f"{folder}/file": 1000 for folder in hub.FOLDERS}


def refusal(model: str) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.locate(model)
    return str(caught.value)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which holds nothing; nothing may reach a hub."""

    def unreachable(model: str) -> dict[str, int]:
        raise AssertionError(f"asked a hub for {model}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_list_modelscope", unreachable)
    monkeypatch.delenv("DIFFSYNTH_SKIP_DOWNLOAD", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "model",
    [
        "/no/such/folder",
        "./owner/name",
        "../name",
        "~/models/z-image",
        "~nobody/name",
        "a/b/c",
        "models/z-image.safetensors",
        "z-image.gguf",
        "no-such-folder",
        "out\\models",
        "existing/z-imag",
    ],
)
def test_mistyped_path_is_no_hub_id(model: str, empty: Path) -> None:
    (empty / "existing").mkdir()
    assert f"there is no folder or file {model}" in refusal(model)
    assert [path.name for path in empty.rglob("*")] == ["existing"], "nothing is left behind"


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("model", ["", " "])
def test_empty_text_is_not_the_current_folder(model: str) -> None:
    assert "the model is an empty text" in refusal(model)


def test_mistyped_path_names_its_neighbour_and_the_way_to_the_hub(empty: Path) -> None:
    (empty / "nano/z-image-nano").mkdir(parents=True)
    message = refusal("nano/z-image-nanoo")
    assert "did you mean nano/z-image-nano? If it is a hub id, run from a folder that has no nano/" in message


@pytest.mark.usefixtures("empty")
def test_address_of_a_page_names_the_id() -> None:
    assert refusal(f"https://huggingface.co/{HUB_ID}/tree/main").endswith(f"(owner/name): {HUB_ID}")


def test_home_folder_is_expanded(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(checkpoint, tmp_path / "nano")
    assert hub.locate("~/nano") == hub.Location(tmp_path / "nano", "nano")
    opened = open_checkpoint("~/nano", Path("~/nano/transformer/diffusion_pytorch_model.safetensors"))
    assert opened.fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()


@pytest.fixture
def cached(checkpoint: Path, tmp_path: Path) -> Path:
    """A snapshot in Hugging Face's cache, whose files are links to blobs."""
    model = tmp_path / "models--Tongyi-MAI--Z-Image-Turbo"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    for number, file in enumerate(path for path in sorted(checkpoint.rglob("*")) if path.is_file()):
        shutil.copyfile(file, model / "blobs" / str(number))
        link = model / "snapshots" / COMMIT / file.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * (len(link.relative_to(model).parts) - 1)) / "blobs" / str(number))
    return model


def test_snapshot_of_the_cache_has_the_name_of_its_model(checkpoint: Path, cached: Path) -> None:
    for folder in (cached / "snapshots" / COMMIT, cached):
        opened = open_checkpoint(str(folder))
        assert opened.name == HUB_ID
        assert opened.directory == cached / "snapshots" / COMMIT
        assert opened.fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()
    assert open_checkpoint(str(cached), name="mine").name == "mine"


def test_one_of_several_snapshots_must_be_named(cached: Path) -> None:
    (cached / "refs/main").unlink()
    assert open_checkpoint(str(cached)).name == HUB_ID, "the only snapshot"
    (cached / "snapshots/other").mkdir()
    assert "2 snapshots" in refusal(str(cached))


@pytest.mark.parametrize(
    "file", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/tokenizer.json"]
)
def test_dangling_link_of_the_cache_is_named(cached: Path, file: str) -> None:
    link = cached / "snapshots" / COMMIT / file
    link.resolve().unlink()
    with pytest.raises(CheckpointError, match=r"is a link to \.\./.*which does not exist.*download it again") as caught:
        open_checkpoint(str(cached))
    assert str(caught.value).startswith(str(link))


def test_download_needs_room_for_the_files_that_are_missing(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    hub.require_space(HUB_ID, tmp_path / HUB_ID, SIZES | {"assets/video": 2 * free})
    sizes = SIZES | {"transformer/model.safetensors": 2 * free}
    with pytest.raises(CheckpointError, match=r"needs [\d,.]+ GB in .*GB free; make room, or set DIFFSYNTH_MODEL"):
        hub.require_space(HUB_ID, tmp_path / HUB_ID, sizes)
    (file := tmp_path / HUB_ID / "transformer/model.safetensors").parent.mkdir(parents=True)
    file.touch()
    hub.require_space(HUB_ID, tmp_path / HUB_ID, sizes)


def test_repository_in_another_layout_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="owner/gguf has no folder transformer/"):
        hub.require_space("owner/gguf", tmp_path, {"z-image-Q4_K.gguf": 1000})


def test_failed_download_leaves_nothing_but_what_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFSYNTH_DOWNLOAD_SOURCE", "modelscope")
    monkeypatch.delenv("DIFFSYNTH_SKIP_DOWNLOAD", raising=False)
    monkeypatch.setenv("DIFFSYNTH_MODEL_BASE_PATH", "models")
    monkeypatch.setattr(hub, "_list_modelscope", lambda _: SIZES)
    received = b""

    def fetch(_model: str, directory: Path, _source: str) -> None:
        (directory / "._____temp").mkdir(parents=True, exist_ok=True)
        (directory / ".lock").touch()
        (directory / "._____temp/model.safetensors").write_bytes(received)
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(hub, "_fetch", fetch)
    assert "could not download owner/name from modelscope: Connection reset by peer. " in refusal("owner/name")
    assert list(tmp_path.iterdir()) == []
    received = b"half of it"
    refusal("owner/name")
    assert (tmp_path / "models/owner/name/._____temp/model.safetensors").read_bytes() == received


@pytest.mark.parametrize(("variable", "value"), [("DOWNLOAD_SOURCE", "elsewhere"), ("SKIP_DOWNLOAD", "true")])
def test_settings_of_the_download_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"DIFFSYNTH_{variable}", value)
    assert f"DIFFSYNTH_{variable}" in refusal("owner/name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "nano/z-image-nanoo"], "did you mean nano/z-image-nano?"),
        (["--model", "nano/z-image-nano", "--transformer-file", "README.md"], "is an HTML page"),
        (["--model", "README.md"], "is an HTML page"),
        (["--model", "nano/z-image-nano", "--transformer-file", "none.gguf"], "none.gguf does not exist"),
        (["--model", "nano/z-image-nano", "--name", "my model"], "argument --name: expected letters"),
        (["--model", "nano/z-image-nano", "--name", "../../etc"], "argument --name: expected letters"),
    ],
)
def test_mistyped_arguments_are_told_before_pytorch_is_loaded(
    arguments: list[str], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "nano/z-image-nano").mkdir(parents=True)
    (tmp_path / "README.md").write_text("<html>")
    script = (
        "import atexit, sys; from export.cli import main; "
        "atexit.register(lambda: print('torch' in sys.modules)); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", script, *arguments, "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and complaint in done.stderr.splitlines()[-1], done.stderr
    assert done.stdout == "False\n"
    assert not (tmp_path / "out").exists()


def on_hub(address: str, source: str, folder: Path) -> dict[str, str]:
    """The environment of a process that downloads: the hubs' clients read it when they are imported."""
    return os.environ | {
        "DIFFSYNTH_DOWNLOAD_SOURCE": source,
        "DIFFSYNTH_MODEL_BASE_PATH": str(folder),
        "HF_ENDPOINT": address,
        "MODELSCOPE_ENDPOINT": address,
        "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
    }


def download(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    script = f"from export.checkpoint.hub import locate; print(locate({HUB_ID!r}).path)"
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_download_brings_the_folders_of_the_layout(source: str, checkpoint: Path, tmp_path: Path) -> None:
    with serve_model(HUB_ID, checkpoint) as address:
        done = download(on_hub(address, source, tmp_path / "models"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'models' / HUB_ID}\n"
    assert open_checkpoint(done.stdout.strip()).fingerprint() == open_checkpoint(str(checkpoint)).fingerprint()
    assert not (tmp_path / "models" / HUB_ID / "README.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_download_that_does_not_fit_is_not_begun(source: str, checkpoint: Path, tmp_path: Path) -> None:
    with serve_model(HUB_ID, checkpoint, {"vae/config.json": 10**18}) as address:
        done = download(on_hub(address, source, tmp_path / "models"))
    assert f"{HUB_ID} needs 1,000,000,000.0 GB in {tmp_path / 'models' / HUB_ID}, which has" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_unreachable_hub_ends_the_build_with_one_line(tmp_path: Path) -> None:
    environment = on_hub(NO_HUB, "modelscope", tmp_path / "models")
    command = [sys.executable, "-m", "export.cli", "--model", HUB_ID, "--flavor", "onnx", "--output", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    *stages, last = done.stderr.splitlines()
    assert all(line.startswith("loading PyTorch and DiffSynth") for line in stages), done.stderr
    assert last.startswith(f"build-engines: could not download {HUB_ID} from modelscope: Connection refused. ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_other_hub_that_is_unreachable_is_named_the_same_way(tmp_path: Path) -> None:
    """Without the command, which takes ten seconds to load PyTorch."""
    done = download(on_hub(NO_HUB, "huggingface", tmp_path / "models"))
    last = done.stderr.splitlines()[-1]
    assert f"could not download {HUB_ID} from huggingface: Connection refused. " in last
    assert list(tmp_path.iterdir()) == []
