"""Sends a local record, written while MLflow could not be reached, to an MLflow store or server."""

import json
from pathlib import Path

from mlflow.entities import Metric

from medcl_monai.tracking.store import prepare_store
from medcl_monai.tracking.tracker import Tracker


def replay(record: str | Path, tracking_uri: str) -> str:
    """Send a local record to an MLflow store or server, and return the id of the MLflow run.

    Args:
        record: the file ``tracking_….jsonl`` that a training run wrote because the server could not be reached.
        tracking_uri: address of the MLflow store or server that gets the record. If the store or server has the run
            already, the run is continued.

    Raises:
        FileNotFoundError: the record does not exist.
        ValueError: the file is not a record.
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
        elif kind == "text":
            client.log_text(run, what[1], what[0])
        elif kind == "artifact" and Path(what).exists():
            tracker._log_artifact(Path(what))
        elif kind == "end":
            client.set_terminated(run, what)
    return run


def _read_record(record: Path) -> list[dict]:
    """Return the lines of a record, without an unfinished last line that a killed process may have left."""
    whole = record.read_text(encoding="utf-8").rpartition("\n")[0]
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise ValueError(f"{record} is no record of a run: {error}") from error
