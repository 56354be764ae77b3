"""From folders of volumes to batches of samples: datalists, splits, slices, samplers, cache, the example population."""
