"""Label-efficient medical image segmentation: contrastive and self-supervised methods as MONAI bundles."""

from medcl_monai.curves import cosine, polynomial
from medcl_monai.data.datalist import Datalist, find_volumes, results_root, volumes_to_segment
from medcl_monai.data.example.population import example_population
from medcl_monai.data.label_shares import label_shares
from medcl_monai.data.samplers import StreamSampler, foreground_weights, sample_loader
from medcl_monai.data.slabs import SlabSampler
from medcl_monai.data.slices import SliceDataset
from medcl_monai.data.splits import Split, split_dataset
from medcl_monai.data.volumes import VolumeDataset
from medcl_monai.data.writing import VolumeWriter
from medcl_monai.diagnostics.leakage import leakage
from medcl_monai.distributed import distribute, join_processes, leave_processes, local_device
from medcl_monai.engines.freezing import FrozenEncoder
from medcl_monai.engines.loop import epoch_length
from medcl_monai.engines.parameters import parameter_groups
from medcl_monai.engines.pretrainer import Pretrainer
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.collapse import CollapseMonitor
from medcl_monai.handlers.momentum_schedule import MomentumSchedule
from medcl_monai.handlers.pdcr_figures import PDCRFigures
from medcl_monai.handlers.progress import Progress
from medcl_monai.handlers.restoration_gain import RestorationGain
from medcl_monai.handlers.schedule import Schedule
from medcl_monai.handlers.scores import SegmentationScores
from medcl_monai.handlers.shared_weights import SharedWeights
from medcl_monai.handlers.tracking import EvaluationTracker, TrainingTracker
from medcl_monai.handlers.unseen import UnseenSubjects
from medcl_monai.handlers.views_picture import ViewsPicture
from medcl_monai.inferers import FeatureTaps, SegmentationInferer
from medcl_monai.losses.covariance import CovarianceLoss, covariance_penalty
from medcl_monai.losses.infonce import QueueInfoNCELoss, queue_infonce
from medcl_monai.losses.local import LocalInfoNCELoss, local_infonce, match_by_feature, match_by_location
from medcl_monai.losses.mocov3 import MoCoV3Loss, mocov3
from medcl_monai.losses.ntxent import NTXentLoss, ntxent
from medcl_monai.losses.pdcr import affinity, balanced_pdcr, pdcr
from medcl_monai.losses.positional import PositionalContrastiveLoss, positional_contrast
from medcl_monai.losses.restoration import RestorationLoss, restoration
from medcl_monai.losses.segmentation import SegmentationLoss, class_weights
from medcl_monai.losses.slab_contrast import SlabContrastiveLoss, slab_contrast
from medcl_monai.losses.terms import SumOfLosses, TermLoss
from medcl_monai.losses.total import TotalLoss
from medcl_monai.methods.base import PretrainingNetwork, Watched, names_beginning_with
from medcl_monai.methods.decorrelated_moco import DecorrelatedMoCo, DecorrelatedMoCoLoss, DecorrelatedMoCoViews
from medcl_monai.methods.jcl import JCL, JCLLoss, JCLViews
from medcl_monai.methods.pdcr_uafs import PDCRLoss
from medcl_monai.methods.regression_vs_contrastive import (
    RegressionContrast,
    RegressionContrastLoss,
    RegressionContrastViews,
)
from medcl_monai.methods.transformer_transfer import SwinMoCo, SwinMoCoLoss, SwinMoCoViews
from medcl_monai.networks import dynunet, flexible_unet, plain_unet, segresnet, swin  # noqa: F401 - cases of encode
from medcl_monai.networks.encode import decode, encode, encoder_widths
from medcl_monai.networks.merging import LegacyPatchMerging
from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy, momentum_at
from medcl_monai.networks.probe import LinearProbe
from medcl_monai.networks.statistics import compute_statistics
from medcl_monai.networks.swin_unet import SwinUNet, SwinUNet2D, SwinUNet3D
from medcl_monai.networks.uafs import UAFS, insert_uafs
from medcl_monai.networks.unet import widths
from medcl_monai.networks.whitening import WhitenZCA, inverse_root_eigh, inverse_root_newton
from medcl_monai.overrides import check_command_line, check_overrides
from medcl_monai.tracking.tracker import Tracker
from medcl_monai.transfer.inflate import inflate
from medcl_monai.transfer.layouts import residual_encoder
from medcl_monai.transfer.load import Transfer, load_pretrained
from medcl_monai.transfer.output_layer import start_at_log_shares
from medcl_monai.transfer.swin import convert_swin, mirror_decoder
from medcl_monai.transforms.augmentation import augmentation
from medcl_monai.transforms.boxes import LabelBoxes, class_shares
from medcl_monai.transforms.corruption import BlockMask, Corruption, PatchSwap
from medcl_monai.transforms.crop_views import CropViews
from medcl_monai.transforms.dictionary import Spacingd, pixdim
from medcl_monai.transforms.parcels import PositionParcelsd
from medcl_monai.transforms.postprocessing import postprocessing
from medcl_monai.transforms.preprocessing import Preprocessing, preprocessing
from medcl_monai.transforms.regions import Regions, draw_regions, sample_regions

