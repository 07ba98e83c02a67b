"""Adapters on disk, merged into a plain model folder or apart: two files, no pickle, no path, verified when read.

    adapter.safetensors · adapter.json = {"format": 1, "rank", "alpha", "target_modules", "base_tensors", "tensors"}

`base_tensors` is the digest of the trunk that the adapter belongs to, `tensors` that of the file's own tensors: the
adapter's by name below the trunk, and those of a scalar head as `head.weight` and `head.bias` where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import IntegrityError
from workbench.lora import (
    POLICY,
    Lora,
    active_adapter,
    adapter_state,
    adapters,
    adapters_of,
    add_adapter,
    base_digest,
    plain_state,
)
from workbench.models import Placement, load_policy, save_model, tensors_digest
from workbench.quantized import pack, unpacked_state

FORMAT = 1
_TENSORS, _INDEX = "adapter.safetensors", "adapter.json"


def load_base(load: Callable[[Placement], Any], placement: Placement, lora: Lora | None) -> Any:
    """A model as `load` reads it to a place, or packed where `lora.quantize` says so.

    Of what is packed the device never holds more than a layer unpacked.
    """
    if lora is None or lora.quantize is None:
        return load(placement)
    return pack(load(replace(placement, device="cpu")), placement.device)


def load_reference(folder: Path, placement: Placement, lora: Lora | None, *, trust_remote_code: bool = False) -> Any:
    """The frozen SFT, as the base of adapters is: packed where `lora.quantize` says so."""
    return load_base(lambda place: load_policy(folder, place, trust_remote_code=trust_remote_code), placement, lora)


def load_trainee(
    folder: Path, placement: Placement, lora: Lora | None, seed: int, *, trust_remote_code: bool = False
) -> Any:
    """The SFT, ready to be trained: all of its weights, or an adapter `lora.POLICY` on its frozen base.

    Args:
        folder: Of the SFT.
        seed: Of the adapter.
    """
    if lora is None:
        return load_policy(folder, placement, trust_remote_code=trust_remote_code, trainable=True)
    base = load_reference(folder, placement, lora, trust_remote_code=trust_remote_code)
    return add_adapter(base, lora, POLICY, seed)


def merged_state(model: Any, name: str) -> dict[str, Tensor]:
    """The whole model's tensors with one adapter added to the base, on the CPU, floats in float32; tied ones shared."""
    record = adapters_of(model)
    # The trunk's names inside the whole model: "model." in a policy, "" in a trunk.
    start = "" if model.base_model is model else f"{model.base_model_prefix}."
    layers = {start + at: layer for at, layer in record.layers.items()}
    shared: dict[tuple[Any, ...], Tensor] = {}
    state = {}
    plain = plain_state(unpacked_state(model), layers)
    for key in list(plain):
        tensor = plain.pop(key)  # no longer than needed: what was packed is a copy
        layer = layers.get(key.rpartition(".")[0])
        if layer is not None and key.endswith(".weight") and name in layer.lora_A:
            with torch.no_grad():
                state[key] = tensor.float().cpu() + layer.get_delta_weight(name).cpu()
            continue
        place = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if place not in shared:
            shared[place] = (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu()
        state[key] = shared[place]
    return state


def save_merged(model: Any, tokenizer: Any, folder: Any, name: str | None = None) -> None:
    """`models.save_model` of the model with an adapter (default: the active one) merged: a plain folder in float32.

    Nothing in memory changes, and no second copy is made on the device. A model without adapters is saved as it is.
    """
    name = name or active_adapter(model)
    if name is None:
        save_model(model, tokenizer, folder)
        return
    model.save_pretrained(folder, state_dict=merged_state(model, name))
    tokenizer.save_pretrained(folder)


def save_trained(model: Any, file: Path) -> None:
    """Writes what requires a gradient, adapters and heads, as it is: for the checkpoint of an unfinished stage."""
    from safetensors.torch import save_file

    save_file({at: one.detach().cpu() for at, one in model.named_parameters() if one.requires_grad}, file)


def load_trained(model: Any, file: Path) -> None:
    """Reads what `save_trained` wrote into a model of the same make, bit for bit.

    Raises:
        IntegrityError: The file has other tensors than this model trains.
    """
    from safetensors.torch import load_file

    state = load_file(file)
    trained = {at: one for at, one in model.named_parameters() if one.requires_grad}
    if {at: (one.shape, one.dtype) for at, one in trained.items()} != {
        at: (one.shape, one.dtype) for at, one in state.items()
    }:
        raise IntegrityError("the checkpoint's tensors are not those that this model trains", where=str(file))
    with torch.no_grad():
        for at, one in trained.items():
            one.copy_(state[at])


def save_adapter(model: Any, name: str, folder: Path, *, head: nn.Linear | None = None) -> None:
    """Writes one adapter, and the head that goes with it, into a new or empty folder."""
    from safetensors.torch import save_file

    state: dict[str, Tensor] = {at: one.detach() for at, one in adapter_state(model, name).items()}
    if head is not None:
        state |= {f"head.{at}": one.detach() for at, one in head.named_parameters()}
    state = {at: one.float().cpu().contiguous() for at, one in state.items()}
    index = {
        "format": FORMAT,
        "base_tensors": base_digest(model),
        "tensors": tensors_digest(state),
    } | adapters(model)[name].to_json()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / _TENSORS, metadata={"format": "pt"})
    (folder / _INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))


