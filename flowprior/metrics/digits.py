"""A small classifier of digits, whose features tell how much sets of digits differ."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.argument_types import check_types
from flowprior.parameters import load_parameters

SIDE = 28
FEATURES = 64


class DigitClassifier(nn.Module):
    """Classifier of MNIST's digits: three convolutions, then 64 features, then 10 classes.

    Images are (B, 1, H, W) in [0, 1], H = W = 28, or larger with a border around the 28×28 pixels
    of the digit, which is cut off. Values beyond [0, 1] are clamped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, 16, 3, padding=1)
        self.middle = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.gather = nn.Linear(64 * (SIDE // 4) ** 2, FEATURES)
        self.decide = nn.Linear(FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        """What the last layer decides by, (B, 64), at least 0.

        Raises:
            ValueError: the images have another shape.
        """
        channels, height, width = images.shape[1:]
        border = (height - SIDE) // 2
        if channels != 1 or height != width or height != SIDE + 2 * border or border < 0:
            raise ValueError(
                f"digits must be (B, 1, H, W), H = W = {SIDE} or more by an even number, got "
                f"{tuple(images.shape)}"
            )
        x = images[..., border : border + SIDE, border : border + SIDE].clamp(0, 1)
        for layer in (self.fine, self.middle, self.coarse):
            x = F.relu(layer(x))
        return F.relu(self.gather(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 10) of the digits 0 to 9."""
        return self.decide(self.features(images))


def load_classifier(weights: str | Path) -> DigitClassifier:
    """The classifier with the parameters of a safetensors file, frozen.

    Raises:
        ValueError: the file is missing, damaged or of another network.
    """
    check_types(load_classifier, locals())
    return load_parameters(DigitClassifier(), weights).eval().requires_grad_(False)
