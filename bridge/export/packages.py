"""Packages of the extra ``export``, and what is said where one is missing."""

import importlib

from snn.runtime.errors import UserError

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "nir": ("nir", "nirtorch")}
"""Packages that each format needs; others need none."""


def check_packages(format: str) -> None:
    """Raise :class:`UserError`, which says how to install them, if a package that ``format`` needs is missing."""
    for package in NEEDS.get(format, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"`format` {format} needs the package {package}, which is not installed; install them all with: "
                "pip install 'safe-dnn[export]'"
            ) from error
