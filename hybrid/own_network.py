"""Networks of a user's own program, for evaluation beside those of this project.

Such a network is written ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``. The function takes no arguments and returns a
``torch.nn.Module``, which maps images, float32 (B, C, H, W) in [0, 1], to logits (B, classes). To import the file or
module is to run it. A file of weights runs nothing.
"""

import hashlib
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybrid.state_dict import PARALLEL, read_state, shape_text
from snn.data import few
from snn.runtime.errors import check
from snn.runtime.pretrained import PREFIX
from snn.runtime.ranges import SEED, check_value
from snn.runtime.registry import blamed, import_program

FORM = re.compile(r"(?P<program>.+):(?P<function>[^\W\d]\w*)")


class OwnReference(NamedTuple):
    """A network of a user's own, as it is written."""

    text: str
    """FILE.py:FUNCTION or MODULE:FUNCTION."""
    weights: Path | None = None
    """File with its state dict; None: as the function returns it."""
    argument: str = "reference"
    """Whose value this is, for messages."""

    @property
    def program(self) -> str:
        """FILE.py or MODULE."""
        return self.text.rpartition(":")[0]

    @property
    def function(self) -> str:
        """FUNCTION."""
        return self.text.rpartition(":")[2]

    @property
    def files(self) -> list[Path]:
        """Files that it is read from, as far as they are named."""
        return [
            *([Path(self.program)] if self.program.endswith(".py") else []),
            *([self.weights] if self.weights else []),
        ]

    @property
    def key(self) -> tuple[str, Path | None]:
        """The same for all spellings of one network."""
        program = str(Path(self.program).resolve()) if self.program.endswith(".py") else self.program
        return f"{program}:{self.function}", self.weights and self.weights.resolve()


def is_own(text: str | Path) -> bool:
    """Whether ``text`` is of the form PROGRAM:FUNCTION, and not the name of a file or of a network that ships."""
    return bool(FORM.fullmatch(str(text))) and not str(text).startswith(PREFIX) and not Path(text).exists()


class OwnNetwork(nn.Module):
    """A user's network; what goes wrong in it is a :class:`UserError` that names it."""

    def __init__(self, network: nn.Module, reference: OwnReference, digest: str) -> None:
        super().__init__()
        self.network = network
        self.reference = reference
        self.digest = digest
        """SHA-256 of the file of weights ("": none)."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes), float32 or float64, of images (B, C, H, W) in [0, 1]."""
        # Networks with a view of their features, as many tutorials write it, need channels before height in memory.
        images = images.contiguous()
        name, shape = self.reference.text, tuple(images.shape)
        with blamed(self.reference.program, f"model {name} fails on images of shape {shape}"):
            answer = self.network(images)
        found = f"{answer.dtype} {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        check(
            isinstance(answer, Tensor)
            and answer.ndim == 2
            and len(answer) == len(images)
            and answer.shape[1] >= 1
            and answer.is_floating_point(),
            f"model {name} returns {found} for images of shape {shape}; expected logits, floating-point ({shape[0]}, "
            "classes)",
        )
        check(
            answer.requires_grad or not images.requires_grad,
            f"model {name} has no gradient for images: give another `attack_model`, or compute its logits without "
            "torch.no_grad and detach",
        )
        return answer.float() if answer.itemsize < 4 else answer


def own_network(reference: str | OwnReference, weights: str | Path | None = None, *, seed: int = 0) -> OwnNetwork:
    """A network of a user's own program, in evaluation mode on the CPU.

    Args:
        reference: FILE.py:FUNCTION or MODULE:FUNCTION. The program is imported, and so runs; the folder of a file is
            added to those from which Python imports.
        weights: file with the network's state dict, read with PyTorch's ``weights_only``; None: as the function
            returns it.
        seed: of PyTorch's generator while the function runs, so that weights that it draws are the same again.

    Raises:
        UserError: no such program or function, a function that fails or returns something else, or weights that are no
            state dict of this network.
    """
    if not isinstance(reference, OwnReference):
        check(is_own(reference), f"network {reference}: expected FILE.py:FUNCTION or MODULE:FUNCTION")
        reference = OwnReference(str(reference), Path(weights) if weights is not None else None)
    check_value("seed", seed, int, SEED)
    text, program = reference.text, reference.program
    # Said before a program runs.
    check(
        reference.weights is None or reference.weights.is_file(),
        f"`weights` {reference.weights}: there is no such file; give a state dict",
    )
    if program.endswith(".py") and (folder := str(Path(program).resolve().parent)) not in sys.path:
        # Last: its neighbours take the place of no other module.
        sys.path.append(folder)
    module = import_program(program, reference.argument)
    function: Any = getattr(module, reference.function, None)
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    check(
        callable(function),
        f"`{reference.argument}` {text}: {program} has no function {reference.function}; it has {few(names) or 'none'}",
    )
    with torch.random.fork_rng(devices=[]), blamed(program, f"`{reference.argument}` {text}"):
        torch.manual_seed(seed)
        network = function()
    check(
        isinstance(network, nn.Module),
        f"`{reference.argument}` {text}: it returns a {type(network).__name__}; expected a torch.nn.Module that takes "
        "images (B, C, H, W) in [0, 1] and returns logits",
    )
    digest = ""
    if reference.weights is not None:
        state, content = read_state(reference.weights)
        digest = hashlib.sha256(content).hexdigest()
        _load_state(network, state, reference)
    with blamed(program, f"`{reference.argument}` {text}"):
        return OwnNetwork(network.cpu().eval(), reference, digest)


def _load_state(network: nn.Module, state: dict[str, Any], reference: OwnReference) -> None:
    """Give a network its weights; :class:`UserError` says what does not fit."""
    path = reference.weights
    with blamed(reference.program, f"`weights` {path}: {reference.text} does not take it"):
        own = network.state_dict()
        if all(name.startswith(PARALLEL) for name in state) and not any(name.startswith(PARALLEL) for name in own):
            state = {name.removeprefix(PARALLEL): value for name, value in state.items()}
        shapes = [
            f"{name} ({shape_text(state[name])}, the network has {shape_text(value)})"
            for name, value in own.items()
            if name in state and shape_text(state[name]) != shape_text(value)
        ]
        problems = {
            "missing": [name for name in own if name not in state],
            "unexpected": [name for name in state if name not in own],
            "of another shape": shapes,
        }
        told = "; ".join(f"{len(names)} {what}: {few(names)}" for what, names in problems.items() if names)
        check(
            not told,
            f"`weights` {path} is no state dict of {reference.text}: {told}; give the file that was saved from this "
            "network",
        )
        network.load_state_dict(state)
