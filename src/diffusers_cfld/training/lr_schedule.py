"""The learning rate over a run.

Paper: arXiv:2402.18078, Sec. 4.1. Official code: `lr_scheduler.py` of YanzuoLu/CFLD @ f2ea2a7.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import torch

PUBLISHED_LEARNING_RATE = 1e-4  # at a total batch of 224 pairs
LEARNING_RATE_PER_PAIR = 5e-7


def scaled_learning_rate(total_batch_size: int, learning_rate_per_pair: float = LEARNING_RATE_PER_PAIR) -> float:
    """Scale the base learning rate by the batch, as the paper does.

    The paper's 5e-7 gives 1.12e-4 for its batch of 224; the published configuration says 1e-4.

    Args:
        total_batch_size: Pairs of an optimizer step: per device x devices x accumulation steps, not doubled.
        learning_rate_per_pair: Learning rate for a batch of one pair.

    Returns:
        The base learning rate.

    Raises:
        ValueError: `total_batch_size` is not positive.
    """
    if total_batch_size < 1:
        raise ValueError(f"`total_batch_size` must be at least 1, got {total_batch_size}.")
    return learning_rate_per_pair * total_batch_size


def learning_rate_factor(
    step: int,
    steps_per_epoch: float,
    *,
    num_warmup_steps: int = 1000,
    warmup_start_factor: float = 0.1,
    decay_epochs: Sequence[int] = (50,),
    decay_factor: float = 0.1,
) -> float:
    """The factor on the base learning rate at one optimizer step.

    Equation:
        s < W: f_0 + (1 - f_0) (s + 1) / W, so that step W - 1 is the first at the full rate; afterwards d^n, n the
        number of decay epochs that have begun. As published, no decay happens within the warm-up.

    Args:
        step: s >= 0, optimizer steps that were done before this one.
        steps_per_epoch: Optimizer steps in an epoch (batches / accumulation steps, not always a whole number), over
            all processes together.
        num_warmup_steps: W >= 0.
        warmup_start_factor: f_0, approached at the start of the warm-up.
        decay_epochs: Epochs, counted from 0, at whose beginning the rate is multiplied by `decay_factor`; ascending.
        decay_factor: d.

    Returns:
        The factor, unitless.

    Raises:
        ValueError: `step` or `num_warmup_steps` is negative, `steps_per_epoch` not positive, or `decay_epochs` not
            ascending.
    """
    if step < 0:
        raise ValueError(f"`step` must be >= 0, got {step}.")
    _check_schedule(steps_per_epoch, num_warmup_steps, decay_epochs)
    if step < num_warmup_steps:
        return warmup_start_factor + (1.0 - warmup_start_factor) * (step + 1) / num_warmup_steps
    return decay_factor ** bisect_right([epoch * steps_per_epoch for epoch in decay_epochs], step)


def learning_rate_lambda(
    steps_per_epoch: float,
    *,
    num_warmup_steps: int = 1000,
    warmup_start_factor: float = 0.1,
    decay_epochs: Sequence[int] = (50,),
    decay_factor: float = 0.1,
) -> Callable[[int], float]:
    """Fix all arguments of [`learning_rate_factor`] but the step, for `torch.optim.lr_scheduler.LambdaLR`.

    Step the scheduler once per optimizer step. One that went through `accelerator.prepare` steps once per process
    instead: then multiply `steps_per_epoch` and `num_warmup_steps` by the number of processes, or do not prepare it.

    Args:
        steps_per_epoch: As in [`learning_rate_factor`].
        num_warmup_steps: As in [`learning_rate_factor`].
        warmup_start_factor: As in [`learning_rate_factor`].
        decay_epochs: As in [`learning_rate_factor`].
        decay_factor: As in [`learning_rate_factor`].

    Returns:
        A function of the step.

    Raises:
        ValueError: As [`learning_rate_factor`], at once and not at the first step.
    """
    epochs = tuple(decay_epochs)
    _check_schedule(steps_per_epoch, num_warmup_steps, epochs)

    def factor(step: int) -> float:
        return learning_rate_factor(
            step,
            steps_per_epoch,
            num_warmup_steps=num_warmup_steps,
            warmup_start_factor=warmup_start_factor,
            decay_epochs=epochs,
            decay_factor=decay_factor,
        )

    return factor


def set_learning_rates(
    optimizer: torch.optim.Optimizer, lr_scheduler: torch.optim.lr_scheduler.LambdaLR, rates: Sequence[float]
) -> None:
    """Give other learning rates to a schedule that goes on, e.g. those of this run after a checkpoint was loaded.

    Args:
        optimizer: What the schedule is of, or accelerate's wrapper of it.
        lr_scheduler: The schedule; it stays at its step.
        rates: For each group of the optimizer, > 0, what the schedule's factor multiplies.

    Raises:
        ValueError: There are not as many rates as groups.
    """
    if len(rates) != len(optimizer.param_groups):
        raise ValueError(f"`rates` must be one for each of {len(optimizer.param_groups)} groups, got {len(rates)}.")
    for group, rate, factor in zip(optimizer.param_groups, rates, lr_scheduler.lr_lambdas, strict=True):
        group.update(lr=rate * factor(lr_scheduler.last_epoch), initial_lr=rate)
    lr_scheduler.base_lrs = list(rates)
    lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def _check_schedule(steps_per_epoch: float, num_warmup_steps: int, decay_epochs: Sequence[int]) -> None:
    if not steps_per_epoch > 0:
        raise ValueError(f"`steps_per_epoch` must be above 0, got {steps_per_epoch}.")
    if num_warmup_steps < 0:
        raise ValueError(f"`num_warmup_steps` must be >= 0, got {num_warmup_steps}.")
    if list(decay_epochs) != sorted(decay_epochs):
        raise ValueError(f"`decay_epochs` must be ascending, got {list(decay_epochs)}.")
