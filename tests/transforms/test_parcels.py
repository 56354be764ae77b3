import torch

from medcl_monai.transforms.parcels import PositionParcelsd, position_parcels


def test_the_box_of_the_body_is_divided_into_halves_and_thirds():
    label = torch.zeros(1, 10, 12, 3, dtype=torch.uint8)
    label[:, 2:8, 3:9] = 5
    label[:, 4, 4, 1] = 0
    found = position_parcels(label)
    assert found.dtype == torch.uint8
    assert torch.equal(found > 0, label > 0)
    assert found[0, 2:8, 3:9, 0].tolist() == [[1, 1, 2, 2, 3, 3]] * 3 + [[4, 4, 5, 5, 6, 6]] * 3
    shifted = position_parcels(torch.roll(label, (2, 3), (1, 2)))
    assert torch.equal(shifted, torch.roll(found, (2, 3), (1, 2)))


def test_an_empty_label_stays_empty_and_other_keys_stay_as_they_are():
    entry = {"label": torch.zeros(1, 4, 4, 4), "image": torch.ones(1, 4, 4, 4)}
    found = PositionParcelsd("label")(entry)
    assert not bool(found["label"].any())
    assert found["image"] is entry["image"]


def test_parcels_are_the_last_step_of_the_preprocessing_and_keep_the_grid(population):
    from medcl_monai.transforms.preprocessing import preprocessing

    path = sorted((population / "labelsTr").iterdir())[0]
    entry = {"image": str(path).replace("labelsTr", "imagesTr"), "label": str(path)}
    keys = ["image", "label"]
    plain, parcels = (preprocessing(keys, 4.0, label_steps=steps)(entry) for steps in ((), [PositionParcelsd("label")]))
    assert set(parcels["label"].unique().tolist()) == set(range(7))
    assert torch.equal(parcels["label"].affine, plain["label"].affine)
    assert torch.equal(parcels["image"], plain["image"])
    right = parcels["label"][0].as_tensor() > 3
    places = right.nonzero()[:, 0].float().mean()
    assert places > right.shape[0] / 2  # in RAS the first axis runs to the right
