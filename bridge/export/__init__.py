"""Formats of other programs: :mod:`bridge.export.onnx` for front ends, :mod:`bridge.export.nir` for spiking layers."""
