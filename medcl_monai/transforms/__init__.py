"""Transforms: views of batches on the device, and MONAI dictionary transforms of volumes."""
