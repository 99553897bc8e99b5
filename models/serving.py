"""Serving: a network that can be called with plain pixels."""

from torch import Tensor, nn


class FromPixels(nn.Module):
    """A network with its preprocessing.

    Images [N, channels, height, width] with pixels in [0, 1] become logits [N, classes]. If `crop`
    is not 0, the network gets the square of that side in the centre of the image.
    """

    def __init__(self, network: nn.Module, mean: float, std: float, crop: int = 0) -> None:
        super().__init__()
        self.network, self.mean, self.std, self.crop = network, mean, std, crop

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels to logits."""
        if self.crop:
            top, left = ((side - self.crop) // 2 for side in pixels.shape[-2:])
            pixels = pixels[..., top : top + self.crop, left : left + self.crop]
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits
