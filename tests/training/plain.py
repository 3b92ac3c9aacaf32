"""Both stages in plain PyTorch: the specification that the toolkit's first steps must repeat.

Nothing of selftaught is used here. Batches come in as tensors, weights as a state dict.
"""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18(weights=None)
        width, resnet.fc = resnet.fc.in_features, nn.Identity()
        self.encoder = resnet
        self.head = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128))

    def forward(self, grey):
        return self.head(self.encoder(grey.repeat(1, 3, 1, 1)))


def nt_xent(z, temperature):
    """Mean over 2B rows of -log softmax of the other view, self excluded (paper, Eq. 1)."""
    z = F.normalize(z, dim=1)
    rows = z.shape[0]
    similarity = (z @ z.T / temperature).masked_fill(torch.eye(rows, dtype=torch.bool), -torch.inf)
    partner = (torch.arange(rows) + rows // 2) % rows
    return F.cross_entropy(similarity, partner)


def multi_center(z, centers, semi_label, eta, eps=1e-6):
    """Mean of d2 (unknown) and eta * (d2 + eps)^y (known) to the nearest centre (paper, Eq. 2)."""
    d2 = ((z[:, None] - centers[None]) ** 2).sum(-1).min(1).values
    known = eta * (d2 + eps) ** semi_label.to(z.dtype)
    return torch.where(semi_label == 0, d2, known).mean()


def pretext_steps(network, batches, *, lr, weight_decay, temperature):
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    for views in batches:
        loss = nt_xent(network(torch.cat([views[:, 0], views[:, 1]])), temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def finetune_steps(network, centers, batches, *, lr, weight_decay, eta):
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    for views, semi_label in batches:
        loss = multi_center(network(views[:, 0]), centers, semi_label, eta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
