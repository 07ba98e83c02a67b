"""What a stage will take, counted before it runs: bytes of memory and floating-point operations. Imports no torch.

    weights      parameters times the bytes of a number; trained ones are float32 with gradient and Adam's two moments;
                 packed ones (`model.lora.quantize`) 4.5 bits, and one layer of them unpacked
    activations  tokens of one pass times what a layer keeps for its backward pass:
                     8 H + 2 K + 4 I numbers a layer, and 2.7 H once     (H hidden, K key-value width, I feed-forward)
                 with gradient checkpointing H a layer, 2.7 H once and one layer in full
    a process    what Python, torch and the trainers' imports take by themselves

The counts of a layer are those of a Llama block with fused attention, read off autograd's saved tensors
(docs/models.md has the table, and the error against measured peaks).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workbench.config_sections import LoraAdapter
from workbench.model_files import context_of_folder, read_config, tensor_shapes

BYTES: Final = {"float32": 4, "bfloat16": 2}
PACKED_BYTES: Final = 0.5 + 4 / 64  # a weight: a code, and its share of a block's largest one
TRAINED_BYTES: Final = 16  # a parameter: weight, gradient, two moments of Adam, float32 each
PROCESS_BYTES: Final = {"cpu": 400_000_000, "cuda": 600_000_000}  # measured on a CPU; a GPU's is its context
TRAINER_BYTES: Final = {"cpu": 60_000_000, "cuda": 0}  # what the trainers' own objects add


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model's memory and operations hang on.

    Args:
        parameters: All of them, tied ones once.
        hidden, layers, key_value, intermediate, vocabulary: Widths and counts, units.
        context: Positions that it reads; None: unknown.
    """

    parameters: int
    hidden: int
    layers: int
    key_value: int
    intermediate: int
    vocabulary: int
    context: int | None = None

    @property
    def per_token(self) -> float:
        """Numbers that a token leaves for the backward pass."""
        return self.layers * self.per_layer + 2.7 * self.hidden

    @property
    def per_layer(self) -> float:
        """The same of one layer."""
        return 8.0 * self.hidden + 2.0 * self.key_value + 4.0 * self.intermediate

    @property
    def linear_parameters(self) -> int:
        """Parameters of the trunk's linear layers."""
        per_layer = (
            2 * self.hidden * self.hidden + 2 * self.hidden * self.key_value + 3 * self.hidden * self.intermediate
        )
        return min(self.parameters, self.layers * per_layer)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear layer."""
        attention = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.key_value)
        forward = 3 * (self.hidden + self.intermediate)
        return rank * self.layers * (attention + forward)


def size_of(folder: Path) -> Size:
    """Reads config.json and the headers of the safetensors files; no weights are opened.

    Raises:
        IntegrityError: There are none, or they are broken.
    """
    config = read_config(folder)
    config = config | (config.get("text_config") or {})

    def number(*names: str, default: int) -> int:
        return next((int(config[name]) for name in names if isinstance(config.get(name), int)), default)

    hidden = number("hidden_size", "n_embd", "d_model", default=1)
    heads = number("num_attention_heads", "n_head", default=1)
    width = number("head_dim", default=hidden // heads)
    parameters = 0
    for shape, _ in tensor_shapes(folder).values():
        count = 1
        for one in shape:
            count *= one
        parameters += count
    return Size(
        parameters=parameters,
        hidden=hidden,
        layers=number("num_hidden_layers", "n_layer", default=1),
        key_value=width * number("num_key_value_heads", default=heads),
        intermediate=number("intermediate_size", "n_inner", default=4 * hidden),
        vocabulary=number("vocab_size", default=1),
        context=context_of_folder(folder),
    )


def small_llama(block: Any, vocabulary: int, context: int) -> Size:
    """The size of a world's model (`model.size`): tied embeddings, as many key-value heads as heads."""
    hidden, layers, forward = block.hidden_size, block.num_layers, block.intermediate_size
    per_layer = 4 * hidden * hidden + 3 * hidden * forward + 2 * hidden
    return Size(
        parameters=vocabulary * hidden + layers * per_layer + hidden,
        hidden=hidden,
        layers=layers,
        key_value=hidden,
        intermediate=forward,
        vocabulary=vocabulary,
        context=context,
    )


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all stages of a comparison share.

    Args:
        device: "cpu" or "cuda".
        dtype: Of frozen weights: "float32" or "bfloat16".
        rank: Of LoRA adapters; None: all weights are trained.
        packed: Their base is held in 4 bits.
        checkpointing: Activations are computed again in the backward pass.
    """

    device: str
    dtype: str
    rank: int | None = None
    packed: bool = False
    checkpointing: bool = False

    @property
    def frozen(self) -> int:
        """Bytes of a frozen parameter."""
        return BYTES[self.dtype]

    def trained(self, size: Size) -> float:
        """Bytes of a model that is trained: all of it, or adapters beside the frozen base."""
        if self.rank is None:
            return float(TRAINED_BYTES * size.parameters)
        return self.base(size) + TRAINED_BYTES * size.adapter_parameters(self.rank)

    def base(self, size: Size) -> float:
        """Bytes of the frozen SFT where adapters are trained, packed perhaps."""
        if not self.packed:
            return float(self.frozen * size.parameters)
        plain = size.parameters - size.linear_parameters + size.hidden * size.intermediate  # and a layer unpacked
        return self.frozen * plain + PACKED_BYTES * size.linear_parameters

    def activations(self, size: Size, tokens: float) -> float:
        """Bytes kept by one forward pass of so many tokens, padding included."""
        kept = size.layers * size.hidden + size.per_layer + 2.7 * size.hidden if self.checkpointing else size.per_token
        return BYTES[self.dtype] * kept * tokens

    def cache(self, size: Size, tokens: float) -> float:
        """Bytes of keys and values while sampling, and of the logits of one step (float32, twice)."""
        return 2.0 * self.frozen * size.layers * size.key_value * tokens

    def generation(self, size: Size, sequences: int, length: int) -> float:
        """Bytes of sampling so many sequences: cache, and the logits of one step twice."""
        return self.cache(size, sequences * length) + 8.0 * sequences * size.vocabulary


def setting_of(device: str, dtype: str, lora: LoraAdapter | None, checkpointing: bool) -> Setting:
    """What all stages of a comparison share."""
    return Setting(
        device=device,
        dtype=dtype,
        rank=None if lora is None else lora.rank,
        packed=lora is not None and lora.quantize is not None,
        checkpointing=checkpointing,
    )
