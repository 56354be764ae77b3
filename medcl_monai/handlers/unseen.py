"""A handler that refuses to score subjects that the weights have seen in training."""

from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from medcl_monai.knobs import knob_types
from medcl_monai.transfer.manifest import check_unseen


class UnseenSubjects:
    """Stops an evaluation if the weights were trained on a subject that is to be scored.

    The handler reads the record of the weights in ``manifest.json`` beside the weights file. If no record fits the hash
    of the file, the handler logs a warning and the evaluation goes on.

    Args:
        path: file of the weights that are evaluated.
        data: entries of the data list that are to be scored, each with its `subject`.

    Raises:
        ValueError: at the start of the engine: the record lists a subject of `data` as seen; the error names the
            subjects.
    """

    @knob_types
    def __init__(self, path: str | Path, data: Sequence[dict]) -> None:
        self.path, self.data = path, data

    def attach(self, engine: Engine) -> None:
        """Check the subjects when `engine` starts."""
        engine.add_event_handler(Events.STARTED, lambda _: check_unseen(self.path, self.data))
