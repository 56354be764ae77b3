"""A tracker that records a run in MLflow, and in a local file if MLflow fails; a failure never stops the training."""

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
BATCH = 900  # MLflow accepts at most 1,000 metrics in one call


class Tracker:
    """Records one MLflow run at a time: begins the run, sends values in batches, and ends the run.

    Only the first process records. After the first failure of MLflow, the tracker writes to a local file instead, which
    `replay` sends to a store or server later.

    Args:
        tracking_uri: address of the MLflow store or server: ``sqlite:///…``, which is made if it does not exist, or
            ``http://…``.
        experiment_name: name of the MLflow experiment, which is made if it does not exist.
        folder: folder of the pictures, of the artifacts of a local store (``mlruns``), and of the local record if the
            server fails.
        run_name: name of the MLflow run; None: a new unique name.
        parameters: parameters that are recorded with the run, by name; None: no parameters.
        artifacts: files and folders that are stored with the run, such as the configs of the bundle.

    Attributes:
        step: the optimiser step of the training, at which the metrics of an evaluator are recorded.
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
        """Begin a run, or continue the run that a checkpoint named; processes other than the first do nothing."""
        if rank() != 0 or self.active:
            return
        self.active = True
        atexit.register(self.finish, "FAILED")  # a run whose process ends early must not look as if it still ran
        self._send("begin", self._begin, {"run_name": self.run_name, "experiment_name": self.experiment_name})
        values = {name: str(value)[:6000] for name, value in self.parameters.items()}
        self._send("parameters", lambda: self._log_parameters(values), values)
        for path in (Path(path).resolve() for path in self.artifacts):
            if path.exists():
                self._send("artifact", lambda path=path: self._log_artifact(path), str(path))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep scalars for the next batch; a value that is not finite is left out.

        MLflow would store a wrong number for a value that is not finite.
        """
        now = int(time.time() * 1000)
        finite = {name: float(value) for name, value in values.items() if math.isfinite(value)}
        # MLflow refuses a whole batch if one name has a character that MLflow does not allow
        self._buffer += [Metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, step) for name, value in finite.items()]
        if len(self._buffer) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send all scalars that are kept."""
        batch, self._buffer = self._buffer[:BATCH], self._buffer[BATCH:]
        if self.active and batch:
            rows = [[metric.key, metric.value, metric.timestamp, metric.step] for metric in batch]
            self._send("metrics", lambda: self._client.log_batch(self.run_id, metrics=batch), rows)
        if self._buffer:
            self.flush()

    def text(self, name: str, text: str) -> None:
        """Store a text as the artifact `name` of the run."""
        if self.active:
            self._send("text", lambda: self._client.log_text(self.run_id, text, name), [name, text])

    def picture(self, name: str, figure: Figure, step: int) -> None:
        """Store a picture with the run, as ``pictures/NAME/step_STEP.png``."""
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
        """End the run with the status FINISHED, FAILED or KILLED."""
        if self.active:
            self.flush()
            self._send("end", lambda: self._client.set_terminated(self.run_id, status), status)
            self.active = False
            atexit.unregister(self.finish)

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint: the id of the run, which a resumed training run continues."""
        return {"run_id": self.run_id or ""}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the id of the run from a checkpoint."""
        self.run_id = str(state["run_id"]) or None

    def _begin(self) -> None:
        prepare_store(self.tracking_uri)
        self._client = MlflowClient(self.tracking_uri)
        if self.run_id is not None:
            with suppress(mlflow.exceptions.MlflowException):  # the run was deleted: begin a new run
                self._client.update_run(self.run_id, status="RUNNING")
                return
        local = self.tracking_uri.startswith("sqlite:")
        experiment = find_experiment(self._client, self.experiment_name, self.folder / "mlruns" if local else None)
        tags = {"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}
        self.run_id = self._client.create_run(experiment, run_name=self.run_name, tags=tags).info.run_id

    def _log_parameters(self, values: Mapping[str, str]) -> None:
        known = self._client.get_run(self.run_id).data.params
        new = [Param(name, value) for name, value in values.items() if name not in known]
        # MLflow refuses to change a parameter of a continued run, so a changed parameter becomes a tag
        changed = {name: value for name, value in values.items() if known.get(name, value) != value}
        tags = [RunTag(f"resumed.{name}", value) for name, value in changed.items()]
        self._client.log_batch(self.run_id, params=new, tags=tags)

    def _log_artifact(self, path: Path) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def _send(self, kind: str, send: Callable[[], object], what: object) -> None:
        """Call MLflow; after the first failure of MLflow, write to the local record instead."""
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
    """Return the commit of the working directory, or None outside a git repository."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return None
