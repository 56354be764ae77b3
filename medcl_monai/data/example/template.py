"""The brain template of the example population: tissue shares at 2 mm, and the zones that define the structures.

The template is made from the ICBM 152 maps in nilearn's wheel. Coordinates are MNI coordinates in mm. All zones use
``|x|``, so every zone is symmetric.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage as ndi

SUMS = {"T1": 333_468_829, "grey matter": 257_090_788, "white matter": 170_935_158, "brain mask": 1_882_989}
ORIGIN = (-98.0, -134.0, -72.0)  # MNI coordinates of the first voxel of the 1 mm maps, in mm
CROP = (slice(11, 87), slice(12, 106), slice(0, 79))
FULL = 2040  # sum over a block of 8 voxels, 255 each
CORE_SHIFT = 240  # moved from white to grey: thalamus and putamen are half white in the maps and would fall apart
WHITE, GREY, CSF = 0, 1, 2


@dataclass(frozen=True)
class ExampleTemplate:
    """The template at 2 mm, (76, 94, 79) voxels.

    Attributes:
        tissue: shares of white matter, grey matter and CSF, (3, *S), float64, after the shift `CORE_SHIFT` in the core.
        brain: mask of the brain, bool.
        fossa: mask of cerebellum and brainstem, bool.
        ventricles: zone in which CSF is labelled as ventricles, bool.
        central: zone in which grey matter is labelled as central grey, bool.
        affine: matrix from voxel indices to MNI coordinates in mm.
    """

    tissue: np.ndarray
    brain: np.ndarray
    fossa: np.ndarray
    ventricles: np.ndarray
    central: np.ndarray
    affine: np.ndarray

    def label(self, shares: np.ndarray) -> np.ndarray:
        """Turn tissue shares (3, *S) into a label map (uint8), by the zones of the template."""
        tissue = np.argmax(shares, axis=0)
        solid = self.brain & (tissue != CSF)
        rules = (
            (self.brain & (tissue == GREY), 2),
            (self.brain & (tissue == WHITE), 1),
            (self.brain & self.central & (tissue == GREY), 3),
            (self.brain & self.ventricles & (tissue == CSF), 4),
            (self.fossa & solid, 5),
        )
        labels = np.zeros(tissue.shape, np.uint8)
        for where, value in rules:  # a later rule overrides an earlier rule
            labels[where] = value
        return labels


@lru_cache(1)
def example_template() -> ExampleTemplate:
    """Make the template; the template is made once per process.

    Raises:
        ValueError: nilearn ships other maps than the maps with which this generator was checked.
    """
    t1, grey, white, mask = (_blocks(values) for values in _maps())
    x, y, z = _coordinates()
    brain = mask >= 4
    csf = np.maximum(0, 255 * mask - grey - white)
    core = _ellipsoid(x, y, z, (0, -4, 4), (34, 34, 20)) & (z > -9)
    grey, white = grey + CORE_SHIFT * core, white - CORE_SHIFT * core
    tissue = np.argmax([white, grey, csf], axis=0)
    fossa = _fossa(t1, brain, x, y, z)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = [2 * part.start + 0.5 + start for part, start in zip(CROP, ORIGIN, strict=True)]
    return ExampleTemplate(
        tissue=np.stack([white, grey, csf]) / FULL,
        brain=brain,
        fossa=fossa,
        ventricles=_ventricles(brain & (tissue == CSF) & (csf > 918), fossa, x, y, z),
        central=_central(brain & (tissue == GREY) & core & ~fossa, core),
        affine=affine,
    )


def _maps() -> list[np.ndarray]:
    from nilearn import __version__, datasets  # the import takes 2 s, and only the example population needs nilearn

    load = {
        "T1": datasets.load_mni152_template,
        "grey matter": datasets.load_mni152_gm_template,
        "white matter": datasets.load_mni152_wm_template,
        "brain mask": datasets.load_mni152_brain_mask,
    }
    maps = []
    for name, loader in load.items():
        values = loader(resolution=1).get_fdata()
        whole = np.rint(values if name == "brain mask" else 255 * values).astype(np.int64)
        if int(whole.sum()) != SUMS[name]:
            raise ValueError(
                f"nilearn {__version__} ships other ICBM 152 maps than this generator was checked with "
                f"({name} sum {int(whole.sum())}, expected {SUMS[name]})"
            )
        maps.append(whole)
    return maps


def _blocks(values: np.ndarray) -> np.ndarray:
    """Sum over blocks of 2³ voxels and crop; the sums are exact integers, whereas resampling interpolates."""
    return values[:196, :232, :188].reshape(98, 2, 116, 2, 94, 2).sum((1, 3, 5))[CROP]


def _coordinates() -> tuple[np.ndarray, ...]:
    axes = [2.0 * np.arange(part.start, part.stop) + 0.5 + start for part, start in zip(CROP, ORIGIN, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.abs(x), y, z


def _ellipsoid(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, centre: tuple, radii: tuple
) -> np.ndarray:
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip((x, y, z), centre, radii, strict=True)) <= 1


def _fossa(t1: np.ndarray, brain: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Find the cerebellum and the brainstem by a watershed between cerebrum and hindbrain.

    The border is the tentorium, a dark sheet in T1.
    """
    cap = np.maximum(2 - 0.45 * x - 0.9 * np.maximum(0, -60 - y), -20)
    cap = np.where(y > -38, np.minimum(cap, -9), cap)
    cerebrum = (
        (z > cap + 4)
        | _ellipsoid(x, y, z, (42, -8, -25), (18, 28, 10))
        | ((y > -6) & (z > -40))
        | _ellipsoid(x, y, z, (28, -18, -18), (8, 14, 6))
    )
    hind = (
        _ellipsoid(x, y, z, (22, -62, -40), (16, 14, 10))
        | _ellipsoid(x, y, z, (0, -60, -25), (8, 10, 12))
        | ((x < 7) & (y > -32) & (y < -22) & (z > -50) & (z < -18))
        | ((y < -44) & (z < -32))
    )
    markers = np.zeros(t1.shape, np.int16)
    for where, value in ((cerebrum, 1), (hind, 2), (ndi.distance_transform_cdt(~brain) > 2, 3)):
        markers[np.broadcast_to(where, t1.shape)] = value
    basins = ndi.watershed_ift(((FULL - np.minimum(t1, FULL)) // 8).astype(np.uint8), markers)
    return ndi.uniform_filter(((basins == 2) & (z < cap)).astype(np.float64), 3) > 0.5


def _ventricles(csf: np.ndarray, fossa: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    cisterns = (
        ((x < 9) & (y < -22) & (z < 22)) | ((x < 18) & (y < -20) & (z < 6)) | ((x < 8) & (y > 4) & (z < -2))
    )
    box = _ellipsoid(x, y, z, (0, -14, 12), (44, 58, 32)) & (z > -10) & ~fossa & ~cisterns
    return _grown(_large(csf & box, 50), box)


def _central(grey: np.ndarray, core: np.ndarray) -> np.ndarray:
    return _grown(_large(ndi.binary_opening(grey), 100), core)


def _large(where: np.ndarray, voxels: int) -> np.ndarray:
    pieces, _ = ndi.label(where)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return (sizes >= voxels)[pieces]


def _grown(where: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return ndi.binary_dilation(where, iterations=2) & inside
