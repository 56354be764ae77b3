"""What the verbs of ``python -m medcl_monai`` do."""
