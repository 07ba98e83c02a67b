"""configs/gpu.yaml: its graph is built on stand-ins, and by our own counts it fits the GPUs that it names."""

from __future__ import annotations

from pathlib import Path

from benchmarks import gpu_config
from pipelines.forecast import forecast
from pipelines.graph import build_graph
from pipelines.sources import resolve_origin
from workbench.config import load_config
from workbench.store import Store


def test_the_graph_is_built_and_forecast_on_stand_ins(tmp_path: Path) -> None:
    model, data = gpu_config.stand_ins(tmp_path)
    comparison = load_config(gpu_config.CONFIG, gpu_config.overrides(model, data))
    origin = resolve_origin(comparison, Store.open(tmp_path / "home"))
    assert origin.needs_template
    assert origin.stop_ids == (2,)  # <|im_end|>
    stages = build_graph(comparison, origin).stages
    assert {"ppo[ppo,seed=0]", "dpo[dpo,seed=0]", "candidates[test,seed=0]", "measure"} <= stages.keys()
    assert all(stages[name].config["lora"]["rank"] == 16 for name in ("ppo[ppo,seed=0]", "dpo[dpo,seed=0]"))
    assert stages["candidates[test,seed=0]"].config["cache"] == "static"
    assert "connection" not in stages["candidates[test,seed=0]"].cosmetic
    _, checks = forecast(comparison, tmp_path / "home", seconds=0.01)
    assert {check.name: check.ok for check in checks} == {"config": True, "fits": True}


def test_only_what_the_stand_ins_need_is_overridden() -> None:
    """Nothing of the method is: adapters, checkpointing, losses, arms and rules run as the file says."""
    named = {one.partition("=")[0].rpartition(".")[2] for one in gpu_config.overrides(Path("m"), Path("d"))}
    kept = {"lora", "gradient_checkpointing", "beta", "critic", "eos_rule", "cache", "microbatch_size", "minibatches"}
    assert not named & kept


def test_it_fits_the_gpus_that_it_names() -> None:
    found = gpu_config.estimates()
    assert found.keys() == {"24 GB", "80 GB"}
    assert all(stage["fits"] for one in found.values() for stage in one["stages"])
    assert found["24 GB"]["wall_s"] > found["80 GB"]["wall_s"] > 600
    assert "ppo ppo" in gpu_config.table(found)
    comparison = load_config(gpu_config.CONFIG)
    assert comparison.model.revision is not None
    assert len(comparison.model.revision) == 40
