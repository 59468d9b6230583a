import torch

from moodpo.core.precision import compute_dtype


def test_autocast_decides_inside_it_and_the_operands_outside():
    assert compute_dtype("cpu", torch.float32) == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compute_dtype("cpu", torch.float32) == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert compute_dtype("cpu", torch.float64) == torch.float64
