"""The example population: generated brain volumes with exact labels."""
