"""The U-Net inside the couplings of TRUMPET."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """A U-Net of two halvings with skip connections; its last convolution starts from zero.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W), H and W at least 1. The zero start makes
    every coupling the identity before training.

    Reference: Kothari et al., "Trumpets: Injective flows for inference and inverse problems"
    (2021), section 3 (32 and 64 channels).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        widths: channels at full resolution, and below it.
        convolutions: 3×3 convolutions at each resolution, down and up; the paper has 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: tuple[int, int] = (32, 64),
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        wide, deep = widths
        self.enter = nn.Conv2d(in_channels, wide, 3, padding=1)
        self.down1 = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(deep, deep, 3, stride=2, padding=1)
        self.up1 = nn.Conv2d(2 * deep, deep, 3, padding=1)
        self.up2 = nn.Conv2d(deep + wide, wide, 3, padding=1)
        self.leave = nn.Conv2d(wide, out_channels, 3, padding=1)
        if convolutions > 1:
            self.more = nn.ModuleList(
                nn.Sequential(*(_same(channels) for _ in range(convolutions - 1)))
                for channels in (wide, deep, deep, deep, wide)
            )
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net to x (B, in_channels, H, W)."""
        fine = self._stage(0, self.enter(x))
        middle = self._stage(1, self.down1(fine))
        coarse = self._stage(2, self.down2(middle))
        middle = self._stage(3, self.up1(_beside(coarse, middle)))
        return self.leave(self._stage(4, self.up2(_beside(middle, fine))))

    def _stage(self, number: int, x: Tensor) -> Tensor:
        """What follows the first convolution of a stage."""
        x = F.relu(x)
        return self.more[number](x) if hasattr(self, "more") else x


def _same(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())


def _beside(small: Tensor, large: Tensor) -> Tensor:
    """The channels of both at the resolution of the larger one."""
    height, width = large.shape[2:]
    repeated = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.cat([repeated[:, :, :height, :width], large], 1)
