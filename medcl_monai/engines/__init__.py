"""The training loop, its two versions for pre-training and for training with labels, and the state of a run."""
