"""Views on the device and dictionary transforms of volumes."""
