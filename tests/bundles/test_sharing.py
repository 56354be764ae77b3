"""A bundle goes out as a zip and comes back as a network whose every tensor is the file's."""

import json
import zipfile

import pytest
import torch
from monai.bundle import download, load

from medcl_monai.files import file_hash

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture
def archive(written, tmp_path):
    place = tmp_path / "published" / f"{written.name}.zip"
    place.parent.mkdir()
    with zipfile.ZipFile(place, "w") as file:
        for path in written.rglob("*"):
            file.write(path, path.relative_to(written.parent))
    return place


@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_a_downloaded_bundle_loads_whole_from_elsewhere(archive, written, tmp_path, monkeypatch, workflow):
    monkeypatch.chdir(tmp_path)
    name, home = written.name, tmp_path / "home"
    download(name=name, url=archive.as_uri(), bundle_dir=str(home), progress=False)
    kind = {} if workflow == "train" else {"workflow_type": workflow}
    network = load(name, bundle_dir=str(home), **kind)
    weights = torch.load(home / name / "models" / "model.pt", weights_only=True)
    state = network.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[key].cpu(), value) for key, value in weights.items())


def test_the_manifest_s_hashes_are_those_of_the_files(written):
    models = written / "models"
    records = json.loads((models / "manifest.json").read_text(encoding="utf-8"))
    assert {name: record["sha256"] for name, record in records.items()} == {
        name: file_hash(models / name) for name in records
    }
