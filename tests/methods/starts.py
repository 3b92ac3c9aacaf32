"""What a method is offered at its start, from images in memory."""

import numpy as np
import torch


class Start:
    """32 images of noise under masks of different sizes, a fifth known to be abnormal."""

    seed, batch_size = 3, 16

    def __init__(self, task, size, weights=None, count=32):
        generator = torch.Generator().manual_seed(1)
        self.task, self.before = task, weights or {}
        self.rows = np.arange(count)
        self.labels = torch.tensor([-1, 0, 0, 1, 0] * count)[:count]
        self.masks = torch.zeros(count, 1, size, size)
        for number, mask in enumerate(self.masks):
            mask[:, : size // 2 + number % (size // 2)] = 1
        images = torch.rand(count, 1, size // 8, size // 8, generator=generator)
        self.images = torch.nn.functional.interpolate(images, size=size) * self.masks
        self.notes, self.warnings, self.rows_of_features, self.buffers = [], [], [], {}

    def weights(self):
        return self.before

    def batch(self, rows):
        rows = torch.as_tensor(rows)
        return {
            "views": self.images[rows][:, None],
            "masks": self.masks[rows][:, None],
            "semi_label": self.labels[rows],
            "ids": rows,
            "epoch": 0,
            "step": 0,
        }

    def batches(self, rows, *, random=False):
        self.buffers = {name: one.clone() for name, one in self.task.named_buffers()}
        for chunk in np.array_split(rows, range(16, len(rows), 16)):
            yield self.batch(chunk)

    @torch.no_grad()
    def features(self, rows, *, random=False, mirrored=False):
        self.rows_of_features.append(rows.tolist())
        mode = self.task.training
        images = self.images[rows].flip(-1) if mirrored else self.images[rows]
        z = self.task.eval().features(images)[1]
        self.task.train(mode)
        return z

    def alone(self, work):
        return work()

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)
