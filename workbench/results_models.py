"""The part of results.json about the models that came from outside: which weights, exactly."""

from __future__ import annotations

from pydantic import Field

from workbench.results_base import Model


class ModelSource(Model):
    """A model folder or hub id that the config names."""

    role: str = Field(description="policy, reward_models/NAME, gold, judges/NAME")
    source: str = Field(description="Hub id, or the folder's name")
    revision: str | None = Field(description="As asked for: commit, tag or branch of a hub id")
    commit: str | None = Field(description="The hub's commit that was used; null for a local folder")
    digest: str = Field(description="sha256 of the folder's content: what the stages' keys hang on")
