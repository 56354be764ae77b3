"""Contrastive and segmentation losses: pure functions, and thin modules that call the functions."""
