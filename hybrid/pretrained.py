"""A pretrained start: a network takes what fits of weights that were trained before.

These are torchvision's weights of the backbone, trained on ImageNet, those of another file of PyTorch, or those of
another network of this project. A weight fits if its name and shape are those of the network. Names of a whole backbone
are mapped to those of one without its first blocks (:meth:`hybrid.backbones.Adapter.kept`), and back.
"""

import hashlib
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from hybrid.architecture import ModelSpec
from hybrid.backbones import BACKBONES, Adapter, full_backbone
from hybrid.network import Network
from hybrid.state_dict import PARALLEL, read_state, shape_text
from hybrid.storage import load_model
from snn.data import few
from snn.runtime.errors import UserError, check
from snn.runtime.h5 import BLOCK_TITLE, HDF5_SIGNATURE
from snn.runtime.pretrained import plain_name
from snn.runtime.processes import first_process

IMAGENET = "imagenet"
"""Stands for torchvision's weights of the backbone."""
HASH = 8
"""Digits of a file's SHA-256 that PyTorch puts at the end of the file's name."""
PATIENCE = 30.0
"""Seconds for which a server may be silent."""
MAIN = "main."
"""Start of the names of the main CNN in a network."""
NOWHERE = "nowhere."
COUNTER = "num_batches_tracked"
"""Of a batch normalisation: no weight."""


@dataclass(frozen=True)
class Weights:
    """Weights that a training can start from."""

    name: str
    """imagenet, or the name of the file."""
    backbone: str
    """Backbone whose names the state has."""
    state: Mapping[str, Tensor]
    """By name in the backbone as torchvision has it (``whole``), or in the network of a hybrid.h5; on the CPU."""
    spec: ModelSpec | None = None
    """Description of that network; None: the state is that of a whole backbone."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state.items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            # NumPy has no bfloat16.
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Taken:
    """What a network took of weights, by its own names; and what of them found no place, by theirs."""

    names: tuple[str, ...]
    """Tensors that were taken."""
    other_shape: tuple[str, ...]
    """Tensors that start anew as they have another shape there, with both shapes."""
    missing: tuple[str, ...]
    """Tensors that start anew as there are none of their names."""
    unused: tuple[str, ...]
    """Tensors of the weights that have no place in the network, such as those of a stem that was dropped."""

    def lines(self, source: str) -> list[str]:
        """What to print of it."""
        total = len(self.names) + len(self.other_shape) + len(self.missing)
        parts = {
            "start anew, of another shape there": self.other_shape,
            "start anew, not there": self.missing,
            "there, without a place in this network": self.unused,
        }
        lines = [f"weights {source}: {len(self.names)} of {total} tensors of this network start from them"]
        for what, names in parts.items():
            if names:
                # Of a module one tensor stands for all.
                first = {name.partition(" ")[0].rpartition(".")[0]: name for name in reversed(names)}
                shown = [name if " " in name else module or name for module, name in reversed(first.items())]
                lines.append(f"  {len(names)} {what}: {few(shown)}")
        return lines


def open_weights(source: str | Path, backbone: str) -> Weights:
    """The weights that ``source`` names, for networks on this backbone.

    Args:
        source: "imagenet"; a file with a state dict of the whole backbone, as ``torch.save(network.state_dict(),
            FILE)`` writes it; a hybrid.h5; or ``pretrained:NAME``, a trained network that ships with the package.
        backbone: of :data:`hybrid.backbones.BACKBONES`.

    Raises:
        UserError: there are none, or they cannot be read. Nothing in a file is executed.
    """
    adapter, text = BACKBONES[backbone], str(source)
    if text == IMAGENET:
        path = imagenet_file(backbone, adapter)
        return Weights(IMAGENET, backbone, _current(adapter, plain_state(path)))
    if text.startswith("pretrained:") or _is_hdf5(Path(source)):
        model = load_model(source)
        theirs = model.spec.architecture.backbone
        check(theirs == backbone, f"`weights` {source}: a network on {theirs}, this one is on {backbone}; give another")
        name = plain_name(source) if text.startswith("pretrained:") else Path(source).name
        return Weights(name, backbone, model.network.state_dict(), model.spec)
    return Weights(Path(source).name, backbone, _current(adapter, plain_state(Path(source))))


def _current(adapter: Adapter, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {adapter.current(name): value for name, value in state.items()}


def _is_hdf5(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(len(BLOCK_TITLE))
    return start.startswith(HDF5_SIGNATURE) or start == BLOCK_TITLE


def imagenet_file(backbone: str, adapter: Adapter) -> Path:
    """The file with torchvision's weights in PyTorch's cache (``TORCH_HOME``), which is loaded once.

    The digits of its hash that its name ends with are compared also where it lies there already: a damaged file, or
    another one of this name, is refused.
    """
    known = [name for name in BACKBONES if BACKBONES[name].imagenet]
    check(
        bool(adapter.imagenet),
        f"`weights` imagenet: there are none for {backbone}; leave it out, give a file of your own, or a `backbone` of "
        f"{', '.join(known)}",
    )
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(adapter.imagenet).path).name
    digits = path.stem.rpartition("-")[2]
    if not path.is_file():
        silent = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(adapter.imagenet, str(path), digits, progress=first_process())
        except Exception as error:
            # Networks fail in many ways.
            words = " ".join(str(error).split())[:100]
            raise UserError(
                f"`weights` imagenet: {path.name} cannot be loaded from the network ({words}); put that file, of "
                f"torchvision, into {path.parent}, or set TORCH_HOME to where checkpoints are in hub/checkpoints"
            ) from error
        finally:
            socket.setdefaulttimeout(silent)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:HASH]
    check(
        found == digits[:HASH],
        f"`weights` imagenet: {path} is damaged, or another file: its SHA-256 begins with {found}, not with "
        f"{digits[:HASH]}; remove it, or give it as the file of `weights`",
    )
    return path


def plain_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file's state dict, without what several GPUs put before their names.

    Raises :class:`UserError` for a missing or damaged file, or one that holds something else.
    """
    expected = ", or a hybrid.h5"
    state, _ = read_state(path, expected)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        # A value that stands for many, by a stride of 0, would take memory without bounds.
        check(
            dense and value.nbytes <= value.untyped_storage().nbytes(),
            f"`weights` {path}: {name[:100]} is not a plain tensor; expected plain ones{expected}",
        )
    return {name.removeprefix(PARALLEL): value.detach().resolve_conj().resolve_neg() for name, value in tensors.items()}


