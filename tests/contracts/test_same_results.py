"""The new house makes the old one's pictures: arrays that the code of 4f02d20 made. To be removed with the move."""

import numpy as np
import same_results
import torch


def test_results_are_those_from_before_the_move():
    stored = dict(np.load(same_results.STORED))
    # To the bit on the same kind of processor; others add in another order.
    is_same_machine = stored.pop("cpu") == torch.backends.cpu.get_cpu_capability()
    results = same_results.all_results()
    assert results.keys() == stored.keys()
    worst = {}
    for name, expected in stored.items():
        result = np.asarray(results[name])
        assert result.shape == expected.shape, name
        difference = np.abs(result.astype(np.float64) - expected.astype(np.float64)).max()
        tolerance = 0 if is_same_machine else (1 if expected.dtype == np.uint8 else 1e-4 * np.abs(expected).max())
        if difference > tolerance:
            worst[name] = difference
    assert not worst
