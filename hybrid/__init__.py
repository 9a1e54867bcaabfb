"""The hybrid network: spiking front end beside a small CNN, in front of a torchvision backbone."""
