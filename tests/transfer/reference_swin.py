"""A Swin transformer written from the paper, without windows: every token sees all tokens, and a mask says which.

Weights have Microsoft's names, bare. The order of the corners that merging joins is an argument, in 2D and 3D.
"""

import torch
import torch.nn.functional as F

PLANE = [(0, 0), (1, 0), (0, 1), (1, 1)]  # (height, width), as Microsoft, timm and torchvision
OLD = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]  # MONAI up to 1.4
NEW = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
MLP, QKV = 4, 3


def random_weights(dims, embed, patch, window, depths, heads, channels=3, merges=3, patch_norm=True):
    """Tensors of every name, with values far from those of a fresh network."""
    shapes = {"patch_embed.proj.weight": (embed, channels, *[patch] * dims), "patch_embed.proj.bias": (embed,)}
    if patch_norm:
        shapes |= {"patch_embed.norm.weight": (embed,), "patch_embed.norm.bias": (embed,)}
    for stage, depth in enumerate(depths):
        width = embed * 2**stage
        for block in range(depth):
            at = f"layers.{stage}.blocks.{block}."
            shapes |= {f"{at}norm{k}.{part}": (width,) for k in (1, 2) for part in ("weight", "bias")}
            shapes[f"{at}attn.relative_position_bias_table"] = ((2 * window - 1) ** dims, heads[stage])
            for name, out, into in [
                ("attn.qkv", QKV * width, width), ("attn.proj", width, width), ("mlp.fc1", MLP * width, width),
                ("mlp.fc2", width, MLP * width),
            ]:
                shapes |= {f"{at}{name}.weight": (out, into), f"{at}{name}.bias": (out,)}
        if stage < merges:
            corners = 2**dims * width
            shapes |= {f"layers.{stage}.downsample.norm.{part}": (corners,) for part in ("weight", "bias")}
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * width, corners)
    last = embed * 2 ** (len(depths) - 1 + (merges == len(depths)))
    shapes |= {"norm.weight": (last,), "norm.bias": (last,), "head.weight": (10, last), "head.bias": (10,)}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.2 * torch.randn(shape, generator=generator) + name.endswith("norm.weight")
            for name, shape in shapes.items()}


def maps(weights, image, heads, corners=None):
    """Maps (B, C, *S) after the patch embedding and after every stage with its merging; the last one is normed."""
    dims = image.ndim - 2
    corners = PLANE if corners is None else corners
    kernel = weights["patch_embed.proj.weight"]
    convolve = F.conv2d if dims == 2 else F.conv3d
    x = convolve(image, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1]).movedim(1, -1)
    if "patch_embed.norm.weight" in weights:
        x = norm(x, weights, "patch_embed.norm")
    found = [x]
    for stage, count in enumerate(heads):
        depth = sum(name.startswith(f"layers.{stage}.") and name.endswith("norm1.weight") for name in weights)
        for block in range(depth):
            x = attend(x, weights, f"layers.{stage}.blocks.{block}.", count, shifted=block % 2 == 1)
        if f"layers.{stage}.downsample.reduction.weight" in weights:
            at = f"layers.{stage}.downsample"
            joined = torch.cat([x[(slice(None), *(slice(c, None, 2) for c in corner))] for corner in corners], -1)
            x = norm(joined, weights, f"{at}.norm") @ weights[f"{at}.reduction.weight"].T
        found.append(x)
    if found[-1].shape[-1] == len(weights["norm.weight"]):
        found[-1] = norm(found[-1], weights, "norm")
    return [x.movedim(-1, 1) for x in found]


def norm(x, weights, at):
    return F.layer_norm(x, x.shape[-1:], weights[f"{at}.weight"], weights[f"{at}.bias"])


def linear(x, weights, at):
    return F.linear(x, weights[f"{at}.weight"], weights[f"{at}.bias"])


def attend(x, weights, at, heads, shifted):
    table = weights[f"{at}attn.relative_position_bias_table"]
    dims, size = x.ndim - 2, x.shape[1:-1]
    window = (round(len(table) ** (1 / dims)) + 1) // 2
    region, inside = [], []
    for axis, side in enumerate(size):
        shift = window // 2 if shifted and side > window else 0
        moved = (torch.arange(side) - shift) % side
        wrapped = torch.bucketize(moved, torch.tensor([side - window, side - shift]), right=True)
        region_of = moved // window * 3 + (wrapped if shift else 0)
        shape = [-1 if other == axis else 1 for other in range(dims)]
        region.append(region_of.reshape(shape).expand(size).flatten())
        inside.append((moved % window).reshape(shape).expand(size).flatten())
    seen = torch.stack([part[:, None] == part for part in region]).all(0)
    index = torch.zeros_like(seen, dtype=torch.int64)
    for part in inside:
        index = index * (2 * window - 1) + part[:, None] - part + window - 1
    tokens = norm(x, weights, f"{at}norm1").flatten(1, -2)
    q, k, v = linear(tokens, weights, f"{at}attn.qkv").unflatten(-1, (QKV, heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT / q.shape[-1] ** 0.5 + table[index.clamp(0, len(table) - 1)].movedim(-1, 0)
    logits = logits.masked_fill(~seen, -torch.inf)
    x = x + linear((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), weights, f"{at}attn.proj").view_as(x)
    hidden = F.gelu(linear(norm(x, weights, f"{at}norm2"), weights, f"{at}mlp.fc1"))
    return x + linear(hidden, weights, f"{at}mlp.fc2")


def as_timm(weights):
    """The merging stands at the head of the next stage, and the classifier has another name."""
    renamed = {}
    for old, value in weights.items():
        for stage in range(3):
            if old.startswith(f"layers.{stage}.downsample."):
                renamed[old.replace(f"layers.{stage}.", f"layers.{stage + 1}.")] = value
                break
        else:
            renamed[old.replace("head.", "head.fc.")] = value
    return renamed


def as_torchvision(weights):
    """Stages and mergings are numbered on one list; the index of positions is stored flat."""
    renamed = {}
    for old, value in weights.items():
        new = old.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
        new = new.replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
        for stage in range(4):
            new = new.replace(f"layers.{stage}.blocks.", f"features.{2 * stage + 1}.")
            new = new.replace(f"layers.{stage}.downsample", f"features.{2 * stage + 2}")
        renamed[new] = value
    renamed["features.1.0.attn.relative_position_index"] = torch.zeros(256, dtype=torch.int64)
    return renamed


def as_swinvit(weights):
    """The self-supervised SwinUNETR file of Tang et al."""
    renamed = {}
    for old, value in weights.items():
        new = old
        for stage in range(4):
            new = new.replace(f"layers.{stage}.", f"layers{stage + 1}.0.")
        renamed[f"module.{new}"] = value
        if "table" in old:
            renamed[f"module.{new.replace('bias_table', 'index')}"] = torch.zeros(4, 4, dtype=torch.int64)
    return {**renamed, "module.rotation_head.weight": torch.zeros(4, 2), "module.conv.weight": torch.zeros(1)}


def as_ssl(weights):
    """The self-supervised SwinUNETR file of Valanarasu et al."""
    plain = {name.removeprefix("module."): value for name, value in as_swinvit(weights).items()}
    renamed = {}
    for old, value in plain.items():
        new = old.replace(".0.blocks", ".0.0.blocks").replace(".0.downsample", ".0.0.downsample")
        new = new.replace("mlp.fc", "mlp.linear")
        if not old.startswith(("rotation", "conv", "head")):
            renamed[f"encoder.{new}"] = value
    return {**renamed, "encoder.mask_token": torch.zeros(1), "out.conv.conv.bias": torch.zeros(1)}

