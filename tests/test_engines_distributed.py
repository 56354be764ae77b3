import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from medcl_monai.data.samplers import StreamSampler
from medcl_monai.engines.freezing import FrozenEncoder
from medcl_monai.engines.state import checkpoints
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.schedule import Schedule

pytestmark = pytest.mark.distributed
BATCHES = [
    {"image": torch.arange(32.0).reshape(4, 8).sin() * (k + 1), "label": torch.full((4, 1), float(k))} for k in range(8)
]


class Items(Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, item):
        return self.samples[item[0]]


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, prediction, label):
        return {"squares": (prediction * self.scale - label).square().mean()}


def training(network, batches, folder=None, length=None, frozen=(), loss=None, **knobs):
    loss = Scaled() if loss is None else loss
    optimizer = torch.optim.SGD([*network.parameters(), *loss.parameters()], 0.05, momentum=0.9)
    saver = [] if folder is None else [Checkpoints(folder, 1)]
    return Trainer(
        device="cpu", max_epochs=2, epoch_length=length or len(batches), train_data_loader=batches, network=network,
        optimizer=optimizer, train_handlers=[Schedule(optimizer), *saver],
        loss_function=loss,
        frozen=FrozenEncoder(network, frozen, 1) if frozen else None, **knobs,
    )


def segmenter():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def in_each(rank, folder, work, *arguments):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    work(rank, folder, *arguments)
    dist.barrier()  # a process that leaves while the other still writes would abort it
    dist.destroy_process_group()


def train_half(rank, folder, knobs):
    network, loss = DistributedDataParallel(segmenter()), Scaled()
    training(network, BATCHES[rank::2], folder / "checkpoints", loss=loss, **knobs).run()
    torch.save({**network.module.state_dict(), **loss.state_dict()}, folder / f"rank_{rank}.pt")


@pytest.mark.parametrize("knobs", [{"accumulation": 2}, {"frozen": ["0."], "clip": 1.0}])
def test_two_processes_train_as_one_with_twice_the_batch_and_one_writes(tmp_path, knobs):
    whole, loss = segmenter(), Scaled()
    pairs = zip(BATCHES[::2], BATCHES[1::2], strict=True)
    training(whole, [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in pairs], loss=loss, **knobs).run()
    mp.spawn(in_each, (tmp_path, train_half, knobs), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in {**whole.state_dict(), **loss.state_dict()}.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value)
    state = torch.load(checkpoints(tmp_path / "checkpoints")[0], weights_only=True)
    assert set(state["network"]) == set(whole.state_dict())


def stop_and_resume(rank, folder):
    """Three trainings, one after the other; dropout and samples differ from process to process."""

    def network_and_engine(place, **knobs):
        network = DistributedDataParallel(nn.Sequential(nn.Dropout(0.3), segmenter()))
        samples = [{key: value[0] for key, value in batch.items()} for batch in BATCHES]
        loader = DataLoader(Items(samples), batch_sampler=StreamSampler(len(samples), 2, seed=4))
        engine = training(network, loader, folder / place, length=5, **knobs)
        return network.module, engine

    whole, engine = network_and_engine("whole")
    engine.run()
    _, engine = network_and_engine("killed")
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=7), lambda e: e.terminate(skip_completed=True))
    engine.run()
    dist.barrier()
    resumed, engine = network_and_engine("killed", resume=folder / "killed")
    engine.run()
    assert all(torch.equal(resumed.state_dict()[name], value) for name, value in whole.state_dict().items())
    (folder / f"equal_{rank}").touch()


def test_two_processes_resume_to_the_same_weights(tmp_path):
    mp.spawn(in_each, (tmp_path, stop_and_resume), nprocs=2)
    assert len(list(tmp_path.glob("equal_*"))) == 2
