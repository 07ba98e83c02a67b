"""Shipped configs, what counts as a path, and whether the paths of a config exist."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from workbench.config_comparison import Comparison
from workbench.config_judges import HumanJudge, RewardModelJudge
from workbench.errors import ConfigError, DataError, IntegrityError

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
# Fields that name a file or a folder (`*`: in every block of that section); those with True may be a hub id instead.
PATH_FIELDS: dict[tuple[str, ...], bool] = {
    ("model", "policy"): True,
    ("data", "preferences"): True,
    ("data", "simulate", "prompts"): False,
    ("data", "ood"): False,
    ("gold", "reward_model"): False,
    ("reward_models", "*", "path"): True,
    ("reward_models", "*", "base"): True,
    ("judges", "*", "folder"): False,
    ("judges", "*", "verdicts"): False,
}
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def shipped_folders() -> list[Path]:
    """Where shipped configs lie: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    folders = [here / "configs"]
    if (here.parent / "pyproject.toml").is_file():  # else the folder beside us is somebody else's
        folders.append(here.parent / "configs")
    return [folder for folder in folders if folder.is_dir()]


def shipped_names() -> list[str]:
    """Bare names of the shipped configs, sorted."""
    return sorted({path.stem for folder in shipped_folders() for path in folder.glob("*.yaml")})


def shipped_config(name: str) -> Path:
    """Path of a shipped config by its bare name.

    Args:
        name: Such as ``quickstart``; ``quickstart.yaml`` is accepted too.

    Raises:
        ConfigError: There is none of this name.
    """
    bare = name.removesuffix(".yaml")
    for folder in shipped_folders():
        if bare in {path.stem for path in folder.glob("*.yaml")}:
            return folder / f"{bare}.yaml"
    raise ConfigError(f"no shipped config is called '{name}', expected one of {', '.join(shipped_names())}")


def resolve(text: str, base: Path, *, may_be_hub_id: bool) -> str:
    """The absolute path that a text means, or the text itself where it is a hub id.

    Args:
        text: From a config or the command line.
        base: Folder against which it is read: the config's, or the working directory.
        may_be_hub_id: Whether the field takes hub ids. Then it is a path if it exists, starts with ``.``, ``/`` or
            ``~``, ends with a data suffix, or cannot be a hub id.
    """
    if not text.strip() or "\0" in text:
        return text
    path = Path(os.path.abspath(base / os.path.expanduser(text)))
    bare = text.lower().removesuffix(".gz")
    if may_be_hub_id and _HUB_ID.fullmatch(text) and not bare.endswith(DATA_SUFFIXES) and not os.path.lexists(path):
        return text
    return str(path)


def is_local(text: str) -> bool:
    """Whether a loaded config's value is a path (loading made them absolute) and not a hub id."""
    return os.path.isabs(text)


def check_paths(comparison: Comparison) -> None:
    """Refuses a config whose files, folders or modules are not there. Reads names and small JSON files only.

    Raises:
        ConfigError: A model or a gold module is missing or unusable; its message lists all problems.
        DataError: Only data files are missing or unreadable.
        IntegrityError: The one kind of problem is a model folder with pickled weights.
    """
    model = [*_policy_problems(comparison), *_gold_problems(comparison), *_judge_problems(comparison)]
    model += _sampling_problems(comparison)
    data = list(_data_problems(comparison))
    found = [*model, *data]
    if not found:
        return
    pickled = [problem for problem in model if problem[2]]
    first_where, first_text, _ = found[0]
    message = "\n".join([first_text, *(f"{where}: {text}" for where, text, _ in found[1:])])
    if len(pickled) == len(found):
        raise IntegrityError(message, where=first_where)
    if not model:
        raise DataError(message, where=first_where)
    raise ConfigError(message, where=first_where)


_PathProblem = tuple[str, str, bool]  # field, message, whether it is about pickled weights


def _policy_problems(comparison: Comparison) -> Iterator[_PathProblem]:
    model = comparison.model
    if model.policy is not None and is_local(model.policy):
        yield from _folder_problems("model.policy", Path(model.policy), trusted=model.trust_remote_code)
    for name, reward in comparison.reward_models.items():
        for field, text in (("path", reward.path), ("base", reward.base)):
            if text is not None and is_local(text):
                where = f"reward_models.{name}.{field}"
                yield from _folder_problems(where, Path(text), trusted=model.trust_remote_code)


