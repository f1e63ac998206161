"""Plain data-parallel training over gloo: our own model under DistributedDataParallel, gradients averaged.

    python -m benchmarks.peers.ddp PRESET RANK ADDRESS PORT STEPS BATCH PRECISION

One thread, and one batch of random images again and again: nothing but the model and the network takes time.
Rank 0 prints a JSON line for each optimizer step, with the time of its end.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from lowmem_seq.compiled import library
from lowmem_seq.config import load_preset, validate
from lowmem_seq.models import build_model

CLASSES = 4
TIMEOUT = datetime.timedelta(minutes=10)


def train(preset: str, rank: int, address: str, port: int, steps: int, batch: int, precision: str) -> None:
    """Train so many steps as one of two machines."""
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "eth0"}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=TIMEOUT)
    config = validate(load_preset(preset))
    size = config.data.image_size
    plain = build_model(config.model, CLASSES)
    plain.lstm_path = "function" if library() is None else "native"
    model = DistributedDataParallel(plain)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    images, labels = torch.randn(batch, size, size, 3), torch.randint(CLASSES, (batch,))
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(images, None)  # (B, K)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0:
            print(json.dumps({"ended": time.time()}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    preset, rank, address, port, steps, batch, precision = sys.argv[1:]
    train(preset, int(rank), address, int(port), int(steps), int(batch), precision)
