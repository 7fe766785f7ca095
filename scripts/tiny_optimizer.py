"""The optimizer of the embedded model: Muon for the matrices, AdamW for the rest, as K2 had it."""

import torch


def orthogonal(update):
    """Replace the singular values of matrices by about one: five Newton-Schulz steps.

    (..., O, I) -> (..., O, I)

    Source: Muon, https://kellerjordan.github.io/posts/muon/
    """
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest, as K2 was trained."""

    def __init__(self, weights, lr):
        self.lr = lr
        self.muon = {name: torch.zeros_like(w) for name, w in weights.items()
                     if w.ndim >= 2 and "layers" in name and ".mlp.gate." not in name}
        rest = [w for name, w in weights.items() if name not in self.muon and w.requires_grad]
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, weights, factor):
        """Update all weights with the learning rates times `factor`."""
        self.adam.param_groups[0]["lr"] = self.lr * factor
        self.adam.step()
        self.adam.zero_grad()
        for name, momentum in self.muon.items():
            w = weights[name]
            momentum.mul_(0.95).add_(w.grad)
            update = orthogonal(w.grad + 0.95 * momentum)
            size = 0.4 * max(w.shape[-2:]) ** 0.5  # twice the size of an AdamW update
            w.data.mul_(1 - 0.02 * self.lr * factor)
            w.data.add_(update, alpha=-self.lr * factor * size)
            w.grad = None

    def state(self):
        """Return everything a resumed run needs."""
        return {"muon": self.muon, "adam": self.adam.state_dict()}

    def restore(self, state):
        """Take back what `state` returned."""
        self.muon = state["muon"]
        self.adam.load_state_dict(state["adam"])
