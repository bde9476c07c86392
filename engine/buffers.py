"""Every array that a picture needs, allocated once and sized for the largest profile."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from engine.manifest import Manifest, Profile, padded
from engine.rope import head_frequencies

Array = np.ndarray[Any, Any]


class Buffers:
    """Flat allocations by tensor name; `view` is a window of one in the shape of the moment.

    Two `latents` buffers take turns as input and output of the denoiser.
    """

    def __init__(self, manifest: Manifest) -> None:
        capacities = [_capacities(manifest, profile) for profile in manifest.profiles]
        self._flat = {
            name: np.zeros(max(c[name][0] for c in capacities), dtype) for name, (_, dtype) in capacities[0].items()
        }
        self.view = lru_cache(maxsize=256)(self._view)  # the same array object again: engines rebind only new ones

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._flat.values())

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        return self._flat[name][: int(np.prod(shape))].reshape(shape)


def _capacities(manifest: Manifest, profile: Profile) -> Mapping[str, tuple[int, type[np.generic]]]:
    """Elements and dtype of each tensor at the profile's largest shape."""
    model, batch, caption = manifest.model, profile.batch.max, profile.caption.max
    pixels = profile.height.max * profile.width.max
    tokens = padded(pixels // model.size_multiple**2) + caption
    latents = batch * model.latent_channels * pixels // model.vae_scale**2
    rope = tokens * head_frequencies(model.rope)
    return {
        "input_ids": (batch * caption, np.int64),
        "lengths": (batch, np.int64),
        "caption": (batch * caption * model.caption_dim, np.float32),
        "rope_cos": (rope, np.float32),
        "rope_sin": (rope, np.float32),
        "sigma": (batch, np.float32),
        "sigma_next": (batch, np.float32),
        "latents_0": (latents, np.float32),
        "latents_1": (latents, np.float32),
        "image": (batch * pixels * 3, np.float32),
    }
