"""Ignite handlers for the training and evaluation engines, one topic per file."""
