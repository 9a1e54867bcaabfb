"""Main CNNs by name; :func:`register_backbone` adds one, also from a user's own file (``--plugin``)."""

from hybrid.backbones.base import BACKBONES as BACKBONES
from hybrid.backbones.base import PAPER_BACKBONES as PAPER_BACKBONES
from hybrid.backbones.base import Adapter as Adapter
from hybrid.backbones.base import check_backbone as check_backbone
from hybrid.backbones.base import full_backbone as full_backbone
from hybrid.backbones.base import initialise_convolutions as initialise_convolutions
from hybrid.backbones.base import last_linear as last_linear
from hybrid.backbones.base import main_cnn as main_cnn
from hybrid.backbones.base import register_backbone as register_backbone
from hybrid.backbones.base import renumbered as renumbered
