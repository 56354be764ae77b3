"""What is in a data set, and what weights make of it: figures, pictures and suggested knobs."""

from collections.abc import Mapping
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn

from medcl_monai.bundles import bundle_folder, size_rule
from medcl_monai.data.inspection import inspect_dataset
from medcl_monai.data.slices import SliceDataset
from medcl_monai.diagnostics.figures import effective_rank, feature_spread, participation_ratio, spectrum
from medcl_monai.diagnostics.pictures import similarity_picture, spectrum_picture
from medcl_monai.networks.encode import encode
from medcl_monai.transfer.load import load_pretrained
from medcl_monai.transforms.preprocessing import preprocessing


def inspect(
    dataset: str,
    weights: str | None = None,
    bundle: str = "jcl",
    output: str = "inspection",
    samples: int = 64,
    subjects: str | None = None,
    subject_pattern: str | None = None,
) -> str:
    """Describe a data set and suggest knobs for it; with `weights`, describe also what an encoder makes of its images.

    The description of a data set holds the volumes, people, sizes, spacings, intensities, structures and the suggested
    knobs. The description of weights holds the transfer report; effective rank, participation ratio and spread of the
    encoder's last map (pooled) and of an inner map; the spectrum; and a map of the similarity to the centre of a slice.
    The images are then prepared with the suggested knobs.

    Args:
        dataset: a Decathlon folder, a folder with imagesTr/ and perhaps labelsTr/, or any tree of volumes.
        weights: models/pretrained.pt or models/model.pt of a bundle; None: only the data set is described.
        bundle: name of a bundle in ./bundles, or the bundle's folder. The knobs are suggested for this bundle, and its
            train.json says how images are prepared and which network the weights belong to.
        output: folder of the pictures.
        samples: number of slices (3D: crops) that are encoded, at least 8.
        subjects: path of a JSON file that maps file names to people.
        subject_pattern: regular expression whose group 1, found in a file name, is the person.

    Returns:
        The report as text.

    Raises:
        FileNotFoundError: there is no such data set, weights file or bundle.
        ValueError: fewer than 8 samples, unreadable volumes, or weights of another network.
    """
    root = bundle_folder(bundle)
    inspection = inspect_dataset(dataset, subjects, subject_pattern, size_rule(root))
    report = str(inspection)
    if weights is None:
        return report
    if samples < 8:
        raise ValueError(f"inspect: samples={samples}: figures need at least 8")
    parser = _parse(root / "configs" / "train.json", root, dataset, inspection.knobs)
    network = parser.get_parsed_content("network_def")
    transfer = load_pretrained(weights, network, coverage=0.01)
    images = _images(parser, samples)
    return "\n".join([report, f"{weights}: {transfer}", *_figures(network, images, Path(output))])


def _parse(config: Path, root: Path, dataset: str, knobs: Mapping[str, object] | None = None) -> ConfigParser:
    """A config of the bundle on the data set, with the knobs that it has set as suggested."""
    parser = ConfigParser()
    parser.read_config(str(config))
    for name, value in {"bundle_root": str(root), "dataset_dir": dataset, **(knobs or {})}.items():
        if name in parser.config:
            parser[name] = value
    return parser


def _images(parser: ConfigParser, samples: int) -> Tensor:
    """Evenly spaced slices (3D: crops) of the pool, prepared without labels as the bundle prepares its images."""
    names = ("pixel_spacing", "spatial_dims", "slice_axis", "intensity")
    prepare = preprocessing("image", **{name: parser.get_parsed_content(name) for name in names})
    size, dims, axis = (parser.get_parsed_content(name) for name in ("roi_size", "spatial_dims", "slice_axis"))
    data = SliceDataset(parser.get_parsed_content("split").pretraining, prepare, size, dims, axis)
    places = torch.linspace(0, len(data) - 1, min(samples, len(data))).long().unique().tolist()
    return torch.stack([data[place]["image"] for place in places])


@torch.no_grad()
def _figures(network: nn.Module, images: Tensor, output: Path) -> list[str]:
    output.mkdir(parents=True, exist_ok=True)
    maps = encode(network.eval(), images)
    features = maps[-1].flatten(2).mean(2)
    dense = maps[2]
    similarity, spectra = output / "similarity.png", output / "spectrum.png"
    centre = tuple(side // 2 for side in images.shape[2:])
    similarity_picture(images[len(images) // 2, 0], dense[len(images) // 2], centre, similarity)
    spectrum_picture({"features": spectrum(features)}).savefig(spectra)
    return [
        f"{name} of {len(images)} samples, width {values.shape[1]}: effective rank {effective_rank(values):.1f}, "
        f"participation ratio {participation_ratio(values):.1f}, spread {feature_spread(values):.3f}"
        for name, values in (("features", features), ("feature map", dense))
    ] + [f"pictures: {similarity}, {spectra}"]
