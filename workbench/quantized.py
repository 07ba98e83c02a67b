"""Frozen linear layers in 4 bits (NF4, as in QLoRA), and the weights that such layers hold without loss.

    w -> (code of 4 bits, largest |w| of its block of 64) -> value of the code times that largest |w|

A model is *snapped* once: every weight of the trunk's linear layers becomes the value that its code stands for. Packing
what is snapped loses nothing, since the largest weight of a block keeps its value and all others their codes. So the
same model stands plain where it is sampled and scored and packed where adapters are trained on it, with one digest: the
reference of QLoRA is the SFT, not a relative of it. The block maxima stay float32 (0.5 bits a weight): QLoRA's second
quantization, of these, would give other weights each time.

Embeddings, norms and heads stay as they are, and so do layers whose inputs are no multiple of 64: there a block would
reach over the end of a row, which bitsandbytes' CPU kernel gets wrong. The only file that imports bitsandbytes, whose
kernels do the arithmetic.

Source: Dettmers et al. 2023 (https://arxiv.org/abs/2305.14314), section 3.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import ConfigError, DivergenceError, IntegrityError

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on some CPUs it misses a kernel that nobody needs
NF4 = "nf4"
BLOCK = 64  # weights that share one largest value
HALF_GAP = 0.16  # half of NF4's widest gap, from 0.696 to 1 of the block's largest weight, with room for bfloat16


def packable_layers(model: Any) -> dict[str, nn.Linear]:
    """The trunk's linear layers by their names below it, in order.

    Raises:
        ConfigError: There is none, or the model writes them transposed, as GPT-2 does.
    """
    from transformers.pytorch_utils import Conv1D

    trunk = model.base_model
    linear = {name: layer for name, layer in trunk.named_modules() if isinstance(layer, nn.Linear)}
    found = {name: layer for name, layer in linear.items() if layer.in_features % BLOCK == 0}
    if not found or any(isinstance(layer, Conv1D) for layer in trunk.modules()):
        raise ConfigError(
            f"{type(model).__name__} has no linear layers that can be packed in 4 bits: they must be plain ones "
            f"(GPT-2's are transposed) with a multiple of {BLOCK} inputs; leave quantize out, or take another model",
            where="model.lora.quantize",
        )
    return found


def snap(model: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Rounds the linear layers of a model's trunk, in place, to what 4 bits can hold.

    Args:
        model: Plain, not packed. Its weights keep the precision that they are stored in.
        dtype: In which the model will be loaded: the weights are read in it before they are rounded.

    Returns:
        {"scheme", "layers", "parameters": rounded ones, "relative_error": the root of the squared change over the
        squared weights}.

    Raises:
        ConfigError: See `packable_layers`.
        DivergenceError: A weight is not finite.
        IntegrityError: A weight moved further than rounding can move it.
    """
    changed = whole = 0.0
    layers = packable_layers(model)
    for name, layer in layers.items():
        read = layer.weight.detach().to(dtype)
        _check_finite(read, name)
        rounded = _value(*_codes(read))
        moved = (rounded.float() - read.float()).view(-1, BLOCK).abs().amax(1)
        if not bool((moved <= HALF_GAP * read.float().view(-1, BLOCK).abs().amax(1)).all()):
            raise IntegrityError(f"the weights {name} were not rounded to {NF4}: bitsandbytes computes wrongly here")
        changed += float((rounded.double() - read.double()).square().sum())
        whole += float(read.double().square().sum())
        with torch.no_grad():
            layer.weight.copy_(rounded)
    return {
        "scheme": NF4,
        "layers": len(layers),
        "parameters": sum(layer.weight.numel() for layer in layers.values()),
        "relative_error": math.sqrt(changed / whole) if whole else 0.0,
    }


def pack(model: Any, device: str) -> Any:
    """Packs the linear layers of a frozen, snapped model's trunk and moves the model to a device, layer by layer.

    Args:
        model: On the CPU, so that the device never holds it whole.
        device: Where it goes.

    Returns:
        The same model. It computes in the precision of its weights: on a CPU with and without a gradient to the bit
        alike, on a GPU by whichever kernel bitsandbytes takes for the shape.

    Raises:
        IntegrityError: A weight would change.
    """
    for name, layer in packable_layers(model).items():
        packed = _packed_layer(layer, device)
        if not torch.equal(unpacked(packed).cpu(), layer.weight.detach().cpu()):
            raise IntegrityError(
                f"the weights {name} are not those that 4 bits hold: the model was not rounded in "
                f"{layer.weight.dtype}; remove the sft stage's artifact and run again"
            )
        parent, _, child = name.rpartition(".")
        setattr(model.base_model.get_submodule(parent), child, packed)
    for parameter in model.parameters():
        if _state_of(parameter) is None:  # out of the file's pages, which it would keep in memory whole
            parameter.data = parameter.data.clone()
    return model.to(device)


def _check_finite(weight: Tensor, name: str) -> None:
    if not bool(weight.isfinite().all()):
        raise DivergenceError(f"the weights {name} are not finite: no model to start from")


def _packed_layer(layer: nn.Linear, device: str) -> nn.Linear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight, told = layer.weight.detach(), {"quant_type": NF4, "compress_statistics": False}
    packed = Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=weight.dtype, device="meta", **told
    )
    packed.weight = Params4bit(
        weight.contiguous(), requires_grad=False, blocksize=BLOCK, module=packed, **told
    ).to(device)  # fmt: skip
    packed.bias = layer.bias
    # On some CPUs its eval mode repacks the weights for a kernel of its own: another function than training's.
    packed.support_avx512bf16_for_cpu = False
    made: nn.Linear = packed
    return made


def _codes(weight: Tensor) -> tuple[Tensor, Any]:
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=False, quant_type=NF4)
    return packed, state


def _value(packed: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    value: Tensor = dequantize_4bit(packed, state)
    return value + 0.0  # no -0.0, which equals 0 and has other bytes


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer's weights are packed."""
    return _state_of(getattr(layer, "weight", None)) is not None


def _state_of(parameter: Any) -> Any:
    return getattr(parameter, "quant_state", None)


def unpacked(layer: Any) -> Tensor:
    """(out, in) weights that a packed layer stands for, in the precision that it computes in."""
    return _value(layer.weight.data, layer.weight.quant_state)


def unpacked_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with packed weights as the matrices that they stand for; those on the CPU, one after another."""
    packed = {name: layer for name, layer in module.named_modules() if is_packed(layer)}
    if not packed:
        return module.state_dict()
    state = {}
    for key, tensor in module.state_dict().items():
        name, _, rest = key.partition(".weight")
        if name not in packed:
            state[key] = tensor
        elif not rest:  # what else there is of it belongs to its codes
            state[key] = unpacked(packed[name]).cpu()
    return state


def parameter_size(parameter: Tensor) -> int:
    """Number of weights that a parameter stands for: of a packed one as many as it has unpacked."""
    state = _state_of(parameter)
    return parameter.numel() if state is None else math.prod(state.shape)
