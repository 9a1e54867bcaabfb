"""Reference models in Brian2, against which the spiking simulation is compared."""
