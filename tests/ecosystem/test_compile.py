"""A training step compiled in one graph, in a process that did nothing else before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ecosystem.cases import NAMES

ROOT = Path(__file__).resolve().parents[2]
STEP = """
import json, sys
import torch
from torch._dynamo.utils import counters
from tests.ecosystem.cases import inputs, make, total

name, backend = sys.argv[1:]

def train(compiled):
    module = make(name)
    # Not Adam, which makes steps of full length of the rounding in gradients that are 0, as those
    # of the biases of keys are.
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    arguments, options = inputs(name)
    loss_function = lambda: total(module, arguments, options)
    if compiled:
        loss_function = torch.compile(loss_function, fullgraph=True, backend=backend)
    losses = []
    for _ in range(3):
        loss = loss_function()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, [x.detach() for x in module.parameters()]

losses, parameters = train(True)
graphs = counters["stats"]["unique_graphs"]
eager_losses, eager_parameters = train(False)
torch.testing.assert_close(losses, eager_losses, rtol=1e-5, atol=0)
torch.testing.assert_close(parameters, eager_parameters, rtol=1e-4, atol=1e-5)
assert losses[-1] < losses[0]
print(json.dumps({"breaks": dict(counters["graph_break"]), "graphs": graphs}))
"""


def train(name: str, backend: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", STEP, name, backend],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["shared", pytest.param("kornia", marks=pytest.mark.slow)])
def test_a_training_step_is_one_graph(name: str) -> None:
    assert train(name, "aot_eager") == {"breaks": {}, "graphs": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_is_one_graph_of_inductors(name: str) -> None:
    assert train(name, "inductor") == {"breaks": {}, "graphs": 1}
