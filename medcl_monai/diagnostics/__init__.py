"""Figures and pictures of embeddings and segmentations."""