__version__ = "0.1.0"

__all__ = [
    "JCL",
    "UAFS",
    "BlockMask",
    "Checkpoints",
    "CollapseMonitor",
    "Corruption",
    "CovarianceLoss",
    "CropViews",
    "Datalist",
    "DecorrelatedMoCo",
    "DecorrelatedMoCoLoss",
    "DecorrelatedMoCoViews",
    "EvaluationTracker",
    "FeatureQueue",
    "FeatureTaps",
    "FrozenEncoder",
    "JCLLoss",
    "JCLViews",
    "LabelBoxes",
    "LegacyPatchMerging",
    "LinearProbe",
    "LocalInfoNCELoss",
    "MoCoV3Loss",
    "MomentumCopy",
    "MomentumSchedule",
    "NTXentLoss",
    "PDCRFigures",
    "PDCRLoss",
    "PatchSwap",
    "PositionParcelsd",
    "PositionalContrastiveLoss",
    "Preprocessing",
    "Pretrainer",
    "PretrainingNetwork",
    "Progress",
    "QueueInfoNCELoss",
    "Regions",
    "RegressionContrast",
    "RegressionContrastLoss",
    "RegressionContrastViews",
    "RestorationGain",
    "RestorationLoss",
    "Schedule",
    "SegmentationInferer",
    "SegmentationLoss",
    "SegmentationScores",
    "SharedWeights",
    "SlabContrastiveLoss",
    "SlabSampler",
    "SliceDataset",
    "Spacingd",
    "Split",
    "StreamSampler",
    "SumOfLosses",
    "SwinMoCo",
    "SwinMoCoLoss",
    "SwinMoCoViews",
    "SwinUNet",
    "SwinUNet2D",
    "SwinUNet3D",
    "TermLoss",
    "TotalLoss",
    "Tracker",
    "Trainer",
    "TrainingTracker",
    "Transfer",
    "UnseenSubjects",
    "ViewsPicture",
    "VolumeDataset",
    "VolumeWriter",
    "Watched",
    "WhitenZCA",
    "affinity",
    "augmentation",
    "balanced_pdcr",
    "check_command_line",
    "check_overrides",
    "class_shares",
    "class_weights",
    "compute_statistics",
    "convert_swin",
    "cosine",
    "covariance_penalty",
    "decode",
    "distribute",
    "draw_regions",
    "encode",
    "encoder_widths",
    "epoch_length",
    "example_population",
    "find_volumes",
    "foreground_weights",
    "inflate",
    "insert_uafs",
    "inverse_root_eigh",
    "inverse_root_newton",
    "join_processes",
    "label_shares",
    "leakage",
    "leave_processes",
    "load_pretrained",
    "local_device",
    "local_infonce",
    "match_by_feature",
    "match_by_location",
    "mirror_decoder",
    "mocov3",
    "momentum_at",
    "names_beginning_with",
    "ntxent",
    "parameter_groups",
    "pdcr",
    "pixdim",
    "polynomial",
    "positional_contrast",
    "postprocessing",
    "preprocessing",
    "queue_infonce",
    "residual_encoder",
    "restoration",
    "results_root",
    "sample_loader",
    "sample_regions",
    "slab_contrast",
    "split_dataset",
    "start_at_log_shares",
    "volumes_to_segment",
    "widths",
]
