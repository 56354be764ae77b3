"""The MLflow store: the store is created quickly, and calls to the store wait for a bounded time."""

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

# one retry, and a timeout of 5 s; with MLflow's own defaults a call waits for minutes
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


def find_experiment(client: MlflowClient, name: str, artifacts: Path | None) -> str:
    """Return the id of the experiment `name`, and create the experiment if it does not exist.

    Another process may create the experiment at the same time.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            place = None if artifacts is None else artifacts.resolve().as_uri()
            return client.create_experiment(name, artifact_location=place)
        except mlflow.exceptions.MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return experiment.experiment_id


def prepare_store(tracking_uri: str) -> None:
    """Copy a ready, empty store to the place of a SQLite store that does not exist yet.

    MLflow needs 7 s to make an empty store, so one empty store is made and kept in the cache folder.
    """
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
        os.link(aside, path)  # unlike a move, a link never replaces a store that another process has made meanwhile
    except FileExistsError:
        pass
    except OSError:  # the file system has no hard links
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def patience() -> Iterator[None]:
    """Limit the retries and timeouts of MLflow inside a ``with`` block, and restore the environment afterwards.

    Limits that the user has set stay as they are.
    """
    before = {name: os.environ.get(name) for name in PATIENCE}
    os.environ.update({name: value for name, value in PATIENCE.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
