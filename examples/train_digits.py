"""Trains a small network on real handwritten digits, in an image that is built here, and draws its loss.

    farcall run examples/train_digits.py
    farcall run examples/train_digits.py --epochs 40 --out loss.png

The image is made once: Debian with PyTorch, scikit-learn (whose package has the digits) and matplotlib. After that, a
run starts at once. The picture comes back as bytes and is written on this machine.
"""

from pathlib import Path

import farcall

image = farcall.Image.debian_slim().pip_install("torch==2.13.0", "scikit-learn", "matplotlib")
app = farcall.App("train-digits", image=image)


@app.function(timeout=1800)
def train(epochs: int, hidden: int, rate: float) -> tuple[float, bytes]:
    """Trains on 1,500 digits; the share of 297 others that it reads right, and the picture of the loss as a PNG."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import torch
    from matplotlib import pyplot
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    pictures = torch.tensor(digits.data, dtype=torch.float32) / 16  # 8 x 8 pixels, 0 to 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    learn, check = order[:1500], order[1500:]
    network = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        for batch in learn[torch.randperm(len(learn))].split(50):
            loss = torch.nn.functional.cross_entropy(network(pictures[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(network(pictures[check]), labels[check])))
        if epoch % 5 == 0 or epoch == epochs:
            print(f"epoch {epoch}: loss {losses[-1]:.3f}")
    with torch.no_grad():
        right = (network(pictures[check]).argmax(1) == labels[check]).float().mean()

    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(range(1, epochs + 1), losses)
    axes.set(xlabel="epoch", ylabel="loss on digits it has not seen", title=f"{float(right):.1%} read right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return float(right), picture.getvalue()


@app.local_entrypoint()
def main(epochs: int = 20, hidden: int = 64, rate: float = 0.005, out: Path = Path("loss.png")) -> None:
    right, picture = train.remote(epochs, hidden, rate)
    out.write_bytes(picture)
    print(f"{right:.1%} of the digits it has not seen are read right; the loss is drawn in {out}")
