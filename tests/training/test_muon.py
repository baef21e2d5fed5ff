import io

import pytest
import timm.optim
import torch
from torch import nn

from diffusers_cfld.training import Muon
from diffusers_cfld.training.muon import is_matrix, orthogonalize, orthogonalize_together

RATE, DECAY = 0.1, 0.01
SHARED_SHAPES = ((16, 40), (24, 16), (16, 4, 3, 3), (16,))


def walk(optimizer, weights, gradients):
    for gradient in gradients:
        for weight, value in zip(weights, gradient, strict=True):
            weight.grad = value.clone()
        optimizer.step()


@pytest.mark.parametrize("shape", [(24, 16), (16, 40), (16, 4, 3, 3)])
def test_matrices_move_as_with_timm(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, 1, *shape)
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    settings = {"nesterov": True, "ns_coefficients": "original", "adjust_lr_fn": "match_rms_adamw"}
    walk(Muon(weights[:1], lr=RATE, weight_decay=DECAY), weights[:1], gradients)
    walk(timm.optim.Muon(weights[1:], lr=RATE, weight_decay=DECAY, **settings), weights[1:], gradients)
    # timm iterates in bfloat16.
    assert (weights[0] - weights[1]).norm() < 0.02 * (weights[0] - start).norm()


def test_all_else_moves_as_with_adamw():
    torch.manual_seed(0)
    starts = [torch.randn(16), torch.randn(8, 64), torch.randn(1, 32, 32), torch.randn(32, 32)]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(3)]
    ours, theirs = ([nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    groups = [{"params": ours[:3]}, {"params": ours[3:], "orthogonalize": False}]
    walk(Muon(groups, lr=RATE, weight_decay=DECAY), ours, gradients)
    walk(torch.optim.AdamW(theirs, lr=RATE, weight_decay=DECAY), theirs, gradients)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_gradients_are_left_and_missing_ones_passed_over():
    weights = [nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16, 16)), nn.Parameter(torch.ones(16))]
    weights[0].grad, weights[2].grad = torch.eye(16), torch.ones(16)
    assert Muon(weights, lr=RATE).step() is None
    assert torch.equal(weights[0].grad, torch.eye(16))
    assert torch.equal(weights[1], torch.ones(16, 16))


def test_a_loaded_state_goes_on():
    torch.manual_seed(0)
    starts = [torch.randn(16, 16), torch.randn(16)]
    gradients = [[torch.randn_like(start) for start in starts] for _ in range(4)]
    weights = [nn.Parameter(start.clone()) for start in starts]
    optimizer = Muon(weights, lr=RATE)
    walk(optimizer, weights, gradients[:2])
    again = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = Muon(again, lr=1.0)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    walk(optimizer, weights, gradients[2:])
    walk(other, again, gradients[2:])
    for one, two in zip(weights, again, strict=True):
        assert torch.equal(one, two)


def move_in_a_group(rank, store, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHARED_SHAPES]
    walk(Muon(weights, lr=RATE, share=True), weights, [[torch.randn(shape) for shape in SHARED_SHAPES]] * 2)
    torch.save([weight.detach() for weight in weights], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_the_work(tmp_path):
    torch.multiprocessing.spawn(move_in_a_group, args=(tmp_path / "store", tmp_path), nprocs=2)
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in SHARED_SHAPES]
    walk(Muon(weights, lr=RATE, share=True), weights, [[torch.randn(shape) for shape in SHARED_SHAPES]] * 2)
    for rank in range(2):
        for one, two in zip(weights, torch.load(tmp_path / f"{rank}.pt", weights_only=True), strict=True):
            torch.testing.assert_close(one.detach(), two, rtol=1e-5, atol=1e-6)


def test_each_process_has_less_to_do(monkeypatch):
    matrices = [torch.eye(16) * number for number in range(1, 6)]
    distributed, done = torch.distributed, []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast", lambda buffer, source: None)
    monkeypatch.setattr("diffusers_cfld.training.muon.orthogonalize", lambda matrix: done.append(matrix) or matrix)
    for rank in range(2):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        orthogonalize_together(matrices)
        assert len(done) == (3, 5)[rank]
    assert sorted(matrix[0, 0].item() for matrix in done) == [1, 2, 3, 4, 5]
    assert orthogonalize_together([]) == []


def test_closure():
    weight = nn.Parameter(torch.eye(16))
    optimizer = Muon([weight], lr=RATE)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 16
    assert optimizer.step(closure) < 16


def test_orthogonalize():
    torch.manual_seed(0)
    for shape in ((16, 16), (16, 100), (100, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
        assert values.max() < 1.3
        assert values.median() > 0.6
    assert not orthogonalize(torch.zeros(16, 16)).any()


def test_what_is_a_matrix():
    assert [is_matrix(torch.zeros(shape)) for shape in ((16,), (16, 16), (15, 16), (16, 2, 3, 3), (1, 32, 32))] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_errors():
    with pytest.raises(ValueError, match=r"`momentum` must be at least 0 and less than 1, got 1\.5"):
        Muon([nn.Parameter(torch.zeros(1))], momentum=1.5)
