"""Tracking with MLflow; failures of MLflow never stop the training."""
