"""Where generated and cached files lie."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MEDCL_MONAI_CACHE``, else ``$XDG_CACHE_HOME/medcl_monai``, else ``~/.cache/medcl_monai``."""
    if place := os.environ.get("MEDCL_MONAI_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medcl_monai"
