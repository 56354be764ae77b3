"""The methods of pre-training, one file per method."""
