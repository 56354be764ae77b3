"""Contrastive and segmentation objectives: a pure function and a thin module each."""
