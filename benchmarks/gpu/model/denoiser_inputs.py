"""Inputs of the denoiser on which precisions are compared: usual ones, and those along the worst rows of V.

Along the worst rows, every token of the first layer has its value vector in the direction of the longest row of the
value matrix. Sums over thousands of tokens then have one sign, so that a kernel that adds them up in FP16 shows.
"""

from benchmarks.gpu.findings import Settings
from benchmarks.gpu.model.checked_model import PROMPT_TOKENS
from export.checkpoint.files import Checkpoint
from export.checkpoint.weights import load_finite
from export.compile.parity import Arrays, sample_inputs
from export.graphs.denoiser import PATCH, unpatchify

MOST_TOKENS = 512


def cases(settings: Settings) -> dict[str, tuple[int, int, bool]]:
    """Return side in pixels, prompt tokens, and True for worst rows, by the name of the inputs."""
    sides = (128, 256) if settings.quick else (1024, 2048)
    usual = {f"{side}": (side, PROMPT_TOKENS, False) for side in sides}
    return usual | {f"{side}, worst rows": (side, MOST_TOKENS, True) for side in sides}


def inputs(checkpoint: Checkpoint, side: int, tokens: int, worst: bool) -> Arrays:
    """Return inputs of one image; equal arguments give equal arrays."""
    config, latents = checkpoint.transformer.config, side // 8
    found = sample_inputs("denoiser", config, height=latents, width=latents, tokens=tokens, batch=1)
    return found | _worst_rows(checkpoint, found) if worst else found


def _worst_rows(checkpoint: Checkpoint, usual: Arrays) -> Arrays:
    weights, config = checkpoint.transformer.weights, checkpoint.transformer.config
    values = load_finite(weights["layers.0.attention.to_v.weight"])
    norm = load_finite(weights["layers.0.attention_norm1.weight"])
    rows = values * norm
    direction = rows[rows.norm(dim=1).argmax()]
    embedder = load_finite(weights[f"all_x_embedder.{PATCH}.weight"])  # [D, 64]
    patch = embedder.T @ direction
    patch = 4 * patch / patch.square().mean().sqrt()  # large enough to outweigh the bias
    batch, channels, height, width = usual["latents"].shape
    tokens = patch.expand(batch, height // 2 * (width // 2), -1)
    prompt = direction / direction.square().mean().sqrt()
    return {
        "latents": unpatchify(tokens, channels, height, width).contiguous().numpy(),
        "prompt_embeds": prompt.expand(*usual["prompt_embeds"].shape[:2], config["dim"]).contiguous().numpy(),
    }
