"""Loading and digesting policies, references, reward models and critics. Dropout is off in every one of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.errors import DivergenceError, IntegrityError, ResourceError
from workbench.quantized import parameter_size, unpacked_state
from workbench.reader import READER_FILE, Reader

if TYPE_CHECKING:
    from workbench.stages import Resources

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and in what precision a stage computes; from `Stage.resources`, the same for every arm."""

    device: str = "cpu"
    dtype: str = "float32"

    @classmethod
    def of(cls, resources: Resources) -> Placement:
        """A stage's own."""
        return cls(device=resources.device, dtype=resources.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The torch dtype of the weights."""
        return DTYPES[self.dtype]


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout probability to 0, those that layers keep as plain numbers included."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # attention_dropout, hidden_dropout, layerdrop, ...
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def check_finite(model: nn.Module, when: str) -> None:
    """Refuses weights that hold a NaN or an infinity.

    Raises:
        DivergenceError: A parameter is not finite; `when` ("after step 7") goes into the message.
    """
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise DivergenceError(f"the weights {name} are not finite {when}; lower the learning rate")


def load_policy(folder: Path, placement: Placement, *, trust_remote_code: bool = False, trainable: bool = False) -> Any:
    """A causal language model from a folder of safetensors; frozen and in eval mode unless `trainable`.

    Raises:
        IntegrityError: The folder holds no safetensors weights.
    """
    from transformers import AutoModelForCausalLM

    return _load(AutoModelForCausalLM, folder, placement, trust_remote_code, trainable)


def load_reward_model(
    folder: Path, placement: Placement, *, trust_remote_code: bool = False, trainable: bool = False
) -> Any:
    """A sequence classifier with one label: `score` is its head, `base_model` its trunk."""
    from transformers import AutoModelForSequenceClassification

    model = _load(AutoModelForSequenceClassification, folder, placement, trust_remote_code, trainable, num_labels=1)
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.out_features != 1:
        raise IntegrityError(
            f"expected a reward model with a linear head `score` of one output, found {type(model).__name__}; "
            "use an architecture whose AutoModelForSequenceClassification has one (Llama, Qwen, Mistral, GPT-2, ...)",
            where=str(folder),
        )
    if (Path(folder) / READER_FILE).exists():  # it has a tokenizer of its own
        model.reader = Reader(Path(folder), trust_remote_code=trust_remote_code)
    return model


def new_reward_model(
    sft: Path,
    placement: Placement,
    seed: int,
    *,
    pad_id: int,
    trust_remote_code: bool = False,
    trainable: bool = True,
) -> Any:
    """The SFT's trunk with a fresh head drawn from N(0, 1/sqrt(d + 1)), d the hidden size; the head is float32.

    Args:
        trainable: Whether all weights are, in float32; else the trunk is frozen in the placement's precision.

    Source: Stiennon et al. 2020, appendix; https://github.com/openai/summarize-from-feedback
    """
    model = load_reward_model(sft, placement, trust_remote_code=trust_remote_code, trainable=trainable)
    generator = torch.Generator().manual_seed(seed)
    width = model.score.in_features
    model.score.float()
    with torch.no_grad():
        model.score.weight.copy_(torch.randn(1, width, generator=generator) / math.sqrt(width + 1))
        if model.score.bias is not None:
            model.score.bias.zero_()
    model.config.get_text_config().pad_token_id = pad_id
    return model


def _load(kind: Any, folder: Path, placement: Placement, trust_remote_code: bool, trainable: bool, **extra: Any) -> Any:
    if not any(Path(folder).glob("*.safetensors")):
        raise IntegrityError(
            "no *.safetensors weights found; expected a folder written by save_pretrained (pickled .bin weights are "
            "never loaded)",
            where=str(folder),
        )
    try:
        model = kind.from_pretrained(
            folder, dtype=placement.torch_dtype, trust_remote_code=trust_remote_code, local_files_only=True, **extra
        )
        model = model.to(placement.device)
        if trainable:
            # From the same rounded weights as the frozen copies, but in float32: updates of a usual learning rate are
            # below what bfloat16 can add to a weight.
            model = model.float()
    except torch.OutOfMemoryError as error:
        raise ResourceError(f"the model does not fit the device: {error}", where=str(folder)) from error
    disable_dropout(model)
    model.train(trainable)
    model.requires_grad_(trainable)
    return model


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes safetensors, config and tokenizer, so that the folder stands alone."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over sorted (name, shape, bytes), floats as float32.

    Equal weights give equal digests whatever file they sit in, and a bfloat16 model and its exact float32 copy too.
    """
    whole = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu")
        tensor = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
        whole.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return whole.hexdigest()


def trunk_digest(model: Any) -> str:
    """Digest of the trunk (`base_model`) alone: what policy, reward model and critic share at the start.

    That of a packed trunk is that of the weights it stands for.
    """
    return tensors_digest(unpacked_state(model.base_model))


def parameter_count(model: Any) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter_size(parameter) for parameter in model.parameters())


def new_small_llama(
    size: Mapping[str, Any], *, vocab_size: int, special: Mapping[str, int], context: int, seed: int
) -> Any:
    """An untrained Llama-style model of the stated size (fields of the config's `model.size`), tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size["hidden_size"],
        num_hidden_layers=size["num_layers"],
        num_attention_heads=size["num_heads"],
        num_key_value_heads=size["num_heads"],
        intermediate_size=size["intermediate_size"],
        initializer_range=size["initializer_range"],
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=special["pad"],
        eos_token_id=special["eos"],
        bos_token_id=special.get("bos"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
