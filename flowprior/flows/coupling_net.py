"""The network inside a coupling."""

import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.flows.channels_last import channels_last, relu_of_1x1


class CouplingNet(nn.Module):
    """conv 3×3 → ReLU → conv 1×1 → ReLU → conv 3×3 with zero initial weights.

    Maps (B, in_channels, H, W) to (B, out_channels, H, W). The zero start makes every coupling the
    identity before training. `side` is 3, or 1 for single pixels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int, side: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden_channels, side, padding=side // 2)
        self.conv2 = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.conv3 = nn.Conv2d(hidden_channels, out_channels, side, padding=side // 2)
        nn.init.zeros_(self.conv3.weight)
        nn.init.zeros_(self.conv3.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the net to x (B, in_channels, H, W)."""
        h = F.relu(self.conv1(channels_last(x)), inplace=True)
        return self.conv3(relu_of_1x1(self.conv2, h)).contiguous()
