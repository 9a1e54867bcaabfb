"""Formats of other programs: the front end as ONNX, the spiking layers as NIR."""
