"""A ResNet-18 of an eighth of the width, for tests of everything around it."""

from unittest import mock

import torchvision
from torchvision.models.resnet import BasicBlock, ResNet


class ThinResNet(ResNet):
    def _make_layer(self, block, planes, blocks, *more, **named):
        return super()._make_layer(block, planes // 8, blocks, *more, **named)


def thin_resnet18(weights=None):
    network = ThinResNet(BasicBlock, [2, 2, 2, 2])
    network.fc.in_features = 64
    return network


def patches():
    """What makes every resnet18 a thin one, to be started or entered."""
    return [mock.patch.object(torchvision.models, "resnet18", thin_resnet18)]
