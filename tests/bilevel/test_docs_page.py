"""docs/bilevel.md: its code runs, in order, and gets what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_probe.bilevel import METHODS, STRATEGIES, TOPOLOGIES

PAGE = (Path(__file__).parents[2] / "docs" / "bilevel.md").read_text(encoding="utf-8")
*BLOCKS, RANKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """Return the names that the page's blocks leave behind."""
    names: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/bilevel.md, block {number}", "exec"), names)
    return names


def solution(problem: Any) -> torch.Tensor:
    """Return x* of the page's quadratics."""
    inverse = torch.linalg.inv(problem.A.mean(dim=0))
    slope, offset = inverse @ problem.B.mean(dim=0), inverse @ problem.b.mean(dim=0)
    matrix = slope.mT @ slope + problem.rho * torch.eye(problem.dim_x, dtype=torch.float64)
    x: torch.Tensor = torch.linalg.solve(matrix, slope.mT @ (problem.c.mean(dim=0) - offset))
    return x


def test_its_runs_end_where_it_says(made: dict[str, Any]) -> None:
    x = solution(made["problem"])

    def distance(name: str) -> float:
        return float((made[name].x - x).abs().max())

    assert max(distance(name) for name in ("run", "same", "done", "mixed")) <= 1e-8
    assert made["run"].history.consensus["x"][-1] <= 1e-8
    assert distance("biased") > 1e-3
    assert 1e-9 < distance("near") < float(x.abs().max())


def test_the_two_ways_to_the_products_are_one(made: dict[str, Any]) -> None:
    assert float((made["run"].x - made["same"].x).abs().max()) <= 1e-12


@pytest.mark.parametrize("name", [*METHODS, *STRATEGIES, *TOPOLOGIES])
def test_it_names_every_method_strategy_and_topology(name: str) -> None:
    assert f"`{name}`" in PAGE or f'"{name}"' in PAGE


@pytest.mark.slow
def test_its_nodes_run_a_process_each_and_go_on_from_what_they_saved(tmp_path: Path) -> None:
    (tmp_path / "nodes.py").write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "nodes.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    said = [
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=True)
        for _ in range(2)
    ]
    assert "from step None: consensus error" in said[0].stdout
    assert "from step 200: consensus error" in said[1].stdout
