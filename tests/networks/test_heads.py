import pytest
import torch

from medcl_monai.networks.heads import PooledHead, dense_head


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", [(3, 3), (2, 3, 4)])
def test_the_pooled_head_reads_the_mean_of_the_map(size):
    head, x = PooledHead(8, 4), torch.randn(2, 8, *size)
    mean = x.mean(tuple(range(2, x.ndim)))
    assert head(x).shape == (2, 4)
    torch.testing.assert_close(head(x), head(mean[..., None, None]))


@pytest.mark.parametrize(("dims", "size"), [(2, (5, 6)), (3, (3, 4, 5))])
def test_the_dense_head_keeps_the_size(dims, size):
    assert dense_head(dims, 8, 4)(torch.randn(2, 8, *size)).shape == (2, 4, *size)


def test_the_heads_have_the_specified_numbers_of_parameters():
    assert parameters(PooledHead(128, 128)) == 33_024
    assert parameters(PooledHead(512, 128)) == 82_176
    assert parameters(dense_head(2, 512, 128)) == 738_048
    assert parameters(dense_head(3, 512, 128)) == 2_212_608
    assert [parameters(PooledHead(64, 128)), parameters(PooledHead(256, 128))] == [24_832, 49_408]
    assert parameters(dense_head(2, 256, 64)) == 184_704
