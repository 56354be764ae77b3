"""The names that other projects give to the tensors of Swin networks, and ours."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

ENCODER = "swinViT."
V2 = ("logit_scale", "cpb_mlp", "q_bias")  # parts of the attention of Swin V2, which computes something else


@dataclass(frozen=True)
class Layout:
    """The names of one project.

    Attributes:
        title: what the layout is called in messages.
        prefix: what may stand before the names, as a regular expression; other names are dropped if it stands there.
        sign: beginning of names that only this layout has, behind the prefix.
        rules: regular expressions and replacements, applied to each name in order; an empty name is dropped.
        imagenet: whether the weights expect RGB with ImageNet's mean and deviation.
    """

    title: str
    prefix: str
    sign: str
    rules: tuple[tuple[str, str | Callable], ...]
    imagenet: bool = False


def _stage(shift: int) -> Callable[[re.Match], str]:
    """Return the beginning of our names of a stage that the other project counts differently."""
    return lambda match: f"{ENCODER}layers{int(match[1]) + shift}.0."


BLOCKS = (r"^layers\.(\d)\.(?=blocks\.)", _stage(1))
OWN_STEM = (r"^patch_embed\.", f"{ENCODER}patch_embed.")
HEADS = (r"^(head|fc|rotation_\w+|contrast\w*|conv|projector|predictor)\..*", "")
LAYOUTS = (
    Layout(
        "MONAI's SwinUNETR", r"(module\.)?(backbone\.)?", r"swin(ViT|_vit)\.",
        ((r"^swin_vit\.", ENCODER), (r"^(head|rotation_\w+|contrast\w*|conv|proj_head)\..*", "")),
    ),
    Layout(
        "SwinUNETR self-supervised, model_swinvit.pt", r"(module\.)?", r"layers1\.0\.blocks\.",
        (OWN_STEM, (r"^layers(?=\d)", f"{ENCODER}layers"), (r"^norm\..*", ""), HEADS),
    ),
    Layout(
        "SwinUNETR self-supervised, ssl_pretrained_weights.pth", "", r"encoder\.layers1\.0\.0\.",
        (
            (r"^encoder\.patch_embed\.", f"{ENCODER}patch_embed."),
            (r"^encoder\.layers(\d)\.0\.0\.", lambda match: f"{ENCODER}layers{match[1]}.0."),
            (r"^encoder\.(norm\.|mask_token).*", ""), (r"^out\..*", ""),
        ),
    ),
    Layout(
        "Microsoft's Swin", r"(module\.)?(base_encoder\.|encoder\.)?", r"layers\.0\.downsample\.",
        (OWN_STEM, BLOCKS, (r"^layers\.(\d)\.(?=downsample\.)", _stage(1)), HEADS), imagenet=True,
    ),
    Layout(
        "timm's Swin", r"(module\.)?", r"layers\.1\.downsample\.",  # behind Microsoft's, whose names it has too
        (OWN_STEM, BLOCKS, (r"^layers\.(\d)\.(?=downsample\.)", _stage(0)), HEADS), imagenet=True,
    ),
    Layout(
        "torchvision's Swin", r"(module\.)?", r"features\.0\.0\.",
        (
            (r"^features\.0\.0\.", f"{ENCODER}patch_embed.proj."),
            (r"^features\.0\.2\.", f"{ENCODER}patch_embed.norm."),
            (r"^features\.([1357])\.(\d)\.", lambda m: f"{ENCODER}layers{(int(m[1]) + 1) // 2}.0.blocks.{m[2]}."),
            (r"^features\.([246])\.", lambda match: f"{ENCODER}layers{int(match[1]) // 2}.0.downsample."),
            (r"\.mlp\.0\.", ".mlp.linear1."), (r"\.mlp\.3\.", ".mlp.linear2."), HEADS,
        ),
        imagenet=True,
    ),
)
COMMON = ((r"\.mlp\.fc([12])\.", r".mlp.linear\1."), (r".*(attn_mask|relative_position_index)$", ""))


def rename(weights: Mapping[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """Recognise the layout of weights, and return the layout and the tensors under our names.

    Args:
        weights: tensors of a file, by name.

    Raises:
        ValueError: the layout is unknown, or the weights are those of Swin V2.
    """
    if second := next((name for name in weights if any(part in name for part in V2)), None):
        raise ValueError(
            f"convert_swin: the file has {second!r}, so it is of Swin V2, whose attention computes something else; "
            "weights of Swin (the first version) are expected"
        )
    for layout in LAYOUTS:
        signs = (re.match(f"({layout.prefix}){layout.sign}", name) for name in weights)
        if sign := next(filter(None, signs), None):
            renamed = {}
            for name, value in weights.items():
                if name.startswith(sign[1]):
                    new = name.removeprefix(sign[1])
                    for pattern, replacement in (*layout.rules, *COMMON):
                        new = re.sub(pattern, replacement, new)
                    renamed |= {new: value} if new else {}
            return layout, renamed
    raise ValueError(
        f"convert_swin: unknown layout; the first names are {list(weights)[:5]}; the known layouts are "
        f"{', '.join(layout.title for layout in LAYOUTS)}"
    )
