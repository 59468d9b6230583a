import pytest
import torch

from moodpo.kernels import vocabulary as module
from moodpo.kernels.vocabulary import chunked_logps


def test_chunked_logps_by_hand():
    # Two tokens with logits (0, ln 3): probabilities 1/4 and 3/4.
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [3.0]]).log1p()
    weight[1] = torch.log(torch.tensor(3.0))
    logps, entropies = chunked_logps(hidden, weight, torch.tensor([1]))
    torch.testing.assert_close(logps.exp(), torch.tensor([0.75]))
    torch.testing.assert_close(entropies, torch.tensor([0.5623351]))


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (64, 64)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_chunked_logps_are_those_of_a_log_softmax(monkeypatch, tile, with_bias, requires_grad):
    monkeypatch.setattr(module, "_CPU_TILE", module._Tile(*tile))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 4, generator=generator)
    weight = 30 * torch.randn(7, 4, generator=generator)  # peaks far apart
    bias = torch.randn(7, generator=generator) if with_bias else None
    targets = torch.tensor([0, 3, 6, 3, 1])
    inputs = [t.clone() for t in (hidden, weight, bias) if t is not None]
    for each in inputs:
        each.requires_grad_(requires_grad)
    logps, entropies = chunked_logps(inputs[0], inputs[1], targets, *inputs[2:])
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    logits = doubles[0] @ doubles[1].T + (doubles[2] if with_bias else 0)
    every = logits.log_softmax(-1)
    oracle = every.gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(logps.double(), oracle, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(
        entropies.double(), -(every.exp() * every).sum(-1), atol=1e-4, rtol=1e-5
    )
    bare, none = chunked_logps(inputs[0], inputs[1], targets, *inputs[2:], with_entropies=False)
    assert none is None
    torch.testing.assert_close(bare, logps)
    if requires_grad:
        scale = torch.linspace(-1, 2, 5)
        (logps * scale).sum().backward()
        (oracle * scale).sum().backward()
        for ours, theirs in zip(inputs, doubles, strict=True):
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_impossible_tokens_leave_the_others_finite(monkeypatch, tokens):
    monkeypatch.setattr(module, "_CPU_TILE", module._Tile(1, tokens))
    # A bias of -inf is how some models forbid padding tokens: whole tiles of them may come first.
    weight, bias = torch.ones(4, 1), torch.tensor([-torch.inf, -torch.inf, 0.0, 0.0])
    logps, entropies = chunked_logps(torch.tensor([[1.0]]), weight, torch.tensor([2]), bias)
    torch.testing.assert_close(logps.exp(), torch.tensor([0.5]))
    torch.testing.assert_close(entropies, torch.tensor([2.0]).log())


def test_bfloat16_log_probabilities_stay_close():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator) for n in (32, 5_000))
    hidden, weight = hidden.bfloat16(), (weight / 4).bfloat16()
    targets = torch.randint(5_000, (32,), generator=generator)
    logps, _ = chunked_logps(hidden, weight, targets)
    oracle = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, targets[:, None])
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), oracle.squeeze(-1), atol=2e-2, rtol=0)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_the_head_never_holds_more_than_a_tile_of_logits(monkeypatch, requires_grad):
    monkeypatch.setattr(module, "_CPU_TILE", module._Tile(3, 10))
    sizes = []
    original = module._logits

    def spy(*args):
        tile = original(*args)
        sizes.append(tuple(tile.shape))
        return tile

    monkeypatch.setattr(module, "_logits", spy)
    hidden = torch.randn(8, 4, requires_grad=requires_grad)
    chunked_logps(hidden, torch.randn(25, 4), torch.zeros(8, dtype=torch.long))
    assert max(rows for rows, _ in sizes) == 3
    assert max(tokens for _, tokens in sizes) == 10
    assert sum(rows * tokens for rows, tokens in sizes) == 8 * 25
