"""Model folders, without opening their weights: copy or link one, its context, whether it has a trained head."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from workbench.errors import IntegrityError

LINK_ABOVE_BYTES: Final = 256 * 2**20
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")


def copy_model(source: Path, target: Path) -> None:
    """Copies a model folder's files; links them where together they are large."""
    target.mkdir(parents=True)
    files = [file for file in sorted(source.iterdir()) if file.is_file()]
    link = sum(file.stat().st_size for file in files) > LINK_ABOVE_BYTES
    for file in files:
        if link:
            (target / file.name).symlink_to(file.resolve())
        else:
            shutil.copyfile(file, target / file.name)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json; {} where there is none.

    Raises:
        IntegrityError: It is no JSON object.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot be read as JSON: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise IntegrityError("expected a JSON object", where=str(path))
    return found


def context_of_folder(folder: Path) -> int | None:
    """Positions that a model reads, from config.json; None where it does not say."""
    return context_in(read_config(folder))


def context_in(config: Mapping[str, Any]) -> int | None:
    """The same, of what a config.json holds."""
    for block in (config, config.get("text_config") or {}):
        for name in _CONTEXT:
            if isinstance(block.get(name), int):
                return int(block[name])
    return None


def tensor_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, dtype such as "BF16") of every tensor, from the headers of the safetensors files.

    Raises:
        IntegrityError: There is no such file, or a header is broken.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise IntegrityError("no *.safetensors weights found", where=str(folder))
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                (size,) = struct.unpack("<Q", opened.read(8))
                if size > 100 * 2**20:
                    raise ValueError(f"a header of {size} bytes")
                header = json.loads(opened.read(size))
            found |= {
                name: (tuple(one["shape"]), str(one["dtype"])) for name, one in header.items() if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, struct.error) as error:
            raise IntegrityError(f"the safetensors header cannot be read: {error}", where=str(file)) from error
    return found


def check_trained_head(folder: Path) -> None:
    """Refuses a folder that is no reward model: a language model's would get a random head without a word.

    Raises:
        IntegrityError: No tensor `score.weight` of one row.
    """
    heads = {name: shape for name, (shape, _) in tensor_shapes(folder).items() if name.endswith("score.weight")}
    if not any(shape[0] == 1 for shape in heads.values()):
        kinds = ", ".join(read_config(folder).get("architectures") or ["unknown"])
        got = ", ".join(f"{name} {list(shape)}" for name, shape in heads.items()) or "no score.weight"
        raise IntegrityError(
            f"got {got} ({kinds}), expected a sequence classifier with one output, whose head is `score`: its scores "
            "would be random otherwise",
            where=str(folder),
        )


def hub_commit(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache (.../snapshots/COMMIT); None for any other."""
    name = folder.name
    return name if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", name) else None
