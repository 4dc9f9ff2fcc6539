"""A small network, and what its exported file says beside it."""

import torch

from stages.core.nets.net import Net, NetSpec

METADATA = {"inputs": "{}", "bit_depth": "12", "max_pixels": "1000000", "fit": "stretch"}


def net(channels: int = 1, reduce: int = 1) -> Net:
    torch.manual_seed(0)
    spec = NetSpec(
        backbone="tf_efficientnet_lite0",
        width=1.0,
        depth=1.0,
        out_indices=[0, 1, 2],
        classes=["functional", "defective"],
        image_px=64,
        channels=channels,
        reduce=reduce,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    network = Net(spec)
    torch.nn.init.normal_(network.head.linear.weight, std=0.1)
    return network.eval()
