"""Serving: the network as others want to call it, from pixels to logits."""

from torch import Tensor, nn


class FromPixels(nn.Module):
    """A network that standardises its input itself.

    Images [N, channels, height, width] with pixels in [0, 1] become logits [N, classes].
    """

    def __init__(self, network: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, mean, std

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to logits."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits
