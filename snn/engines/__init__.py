"""Simulators of spiking layers, one a file; all give the same spikes, draws and counts to the last bit."""
