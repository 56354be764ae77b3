"""Figures (numbers) that describe embeddings, and pictures of embeddings and segmentations."""
