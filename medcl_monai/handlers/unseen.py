"""No score on subjects that the weights have seen."""

from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from medcl_monai.knobs import knob_types
from medcl_monai.transfer.manifest import check_unseen


class UnseenSubjects:
    """Stops an evaluation whose weights were made with a subject that is to be scored.

    Reads the record of the weights in ``manifest.json`` beside them; where none fits the file's hash, it warns.

    Args:
        path: the weights that are evaluated.
        data: the entries to be scored, with their `subject`.

    Raises:
        ValueError: at the start of the engine, naming the subjects that the record lists as seen.
    """

    @knob_types
    def __init__(self, path: str | Path, data: Sequence[dict]) -> None:
        self.path, self.data = path, data

    def attach(self, engine: Engine) -> None:
        """Check once, when `engine` starts."""
        engine.add_event_handler(Events.STARTED, lambda _: check_unseen(self.path, self.data))
