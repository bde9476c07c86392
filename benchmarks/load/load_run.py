"""A load from its references to its figures. Knows no command line and no charts."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.load.client.cases import make_cases
from benchmarks.load.client.endpoints import ONLY_ZIMAGE
from benchmarks.load.client.references import draw_references, model_info
from benchmarks.load.ladder import FinishedRung, finished_rungs
from benchmarks.load.plan import LoadOptions, LoadPlan, Rung
from benchmarks.load.server_samples import ServerSamples
from benchmarks.workload.figures import RungFigures
from benchmarks.workload.mix import Mix, RequestKind
from benchmarks.workload.objective import Objective, check


@dataclass(frozen=True, slots=True)
class LoadRun:
    """The outcome of a load: figures as in its report, and whether it ran to its end and met its objectives."""

    figures: dict[str, Any]
    is_interrupted: bool
    is_met: bool


def run_load(
    url: str,
    name: str,
    options: LoadOptions,
    objectives: Sequence[Objective],
    pid: int | None,
    on_rung: Callable[[Rung, RungFigures], None],
) -> LoadRun:
    """Draw the references, run the rungs, and compute their figures.

    Args:
        name: of the server in reports.
        pid: process of the server, if it is on this machine.
        on_rung: called with each rung as soon as it has ended.

    Raises:
        RuntimeError: the server does not answer, draw the references, or do what the mix asks for.
    """
    info = None if options.server == "openai" else model_info(url, options.headers)
    mix = options.mix_for(info)
    _require_support(url, mix, options, is_zimage=info is not None)
    cases = make_cases(mix, options.cases)
    references = draw_references(options.session(url), cases) if options.checks_images else None
    finished: list[tuple[FinishedRung, RungFigures]] = []
    with tempfile.TemporaryDirectory(prefix="zimage-load-") as folder, ServerSamples(url, pid) as samples:
        plan = LoadPlan(url=url, cases=cases, references=references, records=folder, options=options)
        for rung in finished_rungs(plan):
            if rung.seconds <= rung.rung.warmup:
                continue  # interrupted before there was anything to measure
            figures = RungFigures.of(rung.records, rung.seconds, rung.rung.warmup)
            finished.append((rung, figures))
            on_rung(rung.rung, figures)
    results = [
        {"text": result.objective.text, "rung": number, "value": result.value, "is_met": result.is_met}
        for number, (_, figures) in enumerate(finished)
        for result in check(objectives, figures)
    ]
    found = {
        "target": {"url": url, "endpoint": options.endpoint, "server": info, "name": name},
        "workload": _workload(mix, options),
        "rungs": [_rung_figures(rung, figures, samples) for rung, figures in finished],
        "objectives": results,
    }
    is_interrupted = len(finished) < len(options.rungs) or any(rung.is_interrupted for rung, _ in finished)
    return LoadRun(found, is_interrupted, all(result["is_met"] for result in results))


def _require_support(url: str, mix: Mix, options: LoadOptions, *, is_zimage: bool) -> None:
    """Raise RuntimeError if the load needs zimage-serve and the server is another."""
    if is_zimage:
        return
    if options.server == "zimage":
        raise RuntimeError(f"{url} is no zimage-serve: it has no /v1/model_info with a plan_id; try --server auto")
    if options.endpoint in ONLY_ZIMAGE:
        raise RuntimeError(f"{url} is no zimage-serve, which --endpoint {options.endpoint} needs")
    for kind in mix.kinds:
        if fields := _own_fields(kind):
            raise RuntimeError(f"{url} is no zimage-serve, which {' and '.join(fields)} of {kind.name} need")


def _own_fields(kind: RequestKind) -> list[str]:
    """Return the fields of a kind that only zimage-serve understands."""
    given = {
        "lora": kind.lora is not None,
        "priority": kind.priority != "interactive",
        "deadline": kind.deadline is not None,
    }
    return [name for name, is_given in given.items() if is_given]


def _workload(mix: Mix, options: LoadOptions) -> dict[str, Any]:
    first = options.rungs[0]
    return {
        "mix": msgspec.to_builtins(mix.kinds),
        "loop": "open" if first.users is None else "closed",
        "think_s": first.think,
        "scenario": options.scenario,
        "timeout_s": options.timeout,
        "patience_s": options.patience,
        "checks_images": options.checks_images,
    }


def _rung_figures(rung: FinishedRung, figures: RungFigures, samples: ServerSamples) -> dict[str, Any]:
    server = samples.figures(rung.start + rung.rung.warmup, rung.start + rung.seconds)
    load = {"users": rung.rung.users, "rate": rung.rung.rate, "is_interrupted": rung.is_interrupted}
    return {**load, **msgspec.to_builtins(figures), "server": server}
