"""Named settings of learning."""

from typing import Literal

from snn.settings import Learning

PresetName = Literal["cifar10", "imagenet"]

PRESETS: dict[PresetName, Learning] = {
    # The paper's: 3x3 kernels, 32, 40 and 56 maps, images of 32 pixels (ParallelSpikeSim's CIFAR-10 configuration).
    "cifar10": Learning(),
    # At 224 pixels those maps would cost 1.6 GMAC; the paper's Table 1 allows 0.03 to 0.04. A total stride of 4 is that
    # of the stems of ResNet and DenseNet, and of MobileNetV2 behind its first kept block (ours; costs:
    # python -m hybrid.complexity).
    "imagenet": Learning(maps=(20, 28, 36), strides=(2, 2, 1)),
}
