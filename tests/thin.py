"""A ResNet-18 of an eighth of the width and reports without pictures, for tests of what is around.

The pictures of its report are half of the work of a whole run that is as small as a test's.
"""

import contextlib
from unittest import mock

import torchvision
from torchvision.models.resnet import BasicBlock, ResNet

WIDTH = 64


class ThinResNet(ResNet):
    def _make_layer(self, block, planes, blocks, *more, **named):
        return super()._make_layer(block, planes // 8, blocks, *more, **named)


def thin_resnet18(weights=None):
    network = ThinResNet(BasicBlock, [2, 2, 2, 2])
    network.fc.in_features = WIDTH
    return network


def empty_picture(draw, *, alt, caption="", size=(5.2, 3.9), vector=True):
    from selftaught.evaluation.plot_style import Picture

    width, height = (round(96 * inches) for inches in size)
    return Picture(source="data:,", alt=alt, width=width, height=height, caption=caption)


def patches():
    """What makes every resnet18 a thin one and every picture of a report an empty one."""
    evaluation = "selftaught.evaluation"
    return [
        mock.patch.object(torchvision.models, "resnet18", thin_resnet18),
        mock.patch(f"{evaluation}.tsne.project", lambda embeddings, seed: embeddings[:, :2]),
        *(
            mock.patch(f"{evaluation}.{module}.render", empty_picture)
            for module in ("plots", "plots_training", "tsne")
        ),
    ]


@contextlib.contextmanager
def patch():
    with contextlib.ExitStack() as stack:
        for one in patches():
            stack.enter_context(one)
        yield


def start():
    """`patch` for the rest of this process."""
    for one in patches():
        one.start()
