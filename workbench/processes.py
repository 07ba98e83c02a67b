"""What the processes of one stage exchange (`workbench.ranks` makes them). With one process nothing is exchanged.

All run the same code on the same weights, data order and seeds. What is dear is dealt: each takes some rows of a batch,
and sums over rows are added up, so that every process goes on with the numbers that one alone would have had, but for
the order of additions. A gradient is such a sum: losses are sums over rows divided by what the *whole* step counts,
and nothing has to be averaged, whatever the shares are.

gloo on a CPU; NCCL for tensors on GPUs, one GPU a process. The latter has not been run: there was no machine for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.errors import IntegrityError

T = TypeVar("T")

BACKENDS: Final = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT: Final = timedelta(minutes=30)  # one process may write a large checkpoint while the others wait
BUCKET_NUMBERS: Final = 2**24  # gradients added up at once


def join(rank: int, size: int, rendezvous: Path, device: str) -> None:
    """Meets the other processes of the stage; they are on this machine."""
    loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if loopback:  # else gloo asks what the host's name resolves to
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    # Not init_method="file://...", which takes no path with a space in it.
    store = dist.FileStore(str(rendezvous.absolute()), size)  # type: ignore[attr-defined]
    store.set_timeout(TIMEOUT)
    dist.init_process_group(BACKENDS[device], store=store, rank=rank, world_size=size, timeout=TIMEOUT)


def size() -> int:
    """Processes of this stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this one."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the one that writes."""
    return rank() == 0


def share(rows: Sequence[int]) -> list[int]:
    """This process's rows: every `size()`-th, so that rows sorted by length give equal shares."""
    return list(rows[rank() :: size()])


def total(values: Tensor) -> Tensor:
    """Sum over processes, the same bits in each; `values` is overwritten."""
    if size() > 1:
        dist.all_reduce(values)
    return values


def largest(values: Tensor) -> Tensor:
    """Maximum over processes; `values` is overwritten."""
    if size() > 1:
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def whole(part: Tensor, rows: Sequence[int], count: int) -> Tensor:
    """(count, ...) from the processes' shares: `part` (len(rows), ...) are this one's rows of it."""
    found = part.new_zeros((count, *part.shape[1:]))
    if rows:
        found[torch.tensor(rows, device=part.device)] = part
    return total(found)


def any_of(flag: bool) -> bool:
    """Whether it is true in one of them, so that all do the same."""
    return flag if size() == 1 else bool(largest(torch.tensor(float(flag))))


def from_main(ask: Callable[[], T]) -> T:
    """What rank 0 finds, told to all."""
    if size() == 1:
        return ask()
    box: list[Any] = [ask() if is_main() else None]
    dist.broadcast_object_list(box)
    found: T = box[0]
    return found


def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Adds up the gradients of all processes; a parameter that only other processes' rows touched has 0 here."""
    found = list(parameters)
    if size() == 1 or not found:
        return
    touched = largest(torch.tensor([float(one.grad is not None) for one in found])).tolist()
    bucket: list[Tensor] = []
    for parameter, anywhere in zip(found, touched, strict=True):
        if not anywhere:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and (
            sum(one.numel() for one in bucket) + parameter.grad.numel() > BUCKET_NUMBERS
            or bucket[0].dtype != parameter.grad.dtype
        ):
            _add_up(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _add_up(bucket)


def _add_up(bucket: list[Tensor]) -> None:
    flat = total(torch.cat([one.flatten() for one in bucket]))
    parts = torch.split(flat, [one.numel() for one in bucket])
    for one, part in zip(bucket, parts, strict=True):
        one.copy_(part.view_as(one))


@torch.no_grad()
def check_lockstep(parameters: Iterable[Tensor]) -> None:
    """Refuses weights that differ between processes: a step was not the same in all.

    Raises:
        IntegrityError: They do.
    """
    if size() == 1:
        return
    sums = torch.stack([one.detach().double().abs().sum().cpu() for one in parameters])
    sums = sums.nan_to_num(nan=-1.0)  # after a divergence they are equal too
    # Two numbers of which one falls where the other rises: the largest of both are equal only where all are.
    widest, narrowest = largest(torch.stack([sums, -sums]))
    if not torch.equal(widest, -narrowest):
        raise IntegrityError(
            f"the {size()} processes of this stage hold different weights, so a step was not the same in all; run with "
            "resources.processes: 1, and report this with the device and the versions (workbench doctor --json)"
        )
