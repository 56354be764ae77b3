"""A local record, written while a server was lost, to the server."""

import json
from pathlib import Path

from mlflow.entities import Metric

from medcl_monai.tracking.store import prepare_store
from medcl_monai.tracking.tracker import Tracker


def replay(record: str | Path, tracking_uri: str) -> str:
    """Send a local record to a store or server; the run's id.

    Args:
        record: the file ``tracking_….jsonl`` that a training wrote when its server was lost.
        tracking_uri: where it goes. A run that the server has already is continued.

    Raises:
        FileNotFoundError: no such record.
        ValueError: it is no record.
    """
    record = Path(record)
    lines = _read_record(record)
    if not lines or lines[0].get("kind") != "begin":
        raise ValueError(f"{record} is no record of a run: its first line must have the kind 'begin'")
    first = lines[0]["what"]
    tracker = Tracker(tracking_uri, first["experiment_name"], record.parent, first["run_name"])
    tracker.run_id = first["run_id"]
    prepare_store(tracking_uri)
    tracker._begin()
    client, run = tracker._client, tracker.run_id
    for kind, what in ((line["kind"], line["what"]) for line in lines[1:]):
        if kind == "parameters":
            tracker._log_parameters(what)
        elif kind == "metrics":
            client.log_batch(run, metrics=[Metric(*row) for row in what])
        elif kind == "picture" and (record.parent / what).is_file():
            client.log_artifact(run, str(record.parent / what), str(Path(what).parent))
        elif kind == "artifact" and Path(what).exists():
            tracker._log_artifact(Path(what))
        elif kind == "end":
            client.set_terminated(run, what)
    return run


def _read_record(record: Path) -> list[dict]:
    """Lines of a record, without a last one that a killed process left unfinished."""
    whole = record.read_text(encoding="utf-8").rpartition("\n")[0]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{record} is no record of a run: {error}") from error
