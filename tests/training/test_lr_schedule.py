import pytest
import torch
from testing_utils import load_reference

from diffusers_cfld.training import (
    PUBLISHED_LEARNING_RATE,
    learning_rate_factor,
    learning_rate_lambda,
    scaled_learning_rate,
    set_learning_rates,
)


def test_the_schedule_is_the_published_one_at_every_step():
    published = load_reference("train")["train.lr"]
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=PUBLISHED_LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_lambda(steps_per_epoch=40))
    rates = []
    for _ in range(len(published)):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), published, rtol=1e-14, atol=0)


def test_the_schedule_resumes():
    def build():
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_lambda(40))

    optimizer, scheduler = build()
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    resumed_optimizer, resumed = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.get_last_lr() == scheduler.get_last_lr()


def test_no_warmup_and_several_decays():
    factors = [learning_rate_factor(s, 2, num_warmup_steps=0, decay_epochs=(1, 2), decay_factor=0.5) for s in range(6)]
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert learning_rate_factor(10, 1, num_warmup_steps=0, decay_epochs=()) == 1.0


def test_the_decay_waits_for_the_end_of_the_warmup():
    assert learning_rate_factor(9, 1, num_warmup_steps=10, decay_epochs=(5,)) == 1.0
    assert learning_rate_factor(10, 1, num_warmup_steps=10, decay_epochs=(5,)) == pytest.approx(0.1)


def test_the_papers_scaling_is_the_codes_rate_within_12_percent():
    assert scaled_learning_rate(224) == pytest.approx(1.12e-4)
    assert scaled_learning_rate(1, learning_rate_per_pair=2e-6) == 2e-6


def test_errors():
    with pytest.raises(ValueError, match="`total_batch_size` must be at least 1, got 0"):
        scaled_learning_rate(0)
    with pytest.raises(ValueError, match="`step` must be >= 0, got -1"):
        learning_rate_factor(-1, 1)
    with pytest.raises(ValueError, match="`steps_per_epoch` must be above 0, got 0"):
        learning_rate_lambda(0)
    with pytest.raises(ValueError, match="`num_warmup_steps` must be >= 0, got -1"):
        learning_rate_lambda(1, num_warmup_steps=-1)
    with pytest.raises(ValueError, match="`decay_epochs` must be ascending"):
        learning_rate_lambda(1, decay_epochs=(2, 1))


def test_a_schedule_goes_on_at_other_rates():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    optimizer.step()
    scheduler.step()
    set_learning_rates(optimizer, scheduler, [8.0, 4.0])
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups] == [6.0, 3.0]
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [4.0, 2.0]
    with pytest.raises(ValueError, match="one for each of 2 groups, got 1"):
        set_learning_rates(optimizer, scheduler, [1.0])
