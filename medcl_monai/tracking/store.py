"""MLflow's store: made quickly, reached with bounded patience."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.tracking import MlflowClient

from medcl_monai.data.place import cache_folder
from medcl_monai.files import write_atomically

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # its own defaults wait minutes


def find_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Id of the experiment, made if it does not exist; another process may make it at the same time."""
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            place = None if artifacts is None else artifacts.resolve().as_uri()
            return client.create_experiment(name, artifact_location=place)
        except mlflow.exceptions.MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id


def prepare_store(tracking_uri: str) -> None:
    """Put a ready empty store where a SQLite file is asked for and none is; MLflow needs 7 s to make one."""
    if not tracking_uri.startswith("sqlite:///"):
        return
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    ready = cache_folder() / "mlflow" / f"empty-{mlflow.__version__}.db"
    if not ready.exists():
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "mlruns.db"
            MlflowClient(f"sqlite:///{made}").search_experiments()
            write_atomically(ready, lambda aside: shutil.copyfile(made, aside))
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{os.getpid()}.{path.name}")
    shutil.copyfile(ready, aside)
    try:
        os.link(aside, path)  # unlike a move it leaves the store that another process made, and writes to, meanwhile
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def patience() -> Iterator[None]:
    """Bounds for MLflow's own retries, taken back afterwards; what the user set holds."""
    before = {name: os.environ.get(name) for name in PATIENCE}
    os.environ.update({name: value for name, value in PATIENCE.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
