"""MLflow that never kills a training: a run's record goes to a store or server, and to a local file when that fails."""

import atexit
import json
import logging
import math
import re
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import mlflow
from matplotlib.figure import Figure
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from medcl_monai.distributed import rank
from medcl_monai.knobs import knob_types
from medcl_monai.tracking.store import find_experiment, patience, prepare_store

logger = logging.getLogger(__name__)
BATCH = 900  # MLflow takes at most 1,000 metrics at once


class Tracker:
    """One MLflow run at a time: begun, filled in batches, ended.

    Args:
        tracking_uri: ``sqlite:///…`` (made if it does not exist) or the address of a server.
        experiment_name: of the experiment; made if it does not exist.
        folder: where artifacts of a local store lie (``mlruns``), and the local record if the server fails.
        run_name: of the run; None: a new unique one.
        parameters: of the run.
        artifacts: files and folders that are stored with the run, as the bundle's configs.

    Attributes:
        step: the training's optimiser step, at which an evaluator's metrics are recorded.
    """

    @knob_types
    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        folder: str | Path,
        run_name: str | None = None,
        parameters: Mapping[str, object] | None = None,
        artifacts: Sequence[str | Path] = (),
    ) -> None:
        self.tracking_uri, self.experiment_name, self.folder = tracking_uri, experiment_name, Path(folder)
        self.run_name = run_name or f"{experiment_name} {time.strftime('%Y-%m-%d %H:%M:%S')} {uuid.uuid4().hex[:6]}"
        self.parameters, self.artifacts = dict(parameters or {}), tuple(artifacts)
        self.run_id: str | None = None
        self.active, self.record, self.step = False, None, 0
        self._client: MlflowClient | None = None
        self._buffer: list[Metric] = []

    def begin(self) -> None:
        """Begin the run, or go on with the one that a checkpoint named; nothing on other processes than the first."""
        if rank() != 0 or self.active:
            return
        self.active = True
        atexit.register(self.finish, "FAILED")  # whatever ends the process early, no run seems to go on
        self._send("begin", self._begin, {"run_name": self.run_name, "experiment_name": self.experiment_name})
        values = {name: str(value)[:6000] for name, value in self.parameters.items()}
        self._send("parameters", lambda: self._log_parameters(values), values)
        for path in (Path(path).resolve() for path in self.artifacts):
            if path.exists():
                self._send("artifact", lambda path=path: self._log_artifact(path), str(path))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep finite scalars for the next batch; another value is a gap, as MLflow would store a wrong number."""
        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        # MLflow refuses a whole batch for one odd character in a name
        self._buffer += [Metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, step) for name, value in finite.items()]
        if len(self._buffer) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what was kept."""
        batch, self._buffer = self._buffer[:BATCH], self._buffer[BATCH:]
        if self.active and batch:
            rows = [[metric.key, metric.value, metric.timestamp, metric.step] for metric in batch]
            self._send("metrics", lambda: self._client.log_batch(self.run_id, metrics=batch), rows)
        if self._buffer:
            self.flush()

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Store a figure as ``pictures/NAME/step_STEP.png``."""
        if self.active:
            place = f"pictures/{name}/step_{step}.png"
            local = self.folder / place
            try:
                local.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(local, dpi=100)
            except (OSError, ValueError, RuntimeError) as error:
                logger.warning("the picture %s cannot be written: %s", local, error)
                return
            self._send("picture", lambda: self._client.log_artifact(self.run_id, str(local), f"pictures/{name}"), place)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        if self.active:
            self.flush()
            self._send("end", lambda: self._client.set_terminated(self.run_id, status), status)
            self.active = False
            atexit.unregister(self.finish)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint: a resumed training goes on with its run."""
        return {"run_id": self.run_id or ""}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """From a checkpoint."""
        self.run_id = str(state["run_id"]) or None

    def _begin(self) -> None:
        prepare_store(self.tracking_uri)
        self._client = MlflowClient(self.tracking_uri)
        if self.run_id is not None:
            with suppress(mlflow.exceptions.MlflowException):  # a run that is gone: begin a new one
                self._client.update_run(self.run_id, status="RUNNING")
                return
        local = self.tracking_uri.startswith("sqlite:")
        experiment = find_experiment(self._client, self.experiment_name, self.folder / "mlruns" if local else None)
        tags = {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        self.run_id = self._client.create_run(experiment, run_name=self.run_name, tags=tags).info.run_id

    def _log_parameters(self, values: Mapping[str, str]) -> None:
        known = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in values.items() if name not in known]
        # MLflow refuses to change a parameter of a continued run: a changed one becomes a tag
        changed = {name: value for name, value in values.items() if known.get(name, value) != value}
        tags = [RunTag(f"resumed.{name}", value) for name, value in changed.items()]
        self._client.log_batch(self.run_id, params=new, tags=tags)

    def _log_artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def _send(self, kind: str, send: Callable[[], object], what: object) -> None:
        """Call MLflow; from its first failure on, write to the local record instead."""
        if self.record is None:
            try:
                with patience():
                    send()
                return
            except Exception as error:
                self.record = self.folder / f"tracking_{uuid.uuid4().hex[:8]}.jsonl"
                logger.warning(
                    "MLflow at %s cannot be reached (%s): training goes on, the record is written to %s; "
                    "send it later with medcl_monai.tracking.replay.replay", self.tracking_uri, error, self.record,
                )
                names = {"run_name": self.run_name, "experiment_name": self.experiment_name}
                self._note("begin", {**names, "run_id": self.run_id})
                if kind == "begin":
                    return
        self._note(kind, what)

    def _note(self, kind: str, what: object) -> None:
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with self.record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "what": what}) + "\n")
        except OSError as error:
            logger.warning("the record %s cannot be written, %s is lost: %s", self.record, kind, error)


def git_commit() -> str | None:
    """Commit of the working directory, None outside of a repository."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return None
