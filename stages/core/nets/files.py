"""Networks in files: weights as safetensors, and what they are the weights of as JSON."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from stages.core.nets.net import Ensemble, Net, NetSpec


def save_weights(net: nn.Module, path: Path) -> None:
    """Write a network's tensors as safetensors, readable as the umask says.

    `safetensors.torch.save_file` makes files that their owner alone can read.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    path.write_bytes(save(state))


def save_net(folder: Path, net: Net) -> None:
    """Write `model.safetensors` and `config.json`."""
    folder.mkdir()
    save_weights(net, folder / "model.safetensors")
    config = json.loads(net.spec.model_dump_json())
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_net(folder: Path) -> Net:
    """The network of a model folder, in evaluation mode."""
    spec = NetSpec.model_validate_json((folder / "config.json").read_text())
    net = Net(spec)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.to(memory_format=torch.channels_last).eval()


def save_teacher(folder: Path, members: list[Net]) -> None:
    """Write a model folder for each member, `member_0` and so on."""
    folder.mkdir()
    for number, member in enumerate(members):
        save_net(folder / f"member_{number}", member)


def load_teacher(folder: Path) -> Ensemble:
    """What `save_teacher` wrote, in evaluation mode."""
    count = len(list(folder.iterdir()))
    return Ensemble([load_net(folder / f"member_{number}") for number in range(count)]).eval()
