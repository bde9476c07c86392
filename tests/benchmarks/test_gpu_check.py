"""The command that goes on: its parts, what it says when one fails, hangs or dies, and a rehearsal without a GPU."""

import ast
import json
import re
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes.faulty_graphs import GRAPH_FAULTS, plant

import benchmarks.gpu
from benchmarks.cli import main
from benchmarks.gpu.findings import CheckFailed, Figures, Findings, Settings, figures_file, read_figures
from benchmarks.gpu.model import comparison_cases
from benchmarks.gpu.part_process import log_file, run_here, run_in_process
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.plans.kernels import kernel_rows
from benchmarks.gpu.report_text import markdown
from benchmarks.gpu_check import check, command_for_rest, not_run
from engine.plan.directory import read
from nano.layout import Z_IMAGE_NANO

GPU: Figures = {"gpu": "a GPU", "flavor": "tensorrt"}


def settings(folder: Path, variant: str = "", device: str = "cpu") -> Settings:
    return Settings(folder, device, 6, True, variant)


def outcome(folder: Path, answers: dict[str, Figures], **options: object) -> tuple[dict[str, Figures], list[str]]:
    """Check all parts with these answers, {} for others. Return the figures, and the parts that ran."""
    ran: list[str] = []

    def run_part(part: Part, _settings: Settings, _seconds: float) -> Figures:
        ran.append(part.name)
        return answers.get(part.name, {})

    found = check(PARTS, settings(folder, device="cuda"), 600.0, {}, run_part=run_part, **options)
    return {part.name: figures for part, figures in found}, ran


def test_parts_name_functions_that_exist_and_parts_that_come_before() -> None:
    known: set[str] = set()
    for part in PARTS:
        module, function = part.run.split(":")
        [folder] = benchmarks.gpu.__path__
        source = Path(folder, *module.split(".")).with_suffix(".py").read_text()
        found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == function]
        assert [[argument.arg for argument in node.args.args] for node in found] == [["settings", "found"]], part.run
        assert known.issuperset(part.needs) and part.name not in known
        known.add(part.name)


