"""torch.fx graphs: probed by running, ordered by the core, reordered in place."""
