"""`zimage-generate`: writes images of a prompt, or of a file of prompts."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli_arguments import NAME, check_arguments, make_parser
from engine.cli_image import ImageOption
from engine.command_line import one_line_errors, user_path
from engine.errors import InvalidRequest, ZImageError
from engine.files import require_writable
from engine.init_image import InitImage
from engine.options import SLOTS, RuntimeOptions
from engine.plan.directory import read, resolve
from engine.plan.guide import Guide
from engine.plan.manifest import Manifest
from engine.progress_bar import ProgressBar
from engine.prompt_lines import PromptLine, read_lines
from engine.request import MAX_SEED, RANDOM, ImageFormat, ImageRequest, random_seed
from engine.size import Size
from engine.stages import StageTimes

if TYPE_CHECKING:
    from engine.images.generated import GeneratedImage


@dataclass(frozen=True, slots=True)
class _Task:
    """An image to generate and its file; `source` is the line of --prompts that asked for it."""

    request: ImageRequest
    output: Path
    source: str = ""

    def message(self, about: object) -> str:
        """Return what is said about the image, with the line that asked for it."""
        return f"{self.source}: {about}" if self.source else str(about)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit with status 1 and one line on an error, with 130 after Ctrl-C."""
    args = make_parser().parse_args(argv)
    if args.verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    with one_line_errors(NAME):
        check_arguments(args)
        tasks = list(_tasks(args))
        _check_files(args, tasks)
        directory = resolve(args.engines)
        manifest = _manifest(args, directory)
        image = ImageOption(args, manifest.size_limits)
        if args.image is not None:
            tasks = [_start(task, image) for task in tasks]
        _check_requests(tasks, manifest, Guide.read(directory))
        _generate(args, tasks, manifest, list(image.prepared.values()))


def _tasks(args: argparse.Namespace) -> Iterator[_Task]:
    """Yield the images to generate, in the order of their lines.

    Raises:
        InvalidRequest: the options or a line are wrong.
    """
    if (args.prompt is None) == (args.prompts is None):
        raise InvalidRequest("give either a prompt or --prompts FILE", "prompt")
    width, height = (None, None) if args.size is None else Size.parse(args.size)
    first = random_seed() if args.seed == RANDOM else args.seed
    if not 0 <= first <= MAX_SEED:
        raise InvalidRequest(
            f"seed must be between 0 and {MAX_SEED}, or {RANDOM} for a random one, got {first}", "seed"
        )
    default = ImageRequest(
        args.prompt or "",
        width,
        height,
        first,
        args.steps,
        args.negative_prompt,
        args.guidance_scale,
        cfg_normalization=args.cfg_normalization,
        cfg_truncation=args.cfg_truncation,
    )
    if args.lora is not None:
        file, strength = args.lora
        default = replace(default, lora=file.stem, lora_strength=strength)
    lines = [PromptLine("", default, False, None)]
    if args.prompts is not None:
        lines = read_lines(_text(args.prompts), "stdin" if args.prompts == "-" else args.prompts, default)
    without_output = sum(args.count for line in lines if line.output is None)
    number = unnamed = 0
    for line in lines:
        for copy in range(args.count):
            request = line.request.numbered(copy if line.has_seed else number)
            unnamed += line.output is None
            if line.output is None:
                output = _numbered(args.output, unnamed if without_output > 1 else None)
            else:
                output = _numbered(line.output, copy + 1 if args.count > 1 else None)
            number += 1
            yield _Task(request, output, line.source)


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else user_path(file).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}", "prompts") from error


def _numbered(file: Path, number: int | None) -> Path:
    return file if number is None else file.with_name(f"{file.stem}-{number}{file.suffix}")


def _check_files(args: argparse.Namespace, tasks: Sequence[_Task]) -> None:
    """Raise InvalidRequest or OSError if an image cannot be written."""
    sources: dict[Path, str] = {}
    for task in tasks:
        try:
            ImageFormat.of(task.output, args.quality)
            require_writable(task.output)
            if (path := task.output.resolve()) in sources:
                raise InvalidRequest(f"{task.output} is already the output of {sources[path]}", "output")
            sources[path] = task.source
        except InvalidRequest as error:
            raise InvalidRequest(task.message(error), error.param) from error
        except OSError as error:
            raise OSError(task.message(error)) from error


def _manifest(args: argparse.Namespace, directory: Path) -> Manifest:
    """Return the manifest of plans whose files are not read yet, with the profiles to load."""
    manifest = read(directory, verify=False)
    return replace(manifest, profiles=tuple(manifest.choose_profiles(tuple(args.profiles or ())).values()))


