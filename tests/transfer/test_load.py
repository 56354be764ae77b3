import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medcl_monai.commands.transfer import build_network, transfer
from medcl_monai.methods.jcl import JCL
from medcl_monai.transfer.load import load_pretrained


@pytest.fixture
def shared(unet, tmp_path):
    network = JCL(unet())
    weights = {name: network.backbone.state_dict()[name] for name in network.shared_parts()}
    torch.save(weights, tmp_path / "pretrained.pt")
    return tmp_path / "pretrained.pt", weights


def test_a_plain_network_takes_every_shared_tensor_and_the_report_says_so(shared, unet):
    path, weights = shared
    network = unet(classes=6)
    report = load_pretrained(path, network, 0.9)
    assert (len(report.carried), len(report.missing), report.reshaped, report.unused) == (102, 34, (), ())
    assert report.coverage == pytest.approx(0.9744, abs=2e-4)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())
    assert {name.split(".")[0] for name in report.missing} == {"upcat_2", "upcat_1", "final_conv"}


def test_too_little_is_refused_and_leaves_the_network_as_it_was(shared, unet):
    path, _ = shared
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="at least 90% asked for"):
        load_pretrained(path, network, 0.9, keep=["conv_0.", "down_"])
    with pytest.raises(ValueError, match="0 carried, 0 reshaped, 2 missing, 102 unused"):
        load_pretrained(path, nn.Linear(2, 2), 0.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert len(load_pretrained(path, network, 0.55, keep=["conv_0.", "down_"]).carried) == 70
    with pytest.raises(ValueError, match=r"begins with one of \['encoder.'\] \(carry\); the first"):
        load_pretrained(path, network, keep=["encoder."])


def test_from_scratch_carries_nothing_and_a_missing_file_names_both_ways_out(unet, tmp_path):
    for scratch in (None, "none", "null"):
        assert load_pretrained(scratch, unet(), 0.9).carried == ()
    with pytest.raises(FileNotFoundError, match=r"give what a run of pretrain.json has written, or none"):
        load_pretrained(tmp_path / "gone.pt", unet())


def test_a_control_has_the_report_of_the_weights_and_its_own_values(shared, unet):
    path, _ = shared
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = load_pretrained(path, network, 0.9, copy=False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    copied = load_pretrained(path, network, 0.9)
    assert (report.carried, report.missing, report.coverage) == (copied.carried, copied.missing, copied.coverage)
    assert str(report) == f"{copied}; no value was copied"
    with pytest.raises(ValueError, match="at least 99% asked for"):
        load_pretrained(path, network, 0.99, copy=False)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(names=st.sets(st.sampled_from(["0.weight", "0.bias", "1.weight", "1.bias", "odd"])), wrong=st.booleans())
def test_carried_reshaped_and_missing_are_the_network(tmp_path_factory, names, wrong):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    state = {**network.state_dict(), "odd": torch.zeros(1)}
    weights = {name: state[name].clone() for name in names}
    if wrong and "0.bias" in weights:
        weights["0.bias"] = torch.zeros(5)
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(weights, path)
    try:
        report = load_pretrained(path, network, 0.0)
    except ValueError as error:
        assert not names or "0 carried" in str(error)  # noqa: PT017 - both outcomes are right, for other names
        return
    parts = [*report.carried, *report.reshaped, *report.missing]
    assert sorted(parts) == sorted(network.state_dict())
    assert set(report.unused) == names - set(network.state_dict())


def test_no_damaged_file_is_loaded_in_silence(shared, unet):
    path, weights = shared
    whole = path.read_bytes()
    network = unet()
    randomness = random.Random(0)
    for _ in range(200):
        data = bytearray(whole)
        if randomness.random() < 0.5:
            data = data[: randomness.randrange(len(data))]
        else:
            start = randomness.randrange(len(data))
            data[start : start + 2000] = randomness.randbytes(2000)
        path.write_bytes(data)
        try:
            report = load_pretrained(path, network, 0.9)
        except ValueError as error:
            assert path.name in str(error)  # noqa: PT017 - a damage may also leave the file readable
        else:
            assert len(report.carried) == len(weights)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"weight": 1}}, {}, {"a": 1}])
def test_what_is_no_bare_state_dict_is_named(tmp_path, unet, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd.pt is not a bare state dict"):
        load_pretrained(tmp_path / "odd.pt", unet())


def test_the_verb_reports_every_tensor_and_writes_the_whole_network(shared, tmp_path):
    path, _ = shared
    definition = {
        "_target_": "BasicUNet", "spatial_dims": 2, "out_channels": 6, "features": [16, 32, 64, 128, 256, 16],
        "act": ["LeakyReLU", {"negative_slope": 0.01, "inplace": True}], "norm": "batch",
    }
    report = transfer(str(path), json.dumps(definition), output=str(tmp_path / "whole.pt"), coverage=0.9)
    assert "102 carried, 0 reshaped, 34 missing, 0 unused" in report
    assert "missing: final_conv.bias" in report
    assert len(torch.load(tmp_path / "whole.pt", weights_only=True)) == 136
    with pytest.raises(FileNotFoundError, match="no such config file"):
        build_network(str(tmp_path / "gone.json"))
    with pytest.raises(ValueError, match="is no network, but dict"):
        build_network('{"spatial_dims": 2}')


def test_weights_that_are_not_finite_are_not_loaded(tmp_path):
    network = nn.Linear(2, 2)
    torch.save({"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad.pt is not loaded: its tensor 'weight' \(1 in all\) is not finite"):
        load_pretrained(tmp_path / "bad.pt", network)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapped_file_is_opened_and_the_log_says_which_part(shared, unet, tmp_path, wrapper, caplog):
    path, weights = shared
    torch.save({wrapper: weights, "epoch": 3}, tmp_path / "wrapped.pt")
    with caplog.at_level("INFO"):
        wrapped, bare = unet(), unet()
        assert load_pretrained(tmp_path / "wrapped.pt", wrapped, 0.9) == load_pretrained(path, bare, 0.9)
    assert all(torch.equal(wrapped.state_dict()[name], value) for name, value in weights.items())
    assert f"the tensors are those under '{wrapper}'; beside them the file holds ['epoch']" in caplog.text


def test_several_layouts_are_applied_in_order(tmp_path):
    torch.save({"a.weight": torch.ones(1, 2), "a.bias": torch.ones(1)}, tmp_path / "w.pt")
    network = nn.Sequential(nn.Linear(2, 1))

    def first(weights, own):
        return {name.replace("a.", "b."): value for name, value in weights.items()}

    def second(weights, own):
        return {name.replace("b.", "0."): value for name, value in weights.items()}

    assert load_pretrained(tmp_path / "w.pt", network, 1.0, layout=[first, second]).coverage == 1
    with pytest.raises(ValueError, match="0 carried"):
        load_pretrained(tmp_path / "w.pt", network, 1.0, layout=[second, first])


def test_the_names_of_all_tensors_reach_the_log_and_the_listing(shared, unet, caplog):
    path, _ = shared
    with caplog.at_level("INFO"):
        report = load_pretrained(path, unet(classes=6), 0.9)
    names = {name for part in (report.carried, report.missing) for name in part}
    assert all(name in caplog.text for name in names)
    assert set(report.listing().splitlines()[1:]) == {
        *(f"carried: {name}" for name in report.carried), *(f"missing: {name}" for name in report.missing),
    }
