"""Swin weights of other projects under the names and in the shapes of MONAI's Swin networks."""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.networks.merging import MARK
from medcl_monai.transfer.inflate import STEM, TABLE, inflate
from medcl_monai.transfer.load import Resized
from medcl_monai.transfer.swin_layouts import ENCODER, Layout, rename

STEM_BIAS, STEM_NORM = "patch_embed.proj.bias", "patch_embed.norm.weight"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1]
INPUTS, ORDERS = ("unit", "z-score"), ("legacy", "present")
LEGACY_LINE = '"downsample": {"_target_": "medcl_monai.LegacyPatchMerging", "_mode_": "callable"}'


@knob_types
def convert_swin(
    weights: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    inputs: str = "unit",
    size: Sequence[int] | None = None,
    resize_tables: bool = False,
    merging: str | None = None,
    mirror: bool = False,
) -> dict[str, Tensor]:
    """Bring Swin weights of a known layout to the names and shapes of a `SwinUNet`, a SwinUNETR or a SwinTransformer.

    The layouts of Microsoft, timm and torchvision, of the self-supervised SwinUNETR files and of MONAI itself are known
    by the names of the tensors. RGB weights for a grey network are summed over the colours. A patch of the file that is
    larger than the network's is summed over cells, which equals the network on the enlarged image. Weights of a 2D
    network are inflated for a 3D network (`inflate`). Resized tables are an approximation, and so is the sum over
    colours for images of several different channels; every other change is exact.

    Args:
        weights: tensors of the file, by name.
        own: tensors of the network, by name.
        inputs: intensities that the network reads: "unit" (0 to 1; ImageNet's mean and deviation are folded into the
            first convolution) or "z-score" (mean 0, deviation 1; as ImageNet's weights expect, so nothing is folded).
        size: size of the images that the network will read, in pixels or voxels: the windows must divide the grid of
            every stage, or the tables of relative positions would be misread; None: not checked.
        resize_tables: whether tables of another window are resized (bicubic) instead of left out.
        merging: order of merging with which a 3D file was trained: "legacy" (MONAI up to 1.4) or "present"; None:
            unknown, which is refused for files of other projects where the network has the present order.
        mirror: whether the Swin blocks of the decoder get copies of the encoder's blocks (`mirror_decoder`).

    Returns:
        The tensors under the network's names, ready to load.

    Raises:
        ValueError: the layout is unknown, the file is of another width, of other numbers of attention heads or of more
            axes than the network, only one of the two has a norm behind the patches, the windows do not divide a stage,
            or the order of merging is another or unknown.
    """
    if inputs not in INPUTS or merging not in (None, *ORDERS):
        raise ValueError(
            f"convert_swin: inputs must be one of {INPUTS}, merging None or one of {ORDERS}; "
            f"got {inputs!r} and {merging!r}"
        )
    layout, found = rename(weights)
    home = ENCODER if f"{ENCODER}{STEM}" in own else ""
    if not home:
        found = {name.removeprefix(ENCODER): value for name, value in found.items()}
    stem, ours = _stems(found, own, f"{home}{STEM}")
    _check_function(found, own, f"{home}{STEM_NORM}")
    if ours.ndim == stem.ndim == 5:
        _check_order(weights, own, layout, merging)
    if size is not None:
        _check_windows(own, size, ours)
    stem, bias = _fold(stem, found.get(f"{home}{STEM_BIAS}"), layout.imagenet and inputs == "unit")
    found[f"{home}{STEM}"] = _patches(_channels(stem, ours.shape[1]), ours.shape[-1])
    if bias is not None:
        found[f"{home}{STEM_BIAS}"] = bias
    found = inflate(found, own)
    found = _tables(found, own) if resize_tables else found
    return mirror_decoder(found, own) if mirror else found


