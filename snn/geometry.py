"""The geometry of a convolution over an image."""

from typing import NamedTuple

from snn.parameters import LayerParameters


class ConvGeometry(NamedTuple):
    """Sizes of a convolution with its input and output, in pixels and channels; compiled code takes it as it is."""

    height: int
    width: int
    channels_in: int
    kernel_size: int
    stride: int
    padding: int
    height_out: int
    width_out: int
    channels_out: int

    @classmethod
    def of(cls, p: LayerParameters, shape: tuple[int, int, int]) -> "ConvGeometry":
        """The convolution of a layer over an input of ``shape`` (C_in, H, W)."""
        channels, height, width = shape
        height_out, width_out = ((n + 2 * p.padding - p.kernel_size) // p.stride + 1 for n in (height, width))
        return cls(height, width, channels, p.kernel_size, p.stride, p.padding, height_out, width_out, p.maps)

    @property
    def places_out(self) -> int:
        """Places (x, y) of the output, each with a neuron of every channel."""
        return self.height_out * self.width_out

    @property
    def shape_out(self) -> tuple[int, int, int]:
        """(C_out, H_out, W_out)."""
        return self.channels_out, self.height_out, self.width_out