def load_adapter(
    model: Any, name: str, folder: Path, *, trainable: bool = False, base: str | None = None
) -> nn.Linear | None:
    """Puts a saved adapter into a model under a name, bit for bit, and makes it active.

    Args:
        trainable: Whether gradients are wanted for the adapter and its head.
        base: Digest of the model's base where it is known already; hashing a large one takes a while.

    Returns:
        The head saved with it, float32 on the model's device, or None.

    Raises:
        IntegrityError: The files are damaged, or made for another base or another shape of it.
    """
    index, state = _read(folder)
    own = base if base is not None else base_digest(model)
    if index["base_tensors"] != own:
        raise IntegrityError(
            f"the adapter belongs to base {index['base_tensors'][:12]}, this model is {own[:12]}; "
            "expected the SFT that it was trained from",
            where=str(folder),
        )
    lora = Lora.from_config(index)
    assert lora is not None
    add_adapter(model, lora, name, 0, trainable=trainable)
    wanted = adapter_state(model, name)
    found = {at: one for at, one in state.items() if not at.startswith("head.")}
    if {at: one.shape for at, one in wanted.items()} != {at: one.shape for at, one in found.items()}:
        raise IntegrityError("the adapter's tensors do not fit this model's layers", where=str(folder))
    with torch.no_grad():
        for at, one in wanted.items():
            one.copy_(found[at])
    return _head(state, next(iter(wanted.values())).device, trainable)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        index: dict[str, Any] = json.loads((folder / _INDEX).read_text())
        state = load_file(folder / _TENSORS)
        known = index["format"] == FORMAT and {"rank", "alpha", "target_modules", "base_tensors"} <= index.keys()
        whole = tensors_digest(state) == index["tensors"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise IntegrityError(f"cannot be read as an adapter: {error}", where=str(folder)) from error
    if not known:
        raise IntegrityError(f"format {index['format']!r}, expected {FORMAT}", where=str(folder / _INDEX))
    if not whole:
        raise IntegrityError(
            "the tensors are not those that were saved; delete the folder and run again", where=str(folder)
        )
    return index, state


def _head(state: dict[str, Tensor], device: torch.device, trainable: bool) -> nn.Linear | None:
    weight = state.get("head.weight")
    if weight is None:
        return None
    outputs, inputs = weight.shape
    head = nn.Linear(inputs, outputs, bias="head.bias" in state, device="meta")  # draws nothing
    # Copied out of the file's buffer: on some CPUs a product's last bits hang on where in memory a row begins.
    own = {at.removeprefix("head."): one.to(device, copy=True) for at, one in state.items() if at.startswith("head.")}
    head.load_state_dict(own, assign=True)
    head.requires_grad_(trainable)
    return head
