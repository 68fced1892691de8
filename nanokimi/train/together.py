"""What several processes do together in a step, and the main one's whole copy of the model that they share.

Every process holds some rows of each parameter, of its gradient and of the optimizer's state (FSDP2), and computes the
loss of some rows of each batch. Validation, stories, the audit and checkpoints need whole weights: the main process has
them in a copy of the model, which `refresh_whole_model` brings up to date.
"""

from __future__ import annotations

import torch

from nanokimi.kernels.accelerate import accelerate_
from nanokimi.model.output import Output
from nanokimi.runtime.parallel import local_of, of_first_copy, whole
from nanokimi.train.state import TrainState
from nanokimi.train.weights import initial_model, untied


def agree(
    state: TrainState, sums: tuple[torch.Tensor, torch.Tensor], outputs: list[Output]
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, list[Output]]:
    """What the processes found in a step, as one process that had computed the whole batch would have found it.

    Takes what `forward_backward` returned. Returns, on the host, the mean losses of the batch and the norm of the whole
    gradient; and one output, with the counts of all tokens and the largest logits of all. Sends one message, with which
    the processes also agree on whether to stop after this step and whether to save.
    """
    world, passes = state.world, len(outputs)
    # Every copy of the weights has the same gradient, of which the squares are to count once.
    found = (p.grad for p in state.model.parameters() if p.grad is not None)
    grads = [local_of(grad) for grad in found if of_first_copy(grad)]
    squared = torch.nn.utils.get_total_norm(grads).to(state.device).double().square()
    first, layers = outputs[0], len(outputs[0].routing)
    counts = [torch.stack([o.routing[i].counts_E for o in outputs]).sum(dim=0) for i in range(layers)]
    entropies = [torch.stack([o.routing[i].entropy for o in outputs]).mean() for i in range(layers)]
    wishes = torch.tensor([state.should_stop, state.save_wished], device=squared.device)
    numbers = [*(total / passes for total in sums), squared, *wishes.unbind(), *entropies, *counts]
    maxima = torch.zeros(0, device=squared.device)
    if first.max_logits_LH is not None:
        stacked = [output.max_logits_LH for output in outputs if output.max_logits_LH is not None]
        maxima = torch.stack(stacked).amax(dim=0).flatten()

    summed, largest = world.reduced(torch.cat([x.double().reshape(-1) for x in numbers]), maxima)
    # The one time that the host waits for numbers in a step.
    head, largest = summed[: 5 + layers].cpu(), largest.cpu()
    state.stop_agreed, state.save_agreed = bool(head[3] > 0), bool(head[4] > 0)
    state.stop_requested = state.stop_requested or state.stop_agreed
    of_layers = summed[5 + layers :].float().split([len(counts_E) for counts_E in counts])
    routing = tuple(
        old._replace(counts_E=counts_E, entropy=(entropy / world.size).float().to(counts_E.device))
        for old, counts_E, entropy in zip(first.routing, of_layers, head[5:], strict=True)
    )
    max_logits_LH = None if first.max_logits_LH is None else largest.float().view_as(first.max_logits_LH)
    losses = (head[0].float() / world.size, head[1].float() / world.size)
    return losses, head[2].sqrt().float(), [first._replace(routing=routing, max_logits_LH=max_logits_LH)]


def refresh_whole_model(state: TrainState) -> None:
    """Bring the main process's whole copy of the model up to date. All processes must call this together."""
    if state.world.alone or state.copied_step == state.step:
        return
    state.copied_step = state.step
    if state.world.is_main and state.copy_of_model is None:
        copied = initial_model(state.config, state.folder).to(state.device)
        accelerate_(copied, dtype=state.config.train.dtype)
        state.copy_of_model = copied
    own = untied(state.copy_of_model) if state.copy_of_model is not None else {}
    for name, tensor in untied(state.model).items():
        found = whole(tensor.detach())
        if name in own:
            own[name].detach().copy_(found)
