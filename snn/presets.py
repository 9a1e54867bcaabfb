"""Named settings of learning."""

from typing import Literal

from snn.settings import Learning

PresetName = Literal["cifar10", "imagenet"]

PRESETS: dict[PresetName, Learning] = {
    # The paper's: 3x3 kernels, 32, 40 and 56 maps, images of 32 pixels (ParallelSpikeSim's CIFAR-10 configuration).
    "cifar10": Learning(),
    # At 224 pixels those maps would cost 1.6 GMAC; the paper's Table 1 allows 0.03 to 0.04 (ours: 0.042, of which the
    # dropped stem of the main CNN pays back 0.011 in MobileNetV2).
    "imagenet": Learning(maps=(12, 12, 16), strides=(2, 1, 1)),
}
