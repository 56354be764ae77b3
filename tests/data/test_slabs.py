"""Slabs, and batches that hold samples of every slab."""

from itertools import islice

import pytest
import torch

from medcl_monai.data.samplers import sample_loader
from medcl_monai.data.slabs import SlabSampler, slab_of
from medcl_monai.data.slices import SliceDataset
from medcl_monai.data.splits import split_dataset

PLACES = [0.0, 0.249, 0.25, 0.5, 0.74, 0.75, 0.999, 1.0]


def axis(subjects=6, depth=10):
    positions = (torch.arange(depth) + 0.5).double().div(depth).repeat(subjects)
    return positions, [f"p{number}" for number in range(subjects) for _ in range(depth)]


def test_a_slab_is_an_equal_part_of_the_axis_and_the_end_belongs_to_the_last():
    places = torch.tensor(PLACES, dtype=torch.float64)
    assert slab_of(places, 4).tolist() == [0, 0, 1, 2, 2, 3, 3, 3]
    assert slab_of(places, 3).tolist() == [0, 0, 0, 1, 2, 2, 2, 2]


def test_a_slice_on_a_border_lies_in_the_upper_slab_whatever_the_rounding():
    for depth in range(1, 200):
        place = torch.arange(depth)
        for slabs in range(1, 25):
            exact = (2 * place + 1) * slabs // (2 * depth)
            assert torch.equal(slab_of((place + 0.5).double() / depth, slabs), exact), (depth, slabs)


def test_a_batch_holds_each_slab_of_distinct_subjects():
    positions, subjects = axis()
    sampler = SlabSampler(positions, subjects, 4, 16, seed=3)
    seen = set()
    for number in range(50):
        items = [item for item, _ in sampler.batch(number)]
        slabs, people = slab_of(positions[items], 4), [subjects[item] for item in items]
        assert torch.bincount(slabs, minlength=4).tolist() == [4] * 4
        assert len(set(people)) == 4
        assert all(people.count(name) == 4 for name in people)
        seen |= set(items)
    assert seen == set(range(60))  # every slice has its turn


def test_batches_differ_and_a_later_start_continues_the_stream():
    positions, subjects = axis()
    whole, later = (SlabSampler(positions, subjects, 2, 4, seed=1) for _ in range(2))
    batches = list(islice(iter(whole), 6))
    assert len({tuple(batch) for batch in batches}) == 6
    later.start = 4
    assert list(islice(iter(later), 2)) == batches[4:]
    other = SlabSampler(positions, subjects, 2, 4, seed=2)
    assert other.batch(0) != batches[0]


def test_processes_take_different_subjects(monkeypatch):
    positions, subjects = axis()
    monkeypatch.setattr("medcl_monai.data.slabs.world_size", lambda: 3)
    for number in range(10):
        people = []
        for place in range(3):
            monkeypatch.setattr("medcl_monai.data.slabs.rank", lambda place=place: place)
            batch = SlabSampler(positions, subjects, 2, 4).batch(number)
            people.append({subjects[item] for item, _ in batch})
        assert len(set.union(*people)) == 6


def test_several_volumes_of_a_person_are_one_subject():
    positions, subjects = axis(4)
    sampler = SlabSampler(positions, ["a"] * 20 + subjects[20:], 2, 6, seed=0)
    assert all(sum(item < 20 for item, _ in sampler.batch(number)) == 2 for number in range(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "batch_size 10 must be a multiple of the number of slabs, 4"),
        ({"batch_size": 28}, r"a batch of 28 with 4 slabs needs 7 subjects over 1 process\(es\), got 6"),
        ({"depth": 3}, r"subject p0 has no slice in slab 1 of 4 \(3 slices\)"),
    ],
)
def test_impossible_batches_are_named(change, message):
    positions, subjects = axis(depth=change.pop("depth", 10))
    with pytest.raises(ValueError, match=f"SlabSampler: {message}"):
        SlabSampler(positions, subjects, slabs=4, batch_size=change.get("batch_size", 16))


@pytest.mark.parametrize("dims", [2, 3])
def test_a_loader_with_slabs_gives_batches_of_real_samples(population, preprocessing, tmp_path, dims):
    data = split_dataset(population).pretraining
    parts = 1 if dims == 2 else 4
    samples = SliceDataset(
        data, preprocessing("image", dims=dims), (16,) * dims, spatial_dims=dims, parts=parts, cache_dir=tmp_path
    )
    sampler = SlabSampler(samples.positions, samples.subjects, 4, 8, seed=5)
    batches = [next(iter(sample_loader(samples, 8, sampler=sampler, num_workers=workers))) for workers in (0, 2)]
    assert slab_of(batches[0]["position"], 4).tolist() == [0, 1, 2, 3] * 2
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    with pytest.raises(ValueError, match="a sampler of batches of 4 without weights is expected"):
        sample_loader(samples, 4, sampler=sampler)
