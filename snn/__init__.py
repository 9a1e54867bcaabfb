"""Spiking convolution layers that learn features without labels, by stochastic STDP on norse LIF neurons."""
