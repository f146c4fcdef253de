"""What the simulated device is made of; tests use :mod:`permllm.testing.device`."""
