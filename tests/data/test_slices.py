import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CastToTyped, Compose, Lambdad

from medcl_monai.data.cache import VolumeCache, check_loaded, transform_hash
from medcl_monai.data.label_shares import label_shares
from medcl_monai.data.samplers import StreamSampler, foreground_weights, sample_loader
from medcl_monai.data.slices import SliceDataset
from medcl_monai.data.splits import split_dataset
from medcl_monai.data.volumes import VolumeDataset
from medcl_monai.transforms.augmentation import augmentation
from medcl_monai.transforms.preprocessing import preprocessing as make

BOTH = ("image", "label")


@pytest.fixture
def slices(population, preprocessing, tmp_path):
    data = split_dataset(population).training
    return SliceDataset(data, preprocessing(BOTH), (48, 48), augmentation=augmentation((48, 48)), cache_dir=tmp_path)


def test_an_item_is_a_plain_slice_with_position_and_subject(slices):
    assert len(slices) == 4 * 40
    sample = slices[(45, 7)]
    assert sample["image"].shape == sample["label"].shape == (1, 48, 48)
    assert not any(isinstance(value, MetaTensor) for value in sample.values())
    assert [str(sample[key].dtype)[6:] for key in ("image", "label", "position", "subject")] == [
        "float32", "uint8", "float64", "int64",
    ]
    assert float(sample["position"]) == (5 + 0.5) / 40
    assert int(sample["subject"]) == 1


