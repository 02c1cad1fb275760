"""TorchScript: optimized and verified, traced, ordered by the registered pass."""
