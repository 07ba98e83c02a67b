"""What a machine must have is asked before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workbench.device import check_compiler, take_gpu, visible_gpus, with_all_gpus
from workbench.errors import ResourceError


def test_compiling_on_a_cpu_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"C\+\+ compiler") as caught:
        check_compiler("cpu", "arms.ppo.compile")
    assert caught.value.exit_code == 3
    assert caught.value.where == "arms.ppo.compile"
    check_compiler("cuda", "arms.ppo.compile")
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    check_compiler("cpu", "arms.ppo.compile")


def test_a_process_takes_one_gpu_and_what_it_starts_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    monkeypatch.setenv("WORKBENCH_VISIBLE_GPUS", "")  # so that it is taken back
    take_gpu(1)
    assert visible_gpus() == ["2"]
    assert with_all_gpus(os.environ)["CUDA_VISIBLE_DEVICES"] == "0,2"
    assert with_all_gpus({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}
