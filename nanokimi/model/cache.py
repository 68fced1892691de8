"""The cache of generation: what attention keeps of the tokens it has seen.

The attention decides what that is. NanoGPT caches keys and values of every head, NanoKimi only the latent and the
shared rotary key. The cache stores whatever tensors it is given along axis 1, or a state of fixed size.
"""

from __future__ import annotations

import torch


class LayerCache:
    """One layer's stored tensors, each (B, S, ...), in buffers allocated once at full capacity."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.buffers: tuple[torch.Tensor, ...] = ()
        self.state: tuple[torch.Tensor, ...] = ()

    def append(self, *new: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Store the new tokens' tensors, each (B, T, ...), and return all stored so far, each (B, S, ...)."""
        if not self.buffers:
            self.buffers = tuple(x.new_zeros((x.shape[0], self.capacity, *x.shape[2:])) for x in new)
        end = self.length + new[0].shape[1]
        assert end <= self.capacity, f"cache of {self.capacity} tokens cannot hold {end}"
        for buffer, x in zip(self.buffers, new, strict=True):
            buffer[:, self.length : end] = x
        self.length = end
        return tuple(buffer[:, :end] for buffer in self.buffers)

    def extend(self) -> None:
        """Make room for one more token, whose rows are written later."""
        assert self.length < self.capacity, f"cache of {self.capacity} tokens cannot hold more"
        self.length += 1

    def carry(self, tokens: int, *state: torch.Tensor) -> None:
        """Replace `state` by one of fixed size that summarizes `tokens` more tokens."""
        self.state = state
        self.length += tokens
        assert self.length <= self.capacity, f"cache of {self.capacity} tokens cannot hold {self.length}"

    @property
    def bytes_per_token(self) -> int:
        """Bytes stored per token of one sequence."""
        return sum(buffer[0, 0].numel() * buffer.element_size() for buffer in self.buffers)

    @property
    def bytes_held(self) -> int:
        """Bytes of the tokens stored so far, of all sequences, without what is only reserved for later ones."""
        rows = len(self.buffers[0]) if self.buffers else 0
        return rows * self.length * self.bytes_per_token + sum(
            x.numel() * x.element_size() for x in self.state
        )

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these sequences, by their numbers in the batch."""
        self.buffers = tuple(buffer[rows] for buffer in self.buffers)
        self.state = tuple(x[rows] for x in self.state)


class Cache:
    """A LayerCache for each layer."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens stored."""
        return self.layers[0].length

    @property
    def bytes_held(self) -> int:
        """Bytes of the tokens stored so far, in all layers."""
        return sum(layer.bytes_held for layer in self.layers)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these sequences of the batch in every layer."""
        for layer in self.layers:
            layer.keep_rows(rows)
