"""Simulators of spiking layers."""