def _start(task: _Task, image: ImageOption) -> _Task:
    """Return a task that starts from an image."""
    try:
        return replace(task, request=image.start(task.request))
    except InvalidRequest as error:
        raise InvalidRequest(task.message(error), error.param) from error


def _check_requests(tasks: Sequence[_Task], manifest: Manifest, guide: Guide) -> None:
    """Raise InvalidRequest if an image cannot be generated; tell which fields have no effect."""
    for task in tasks:
        try:
            task.request.check(manifest, () if task.request.lora is None else (task.request.lora,))
        except InvalidRequest as error:
            raise InvalidRequest(task.message(error), error.param) from error
    unused = dict.fromkeys(name for task in tasks for name in task.request.without_effect(manifest))
    if unused:
        _say(f"{', '.join(unused)}: no effect without a --guidance-scale above 0")
    if guide.about and sys.stderr.isatty() and not all(guide.covers(task.request.size(manifest)) for task in tasks):
        _say(guide.about)


def _generate(
    args: argparse.Namespace, tasks: Sequence[_Task], manifest: Manifest, init_images: Sequence[InitImage]
) -> None:
    """Generate the images and write each as soon as it is finished.

    Raises:
        ZImageError: the plans cannot be loaded, or images failed.
        KeyboardInterrupt: with the number of images that were written.
    """
    writer = _Writer(args, tasks, manifest)
    for note in dict.fromkeys(note for init_image in init_images for note in init_image.notes):
        _say(note)
    try:
        writer.bar.show("loading the plans")
        from engine.generator import ImageGenerator  # takes most of a second; errors in arguments come first

        options = replace(RuntimeOptions.of(args), image_input=bool(init_images))
        options = replace(options, slots=SLOTS) if len(tasks) > 1 else options
        loras = {} if args.lora is None else {args.lora[0].stem: args.lora[0]}
        with ImageGenerator(args.engines, options, loras=loras) as generator:
            writer.is_loaded()
            requests = [task.request for task in tasks]
            outcomes = generator.run(requests, init_images=init_images, on_progress=lambda _: writer.bar.step())
            for index, outcome in outcomes:
                writer.write(index, outcome)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{writer.written} of {len(tasks)} images were written") from None
    finally:
        writer.bar.clear()
    writer.summarise()


class _Writer:
    """Writes finished images to their files, and reports on each."""

    def __init__(self, args: argparse.Namespace, tasks: Sequence[_Task], manifest: Manifest) -> None:
        self._tasks, self._quality, self._manifest = tasks, args.quality, manifest
        steps = sum(task.request.steps_to_run(manifest) for task in tasks)
        self.bar = ProgressBar(len(tasks), steps, is_wanted=not args.verbose)
        self.written = 0
        self._seconds = StageTimes()  # of the last image
        self._started = self._loaded = time.perf_counter()

    def is_loaded(self) -> None:
        """Record that the plans are loaded."""
        self._loaded = time.perf_counter()
        self.bar.show()

    def write(self, index: int, outcome: "GeneratedImage | ZImageError") -> None:
        """Write an image, or say why it failed."""
        task = self._tasks[index]
        self.bar.clear()
        if isinstance(outcome, ZImageError):
            if len(self._tasks) == 1:
                raise outcome
            _say(f"{task.output}: {task.message(outcome)}")
            return
        outcome.save(task.output, self._quality)
        self.written += 1
        self._seconds = outcome.seconds
        if outcome.prompt.dropped:
            limit = self._manifest.model.prompt.max_tokens
            _say(task.message(f"the prompt is longer than {limit} tokens; ignored: ...{outcome.prompt.dropped[:60]!r}"))
        print(
            f"{task.output}: {outcome.size}, seed {outcome.seed}, {task.request.forwards(self._manifest)} forwards",
            flush=True,
        )
        self.bar.finish_image()

    def summarise(self) -> None:
        """Print the times; raise ZImageError if images failed."""
        seconds = {f"{len(self._tasks)} images": time.perf_counter() - self._loaded}
        if len(self._tasks) == 1:
            seconds = {name: value for name, value in asdict(self._seconds).items() if value}
        stages = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in seconds.items())
        print(f"load {self._loaded - self._started:.2f} s, {stages}")
        if failed := len(self._tasks) - self.written:
            raise ZImageError(f"{failed} of {len(self._tasks)} images failed")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
