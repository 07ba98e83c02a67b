"""Sampling by several processes: each computes the logits of its rows, all draw the tokens of all.

The same generator draws from the same logits in every process, so the samples are those of one process alone (up to
the last bits of a logit), whatever the number of processes; and each holds all of them, as training needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench import processes


class DealtRows:
    """A decoder for `workbench.sampling` of which this process computes its share of the rows.

    Args:
        make: The decoder of some rows, from their attention mask and position ids.
        model: Whose logits they are.
        mask, positions: (B, W + R) of all rows.
        states: Receives the states behind the logits, (L, H), of this process's rows when they are computed; of all
            rows after that. None: nobody reads them.
    """

    def __init__(
        self,
        make: Callable[[Tensor, Tensor], Any],
        model: Any,
        mask: Tensor,
        positions: Tensor,
        states: list[Tensor] | None,
    ) -> None:
        self._mine, self._wanted, self._states = processes.share(range(len(mask))), len(mask), states
        self._vocabulary, self._width = model.get_output_embeddings().weight.shape
        self._decoder: Any = make(mask[self._mine], positions[self._mine]) if self._mine else None

    def logits(self, ids: Tensor, step: int) -> Tensor:
        """(L, V) float32 for all wanted rows; see `workbench.sampling`."""
        own = torch.zeros((0, self._vocabulary), device=ids.device)
        seen = torch.zeros((0, self._width), device=ids.device)
        if self._mine:
            own = self._decoder.logits(ids[self._mine], step).float()
            if self._states is not None:
                seen = self._states.pop().float()
        if self._states is not None:
            self._states.append(processes.whole(seen, self._mine, self._wanted))
        return processes.whole(own, self._mine, self._wanted)

    def keep(self, rows: Tensor) -> None:
        """Forgets all wanted rows but these."""
        places = {place: at for at, place in enumerate(rows.tolist())}
        own = [at for at, place in enumerate(self._mine) if place in places]
        if 0 < len(own) < len(self._mine):
            self._decoder.keep(torch.tensor(own, device=rows.device))
        self._mine, self._wanted = [places[self._mine[at]] for at in own], len(places)