@torch.no_grad()
def start_from(network: Network, weights: Weights) -> Taken:
    """Give a network, in place, what fits of ``weights``.

    That is taken into the main CNN, the auxiliary CNN, and what joins them. Of a front end it is taken if all of its
    frozen values are equal, or if it is trainable itself. The normalisation of images stays that of the training data.
    Raises :class:`UserError` if no kernel fits, or for values that are not finite.
    """
    spec = network.spec
    assert isinstance(spec, ModelSpec)
    own = network.state_dict()
    offered = _offered(spec, weights)
    wanted = [name for name in _wanted(network) if not name.endswith(COUNTER)]
    if isinstance(getattr(network, "frontend", None), SpikingFrontEnd):
        frozen = [name for name in own if name.startswith("frontend.") and name not in wanted and COUNTER not in name]
        same = all(name in offered and torch.equal(offered[name], own[name]) for name in frozen)
        wanted = [name for name in wanted if same or not name.startswith("frontend.")]
    fitting = [name for name in wanted if name in offered and offered[name].shape == own[name].shape]
    check(
        any(own[name].ndim >= 2 for name in fitting),
        f"`weights` {weights.name}: no kernel fits {spec.architecture.backbone} of `width` {spec.architecture.width:g} "
        f"by name and shape ({few(list(weights.state)) or 'it is empty'}); give weights of this backbone and width",
    )
    for name in fitting:
        value = offered[name].to(own[name].dtype)
        bad = not bool(value.isfinite().all()) or (name.endswith("running_var") and bool((value < 0).any()))
        check(not bad, f"`weights` {weights.name}: {name} has values that are no weights; give another file")
        own[name].copy_(value)
    return Taken(
        names=tuple(fitting),
        other_shape=tuple(
            f"{name} ({shape_text(own[name])}, there {shape_text(offered[name])})"
            for name in wanted
            if name in offered and name not in set(fitting)
        ),
        missing=tuple(name for name in wanted if name not in offered),
        unused=tuple(_without_place(offered, own)),
    )


def _wanted(network: Network) -> Iterable[str]:
    """Names of all that training changes: trainable parameters, and statistics outside the front end."""
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = ("frontend.", "normalise.", "preprocess.")
    if hasattr(network, "frontend") and not isinstance(network.frontend, SpikingFrontEnd):
        frozen = ("frontend.retina.", *frozen[1:])
    return [name for name in network.state_dict() if name in trainable or not name.startswith(frozen)]


def _without_place(offered: Iterable[str], own: Mapping[str, Tensor]) -> list[str]:
    """Names of what is offered and the network has not, apart from what every network keeps by itself."""
    ours = ("normalise.", "frontend.")
    left = [name for name in offered if name not in own and not name.startswith(ours) and COUNTER not in name]
    return [name.removeprefix(NOWHERE).removeprefix(MAIN) for name in left]


def _offered(spec: ModelSpec, weights: Weights) -> dict[str, Tensor]:
    """Weights by the name that each would have in a network of ``spec``.

    Those that have no place there keep their names, which start with :data:`NOWHERE`.
    """
    adapter = BACKBONES[weights.backbone]
    state = weights.state if weights.spec else {MAIN + name: value for name, value in weights.state.items()}
    theirs, ours = _dropped_blocks(weights.spec), _dropped_blocks(spec)
    if theirs == ours:
        return dict(state)
    check(
        type(adapter).kept is not Adapter.kept,
        f"`weights` {weights.name}: backbone {weights.backbone} does not say which of its weights are left without its "
        "first blocks: give its adapter the method `kept`",
    )

    def place(dropped_blocks: int | None) -> Callable[[str], str | None]:
        return str if dropped_blocks is None else adapter.dropping(dropped_blocks).kept

    # Names of a whole backbone tell those of one that is taken apart.
    there, here = place(theirs), place(ours)
    pairs = [(there(name), here(name)) for name in _names_of_whole(spec)]
    names = {one: other for one, other in pairs if one and other}
    return {
        MAIN + names[inner] if (inner := name.removeprefix(MAIN)) in names
        else NOWHERE + name if name.startswith(MAIN)
        else name: value
        for name, value in state.items()
    }  # fmt: skip


def _dropped_blocks(spec: ModelSpec | None) -> int | None:
    """Blocks that a network's backbone lacks after its stem; None: it is whole."""
    return spec.architecture.dropped_blocks if spec and spec.frontend else None


def _names_of_whole(spec: ModelSpec) -> list[str]:
    """Names in the state of the whole backbone that a network was taken from."""
    a, (channels, height, _) = spec.architecture, spec.input_shape
    with torch.device("meta"):
        whole = full_backbone(a.backbone, channels, len(spec.classes), height, a.width, a.embedding)
    return list(whole.state_dict())