def mirror_decoder(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill the Swin blocks of a `SwinUNet`'s decoder with copies of the encoder's blocks of the same resolution.

    Stage 3, 2 and 1 of the encoder go into stage 1, 2 and 3 of the decoder (the transfer of Swin-Unet's authors).
    Blocks that the weights hold already stay as they are. Expansions, skip connections and merging have no counterpart.

    Args:
        weights: tensors under the network's names, as `convert_swin` returns them.
        own: tensors of the network, by name.

    Raises:
        ValueError: the network has no decoder of Swin blocks.
    """
    if not any(name.startswith("decoder.layers_up.") for name in own):
        raise ValueError("mirror_decoder: the network has no decoder.layers_up, so it is no SwinUNet")
    mirrored = {}
    for name, value in weights.items():
        if match := re.match(r"swinViT\.layers([123])\.0\.blocks\.(.*)", name):
            mirrored[f"decoder.layers_up.{3 - int(match[1])}.blocks.{match[2]}"] = value.clone()
    return Resized({**mirrored, **weights}, getattr(weights, "resized", ()))


def _stems(found: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return the first convolution of the file and of the network, if they are of the same width and fit in axes."""
    for whose, tensors in (("network", own), ("file", found)):
        if name not in tensors:
            raise ValueError(f"convert_swin: the {whose} has no {name!r}, but {list(tensors)[:5]}")
    stem, ours = found[name], own[name]
    if len(stem) != len(ours):
        raise ValueError(
            f"convert_swin: {STEM} is {tuple(stem.shape)}, the network has {tuple(ours.shape)}: embed_dim {len(stem)} "
            f"was expected to be {len(ours)}"
        )
    if stem.ndim > ours.ndim:
        raise ValueError(f"convert_swin: {STEM} reads {stem.ndim - 2}D images, the network {ours.ndim - 2}D images")
    return stem, ours


def _check_function(found: Mapping[str, Tensor], own: Mapping[str, Tensor], norm: str) -> None:
    """Refuse weights that fit in shape, but with which the network would compute something else."""
    if (norm in found) != (norm in own):
        has, lacks = ("file", "network") if norm in found else ("network", "file")
        raise ValueError(
            f"convert_swin: the {has} has a norm behind the patches ({norm}), the {lacks} has none: a SwinUNet needs "
            f"weights with the norm, a SwinUNETR takes them with patch_norm={norm in found}"
        )
    for name, table in found.items():
        if name.endswith(TABLE) and name in own and table.shape[1] != own[name].shape[1]:
            raise ValueError(
                f"convert_swin: {name} is of {table.shape[1]} attention heads, the network has {own[name].shape[1]}: "
                "heads divide the channels, so the same weights would compute something else"
            )


def _check_order(weights: Mapping[str, Tensor], own: Mapping, layout: Layout, merging: str | None) -> None:
    """Refuse 3D weights of another order of merging than the network's, or of an unknown order."""
    legacy = any(name.endswith(MARK) for name in own)
    of_file = "legacy" if any(name.endswith(MARK) for name in weights) else merging
    if of_file is None and _of_this_package(weights):
        of_file = "present"
    if of_file == ("legacy" if legacy else "present") or (of_file is None and legacy):
        return
    title = f"convert_swin: weights of {layout.title}"
    if of_file is None:
        raise ValueError(
            f"{title} were probably trained with MONAI up to 1.4, which merges patches in another order than this "
            f"network: write {LEGACY_LINE} into network_def of train.json and of inference.json, or say "
            'merging "present" if the weights were trained with MONAI 1.5 or later'
        )
    line = f"write {LEGACY_LINE} into network_def" if of_file == "legacy" else "leave downsample out of network_def"
    raise ValueError(f"{title} were trained in the {of_file} order of merging, the network has the other: {line}")


def _of_this_package(weights: Mapping[str, Tensor]) -> bool:
    """Whether no other project writes such names: pretrained.pt holds no indices, and a SwinUNet has a last norm."""
    indices = any(name.endswith("relative_position_index") for name in weights)
    return f"{ENCODER}{STEM}" in weights and (not indices or "norm.weight" in weights)


def _check_windows(own: Mapping[str, Tensor], size: Sequence[int], stem: Tensor) -> None:
    patch = stem.shape[-1]
    if len(size) != stem.ndim - 2:
        raise ValueError(f"convert_swin: the network reads {stem.ndim - 2}D images, got a size of {tuple(size)}")
    table = next(value for name, value in own.items() if name.endswith(TABLE))
    window = (round(len(table) ** (1 / len(size))) + 1) // 2
    for side in size:
        grids = [side / (patch * 2**stage) for stage in range(4)]
        if any(grid % window for grid in grids):
            raise ValueError(
                f"convert_swin: window {window} does not tile the stage grids {', '.join(f'{g:g}' for g in grids)} of "
                f"side {side}, so imported position tables would be misread; use sides that are multiples of "
                f"{8 * patch * window}, or another window_size"
            )


def _fold(stem: Tensor, bias: Tensor | None, imagenet: bool) -> tuple[Tensor, Tensor | None]:
    """Fold ImageNet's mean and deviation into the first convolution, so that it reads intensities from 0 to 1."""
    if not imagenet or stem.shape[1] != len(MEAN):
        return stem, bias
    stem = stem.to(torch.promote_types(stem.dtype, torch.float32))  # files in half precision lose digits otherwise
    mean, deviation = (torch.tensor(values).to(stem) for values in (MEAN, DEVIATION))
    stem = stem / deviation[:, None, None]
    return stem, None if bias is None else bias.to(stem) - torch.einsum("ochw,c->o", stem, mean)


def _channels(stem: Tensor, channels: int) -> Tensor:
    """Sum over the file's channels, and share the sum among the network's channels; equal numbers stay as they are."""
    if stem.shape[1] == channels:
        return stem
    return stem.sum(1, keepdim=True).expand(-1, channels, *stem.shape[2:]) / channels


def _patches(stem: Tensor, patch: int) -> Tensor:
    """Sum the kernel over cells, so that the network reads the image as if each pixel stood in it several times."""
    factor, rest = divmod(stem.shape[-1], patch)
    if rest or factor < 1:
        raise ValueError(f"convert_swin: patch_size {patch} must divide the file's patch of {stem.shape[-1]}")
    if factor == 1:
        return stem
    pool = F.avg_pool2d if stem.ndim == 4 else F.avg_pool3d
    return pool(stem, factor, divisor_override=1)


def _tables(found: dict[str, Tensor], own: Mapping[str, Tensor]) -> "Resized":
    """Resize the tables of relative positions to the network's window."""
    dims, changed = own[next(name for name in own if name.endswith(STEM))].ndim - 2, {}
    for name, table in found.items():
        if name.endswith(TABLE) and name in own and len(table) != len(own[name]):
            changed[name] = resize_table(table, len(own[name]), dims)
    return Resized({**found, **changed}, tuple(changed))


def resize_table(table: Tensor, entries: int, dims: int) -> Tensor:
    """Resize a table of relative positions (entries, heads) by bicubic interpolation; in 3D axis by axis.

    Args:
        table: the table, whose entries form a square (2D) or a cube (3D).
        entries: number of entries of the new table.
        dims: number of spatial axes, 2 or 3.
    """
    side, new = (round(count ** (1 / dims)) for count in (len(table), entries))
    grid = table.T.reshape(-1, *[side] * dims)
    for axis in range(1, dims + 1):  # bicubic interpolation of a plane is that of its axes in turn
        rows = grid.movedim(axis, -1)
        flat = rows.reshape(1, 1, -1, side)
        flat = F.interpolate(flat, size=(flat.shape[2], new), mode="bicubic", align_corners=True)
        grid = flat.reshape(*rows.shape[:-1], new).movedim(-1, axis)
    return grid.reshape(len(grid), -1).T.contiguous()
