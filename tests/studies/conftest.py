"""The scripts of studies/ import one another from their own folder."""

import sys
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"
sys.path.insert(0, str(STUDIES))
