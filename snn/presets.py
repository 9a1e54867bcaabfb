"""Named settings of learning."""

from typing import Literal

from snn.settings import Learning

PresetName = Literal["cifar10", "imagenet"]

PRESETS: dict[PresetName, Learning] = {
    # The paper's: 3x3 kernels, 32, 40 and 56 maps, images of 32 pixels (ParallelSpikeSim's CIFAR-10 configuration).
    "cifar10": Learning(),
    # At 224 pixels those maps would cost 1.63 GMAC, these cost 0.051. Their total stride of 4 is that of the dropped
    # stems of ResNet and DenseNet, and of MobileNetV2 behind its first kept block. What is dropped pays back: SAFE
    # costs 0.03 GMAC more than MobileNetV2, and 0.30 and 0.33 less than ResNet-101 and DenseNet-121 (paper's Table 1:
    # 0.03 to 0.04 more). Ours; python -m hybrid.complexity counts.
    "imagenet": Learning(maps=(20, 28, 36), strides=(2, 2, 1)),
}
