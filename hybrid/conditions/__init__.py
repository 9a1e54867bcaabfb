"""What is done to test images."""
