"""A toy in which objectives differ measurably: one handwritten digit is normal, ten are abnormal.

scikit-learn's 8 x 8 digits. A cell (k, j): digit k is normal, and ten images of digit j are known
to be abnormal; the score is tried on the other half of k and on all other images. An encoder
64-32-16 is trained as an autoencoder for 200 steps and with the objective for 400. The networks of
all cells are trained side by side, as batched matrices: each has its own weights and batches.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

CELLS = [(k, (k + step) % 10) for k in range(10) for step in (1, 4)]
HARDEST = [(3, 4), (8, 9), (5, 9), (9, 0)]
BATCH, KNOWN = 32, 10
WIDTHS = (64, 32, 16)


class Batch(NamedTuple):
    """Of all cells: images (cells, BATCH, 64), their labels and their places in `Cells.images`."""

    images: Tensor
    labels: Tensor
    places: Tensor
    step: int


class Side(nn.Module):
    """Linear layers (cells, in, out) without biases; batch norm and leaky ReLU between them."""

    def __init__(self, cells, widths, generator):
        super().__init__()
        self.weights = nn.ParameterList(
            (torch.rand(cells, a, b, generator=generator) * 2 - 1) / math.sqrt(a)
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(cells * width, eps=1e-4, affine=False) for width in widths[1:-1]
        )

    def forward(self, x):
        for number, weight in enumerate(self.weights):
            if number:
                flat = self.norms[number - 1](x.transpose(0, 1).flatten(1))
                x = nn.functional.leaky_relu(flat.unflatten(1, (len(weight), -1)).transpose(0, 1))
            x = x @ weight
        return x


class Cells:
    """Images of some cells, and their autoencoders after pre-training.

    Attributes:
        images: (cells, N, 64), training images, those of the shorter ones repeated.
        labels: (cells, N), -1 known abnormal, 0 unknown.
        encoder: (cells, N, 64) -> z (cells, N, 16).
        centers: (cells, 1, 16), of Deep SAD: the mean of z after pre-training over the images not
            known to be abnormal, coordinates kept 0.1 away from zero.
    """

    def __init__(self, cells=HARDEST, seed=0, pollution=0.0):
        data = load_digits()
        self.generator = torch.Generator().manual_seed(seed)
        self.tests, rows, labels = [], [], []
        for normal, abnormal in cells:
            ours, theirs = (self.shuffled(data.target == one) for one in (normal, abnormal))
            train, known = ours[: len(ours) // 2], theirs[:KNOWN]
            others = self.shuffled(data.target != normal)
            others = others[~np.isin(others, known)]
            hidden = others[: round(pollution / (1 - pollution) * len(train))]
            rows.append(np.concatenate([train, hidden, known]))
            labels.append(np.repeat([0, -1], [len(train) + len(hidden), KNOWN]))
            self.tests.append((ours[len(ours) // 2 :], others[len(hidden) :]))
        self.sizes = [len(one) for one in rows]
        longest = max(self.sizes)
        self.pixels = torch.tensor(data.data / 16, dtype=torch.float32)
        self.images = self.pixels[np.stack([np.resize(one, longest) for one in rows])]
        self.labels = torch.tensor(np.stack([np.resize(one, longest) for one in labels]))
        count = len(cells)
        self.encoder = Side(count, WIDTHS, self.generator)
        decoder = Side(count, WIDTHS[::-1], self.generator)
        self.fit(
            [self.encoder, decoder],
            lambda batch: (decoder(self.encoder(batch.images)) - batch.images).square().mean(2),
            steps=200,
        )
        means = [
            z[:size][labels[:size] != -1].mean(0)
            for z, labels, size in zip(
                self.embedding(self.images), self.labels, self.sizes, strict=True
            )
        ]
        centers = torch.stack(means)[:, None]
        self.centers = torch.where(centers.abs() < 0.1, centers.sign() * 0.1, centers)

    def shuffled(self, which):
        rows = np.flatnonzero(which)
        return rows[torch.randperm(len(rows), generator=self.generator).numpy()]

    def embedding(self, images):
        self.encoder.eval()
        with torch.no_grad():
            z = self.encoder(images)
        self.encoder.train()
        return z

    def batches(self, steps, balanced):
        """(cells, BATCH) positions of each step; balanced: half of them known abnormal."""
        orders = [torch.zeros(0, dtype=torch.int64)] * len(self.sizes)
        for _ in range(steps):
            chosen = []
            for cell, size in enumerate(self.sizes):
                if balanced:
                    half, first = BATCH // 2, size - KNOWN
                    draw = torch.rand(BATCH, generator=self.generator)
                    chosen.append(torch.cat([draw[:half] * first, draw[half:] * KNOWN + first]))
                    continue
                if len(orders[cell]) < BATCH:
                    orders[cell] = torch.randperm(size, generator=self.generator)
                chosen.append(orders[cell][:BATCH])
                orders[cell] = orders[cell][BATCH:]
            yield torch.stack(chosen).long()

    def fit(self, modules, loss, *, steps=400, balanced=False):
        """Minimise loss(Batch) -> (cells, BATCH), each cell's mean by itself."""
        parameters = [one for module in modules for one in module.parameters()]
        optimizer = torch.optim.Adam(parameters, 1e-3)
        cells = torch.arange(len(self.sizes))[:, None]
        for step, chosen in enumerate(self.batches(steps, balanced)):
            optimizer.zero_grad()
            batch = Batch(self.images[cells, chosen], self.labels[cells, chosen], chosen, step)
            loss(batch).mean(1).sum().backward()
            optimizer.step()

    def auroc(self, score):
        """AUROC of each cell; score: z (cells, N, 16) -> (cells, N)."""
        with torch.no_grad():
            scores = score(self.embedding(self.pixels.expand(len(self.sizes), -1, -1)))
        return np.array([
            roc_auc_score(np.repeat([0, 1], [len(a), len(b)]), scores[cell][np.r_[a, b]])
            for cell, (a, b) in enumerate(self.tests)
        ])  # fmt: skip
