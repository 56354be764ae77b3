"""Weights in: load with a report of every tensor."""
