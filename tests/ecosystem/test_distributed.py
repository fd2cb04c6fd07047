"""Data-parallel training in two processes: the gradients of the whole batch in one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.ecosystem.cases import loss_of, make

LAYERS = ("bidirectional", "shared", "chunked", "kornia", "transformers LightGlue")


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def gradients(rank: int, port: int, folder: str) -> None:
    """One process: half of the batch, under both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    found: dict[str, Any] = {}
    half = slice(2 * rank, 2 * rank + 2)
    mesh = init_device_mesh("cpu", (2,))
    for name in LAYERS:
        replicated = DistributedDataParallel(make(name))
        loss_of(replicated, name, half).backward()
        found[f"DDP {name}"] = [x.grad for x in replicated.module.parameters()]
        sharded = fully_shard(make(name), mesh=mesh)
        loss_of(sharded, name, half).backward()
        assert all(x.to_local().numel() < x.numel() for x in sharded.parameters())
        found[f"FSDP2 {name}"] = [x.grad.full_tensor() for x in sharded.parameters()]
    if rank == 0:
        torch.save(found, Path(folder) / "gradients.pt")
    torch.distributed.destroy_process_group()


def test_ddp_and_fsdp2_give_the_gradients_of_one_process(tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    pytest.importorskip("kornia")
    pytest.importorskip("transformers")
    torch.multiprocessing.spawn(gradients, args=(free_port(), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt")
    assert len(found) == 2 * len(LAYERS)
    for name in LAYERS:
        module = make(name)
        # Both average over the processes.
        (loss_of(module, name) / 2).backward()
        for kind in ("DDP", "FSDP2"):
            for got, parameter in zip(found[f"{kind} {name}"], module.parameters(), strict=True):
                torch.testing.assert_close(got, parameter.grad)
