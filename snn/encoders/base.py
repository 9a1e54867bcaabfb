"""What an encoder is: uint8 images to spike trains, as a dense tensor and in the forms of engines.

An encoder of your own derives from :class:`Encoder`, gives :meth:`Encoder.dense`, and is registered by
``@register_encoder("name")``.
"""

from typing import TYPE_CHECKING

from snn.parameters import Encoding

if TYPE_CHECKING:
    from torch import Tensor

    from snn.engines.gpu.packed import PackedSpikes
    from snn.spikes import SpikeEvents


class Encoder:
    """Turns intensities into at most one spike a step; what it draws depends on each image's seed alone."""

    def dense(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "Tensor":
        """Spikes bool (T, B, C, H, W) of uint8 images (B, C, H, W), on their device; none in the quiet time at the end.

        ``seeds`` are those of the images, int64 (B,) (:func:`snn.runtime.random.draw_seeds`).
        """
        raise NotImplementedError

    def events(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "SpikeEvents":
        """The spikes of :meth:`dense` as events, on the CPU."""
        from snn.spikes import SpikeEvents

        return SpikeEvents.from_dense(self.dense(images, p, seeds))

    def packed(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "PackedSpikes":
        """The spikes of :meth:`dense` as bits, on the images' device."""
        from snn.engines.gpu.packed import PackedSpikes

        return PackedSpikes.from_dense(self.dense(images, p, seeds))
