"""One of two processes that train a decomposed model data-parallel, for tests of training.

``python -m tests.support.decomposed_ddp RANK FOLDER``: meets the other through a file in the
folder, and writes its gradients and parameters there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import spectral_kernels as sk
from tests.support.decomposed_models import LanguageModel

STEPS = 3
PROCESSES = 2


def model_and_data() -> tuple[nn.Module, Tensor, Tensor]:
    """A model with tied weights, and a batch of which each process has its share of rows."""
    torch.manual_seed(5)
    model = sk.decompose_model(LanguageModel(), {"*": 4})
    return model, torch.randint(0, 30, (8, 6)), torch.randint(0, 30, (8, 6))


def train(
    model: nn.Module, plain: nn.Module, ids: Tensor, targets: Tensor
) -> list[dict[str, Tensor]]:
    """The gradients of the first step, and the parameters after the last."""
    optimizer = torch.optim.AdamW(sk.parameter_groups(model, 0.1), lr=1e-2)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
        loss.backward()
        seen.append({name: p.grad.clone() for name, p in plain.named_parameters()})
        optimizer.step()
    return [seen[0], {name: p.detach() for name, p in plain.named_parameters()}]


def main(rank: int, folder: Path) -> None:
    """Train on this process's share."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=PROCESSES
    )
    model, ids, targets = model_and_data()
    rows = slice(rank * len(ids) // PROCESSES, (rank + 1) * len(ids) // PROCESSES)
    parallel = DistributedDataParallel(model)
    torch.save(train(parallel, model, ids[rows], targets[rows]), folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
