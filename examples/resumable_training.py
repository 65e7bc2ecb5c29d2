"""Trains a network that is killed at random and resumes from a volume, to the same loss as one that is left alone.

    farcall run examples/resumable_training.py
    farcall run examples/resumable_training.py --epochs 60 --name mine      interrupt it, and run it again

After each epoch a checkpoint is written to the volume and committed: weights, the optimizer's state, that of the random
numbers, and the losses so far. A container that dies spends one of the function's retries; the next one finds the last
checkpoint and goes on from there. Farcall keeps no track of epochs: whatever ends a container, at whatever moment, the
volume has one whole checkpoint or the next.
"""

import os
import random
import secrets
import signal
from pathlib import Path
from typing import Any

import farcall

VOLUME = "example-training"

image = farcall.Image.debian_slim().pip_install("torch==2.13.0", "scikit-learn")
app = farcall.App("resumable-training", image=image)
volume = farcall.Volume.from_name(VOLUME, create_if_missing=True)


@app.function(volumes={"/training": volume}, timeout=1800, retries=farcall.Retries(max_retries=50, initial_delay=0.0))
def train(name: str, epochs: int, danger: float) -> tuple[list[float], list[int]]:
    """Trains on handwritten digits up to `epochs`; the losses, and the epochs it has resumed after. In each epoch the
    container is killed with probability `danger`, half way through it or just before its checkpoint is committed."""
    import torch
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    pictures, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005)
    losses: list[float] = []
    resumed: list[int] = []

    volume.reload()  # this container may have been waiting since before the last checkpoint
    checkpoint = Path("/training", name, "checkpoint.pt")
    if checkpoint.exists():
        state: dict[str, Any] = torch.load(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        losses, resumed = state["losses"], [*state["resumed"], len(state["losses"])]
        print(f"{name}: resumed after epoch {len(losses)}, loss {losses[-1]:.4f}")

    for epoch in range(len(losses) + 1, epochs + 1):
        dies_at = random.choice(("batch", "commit")) if random.random() < danger else ""
        total = 0.0
        batches = torch.randperm(len(labels)).split(50)
        for number, batch in enumerate(batches):
            if dies_at == "batch" and number == len(batches) // 2:
                die(name, epoch)
            loss = torch.nn.functional.cross_entropy(network(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        losses.append(total / len(batches))
        save(
            checkpoint,
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "losses": losses,
                "resumed": resumed,
            },
        )
        if dies_at == "commit":
            die(name, epoch)
        volume.commit()
    return losses, resumed


def save(checkpoint: Path, state: dict[str, Any]) -> None:
    """Under another name first: commits also happen in the background, and must not catch half a file."""
    import torch

    checkpoint.parent.mkdir(exist_ok=True)
    made = checkpoint.with_suffix(".new")
    torch.save(state, made)
    os.replace(made, checkpoint)


def die(name: str, epoch: int) -> None:
    print(f"{name}: killed in epoch {epoch}", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@app.local_entrypoint()
def main(epochs: int = 20, danger: float = 0.25, name: str = "") -> None:
    name, keep = name or f"run-{secrets.token_hex(4)}", bool(name)
    alone = train.spawn(f"{name}-left-alone", epochs, 0.0)
    losses, resumed = train.remote(f"{name}-killed", epochs, danger)
    expected, _ = alone.get()
    print(f"resumed after epochs {', '.join(map(str, resumed)) or 'none'}")
    print(f"loss after {epochs} epochs: {losses[-1]:.6f}; left alone: {expected[-1]:.6f}")
    if losses != expected:
        raise SystemExit("the losses differ: this must not be")
    print("the losses of all epochs are the same")
    if not keep:
        for run in ("left-alone", "killed"):
            volume.remove_file(f"{name}-{run}", recursive=True)
