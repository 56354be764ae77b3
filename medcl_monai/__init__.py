"""Label-efficient medical image segmentation: contrastive and self-supervised methods as MONAI bundles."""

from medcl_monai.data.datalist import Datalist, find_volumes, results_root, volumes_to_segment
from medcl_monai.data.example import example_population
from medcl_monai.data.samplers import StreamSampler, foreground_weights, sample_loader
from medcl_monai.data.shares import label_shares
from medcl_monai.data.slices import SliceDataset
from medcl_monai.data.splits import Split, split_dataset
from medcl_monai.data.volumes import VolumeDataset
from medcl_monai.distributed import distribute, join_processes, leave_processes, local_device
from medcl_monai.engines import Pretrainer, Trainer, epoch_length
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.collapse import CollapseMonitor
from medcl_monai.handlers.progress import Progress
from medcl_monai.handlers.schedule import Schedule, cosine, polynomial
from medcl_monai.handlers.share import SharedWeights
from medcl_monai.handlers.tracking import EvaluationTracker, TrainingTracker
from medcl_monai.handlers.unseen import UnseenSubjects
from medcl_monai.handlers.views_picture import ViewsPicture
from medcl_monai.inferers import SegmentationInferer
from medcl_monai.losses.infonce import QueueInfoNCELoss, queue_infonce
from medcl_monai.losses.local import LocalInfoNCELoss, local_infonce, match_by_feature, match_by_location
from medcl_monai.losses.ntxent import NTXentLoss, ntxent
from medcl_monai.losses.positional import PositionalContrastiveLoss, positional_contrast
from medcl_monai.losses.segmentation import SegmentationLoss, class_weights
from medcl_monai.methods.base import PretrainingNetwork
from medcl_monai.methods.decorrelated_moco import DecorrelatedMoCo, DecorrelatedMoCoLoss, DecorrelatedMoCoViews
from medcl_monai.methods.jcl import JCL, JCLLoss, JCLViews
from medcl_monai.networks.encode import decode, encode
from medcl_monai.networks.heads import start_at_log_shares
from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy
from medcl_monai.networks.parameters import parameter_groups
from medcl_monai.networks.probe import LinearProbe
from medcl_monai.networks.statistics import compute_statistics
from medcl_monai.networks.unet import widths
from medcl_monai.networks.whitening import WhitenZCA, inverse_root_eigh, inverse_root_newton
from medcl_monai.tracking import Tracker
from medcl_monai.transfer.layouts import residual_encoder
from medcl_monai.transfer.load import Transfer, load_pretrained
from medcl_monai.transforms.augmentation import augmentation
from medcl_monai.transforms.dictionary import Spacingd, pixdim
from medcl_monai.transforms.regions import draw_regions, sample_regions
from medcl_monai.transforms.writing import VolumeWriter

__version__ = "0.1.0"

__all__ = [
    "JCL",
    "Checkpoints",
    "CollapseMonitor",
    "Datalist",
    "DecorrelatedMoCo",
    "DecorrelatedMoCoLoss",
    "DecorrelatedMoCoViews",
    "EvaluationTracker",
    "FeatureQueue",
    "JCLLoss",
    "JCLViews",
    "LinearProbe",
    "LocalInfoNCELoss",
    "MomentumCopy",
    "NTXentLoss",
    "PositionalContrastiveLoss",
    "Pretrainer",
    "PretrainingNetwork",
    "Progress",
    "QueueInfoNCELoss",
    "Schedule",
    "SegmentationInferer",
    "SegmentationLoss",
    "SharedWeights",
    "SliceDataset",
    "Spacingd",
    "Split",
    "StreamSampler",
    "Tracker",
    "Trainer",
    "TrainingTracker",
    "Transfer",
    "UnseenSubjects",
    "ViewsPicture",
    "VolumeDataset",
    "VolumeWriter",
    "WhitenZCA",
    "augmentation",
    "class_weights",
    "compute_statistics",
    "cosine",
    "decode",
    "distribute",
    "draw_regions",
    "encode",
    "epoch_length",
    "example_population",
    "find_volumes",
    "foreground_weights",
    "inverse_root_eigh",
    "inverse_root_newton",
    "join_processes",
    "label_shares",
    "leave_processes",
    "load_pretrained",
    "local_device",
    "local_infonce",
    "match_by_feature",
    "match_by_location",
    "ntxent",
    "parameter_groups",
    "pixdim",
    "polynomial",
    "positional_contrast",
    "queue_infonce",
    "residual_encoder",
    "results_root",
    "sample_loader",
    "sample_regions",
    "split_dataset",
    "start_at_log_shares",
    "volumes_to_segment",
    "widths",
]