def test_unknown_part_is_refused_with_the_names_of_all(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no part 'precison'; its parts are machine, .*precision"):
        main(["gpu-check", str(tmp_path), "--only", "precison,machine"])
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_says_so_first_and_names_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, ran = outcome(tmp_path, {"machine": {"no_gpu": "no driver"}})
    assert "NO GPU FOUND (no driver)" in capsys.readouterr().out.splitlines()[2]
    assert "weights" in ran and "build-fp16" in ran
    needing = {part.name for part in PARTS if part.needs_gpu}
    assert {"build-bf16", "plan-memory"} <= needing
    assert set(found) - set(ran) == needing | {"errors-bf16", "speed-bf16"} | {
        f"{kind}-fp16-accumulate-fp16" for kind in ("errors", "speed")
    }


def test_with_a_gpu_without_tensorrt_all_but_plans_run(tmp_path: Path) -> None:
    found, ran = outcome(tmp_path, {"machine": {"gpu": "H200", "flavor": None, "no_flavor": "not installed"}})
    assert set(ran) == {part.name for part in PARTS if not part.needs_plans}
    assert found["nano"]["left_out"] == "no TensorRT runs here: not installed"


def test_failed_part_stops_only_the_parts_that_need_it(tmp_path: Path) -> None:
    found, ran = outcome(tmp_path, {"machine": GPU, "build-bf16": {"failed": "no"}})
    assert set(found) - set(ran) == {"errors-bf16", "speed-bf16", "kernels-bf16"}
    assert found["speed-bf16"] == {"left_out": "it needs the part build-bf16, which failed"}


def test_default_plans_are_answered_before_variants_and_compiled_pytorch() -> None:
    names = [part.name for part in PARTS]
    last_of_default = max(names.index(name) for name in ("errors-fp16", "kernels-fp16", "speed-fp16", "plan-memory"))
    assert last_of_default < names.index("self-test") < names.index("build-bf16") < names.index("torch-speed")


def test_parts_after_the_time_limit_do_not_run_and_keep_earlier_figures(tmp_path: Path) -> None:
    earlier: dict[str, Figures] = {"machine": {}, "products": {"x": 1}}
    assert list(check((part("products"), part("weights")), settings(tmp_path), 5.0, earlier, run_part=stopped)) == []
    assert {"products", "machine"}.isdisjoint(not_run(earlier)) and "weights" in not_run(earlier)


def test_part_that_the_time_limit_ends_is_unfinished_and_parts_that_need_it_wait(tmp_path: Path) -> None:
    selected = (part("products"), part("weights"), part("reference"))
    found = {one.name: figures for one, figures in check(selected, settings(tmp_path), 30.0, {}, run_part=stopped)}
    assert found.keys() == {"products", "weights"}
    for figures in found.values():
        assert figures.keys() == {"x", "unfinished"} and "the time limit came after" in figures["unfinished"]
    assert {"products", "weights", "reference"} <= set(not_run(found))


def test_part_that_takes_its_own_limit_fails_and_longer_runs_have_longer_limits(tmp_path: Path) -> None:
    for minutes, seconds in ((5, 60), (15, 180)):
        [(_, found)] = check((part("products"),), settings(tmp_path), 60.0 * minutes, {}, run_part=stopped)
        assert found["failed"] == f"timed out after {seconds} s"


def stopped(_part: Part, _settings: Settings, seconds: float) -> Figures:
    return {"x": 1, "failed": f"timed out after {seconds:.0f} s", "output": "..."}


def test_command_for_the_rest_names_every_part_that_has_not_run() -> None:
    figures: dict[str, Figures] = {part.name: {} for part in PARTS}
    figures["weights"] = {"unfinished": "the time limit came after 20 s of it"}
    figures["reference"] = {"left_out": "it needs the part weights, which has not run"}
    figures["cuda-lost"] = {"left_out": "it needs a GPU, and none was found"}
    del figures["refit"]
    args = SimpleNamespace(folder=Path("out/a b"), device="cpu", layers=6, quick=True)
    assert command_for_rest(args, figures) == (
        "zimage-bench gpu-check 'out/a b' --device cpu --layers 6 --quick --minutes 15 --only weights,reference,refit"
    )


def test_process_that_hangs_keeps_its_figures_and_its_log(tmp_path: Path) -> None:
    file = figures_file(tmp_path, "close")
    code = f"import time; print('so far', flush=True); open({str(file)!r}, 'w').write('{{\"x\": 1}}'); time.sleep(60)"
    file.parent.mkdir()
    found = run_in_process(part("close"), settings(tmp_path), 2.0, [sys.executable, "-c", code])
    assert {**found, "part_seconds": 0} == {
        "x": 1,
        "failed": "timed out after 2 s",
        "output": "so far",
        "part_seconds": 0,
    }
    assert log_file(tmp_path, "close").read_text() == "so far\n"


@pytest.mark.parametrize(
    ("code", "failed"),
    [
        ("import os; print('last words', flush=True); os.abort()", r"killed by signal 6 \(SIGABRT\); last words"),
        ("import sys; sys.exit('ValueError: no')", "ValueError: no"),
    ],
)
def test_process_that_dies_gives_its_reason(tmp_path: Path, code: str, failed: str) -> None:
    found = run_in_process(part("close"), settings(tmp_path), 30.0, [sys.executable, "-c", code])
    assert re.fullmatch(failed, found["failed"])


def test_process_that_ends_well_leaves_no_process_behind(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    assert "failed" not in run_in_process(part("close"), settings(tmp_path), 30.0, [sys.executable, "-c", code])
    child = int(log_file(tmp_path, "close").read_text())
    for _ in range(200):  # the kernel ends it after the call has returned
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("a process of the part still runs")


def test_part_whose_library_is_missing_fails_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_here(Part("x", "", "no_such_module:run", 9), settings(tmp_path))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "failed: ModuleNotFoundError: No module named 'benchmarks.gpu.no_such_module'"


def test_case_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    found = Findings(tmp_path / "x.json")

    def fail() -> Figures:
        raise ValueError("no")

    with pytest.raises(CheckFailed, match=r"1 of 2 failed \(a\); a: ValueError: no"):
        found.add_cases({"a": fail, "b": lambda: {"ms": 1}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": {"failed": "ValueError: no"}, "b": {"ms": 1}}


def test_report_has_a_question_and_an_answer_for_each_part() -> None:
    figures = {
        "machine": {"answer": "an RTX 4090", "part_seconds": 1.5, "copies_gb_per_s": 1234.56},
        "cuda-lost": {"left_out": "no GPU"},
        "close": {"failed": "timed out | after 90 s", "output": "stack\n```", "close_s": [0.5], "part_seconds": 90.0},
    }
    measured = {"hardware": {"cores": 2}, "versions": {"torch": "2.11"}, "figures": figures, "layers": 4, "quick": True}
    text = markdown(PARTS, measured | {"not_run": ["refit"], "run_the_rest": "zimage-bench gpu-check --only refit"})
    assert "\n1 parts done, 1 failed, 1 left out, 1 not run or not finished.\n" in text
    assert "```sh\nzimage-bench gpu-check --only refit\n```\n\n- refit: how long does a LoRA take" in text
    assert f"| machine | {PARTS[0].question} | an RTX 4090 | 1.5 |" in text
    assert "Left out, because\n\n- no GPU: cuda-lost\n" in text and "| cuda-lost |" not in text
    assert "Tiny sizes" in text and "- layers: 4\n" in text
    assert "FAILED: timed out \\| after 90 s | 90.0 |" in text
    assert "copies_gb_per_s: 1235" in text
    assert "stack\n'''\n```" in text and "close_s: 0.5" in text


def test_longest_kernels_come_first_with_their_share() -> None:
    events = [
        SimpleNamespace(key="copy", count=1, self_device_time_total=250.0),
        SimpleNamespace(key="fmha_v2", count=4, self_device_time_total=750.0),
        SimpleNamespace(key="host only", count=9, self_device_time_total=0.0),
    ]
    rows = kernel_rows(events)
    assert list(rows) == ["fmha_v2", "copy"]
    assert rows["fmha_v2"] == {"calls": 4, "ms": 0.75, "share": 0.75}


def test_error_of_an_output_that_is_not_finite_is_infinite(tmp_path: Path) -> None:
    latents = np.ones((1, 16, 8, 8), np.float32)
    comparison_cases.save(
        settings(tmp_path), {"64, worst rows": comparison_cases.Case({"latents": latents}, 2 * latents)}
    )
    case = comparison_cases.load(settings(tmp_path))["64, worst rows"]
    assert case.side == 64
    assert case.velocity_error(2 * latents) == 0
    assert case.velocity_error(2.5 * latents) == pytest.approx(0.5)
    assert case.velocity_error(np.full_like(latents, np.nan)) == float("inf")


@pytest.mark.slow
def test_fused_attention_is_the_attention_of_the_graphs() -> None:
    import torch

    from benchmarks.gpu.model.fused_attention import attend, fused_attention
    from export.graphs import layers

    written = layers.attend
    query, key, value = torch.randn(3, 2, 40, 3, 32, generator=torch.Generator().manual_seed(0))
    for causal in (False, True):
        expected = written(query, key, value, torch.float32, causal=causal)
        with fused_attention():
            assert layers.attend is attend
            got = layers.attend(query, key, value, torch.float32, causal=causal)
        torch.testing.assert_close(got, expected)
    assert layers.attend is written


@pytest.mark.slow
def test_parts_of_the_model_run_on_a_cpu(plan_directory: Path, tmp_path: Path) -> None:
    """z-image-nano in place of the random weights, with the plans that other tests use."""
    (tmp_path / "random-6-layers").symlink_to(Z_IMAGE_NANO)
    Findings(figures_file(tmp_path, "build-fp16")).add(directory=str(plan_directory))
    for name in ("reference", "precision", "errors-fp16", "speed-fp16", "passes", "close"):
        run_here(part(name), settings(tmp_path, "fp16"))
    figures = {name: read_figures(tmp_path, name) for name in ("reference", "precision", "errors-fp16", "speed-fp16")}
    assert figures["reference"]["relative_l2"].keys() == {"128", "256", "128, worst rows", "256, worst rows"}
    assert max(figures["errors-fp16"]["relative_l2"].values()) < 1e-3  # FP32 plans
    precisions = figures["precision"]
    assert 1e-5 < precisions["fp16"]["128"] < precisions["bf16"]["128"] < 0.1
    assert figures["speed-fp16"]["step"].keys() == {"64", "128"}
    assert len(read_figures(tmp_path, "passes")["new_shape_ms"]) == 10
    assert len(read_figures(tmp_path, "close")["close_s"]) == 3


def test_self_test_part_passes_right_plans_and_names_the_fault_of_wrong_ones(
    plan_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = shutil.copytree(plan_directory, tmp_path / "wrong")
    plant(GRAPH_FAULTS["one head of one layer"], plan_directory, wrong)
    nano = Findings(figures_file(tmp_path, "nano"))
    nano.add(directory=str(plan_directory))
    run_here(part("self-test"), settings(tmp_path))
    figures = read_figures(tmp_path, "self-test")
    assert figures["faults"] == [] and figures["graphs"].keys() == read(plan_directory).graphs.keys()
    assert f"yes, {figures['outputs']} outputs" in figures["answer"] and "guidance" in figures["answer"]
    nano.add(directory=str(wrong))
    outputs = figures["outputs"]
    with pytest.raises(SystemExit):
        run_here(part("self-test"), settings(tmp_path))
    assert (
        f"6 of {outputs} outputs: this device computes the denoiser wrongly" in capsys.readouterr().err.splitlines()[-1]
    )
    assert len(read_figures(tmp_path, "self-test")["faults"]) == 6


@pytest.mark.slow
def test_command_writes_its_report_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["gpu-check", str(tmp_path), "--device", "cpu", "--quick", "--only", "products,cuda-calls"])
    *_, counts, rest, path, last = capsys.readouterr().out.splitlines()
    assert counts == f"2 parts done, 0 failed, 1 left out, {len(PARTS) - 3} not run or not finished"
    assert rest.startswith("run the rest with: zimage-bench gpu-check") and "--only weights,reference," in rest
    assert path == f"the report is {(tmp_path / 'report.md').resolve()}"
    figures = json.loads(last)["figures"]
    assert figures.keys() == {"machine", "cuda-calls", "products"}
    assert 1e-4 < figures["products"]["product of 256"]["fp16"] < 4e-4
    assert "| products |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "logs" / "products.log").is_file()


def part(name: str) -> Part:
    return next(part for part in PARTS if part.name == name)
