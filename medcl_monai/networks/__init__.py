"""Parts of networks: one encode for every backbone, decode of a U-Net, heads."""
