"""The part `machine`: GPU, driver, libraries, the flavor of TensorRT that runs here, and the rates of the GPU."""

import importlib
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from benchmarks.gpu.findings import Figures, Findings, Settings, describe
from benchmarks.gpu.model.checked_model import LAYERS, PROMPT_TOKENS, sizes, timed_sides

PACKAGES = (
    *("torch", "triton", "tensorrt", "tensorrt-rtx", "cuda-bindings", "nvidia-cuda-nvrtc", "cupy-cuda13x", "numpy"),
    *("diffsynth", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "polygraphy", "msgspec", "isal"),
)
COMPONENTS = ("transformer", "text_encoder", "vae")
# TensorRT-RTX's support matrices and its enum ComputeCapability have neither 9.0 nor 10.0.
RTX_LACKS = ("9.0", "10.0", "10.3")


def machine(settings: Settings, found: Findings) -> None:
    """Say what there is, then measure. Nothing that is missing is an error."""
    found.add(packages={name: _version(name) for name in PACKAGES}, c_compiler=shutil.which("cc") or "none")
    found.add(nvidia_smi=_nvidia_smi())
    gpu = _gpu()
    found.add(**gpu)
    on_gpu = settings.device == "cuda" and "gpu" in gpu
    found.add(**(_flavor(str(gpu["compute_capability"])) if on_gpu else {"flavor": "onnx"}))
    found.answer(
        f"{gpu['gpu']}, compute capability {gpu.get('compute_capability', 'unknown')}" if "gpu" in gpu else "no GPU"
    )
    rates = _rates(on_gpu)
    found.add(**rates)
    found.add(roofline_ms={str(side): _roofline_ms(settings, side, rates) for side in timed_sides(settings)})
    if on_gpu:
        found.answer(
            f"{gpu['gpu']} ({gpu['compute_capability']}), flavor {found.figures['flavor'] or 'none'}; "
            + ", ".join(f"{name} {value:.4g}" for name, value in rates.items() if isinstance(value, float))
        )


def _gpu() -> Figures:
    """Return name, compute capability and memory by CUDA and, if it fails, why."""
    found: Figures = {}
    try:
        from engine.backends.cuda import CudaRuntime

        cuda = CudaRuntime()
        free, total = cuda.memory_info()
        found |= {"gpu": cuda.name(), "compute_capability": cuda.compute_capability()}
        found |= {"free_gb": free / 1e9, "total_gb": total / 1e9}
    except Exception as error:  # noqa: BLE001  any failure is the finding
        found["no_cuda_runtime"] = describe(error)
    try:
        import torch

        found["torch_cuda"] = f"built for {torch.version.cuda}, sees a GPU: {torch.cuda.is_available()}"
        if "gpu" not in found and torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
            found["compute_capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
    except Exception as error:  # noqa: BLE001
        found["torch_cuda"] = describe(error)
    if "gpu" not in found:
        found["no_gpu"] = f"{found['no_cuda_runtime']}; torch {found['torch_cuda']}"
    return found


def _flavor(capability: str) -> Figures:
    """Return the flavor that can run on this GPU, None with reasons if there is none."""
    reasons = []
    for flavor, package in (("tensorrt", "tensorrt"), ("rtx", "tensorrt_rtx")):
        try:
            module = importlib.import_module(package)
        except Exception as error:  # noqa: BLE001  a library of it may be missing
            reasons.append(f"{package}: {describe(error)}")
            continue
        if not hasattr(module, "Builder"):
            reasons.append(f"{package} is a stub without libraries")
        elif flavor == "rtx" and capability in RTX_LACKS:
            reasons.append(f"{package} does not support compute capability {capability}; it needs tensorrt")
        else:
            return {"flavor": flavor, "flavor_version": module.__version__}
    return {"flavor": None, "no_flavor": "; ".join(reasons)}


def _rates(on_gpu: bool) -> Figures:
    """Measure matrix products and copies. FP16 also with accumulation in FP16, where torch offers it."""
    found: Figures = {}
    try:
        import torch

        from benchmarks.gpu.model.accumulation import fp16_accumulation
        from benchmarks.harness import roofline
        from benchmarks.harness.device import Device

        device = Device("cuda" if on_gpu else "cpu")
        for name, dtype in (
            (("bf16", torch.bfloat16), ("fp16", torch.float16)) if on_gpu else (("fp32", torch.float32),)
        ):
            rates = roofline.measure(device, dtype)
            found |= {f"{name}_tflops": rates.flops / 1e12, "copies_gb_per_s": rates.bandwidth / 1e9}
        if on_gpu:
            with fp16_accumulation():
                found["fp16_accumulate_fp16_tflops"] = roofline.measure(device, torch.float16).flops / 1e12
    except Exception as error:  # noqa: BLE001
        found["rates_failed"] = describe(error)
    return found


def _roofline_ms(settings: Settings, side: int, measured: Figures) -> Figures:
    """Return the least milliseconds of a step at the measured rates: of the checked layers, and of the whole model."""
    found: Figures = {}
    try:
        from benchmarks.harness.arithmetic import Arithmetic, Rates
        from engine.plan.manifest import padded
        from nano.layout import configs

        files = configs(sizes(settings))
        work = Arithmetic.of({name: files[f"{name}/config.json"] for name in COMPONENTS}).step(
            side, side, padded(PROMPT_TOKENS)
        )
        for name in (name.removesuffix("_tflops") for name in measured if name.endswith("_tflops")):
            rate, bandwidth = measured[f"{name}_tflops"] * 1e12, measured["copies_gb_per_s"] * 1e9
            floor = 1e3 * Rates(rate, bandwidth, 4 if name == "fp32" else 2).floor(work)
            found |= {name: floor, f"{name}, {LAYERS} layers": floor * LAYERS / settings.layers}
    except Exception as error:  # noqa: BLE001
        found["failed"] = describe(error)
    return found


def _nvidia_smi() -> str:
    query = "--query-gpu=name,driver_version,memory.used,memory.total,clocks.sm,clocks.max.sm,power.limit,compute_mode"
    try:
        answer = subprocess.run(["nvidia-smi", query, "--format=csv"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return describe(error)
    return (answer.stdout or answer.stderr).strip().replace("\n", " | ")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
