"""Location of generated and cached files."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder of the package.

    The folder is ``$MEDCL_MONAI_CACHE`` if this environment variable is set, else ``$XDG_CACHE_HOME/medcl_monai``, else
    ``~/.cache/medcl_monai``.
    """
    if place := os.environ.get("MEDCL_MONAI_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medcl_monai"
