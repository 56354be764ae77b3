import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from monai.data import load_decathlon_datalist
from scipy import ndimage as ndi

from medcl_monai.data.example.population import STRUCTURES, example_population
from medcl_monai.data.example.subject import Variation, example_subject, field, linear, spline_matrix
from medcl_monai.data.example.template import example_template

# voxels of labels 0 to 5 of the undeformed template, as this generator makes them (see docs/decisions.md)
TEMPLATE = [342_317, 74_010, 113_128, 6_102, 2_232, 26_587]
CENTROIDS = [(-0.1, -17.2, 20.7), (0, -17, 13.9), (-0.1, -4.9, 4.4), (0, -14.7, 14.3), (0.1, -56.9, -37.0)]


def test_the_template_is_exact_and_symmetric():
    template = example_template()
    label = template.label(template.tissue)
    assert np.bincount(label.ravel()).tolist() == TEMPLATE
    for value, expected in enumerate(CENTROIDS, 1):
        centre = template.affine[:3, :3] @ np.array(ndi.center_of_mass(label == value)) + template.affine[:3, 3]
        np.testing.assert_allclose(centre, expected, atol=0.2 if value in (1, 2, 5) else 0.5)
        assert abs(centre[0]) < 0.5


def test_a_subject_depends_on_its_number_and_the_population_s_seed_alone():
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = example_subject(3, spacing=4.0)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - as above
    again = example_subject(3, spacing=4.0)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002 - as above
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    others = [example_subject(number, seed, 4.0) for number, seed in ((4, 0), (3, 1), (1, 0), (0, 1))]
    images = [first.image, *(other.image for other in others)]
    assert all(not np.array_equal(a, b) for k, a in enumerate(images) for b in images[:k])


def test_another_process_makes_equal_bits():
    code = "from medcl_monai.data.example.subject import example_subject as s; print(s(2, spacing=4.0).image.sum())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(found) == int(example_subject(2, spacing=4.0).image.sum())


@pytest.mark.parametrize("number", range(4))
def test_labels_follow_the_warp_exactly_and_the_warp_does_not_fold(number):
    subject = example_subject(number)
    places = np.rint(subject.warp).astype(int)
    size = subject.anatomy.shape
    inside = np.all([(place >= 0) & (place < side) for place, side in zip(places, size, strict=True)], axis=0)
    looked_at = subject.anatomy[tuple(np.clip(place, 0, side - 1) for place, side in zip(places, size, strict=True))]
    assert np.array_equal(subject.label, np.where(inside, looked_at, 0))
    assert set(np.unique(subject.label)) == set(range(6))
    assert (subject.image.dtype, subject.label.dtype) == (np.int16, np.uint8)
    assert subject.image.min() == 0
    gradient = np.stack([np.stack(np.gradient(part)) for part in subject.warp])
    assert np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1))).min() > 0


def test_without_disturbance_the_image_is_the_warped_intensity():
    still = Variation(
        fold_sd=0.0, ventricle_size=(0.0, 0.0), atrophy=(0.0, 0.0), blur=(0.0, 0.0), bias=(80.0, 0.0), noise=(0.0, 0.0),
        gain=(1000.0, 1000.0),
    )
    subject = example_subject(0, spacing=4.0, variation=still)
    template = example_template()
    shares = np.where(template.brain, np.maximum(template.tissue, 0.001), 0)
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((0, 0))))
    field(random, 3, template.brain.shape, 3.0, 0.0)
    random.uniform(), random.uniform()
    grey = random.uniform(0.42, 0.70)
    means = [grey + random.uniform(0.10, 0.45), grey, random.uniform(0.05, 0.45)]
    squares = shares**2
    intensity = np.tensordot(means, squares, 1) / np.maximum(squares.sum(0), 1e-12)
    expected = np.where(linear(template.brain.astype(float), subject.warp) > 0.5, linear(intensity, subject.warp), 0)
    assert np.abs(subject.image - np.rint(1000 * expected)).max() <= 1


def test_no_interval_of_intensity_separates_the_structures():
    best = {3: [], 4: [], 5: []}
    for number in range(50, 54):
        subject = example_subject(number)
        image = (subject.image - subject.image.mean()) / subject.image.std()
        edges = np.quantile(image[subject.image > 0], np.linspace(0, 1, 21))
        for value in best:
            inside = subject.label == value
            counts = [np.histogram(image[mask], edges)[0].cumsum() for mask in (inside, np.ones_like(inside))]
            hits, taken = (np.concatenate([[0], count]) for count in counts)
            dice = 2 * (hits[None] - hits[:, None]) / np.maximum(taken[None] - taken[:, None] + inside.sum(), 1)
            best[value].append(dice.max())
    assert np.mean(best[3]) < 0.15
    assert np.mean(best[4]) < 0.35
    assert np.mean(best[5]) < 0.45


def test_a_field_of_equal_coefficients_is_constant_and_its_spread_is_the_spline_s():
    np.testing.assert_allclose(spline_matrix(76, 3.0).sum(1), 1, atol=1e-12)
    draws = [field(np.random.RandomState(seed), 1, (30, 30, 30), 3.0, 1.0) for seed in range(50)]
    assert np.std(draws) == pytest.approx(0.33, rel=0.1)


def test_the_folder_is_a_decathlon_folder_with_licence_and_lists(population, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    for name, count in (("training", 4), ("validation", 1), ("test", 1)):
        assert len(load_decathlon_datalist(str(population / "dataset.json"), True, name)) == count
    content = json.loads((population / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"0": "background", **STRUCTURES}
    assert "Louis Collins" in (population / "LICENSE.txt").read_text(encoding="utf-8")


def test_a_broken_off_population_is_completed_and_whole_files_stay(population, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(population, folder)
    (folder / "dataset.json").unlink()
    kept, cut = folder / "imagesTr/example_000.nii.gz", folder / "labelsTr/example_002.nii.gz"
    before = kept.stat().st_mtime_ns
    whole = cut.read_bytes()
    cut.write_bytes(whole[:100])
    (folder / "imagesTr/example_003.nii.gz").unlink()
    for age, name in ((10_000, ".7.example_003.nii.gz"), (0, ".8.example_003.nii.gz")):
        (folder / "imagesTr" / name).write_bytes(whole[:50])
        os.utime(folder / "imagesTr" / name, (time.time() - age,) * 2)
    example_population(folder, subjects=6, spacing=4.0)
    assert kept.stat().st_mtime_ns == before
    assert cut.read_bytes() == whole
    assert [path.name for path in folder.rglob(".*")] == [".8.example_003.nii.gz"]  # another process may write it now
    done = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    example_population(folder, subjects=6, spacing=4.0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == done


def test_another_data_set_and_impossible_numbers_are_refused(population, tmp_path):
    with pytest.raises(ValueError, match="holds another data set"):
        example_population(population, subjects=7, spacing=4.0)
    (tmp_path / "dataset.json").write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match=r"holds another data set \(mine"):
        example_population(tmp_path, subjects=6, spacing=4.0)
    with pytest.raises(ValueError, match="subjects=2 leaves no"):
        example_population(tmp_path, subjects=2)
    with pytest.raises(ValueError, match=r"spacing=1.3 is not 2.0 or 4.0"):
        example_subject(0, spacing=1.3)
    with pytest.raises(ValueError, match="must be 0 or more"):
        example_subject(-1)


def test_importing_the_package_does_not_import_nilearn():
    code = "import sys, medcl_monai; sys.exit('nilearn' in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
