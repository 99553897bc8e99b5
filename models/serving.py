"""Serving: the network as others want to call it, from pixels to logits."""

from torch import Tensor, nn


class FromPixels(nn.Module):
    """A network that prepares its input itself.

    Images [N, channels, height, width] with pixels in [0, 1] become logits [N, classes]; of images
    larger than `crop` the network sees the square of that side in the middle (0: all of it).
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
