"""Whether a model has the layers that adapters are wanted for: asked before anything runs, without loading a tensor."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from workbench.errors import ConfigError, IntegrityError, ResourceError

ALL_LINEAR = ("all-linear",)
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
_LLAMA = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}


def small_llama_layers(layers: int) -> list[str]:
    """Linear layers of the model that is trained from scratch for an embedded world."""
    parts = [f"{part}.{name}" for part, names in _LLAMA.items() for name in names]
    return [f"layers.{number}.{part}" for number in range(layers) for part in parts]


def folder_layers(folder: Path) -> list[str]:
    """Names of a model folder's two-dimensional weights but embeddings, from the headers of its safetensors.

    Raises:
        IntegrityError: A header cannot be read.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = (config.get("text_config") or config).get("vocab_size")
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(file).items():
            shape = entry.get("shape", [])
            if name.endswith(".weight") and len(shape) == 2 and vocabulary not in shape:
                found.append(name.removesuffix(".weight"))
    return sorted(found)


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    # https://huggingface.co/docs/safetensors: 8 bytes little-endian length, then JSON
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _HEADER_LIMIT:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, dict[str, list[int]]] = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot be read as safetensors: {error}", where=str(file)) from error
    return {name: entry for name, entry in header.items() if name != "__metadata__"}


def ends(name: str, end: str) -> bool:
    """Whether a layer's name is `end` or ends in `.end`."""
    return name == end or name.endswith(f".{end}")


def check_targets(wanted: Sequence[str], known: Iterable[str]) -> None:
    """Refuses names that no layer has.

    Args:
        wanted: `model.lora.target_modules`.
        known: Names of the model's linear layers.

    Raises:
        ConfigError: Says which, and what there is.
    """
    known = list(known)
    missing = [one for one in wanted if one not in ALL_LINEAR and not any(ends(name, one) for name in known)]
    if missing:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
        raise ConfigError(
            f"got {', '.join(missing)}, expected all-linear or names of the model's linear layers ({there})",
            where="model.lora.target_modules",
        )


def check_kernels() -> None:
    """Refuses `model.lora.quantize` where what packs weights in 4 bits is not installed.

    Raises:
        ResourceError: Says what to install.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ResourceError(
            "needs bitsandbytes, which is not installed; install the extra (pip install -e '.[qlora]'), or leave "
            "quantize out",
            where="model.lora.quantize",
        )
