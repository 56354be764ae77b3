"""Ignite handlers, one per file."""
