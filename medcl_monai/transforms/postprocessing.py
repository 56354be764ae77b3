"""From a network's logits to a label map: one function for validation, evaluation and inference."""

from collections.abc import Mapping

from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd, MapTransform
from torch import Tensor

from medcl_monai.knobs import knob_types
from medcl_monai.transforms.preprocessing import LABEL, Preprocessing

PREDICTION = "pred"


class KnownLabelsd(MapTransform):
    """Raises a ValueError that names the file if a label map holds a value that no class has.

    Args:
        classes: number of classes, background included.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(LABEL)
        self.classes = classes

    def __call__(self, data: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the data as they are."""
        label = data[LABEL]
        if (largest := int(label.max())) >= self.classes:
            file = label.meta.get("filename_or_obj", LABEL) if isinstance(label, MetaTensor) else LABEL
            raise ValueError(unknown_label(str(file), largest, self.classes))
        return data


def unknown_label(file: str, value: int, classes: int) -> str:
    """Return the message on a label value that no class has."""
    return f"{file} holds the label value {value}: 0 to {classes - 1} are expected (structures)"


@knob_types
def postprocessing(preprocessing: Preprocessing, one_hot: int | None = None) -> Compose:
    """Make the transforms that turn logits into a label map on the grid of the image's file.

    The softmax is brought back to that grid, not the label map: interpolated probabilities give smoother borders.

    Args:
        preprocessing: the transforms that prepared the image; their spatial part is undone.
        one_hot: number of classes, 2 or more: prediction and label become one channel per class, as MONAI's metrics
            take them. None: the prediction stays one channel of class values, and a label is not asked for.

    Example:
        >>> from medcl_monai import preprocessing
        >>> finish = postprocessing(preprocessing("image", 1.0))
        >>> [type(step).__name__ for step in finish.transforms]
        ['Activationsd', 'Invertd', 'AsDiscreted']
    """
    keys, argmax = (PREDICTION, True) if one_hot is None else ([PREDICTION, LABEL], [True, False])
    return Compose([
        *([] if one_hot is None else [KnownLabelsd(one_hot)]),
        Activationsd(PREDICTION, softmax=True),
        Invertd(PREDICTION, transform=preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True),
        AsDiscreted(keys, argmax=argmax, to_onehot=one_hot),
    ])
