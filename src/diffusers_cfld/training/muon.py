"""Muon, an optimizer that learns the matrices of untrained networks in fewer steps than Adam.

Method: Keller Jordan, https://kellerjordan.github.io/posts/muon; length of a step: arXiv:2502.16982, Sec. 2.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_SMALLEST_SIDE = 16


class Muon(torch.optim.AdamW):
    """Averaged gradients of matrices are made orthogonal before each step; whatever else there is follows AdamW.

    A matrix is a weight with two sides of 16 or more; convolutions count with their kernels unrolled into the second
    side. All directions of a matrix move alike, so that what few samples ask for is not drowned. A step is about as
    long as AdamW's, so that rates that suit AdamW suit it too. Not the paper's optimizer: it is for networks that
    start untrained. `torch.optim.Muon` and timm's do the same in bfloat16, which takes some twenty times as long on
    CPUs that emulate it, and torch's leaves convolutions out; this one computes in the weights' own precision.

    Whole weights are needed, as under DDP: FSDP and DeepSpeed split or flatten them. There the processes can share the
    work, since all of them have the same gradients.

    Args:
        params: Parameters, or groups of them; `"orthogonalize": False` in a group leaves all of it to AdamW.
        lr: Learning rate.
        betas: AdamW's, both.
        eps: AdamW's.
        weight_decay: Decoupled weight decay, of everything.
        momentum: Decay of the averaged gradients of matrices, in [0, 1).
        share: Whether each process of `torch.distributed` makes some of the matrices orthogonal and sends them to the
            others. All must have equal gradients, as DDP gives them; nothing checks that.

    Raises:
        ValueError: `momentum` is outside its range; or as `torch.optim.AdamW`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        momentum: float = 0.95,
        share: bool = False,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be at least 0 and less than 1, got {momentum}.")
        self.momentum = momentum
        self.share = share
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient.

        Args:
            closure: Computes the loss again, and the gradients.

        Returns:
            What `closure` returned, `None` without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[torch.Tensor, torch.Tensor] = {}
        settings = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and group.get("orthogonalize", True) and is_matrix(weight):
                    gradients[weight] = weight.grad
                    settings.append((group["lr"], group["weight_decay"]))
        # One at a time, unless all are needed at once.
        averages = (self._average(weight, gradient) for weight, gradient in gradients.items())
        is_shared = self.share and torch.distributed.is_initialized()
        directions = orthogonalize_together(list(averages)) if is_shared else map(orthogonalize, averages)
        for weight, direction, (lr, weight_decay) in zip(gradients, directions, settings, strict=True):
            weight.mul_(1 - lr * weight_decay)
            weight.sub_(direction.view(weight.shape), alpha=0.2 * max(direction.shape) ** 0.5 * lr)
        # AdamW passes over weights without a gradient.
        for weight in gradients:
            weight.grad = None
        try:
            super().step()
        finally:
            for weight, gradient in gradients.items():
                weight.grad = gradient
        return loss

    def _average(self, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Take a gradient into its average; return Nesterov's, as a matrix."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW looks for it when it loads a state
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - self.momentum)
        return gradient.lerp(average, self.momentum).flatten(1)


def is_matrix(weight: torch.Tensor) -> bool:
    """Whether Muon moves a weight as a matrix.

    Args:
        weight: Any parameter.

    Returns:
        True if both sides, all but the first taken together, are 16 or more.
    """
    return weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) >= _SMALLEST_SIDE


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of a matrix near 1 by five Newton-Schulz iterations.

    Args:
        matrix: (m, n); zero stays zero.

    Returns:
        A new tensor, (m, n), whose singular values are between 0.6 and 1.3, unless those of `matrix` are tiny next to
        its largest.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    # Each iteration multiplies x by a polynomial of x @ x.mT, whose own next value follows from itself. A long x need
    # then be met only twice.
    square, product = x @ x.mT, None
    for _ in range(5):
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        square = polynomial @ square @ polynomial
    x = product @ x
    return x.mT if is_tall else x


def orthogonalize_together(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalize matrices that all processes of `torch.distributed` have alike, each process some of them.

    Args:
        matrices: Any number, on one device, in the same order everywhere.

    Returns:
        New tensors, the same in every process.
    """
    if not matrices:
        return []
    num_processes, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    shares: list[list[int]] = [[] for _ in range(num_processes)]
    loads = [0] * num_processes
    costs = [min(matrix.shape) ** 2 * (8 * min(matrix.shape) + max(matrix.shape)) for matrix in matrices]
    # The largest first, each to whoever has least to do.
    for index in sorted(range(len(matrices)), key=lambda index: -costs[index]):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += costs[index]
    results = [torch.empty(0)] * len(matrices)
    buffers = []
    for share in shares:
        sizes = [matrices[index].numel() for index in share]
        buffers.append(matrices[0].new_empty(sum(sizes)))
        for index, piece in zip(share, torch.split(buffers[-1], sizes), strict=True):
            results[index] = piece.view(matrices[index].shape)
    for index in shares[rank]:
        results[index].copy_(orthogonalize(matrices[index]))
    for source, buffer in enumerate(buffers):
        torch.distributed.broadcast(buffer, source)
    return results
