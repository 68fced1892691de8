"""The loss in pieces is torch's cross-entropy, and keeps one tensor of the logits' size instead of three."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hf_parity import relative_error

from nanokimi.kernels import cross_entropy
from nanokimi.kernels.cross_entropy import cross_entropy_in_pieces
from nanokimi.model.loss import next_token_loss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def loss_and_gradient(
    function: Loss, logits_BTW: torch.Tensor, targets_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of half the loss, as with two micro-batches."""
    leaf_BTW = logits_BTW.clone().requires_grad_()
    loss = function(leaf_BTW * 1, targets_BT)
    (loss / 2).backward()
    assert leaf_BTW.grad is not None
    return loss.detach(), leaf_BTW.grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("piece", [7, 100, 1_000_000])
def test_pieces_give_the_same_loss_and_gradient(
    piece: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the last piece is smaller, and with a logit far above the others."""
    monkeypatch.setattr(cross_entropy, "PIECE", piece)
    torch.manual_seed(0)
    logits_BTW, targets_BT = (3 * torch.randn(3, 5, 11)).to(dtype), torch.randint(0, 11, (3, 5))
    logits_BTW[1, 2, 3] = 200.0
    expected = loss_and_gradient(next_token_loss, logits_BTW, targets_BT)
    plain = F.cross_entropy(logits_BTW.float().flatten(0, 1), targets_BT.flatten())
    assert torch.equal(expected[0], plain)
    found = loss_and_gradient(cross_entropy_in_pieces, logits_BTW, targets_BT)
    assert found[0].dtype == torch.float32 and relative_error(found[0], expected[0]) < 1e-6
    assert found[1].dtype == dtype and relative_error(found[1], expected[1]) < tolerance


def test_what_is_kept_for_backward_is_one_gradient() -> None:
    def kept(function: Loss) -> int:
        sizes: list[int] = []

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes.append(x.numel() * x.element_size())
            return x

        logits_BTW = torch.zeros(2, 50, 100, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            function(logits_BTW, torch.zeros(2, 50, dtype=torch.long))
        return max(sizes)

    assert kept(next_token_loss) == 100 * 100 * 4  # torch's own: the logarithmic softmax in fp32
    assert kept(cross_entropy_in_pieces) == 100 * 100 * 2
