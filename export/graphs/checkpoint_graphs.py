"""The graphs of a checkpoint, each at its precision."""

from collections.abc import Mapping

from engine.plan.manifest import Accumulation, GraphName, Precision
from export.checkpoint import models
from export.checkpoint.files import Checkpoint
from export.graphs.blend import Blend
from export.graphs.denoiser import Denoiser
from export.graphs.graph_module import GraphModule
from export.graphs.guidance import Guidance
from export.graphs.prompt_encoder import PromptEncoder
from export.graphs.vae_decoder import VaeDecoder
from export.graphs.vae_encoder import VaeEncoder


def make_graphs(
    checkpoint: Checkpoint, precisions: Mapping[GraphName, Precision], accumulation: Accumulation = "fp32"
) -> dict[GraphName, GraphModule]:
    """Make all graphs. Each has its own modules, since precisions differ and meta tensors use no memory.

    Args:
        precisions: precision of each graph with weights. Without the VAE encoder's there are no graphs for images as
            inputs.
        accumulation: format in which the denoiser sums products of FP16. The prompt encoder sums in FP32: it runs once
            per image, not once per step, and gains nothing from a faster format.

    Raises:
        CheckpointError: the models' sizes do not match each other, or a config is not supported.
    """
    transformer, text_encoder = checkpoint.transformer, checkpoint.text_encoder
    models.require_match(transformer, text_encoder, checkpoint.vae)
    channels = transformer.config["in_channels"]
    graphs: dict[GraphName, GraphModule] = {
        "prompt_encoder": make_prompt_encoder(checkpoint, precisions["prompt_encoder"]),
        "denoiser": Denoiser(models.transformer(transformer), precisions["denoiser"], accumulation=accumulation),
        "guidance": Guidance(channels),
        "vae_decoder": VaeDecoder(models.vae_decoder(checkpoint.vae), precisions["vae_decoder"]),
    }
    if "vae_encoder" in precisions:
        encoder = models.vae_encoder(checkpoint.vae)
        assert encoder is not None, "a VAE without an encoder gets no precision for it"
        graphs |= {"vae_encoder": VaeEncoder(encoder, precisions["vae_encoder"]), "blend": Blend(channels)}
    return graphs


def make_prompt_encoder(checkpoint: Checkpoint, precision: Precision) -> PromptEncoder:
    text_encoder, transformer = models.text_encoder(checkpoint.text_encoder), models.transformer(checkpoint.transformer)
    return PromptEncoder(text_encoder, transformer, precision)
