"""Data: datalists, splits, the cache of volumes, slices, samplers and the example population."""