def _sampling_problems(comparison: Comparison) -> Iterator[_PathProblem]:
    server = comparison.sampling.server
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if comparison.sampling.cache == "compiled" and shutil.which(compiler) is None:
        message = (
            f"got compiled, which torch.compile does by {compiler}: there is none; install it, set CXX, or use static"
        )
        yield "sampling.cache", message, False
    program = shlex.split(server.command)[0] if server is not None and server.command is not None else None
    if program is not None and shutil.which(program) is None:
        message = f"no such program: {program}; expected one on PATH, or the full path of one in its own environment"
        yield "sampling.server.command", message, False


def _gold_problems(comparison: Comparison) -> Iterator[_PathProblem]:
    gold = comparison.gold
    if gold is not None and gold.reward_model is not None:
        yield from _folder_problems("gold.reward_model", Path(gold.reward_model), trusted=False)
    if gold is not None and gold.python is not None:
        top = gold.python.partition(":")[0].partition(".")[0]
        # The working directory comes last, as it does when the function is imported; nothing is imported here.
        known = top in sys.modules or top in sys.builtin_module_names
        if not known and PathFinder.find_spec(top, [*sys.path, os.getcwd()]) is None:
            message = f"no module '{top}', expected one that is installed or lies in the working directory"
            yield "gold.python", message, False


def _judge_problems(comparison: Comparison) -> Iterator[_PathProblem]:
    for name in comparison.evaluation.judges:
        judge = comparison.judges.get(name)
        if isinstance(judge, RewardModelJudge):
            yield from _folder_problems(f"judges.{name}.folder", Path(judge.folder), trusted=False)
        elif isinstance(judge, HumanJudge) and not Path(judge.verdicts).exists():
            message = f"{judge.verdicts}: no such file; `workbench judge export CONFIG {name} FOLDER` writes a sheet to"
            yield f"judges.{name}.verdicts", f"{message} fill in (run compare without this judge first)", False


def _folder_problems(field: str, folder: Path, *, trusted: bool) -> Iterator[_PathProblem]:
    """What is wrong with a model folder; its weights are not opened."""
    if not folder.is_dir():
        got = "a file" if folder.is_file() else "nothing there"
        yield field, f"{folder}: {got}, expected a model folder (config.json and *.safetensors)", False
        return
    config = folder / "config.json"
    if not config.is_file():
        yield field, f"{folder}: no config.json, expected a folder that save_pretrained wrote", False
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            message = (
                f"{folder}: got pickled weights ({', '.join(pickles[:3])}), expected safetensors only: a pickle can "
                "run code when it is opened. Convert it where you trust it: "
                "save_pretrained(folder, safe_serialization=True)"
            )
            yield field, message, True
        else:
            yield field, f"{folder}: no weights, expected *.safetensors", False
    if trusted:
        return
    for name in ("config.json", "tokenizer_config.json"):
        try:
            loaded = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).is_file() else {}
        except (OSError, ValueError) as error:
            yield field, f"{folder / name}: cannot be read as JSON ({error})", False
            continue
        if isinstance(loaded, dict) and loaded.get("auto_map"):
            message = f"{folder / name} asks to run the model's own code (auto_map); read that code"
            hint = (
                ", then set model.trust_remote_code: true"
                if field == "model.policy" or field.startswith("reward_models.")
                else "; it is not run for gold or a judge"
            )
            yield field, message + hint, False


def _data_problems(comparison: Comparison) -> Iterator[_PathProblem]:
    data = comparison.data
    wanted = [("data.preferences", data.preferences, True), ("data.ood", data.ood, True)]
    if data.simulate is not None:
        wanted.append(("data.simulate.prompts", data.simulate.prompts, False))
    for field, text, folder_fits in wanted:
        if text is None or (field == "data.preferences" and not is_local(text)):
            continue
        path = Path(text)
        if not path.exists():
            parent = "" if path.parent.is_dir() else f" (the folder {path.parent} is not there either)"
            yield field, f"{path}: no such file{parent}; paths are relative to the config file's folder", False
        elif path.is_dir() and not folder_fits:
            yield field, f"{path}: got a folder, expected a file", False
        elif path.is_dir() and not any(path.iterdir()):
            yield field, f"{path}: got an empty folder, expected a datasets folder", False
        elif not os.access(path, os.R_OK):
            yield field, f"{path}: cannot be read (permission)", False
