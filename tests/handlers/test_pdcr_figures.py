import pytest
import torch
from matplotlib.figure import Figure
from monai.networks.nets import BasicUNet

from medcl_monai import FeatureTaps, LabelBoxes, PDCRFigures, PDCRLoss, SegmentationLoss, Trainer, insert_uafs
from medcl_monai.handlers.pdcr_figures import foreground_background_cosine, pair_affinities
from medcl_monai.transforms.boxes import Cells

TAPS = {"down_1": [5, 7], "down_2": [5]}


@pytest.fixture
def batch():
    torch.manual_seed(0)
    label = torch.zeros(4, 1, 32, 32)
    label[:2, :, 4:20, 8:24] = 1
    return {"image": torch.randn(4, 1, 32, 32) + 2 * label, "label": label}


def run(batch, handlers, sites=("upcat_2.convs", "upcat_1.convs"), steps=4, loss=None, accumulation=1, **settings):
    torch.manual_seed(0)
    network = BasicUNet(2, 1, 2, features=(8, 8, 16, 16, 16, 8), norm="batch")
    insert_uafs(network, sites)
    boxes = LabelBoxes(TAPS, 2, 16, **settings)
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=steps * accumulation, train_data_loader=[batch] * steps * accumulation,
        network=network, accumulation=accumulation,
        optimizer=torch.optim.AdamW(network.parameters(), 0.01), inferer=FeatureTaps(TAPS), train_handlers=handlers,
        loss_function=loss or PDCRLoss(SegmentationLoss(torch.tensor([0.7, 0.3])), boxes),
    )
    engine.run()
    return engine


def test_a_look_leaves_figures_of_taps_and_gates_and_two_pictures(batch):
    state = run(batch, [PDCRFigures(3)]).state
    names = {f"{tap}.{figure}" for tap in TAPS for figure in ("foreground_background", "affinity")}
    assert set(state.figures) == names | {"gate/upcat_2.convs", "gate/upcat_1.convs"}
    assert all(-1 <= value <= 1 for value in state.figures.values())
    assert state.figures["gate/upcat_1.convs"] != 0  # the second look is after three steps
    assert set(state.pictures) == {"affinity", "confidence"}
    assert all(isinstance(figure, Figure) for figure in state.pictures.values())
    assert len(state.pictures["confidence"].axes) == 3 * 3 + 1


def test_looks_count_optimiser_steps(batch):
    looks = []

    class Counted(PDCRFigures):
        def _look_at_taps(self, engine, output, label):
            looks.append((engine.state.iteration, engine.state.optimizer_steps))

    run(batch, [Counted(2)], accumulation=2)
    assert looks == [(2, 0), (6, 2)]


def test_without_blocks_there_are_no_gates_and_no_maps(batch):
    state = run(batch, [PDCRFigures(1)], sites=()).state
    assert not [name for name in state.figures if name.startswith("gate")]
    assert set(state.pictures) == {"affinity"}


@pytest.mark.parametrize("share", [None, 0.5])
def test_training_is_the_same_with_and_without_the_handler(batch, share):
    weights = [run(batch, handlers, foreground_share=share).network.state_dict() for handlers in ([], [PDCRFigures(1)])]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_the_cosine_is_the_mean_over_pairs_of_the_two_kinds():
    shares = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.2, 0.8], [0.0, 0.0]])[None, None]
    cells = Cells(torch.arange(4)[None], shares, torch.tensor([[[True, True, True, False]]]))
    z = torch.tensor([[[1.0, 0], [0, 3.0], [2.0, 2.0], [9.0, 9.0]]])
    assert foreground_background_cosine(z, cells) == pytest.approx(0.5**0.5)
    background = Cells(cells.index[:, :2], shares[:, :, :2], cells.valid[..., :2])
    assert foreground_background_cosine(z[:, :2], background) is None
    assert sorted(pair_affinities(cells).tolist()) == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.9, 0.9])


def test_a_loss_of_another_kind_and_numbers_below_one_are_refused(batch):
    class Plain(torch.nn.Module):
        def forward(self, output, target):
            return output["pred"].mean()

    with pytest.raises(ValueError, match="the loss must have label boxes, as PDCRLoss has; got Plain"):
        run(batch, [PDCRFigures(1)], loss=Plain())
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 3"):
        PDCRFigures(0)
