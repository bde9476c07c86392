"""Costs of GPUs that are paid by the hour. Knows no currency."""

from dataclasses import dataclass
from typing import Self

HOUR = 3600.0  # seconds
THOUSAND = 1000


@dataclass(frozen=True, slots=True)
class FleetCosts:
    """Costs of a fleet of one kind of GPU.

    Attributes:
        gpu_hours: hours that GPUs were paid for.
        images: right images that were drawn in this time.
        price: of one GPU for an hour; None if it is not known.
        watts: power limit of a GPU's board; None if it is not known.
    """

    gpu_hours: float
    images: float
    price: float | None = None
    watts: float | None = None

    @classmethod
    def steady(cls, gpus: int, images_per_second: float, price: float | None, watts: float | None) -> Self:
        """Return the costs of an hour of constant load."""
        return cls(gpus, images_per_second * HOUR, price, watts)

    @property
    def total(self) -> float | None:
        """Price of all GPU hours; None without a price."""
        return None if self.price is None else self.price * self.gpu_hours

    @property
    def per_thousand_images(self) -> float | None:
        """Price of 1,000 images; None without a price or an image."""
        return None if self.price is None or not self.images else self._each_thousand(self.price)

    @property
    def kilowatt_hours_per_thousand_images(self) -> float | None:
        """Energy of 1,000 images at most, all GPUs at their power limit all the time; None if it is not known."""
        return None if self.watts is None or not self.images else self._each_thousand(self.watts / 1e3)

    def _each_thousand(self, per_gpu_hour: float) -> float:
        return per_gpu_hour * self.gpu_hours / self.images * THOUSAND
