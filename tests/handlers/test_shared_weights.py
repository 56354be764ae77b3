import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from medcl_monai.files import write_atomically
from medcl_monai.handlers.shared_weights import SharedWeights
from medcl_monai.handlers.unseen import UnseenSubjects
from medcl_monai.transfer.manifest import check_unseen, seen_subjects

SEEN = [{"image": "a.nii", "subject": "anna"}, {"image": "b.nii", "subject": "bert"}]


def run(handler, value=None):
    engine = Engine(lambda *_: None)
    handler.attach(engine)
    if value is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(mean_dice=value))
    engine.run([0])


def test_a_bare_state_dict_of_the_named_tensors_is_saved_with_its_record(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    run(SharedWeights(tmp_path / "pretrained.pt", network, SEEN, names=["0.weight"]))
    saved = torch.load(tmp_path / "pretrained.pt", weights_only=True)
    assert list(saved) == ["0.weight"]
    assert len(seen_subjects(tmp_path / "pretrained.pt")) == 2
    assert "anna" not in (tmp_path / "manifest.json").read_text()


def test_only_a_better_metric_replaces_the_file(tmp_path):
    network = nn.Linear(1, 1)
    handler = SharedWeights(tmp_path / "model.pt", network, SEEN, metric="mean_dice")
    for value, bias in ((0.5, 1.0), (0.4, 2.0), (0.6, 3.0)):
        nn.init.constant_(network.bias, bias)
        run(handler, value)
        if value == 0.4:
            assert float(torch.load(tmp_path / "model.pt", weights_only=True)["bias"]) == 1.0
    assert float(torch.load(tmp_path / "model.pt", weights_only=True)["bias"]) == 3.0


def test_who_the_start_has_seen_was_seen_too(tmp_path, caplog):
    network = nn.Linear(1, 1)
    SharedWeights(tmp_path / "pretrained.pt", network, SEEN[:1]).save()
    SharedWeights(tmp_path / "model.pt", network, SEEN[1:], start=tmp_path / "pretrained.pt").save()
    with pytest.raises(ValueError, match=r"trained on 1 of the subjects to be scored: \['anna'\]"):
        run(UnseenSubjects(tmp_path / "model.pt", [SEEN[0], {"image": "y", "subject": "carl"}]))
    check_unseen(tmp_path / "model.pt", [{"image": "y", "subject": "carl"}])
    torch.save({"other": torch.zeros(1)}, tmp_path / "model.pt")
    check_unseen(tmp_path / "model.pt", SEEN)
    assert "no record of its hash" in caplog.text


def test_a_failed_write_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, lambda aside: aside.write_text("old"))

    def fail(aside):
        aside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_going_on_from_a_file_and_replacing_it_forgets_nobody(tmp_path):
    network, path = nn.Linear(1, 1), tmp_path / "pretrained.pt"
    SharedWeights(path, network, SEEN[:1]).save()
    nn.init.constant_(network.bias, 3.0)
    run(SharedWeights(path, network, SEEN[1:], start=path))
    assert len(seen_subjects(path)) == 2


def test_a_start_that_nothing_is_known_of_is_said(tmp_path, caplog):
    torch.save({}, tmp_path / "found.pt")
    run(SharedWeights(tmp_path / "model.pt", nn.Linear(1, 1), SEEN, start=tmp_path / "found.pt"))
    assert "whom it has seen is not known" in caplog.text


def test_entries_without_a_subject_go_by_the_name_of_their_file(tmp_path):
    SharedWeights(tmp_path / "model.pt", nn.Linear(1, 1), [{"image": "/labelled/anna.nii.gz"}]).save()
    with pytest.raises(ValueError, match=r"\['anna'\]"):
        check_unseen(tmp_path / "model.pt", [{"image": "/elsewhere/volume.nii.gz", "subject": "anna"}])


def test_what_is_no_manifest_and_no_metric_is_named(tmp_path):
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match=r"manifest.json holds no records of weights"):
        seen_subjects(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"no metric 'dice' among \['mean_dice'\]"):
        run(SharedWeights(tmp_path / "model.pt", nn.Linear(1, 1), SEEN, metric="dice"), 0.5)


def test_a_resumed_training_remembers_whom_it_has_seen(tmp_path):
    """Whoever the data are after a resume: those before it were seen too."""
    network = nn.Linear(2, 2)
    before = SharedWeights(tmp_path / "w.pt", network, [{"image": "a.nii.gz", "subject": "ann"}])
    after = SharedWeights(tmp_path / "w.pt", network, [{"image": "b.nii.gz", "subject": "bob"}])
    after.load_state_dict(before.state_dict())
    after.save()
    for entry in ({"image": "a.nii.gz", "subject": "ann"}, {"image": "b.nii.gz", "subject": "bob"}):
        with pytest.raises(ValueError, match="was trained on 1 of the subjects"):
            check_unseen(tmp_path / "w.pt", [entry])
    check_unseen(tmp_path / "w.pt", [{"image": "c.nii.gz", "subject": "cat"}])


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    network = nn.Linear(2, 2)
    weights = SharedWeights(tmp_path / "w.pt", network, [])
    weights.save()
    before = (tmp_path / "w.pt").read_bytes()
    nn.init.constant_(network.bias, float("nan"))
    with pytest.raises(ValueError, match=r"w.pt is not written: tensor 'bias' \(1 in all\) is not finite"):
        weights.save()
    assert (tmp_path / "w.pt").read_bytes() == before
