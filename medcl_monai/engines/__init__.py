"""The one training loop, its two ends, and the state of a run."""
