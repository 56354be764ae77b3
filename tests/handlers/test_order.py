"""The order of handlers in a config decides nothing."""

import pytest
import torch
from torch import nn

from medcl_monai import (
    CollapseMonitor,
    NTXentLoss,
    Pretrainer,
    PretrainingNetwork,
    Schedule,
    Tracker,
    TrainingTracker,
    ViewsPicture,
)

STEPS = 5


class Record(Tracker):
    """What a tracker is told, without MLflow."""

    def __init__(self):
        self.active, self.step, self.values, self.pictures = True, 0, {}, []

    def begin(self):
        pass

    def log(self, values, step):
        kept = {name: value for name, value in values.items() if name != "samples_per_second"}
        self.values[step] = {**self.values.get(step, {}), **kept}

    def picture(self, name, figure, step):
        self.pictures.append((name, step))

    def flush(self):
        pass

    def finish(self, status="FINISHED"):
        pass


class Layer(PretrainingNetwork):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(1, 8, 3)

    def forward(self, views):
        output = {name: self.backbone(view).flatten(2).mean(2) for name, view in views.items()}
        return {**output, "features": output["view_1"].detach()}

    def trained_parts(self):
        return tuple(self.backbone.state_dict())


def recorded(order):
    torch.manual_seed(0)
    network, record = Layer(), Record()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    handlers = [
        Schedule(optimizer), CollapseMonitor(2), ViewsPicture(2), TrainingTracker(record),
    ]
    engine = Pretrainer(
        device="cpu", max_epochs=1, epoch_length=STEPS, network=network, optimizer=optimizer,
        train_data_loader=[{"image": torch.randn(4, 1, 8, 8)} for _ in range(STEPS)], loss_function=NTXentLoss(),
        views=lambda batch: ({name: batch["image"] + torch.randn(4, 1, 8, 8) for name in ("view_1", "view_2")}, {}),
        train_handlers=[handlers[place] for place in order],
    )
    engine.run()
    return record.values, sorted(record.pictures)


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (3, 0, 1, 2), (1, 3, 2, 0)])
def test_every_order_records_the_same_figures_and_pictures_at_the_same_steps(order):
    values, pictures = recorded(range(4))
    assert recorded(order) == (values, pictures)
    assert [step for step in values if "features.effective_rank" in values[step]] == [1, 3, 5]
    assert [step for name, step in pictures if name == "views"] == [1, 3, 5]
