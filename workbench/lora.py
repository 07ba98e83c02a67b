"""LoRA: low-rank adapters beside the frozen SFT, several on one base in memory; the reference is the base without any.

    h = W x + (alpha / rank) B A x        W frozen; A (rank, in) and B (out, rank) trained, in float32; B starts at 0

Layers are put in place (by peft), so a model stays the class that it is: `base_model` is its trunk, `score` its head,
and sampling and scoring work as before. Adapters sit in the trunk alone, never on the language model's head or a
scalar head, so one fits under either. There is no dropout here, by design: policy and reference, rollout and training
must be one function of the weights.

Which adapter is active (`set_active`) and which is trained (`trainable`) are two things: switching touches no
`requires_grad`, and gradient reaches the active adapter alone because the others are not in the graph.

Source: Hu et al. 2022 (https://arxiv.org/abs/2106.09685).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError
from workbench.lora_targets import ALL_LINEAR, check_targets, ends
from workbench.models import tensors_digest
from workbench.quantized import parameter_size, unpacked_state

POLICY, REWARD, CRITIC = "policy", "reward", "critic"  # usual names
_RECORD = "_workbench_adapters"  # attribute of the trunk


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Settings of an adapter, the same for everything that a comparison trains from the SFT.

    Args:
        rank: Width of the bottleneck.
        alpha: The update is scaled by alpha / rank.
        target_modules: ("all-linear",), which is every linear layer of the trunk, or ends of layers' names ("q_proj").
        quantize: "nf4" where the frozen base is packed in 4 bits (`workbench.quantized`); None: as it is.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...] = ALL_LINEAR
    quantize: str | None = None

    @classmethod
    def from_config(cls, block: Mapping[str, Any] | None) -> Lora | None:
        """The config's `model.lora`; None: all weights are trained."""
        if block is None:
            return None
        return cls(
            rank=int(block["rank"]),
            alpha=float(block["alpha"]),
            target_modules=tuple(block["target_modules"]),
            quantize=block.get("quantize"),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain fields; `from_config` reads them back."""
        told = {"rank": self.rank, "alpha": self.alpha, "target_modules": list(self.target_modules)}
        return told if self.quantize is None else told | {"quantize": self.quantize}


def parametrization(lora: Lora | None) -> str:
    """What is trained, in words: the fact that the match certificate compares between arms."""
    if lora is None:
        return "full"
    base = f", base in {lora.quantize}" if lora.quantize is not None else ""
    return f"lora rank {lora.rank} alpha {lora.alpha:g} on {'+'.join(sorted(lora.target_modules))}{base}"


@dataclass
class Adapters:
    """What a trunk carries: its adapted layers by name, the settings of each adapter, and which one is active."""

    layers: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Lora] = field(default_factory=dict)
    active: str | None = None


def adapters_of(model: Any) -> Adapters:
    found: Adapters = getattr(model.base_model, _RECORD, None) or Adapters()
    return found


def adapters(model: Any) -> dict[str, Lora]:
    """Name -> settings of the adapters on a model; empty for a plain one."""
    return dict(adapters_of(model).settings)


def active_adapter(model: Any) -> str | None:
    """Name of the active adapter; None: the base answers."""
    return adapters_of(model).active


# ------------------------------------------------------------------------------------------------ add


def target_names(model: Any, lora: Lora) -> list[str]:
    """Names, below the trunk, of the layers that get an adapter.

    Raises:
        ConfigError: A name in `target_modules` is that of no linear layer.
    """
    known = sorted(_linear_layers(model.base_model))
    check_targets(lora.target_modules, known)
    wanted = [
        name
        for name in known
        if lora.target_modules == ALL_LINEAR or any(ends(name, one) for one in lora.target_modules)
    ]
    if not wanted:
        raise ConfigError("this model has no linear layer that could be adapted", where="model.lora.target_modules")
    return wanted


def _linear_layers(trunk: nn.Module) -> Iterator[str]:
    from transformers.pytorch_utils import Conv1D

    layers = (getattr(trunk, _RECORD, None) or Adapters()).layers
    yield from layers
    for name, module in trunk.named_modules():
        inside = name.rpartition(".")[0] in layers or name.rsplit(".", 2)[0] in layers
        if name not in layers and not inside and isinstance(module, (nn.Linear, Conv1D)):
            yield name


def add_adapter(model: Any, lora: Lora, name: str, seed: int, *, trainable: bool = True) -> Any:
    """Puts a new adapter into a model, freezes what was there and makes the new one active.

    The model computes as before until the adapter is trained. The global random state is not touched, and the draw
    depends on the seed alone, not on the device. A first adapter freezes the whole model, a head included; later ones
    leave alone whatever is trained by then.

    Args:
        model: A policy, reward model or trunk.
        name: Letters, digits, `_` and `-`.
        seed: Of A; B starts at 0.
        trainable: Whether gradients are wanted for it, active or not.

    Returns:
        The same model.

    Raises:
        ConfigError: See `target_names`.
        ValueError: There is one of that name.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    trunk, record = model.base_model, adapters_of(model)
    if name in record.settings or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"got the adapter name {name!r}, expected a new one besides {sorted(record.settings)}")
    targets = target_names(model, lora)
    if not record.settings:
        model.requires_grad_(False)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), lora_dropout=0.0, bias="none")
    devices = sorted({one.device for one in model.parameters() if one.device.type == "cuda"}, key=str)
    before = [(one, one.requires_grad) for one in model.parameters()]
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GPT-2's transposed layers are handled, with a warning
        inject_adapter_in_model(config, trunk, name)
    for parameter, wanted in before:
        parameter.requires_grad_(wanted)
    record.layers = {at: module for at, module in trunk.named_modules() if isinstance(module, LoraLayer)}
    placed = sorted(at for at, layer in record.layers.items() if name in layer.lora_A)
    assert placed == targets, f"peft adapted {placed}, expected {targets}"
    record.settings[name] = lora
    setattr(trunk, _RECORD, record)
    generator = torch.Generator().manual_seed(seed % 2**63)
    for at in targets:
        first, second = (getattr(record.layers[at], part)[name] for part in ("lora_A", "lora_B"))
        first.float()  # an update of a usual learning rate is below what bfloat16 can add
        second.float()
        bound = 1.0 / math.sqrt(first.in_features)  # nn.Linear's own: kaiming with a = sqrt(5)
        drawn = torch.empty(first.weight.shape).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            first.weight.copy_(drawn)
            second.weight.zero_()
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(trainable)
    record.active = None
    set_active(model, name)
    return model


