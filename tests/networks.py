"""Networks for tests, in a module that worker processes can import."""

import torch
from torch import nn


def tiny_encoder() -> nn.Module:
    """A convolutional encoder with 12 features, whose batch norms have non-trivial statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.SiLU(),
            nn.Conv2d(6, 12, 3, stride=2),
            nn.BatchNorm2d(12),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.2, 0.2)
                norm.running_var.uniform_(0.01, 0.05)
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                nn.init.uniform_(norm.bias, -0.2, 0.2)
    return module.eval()
