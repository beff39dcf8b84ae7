"""How pictures are scaled to a detector's input size; every library's detectors begin with it.

Imports torch and torchvision.
"""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from smnas.detectors.components import IMAGE_DEVIATION, IMAGE_MEAN, parse_input_size


class Transform(GeneralizedRCNNTransform):
    """torchvision's, but a picture that fits already is not interpolated onto itself.

    Args:
        input_size: WIDTHxHEIGHT.

    Raises:
        SpaceError: the input size is malformed.
    """

    def __init__(self, input_size: str) -> None:
        size = parse_input_size(input_size)
        super().__init__(min(size), max(size), IMAGE_MEAN, IMAGE_DEVIATION)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """A picture `3 x height x width` scaled to fit, and its target's `boxes` with it."""
        shorter, longer = sorted(image.shape[-2:])
        if min(self.min_size[-1] / shorter, self.max_size / longer) == 1:
            return image, target
        return super().resize(image, target)