def float32_head(head: nn.Linear) -> nn.Linear:
    """Makes a head trainable in float32 whatever the trunk's precision: it casts what it is given."""
    head.float().requires_grad_(True)
    head.register_forward_pre_hook(lambda module, given: (given[0].to(module.weight.dtype), *given[1:]))
    return head


# ------------------------------------------------------------------------------------------------ switch


def set_active(model: Any, name: str | None) -> None:
    """Makes one adapter answer, or with None the base alone, bit for bit. Costs an attribute a layer; draws nothing.

    Raises:
        ValueError: There is none of that name.
    """
    record = adapters_of(model)
    if name == record.active:
        return
    if name is not None and name not in record.settings:
        raise ValueError(f"got the adapter {name!r}, expected one of {sorted(record.settings)}")
    for layer in record.layers.values():
        # Not peft's set_adapter and enable_adapters: those change requires_grad as well.
        layer._disable_adapters = name is None
        if name is not None:
            layer._active_adapter = [name]
    record.active = name


@contextmanager
def using(model: Any, name: str | None) -> Iterator[None]:
    """One adapter (None: the base) within the block, then whatever was active before."""
    before = active_adapter(model)
    set_active(model, name)
    try:
        yield
    finally:
        set_active(model, before)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The base alone within the block: the reference, equal to the SFT. A model without adapters is left as it is."""
    with using(model, None):
        yield


# ------------------------------------------------------------------------------------------------ weights


def adapter_state(model: Any, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters by name below the trunk (`layers.0.self_attn.q_proj.lora_A.weight`), in a fixed order."""
    if name not in adapters_of(model).settings:
        raise ValueError(f"got the adapter {name!r}, expected one of {sorted(adapters_of(model).settings)}")
    return {
        f"{at}.{part}.weight": getattr(layer, part)[name].weight
        for at, layer in sorted(adapters_of(model).layers.items())
        for part in ("lora_A", "lora_B")
        if name in layer.lora_A
    }


def adapter_parameters(model: Any, name: str) -> list[nn.Parameter]:
    """An adapter's parameters, for an optimizer."""
    return list(adapter_state(model, name).values())


def copy_adapter(model: Any, source: str, target: str) -> None:
    """Gives one adapter another one's weights, such as the reward model's to the critic.

    Raises:
        ValueError: They differ in rank or layers.
    """
    given, taken = adapter_state(model, source), adapter_state(model, target)
    if {at: one.shape for at, one in given.items()} != {at: one.shape for at, one in taken.items()}:
        raise ValueError(f"the adapters {source!r} and {target!r} differ in rank or layers")
    with torch.no_grad():
        for at, one in taken.items():
            one.copy_(given[at])


def base_digest(model: Any) -> str:
    """`models.trunk_digest` of the base, whatever adapters it carries: the SFT's digest, before and after training."""
    return tensors_digest(plain_state(unpacked_state(model.base_model), adapters_of(model).layers))


def plain_state(state: Mapping[str, Tensor], layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state under the names that it had before layers were adapted, the adapters left out."""
    plain = {}
    for key, tensor in state.items():
        owner, base, rest = key.partition(".base_layer.")
        if base and owner in layers:
            plain[f"{owner}.{rest}"] = tensor
        elif key.partition(".lora_")[0] not in layers:
            plain[key] = tensor
    return plain


def operations_per_token(model: Any) -> float:
    """Floating-point operations to train on a token: 6 a trained parameter, 4 a frozen one (no gradient of it)."""
    return float(sum(parameter_size(one) * (6 if one.requires_grad else 4) for one in model.parameters()))