def test_an_item_depends_on_its_seed_alone(slices):
    first, again, other = (slices[(60, seed)]["image"] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_small_slices_are_padded_with_the_volume_s_minimum_and_large_ones_cropped(population, preprocessing, tmp_path):
    data = split_dataset(population).training[:1]
    padded = SliceDataset(data, preprocessing(BOTH), (64, 64), cache_dir=tmp_path)
    volume = np.load(padded.paths[0]["image"])
    sample = padded[20]
    assert float(sample["image"][0, 0, 0]) == volume.min()
    assert torch.equal(sample["image"][0, 12:52, 8:56], torch.from_numpy(volume[0, :, :, 20]))
    assert int(sample["label"][0, 0, 0]) == 0
    cropped = SliceDataset(data, preprocessing(BOTH), (16, 16), cache_dir=tmp_path)
    assert len({cropped[(20, seed)]["image"].sum() for seed in range(10)}) > 3


def test_in_three_dimensions_an_item_is_a_crop_whose_centre_is_its_position(population, preprocessing, tmp_path):
    data = split_dataset(population).training
    crops = SliceDataset(data, preprocessing(BOTH, dims=3), (32, 32, 32), spatial_dims=3, cache_dir=tmp_path)
    assert len(crops) == 4
    samples = [crops[(0, seed)] for seed in range(20)]
    assert samples[0]["image"].shape == (1, 32, 32, 32)
    positions = {float(sample["position"]) for sample in samples}
    assert positions <= {(corner + 16) / 40 for corner in range(9)}
    assert crops.foreground.all()


def test_position_and_subject_of_an_item_are_known_before_it_is_read(slices, population, preprocessing, tmp_path):
    data = split_dataset(population).training
    crops = SliceDataset(data, preprocessing(BOTH, dims=3), (16, 16, 16), spatial_dims=3, cache_dir=tmp_path)
    assert len(set(slices.subjects)) == 4
    assert crops.positions.tolist() == [0.5] * 4
    for data in (slices, crops):
        assert len(data.positions) == len(data.subjects) == len(data)
        names = sorted(set(data.subjects))
        for item in range(0, len(data), 37):
            assert names.index(data.subjects[item]) == int(data[item]["subject"])
    assert [float(slices[item]["position"]) for item in (0, 45, 159)] == slices.positions[[0, 45, 159]].tolist()


@pytest.mark.parametrize("parts", [2, 4, 7])
def test_in_three_dimensions_an_item_can_be_a_part_of_the_axis(population, preprocessing, tmp_path, parts):
    data, kept = split_dataset(population).training, partial(preprocessing, BOTH, dims=3)
    crops = SliceDataset(data, kept(), (16, 16, 32), spatial_dims=3, parts=parts, cache_dir=tmp_path)
    assert len(crops) == 4 * parts
    torch.testing.assert_close(crops.positions[:parts], (torch.arange(parts).double() + 0.5) / parts)
    volume = np.load(crops.paths[0]["image"])
    for part in range(parts):
        samples = [crops[(part, seed)] for seed in range(200)]
        centres = {float(sample["position"]) for sample in samples}
        assert centres == {corner / 40 for corner in range(40) if corner * parts // 40 == part}  # each centre, no other
    first = crops[0]
    corner = round(float(first["position"]) * 40) - 16
    assert corner < 0
    assert bool((first["image"][..., : -corner] == volume.min()).all())
    inside = volume[0, ..., : 32 + corner]
    rows = [inside[x : x + 16, y : y + 16] for x in range(25) for y in range(33)]
    assert any(np.array_equal(first["image"][0, ..., -corner:], row) for row in rows)


def test_the_foreground_of_a_part_is_that_of_its_slices(population, preprocessing, tmp_path):
    data, prepared = split_dataset(population).training, preprocessing(BOTH, dims=3)
    parts = SliceDataset(data, prepared, (8, 8, 8), spatial_dims=3, parts=10, cache_dir=tmp_path)
    whole = SliceDataset(data, preprocessing(BOTH), (8, 8), cache_dir=tmp_path)
    same_grid = whole.depths == parts.depths == [40] * 4
    assert same_grid
    assert torch.equal(parts.foreground, whole.foreground.view(-1, 4).any(1))
    with pytest.raises(ValueError, match=r"parts must be at least 1, and 1 for slices \(spatial_dims=2\), got 4"):
        SliceDataset(data, preprocessing(BOTH), (8, 8), parts=4, cache_dir=tmp_path)


def test_foreground_weights_and_shares_follow_the_labels(slices, caplog):
    weights = foreground_weights(slices, 0.1)
    empty = ~slices.foreground
    assert torch.equal(weights == 1.0, slices.foreground)
    assert empty.any()
    torch.testing.assert_close(weights[empty], torch.full((int(empty.sum()),), 0.1))
    shares = label_shares(slices, 6)
    label = np.concatenate([np.load(paths["label"]).ravel() for paths in slices.paths])
    np.testing.assert_allclose(shares.numpy(), np.bincount(label, minlength=6) / label.size, rtol=1e-5)
    assert not caplog.records
    label_shares(slices, 8)
    assert "has the values [6, 7]" in caplog.text
    with pytest.raises(ValueError, match=r"example_000.nii.gz holds the label value 4: 0 to 3 are expected"):
        label_shares(slices, 4)


def test_the_cache_is_read_again_and_knows_the_transform(population, preprocessing, tmp_path):
    entry = split_dataset(population).training[0]
    first = VolumeCache(preprocessing(BOTH), tmp_path)(entry)
    written = first["image"].stat().st_mtime_ns
    assert VolumeCache(preprocessing(BOTH), tmp_path)(entry) == first
    assert first["image"].stat().st_mtime_ns == written
    assert VolumeCache(preprocessing(BOTH, 2.0), tmp_path)(entry) != first
    assert transform_hash(preprocessing(BOTH)) == transform_hash(preprocessing(BOTH))
    factors = [Compose([Lambdad("image", partial(torch.mul, other=factor))]) for factor in (1, 2)]
    assert transform_hash(factors[0]) != transform_hash(factors[1])
    kinds = [Compose([CastToTyped("image", dtype)]) for dtype in (torch.float32, torch.uint8)]
    assert transform_hash(kinds[0]) != transform_hash(kinds[1])
    with pytest.raises(ValueError, match="the preprocessing cannot be cached, give its functions names"):
        transform_hash(Compose([Lambdad("image", lambda x: x)]))


def test_the_hash_of_a_preprocessing_is_the_same_in_another_process():
    code = (
        "from medcl_monai import preprocessing; from medcl_monai.data.cache import transform_hash\n"
        "print(transform_hash(preprocessing(['image', 'label'], 1.5)))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert transform_hash(make(["image", "label"], 1.5)) == other


def spoil(kind, image, label):
    affine = image.affine.copy()
    values, regions = np.asarray(image.dataobj).astype(np.float32), np.asarray(label.dataobj).astype(np.float32)
    if kind == "NaN":
        values[3, 3, 3] = np.nan
    elif kind == "value 7 only":
        values[:] = 7
    elif kind == "another grid":
        affine[0, 3] += 5
    elif kind == "voxels, its image":
        regions = regions[:-1]
    elif kind == "0.5: whole numbers":
        regions[0, 0, 0] = 0.5
    elif kind == "three axes and one channel":
        values = np.stack([values, values], -1)
    elif kind == "one channel are expected":
        values = values[:, :, 0]
    elif kind == "only after preprocessing":
        values[:] = 7
        values[3, 3, 3] = 8
    return nibabel.Nifti1Image(values, image.affine), nibabel.Nifti1Image(regions, affine)


@pytest.mark.parametrize("kind", [
    "NaN", "value 7 only", "another grid", "voxels, its image", "0.5: whole numbers", "three axes and one channel",
    "one channel are expected", "only after preprocessing",
])
def test_what_cannot_be_trained_on_is_named(population, preprocessing, tmp_path, kind):
    entry = split_dataset(population).training[0]
    loaded = [nibabel.load(entry[key]) for key in BOTH]
    bad = {key: str(tmp_path / f"{key}.nii.gz") for key in BOTH}
    for key, volume in zip(BOTH, spoil(kind, *loaded), strict=True):
        nibabel.save(volume, bad[key])
    with pytest.raises(ValueError, match=rf"(image|label)\.nii\.gz.*{kind}"):
        SliceDataset([bad], preprocessing(BOTH), (48, 48), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=kind):
        VolumeDataset([bad], preprocessing(BOTH))[0]


def test_truncated_and_missing_files_are_named(population, preprocessing, tmp_path):
    entry = split_dataset(population).training[0]
    half = tmp_path / "half.nii.gz"
    half.write_bytes(Path(entry["image"]).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"half.nii.gz cannot be read or prepared"):
        check_loaded({"image": str(half)}, preprocessing())
    with pytest.raises(ValueError, match=r"gone.nii.gz does not exist"):
        SliceDataset([{"image": str(tmp_path / "gone.nii.gz")}], preprocessing(), (48, 48), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="no entries"):
        SliceDataset([], preprocessing(), (48, 48))


def test_a_stream_can_start_anywhere():
    whole = StreamSampler(10, 4, seed=3)
    later = StreamSampler(10, 4, seed=3)
    later.start = 5
    expected = [batch for batch, _ in zip(iter(whole), range(9), strict=False)][5:]
    assert [batch for batch, _ in zip(iter(later), range(4), strict=False)] == expected


def test_every_item_comes_once_per_permutation_and_weights_rule_the_draws():
    items = [item for batch, _ in zip(iter(StreamSampler(10, 4)), range(10), strict=False) for item, _ in batch]
    assert all(sorted(items[k : k + 10]) == list(range(10)) for k in range(0, 40, 10))
    weights = torch.tensor([0.0, 1.0, 3.0])
    sampler = StreamSampler(3, 8, 0, weights)
    drawn = [item for number in range(200) for item, _ in sampler.batch(number)]
    assert 0 not in drawn
    assert 2.5 < drawn.count(2) / drawn.count(1) < 3.6


def test_processes_take_different_parts_of_a_permutation(monkeypatch):
    taken = []
    for process in (0, 1):
        monkeypatch.setattr("medcl_monai.data.samplers.rank", lambda process=process: process)
        monkeypatch.setattr("medcl_monai.data.samplers.world_size", lambda: 2)
        taken += [item for number in range(2) for item, _ in StreamSampler(16, 4).batch(number)]
    assert sorted(taken) == list(range(16))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_do_not_change_the_stream(slices):
    batches = [next(iter(sample_loader(slices, 4, seed=1, num_workers=workers))) for workers in (0, 2)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0])


def test_sizes_and_batches_that_cannot_work_are_named(slices, preprocessing):
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        sample_loader(slices, 1)
    with pytest.raises(ValueError, match="must have spatial_dims=2"):
        SliceDataset(slices.data, preprocessing(BOTH), (8, 8, 8))
    with pytest.raises(ValueError, match="both must be at least 1"):
        StreamSampler(0, 4)
