"""What a run leaves where it is interrupted, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import QUICK, ROOT, call, finished

from tl_multitrace.cli import app as cli
from tl_multitrace.engine.cache import Cache
from tl_multitrace.runs.folder import writing
from tl_multitrace.runs.job import Job, Log

__all__ = ["finished"]


def test_an_interrupted_run_keeps_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "run", Job(task="ioi"), Log()) as checkpoint:
        assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "running"
        (cache := Cache(checkpoint.found / "of a tracer")).put("key", {"value": torch.ones(1)})
        cache.flush()
        (checkpoint.result / "circuit.json").write_text("{}")
        raise KeyboardInterrupt
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint", "run.json"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    shown = call("show", tmp_path / "run")
    assert shown.exit_code == 1 and "was interrupted before it had a result" in shown.stderr
    again = call(*QUICK, "--out", tmp_path / "run")
    assert again.exit_code == 1 and "Add --resume to go on where it stopped" in again.stderr


def test_an_interrupted_run_that_found_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "run", Job(task="ioi"), Log()):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_interruption_keeps_the_earlier_run(finished: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = {p.name: p.stat().st_mtime_ns for p in finished[0].iterdir()}
    monkeypatch.setattr(cli, "run_job", interrupt)
    result = call(*QUICK, "--out", finished[0], "--overwrite")
    assert result.exit_code == 130 and "Interrupted." in result.stderr
    assert {p.name: p.stat().st_mtime_ns for p in finished[0].iterdir()} == before
    assert [p.name for p in finished[0].parent.iterdir()] == ["run"]


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path) -> None:
    slow = [
        "run",
        "--task",
        "ioi",
        "--components",
        "neurons",
        "--solver",
        "greedy",
        "--budget",
        "200",
        "--device",
        "cpu",
    ]
    command = [sys.executable, "-m", "tl_multitrace", *slow, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

    def heed_interrupts() -> None:  # a suite started in the background ignores them, and its children would too
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        assert process.stderr is not None
        assert any("Searching" in line for line in process.stderr)
        waited = time.monotonic()
        while not list(tmp_path.glob("run/checkpoint/found/*/*.safetensors")) and time.monotonic() < waited + 120:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            rest = process.communicate(timeout=120)[1]
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Interrupted." in rest and "Traceback" not in rest
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
