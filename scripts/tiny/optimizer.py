"""The optimizer of the embedded model: Muon for the matrices, AdamW for the rest, as K2 had it."""

import torch


def orthogonal(update):
    """Replace the singular values of wide matrices by about one: five Newton-Schulz steps.

    (..., O, I) -> (..., O, I)

    Source: Muon, https://kellerjordan.github.io/posts/muon/
    """
    x = update / (update.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


class Optimizer:
    """Muon for the matrices inside the layers, AdamW for the rest, as K2 was trained.

    Matrices of one size, or of that size turned on its side, are updated as one stack.
    """

    def __init__(self, weights, lr):
        self.lr, self.stacks = lr, {}
        for name, w in weights.items():
            if w.ndim >= 2 and "layers" in name and ".mlp.gate." not in name:
                self.stacks.setdefault(tuple(sorted(w.shape[-2:])), []).append(name)
        muon = {name for names in self.stacks.values() for name in names}
        self.momenta = {size: torch.zeros_like(stacked(weights, names))
                        for size, names in self.stacks.items()}
        rest = [w for name, w in weights.items() if name not in muon and w.requires_grad]
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)

    @torch.no_grad()
    def step(self, weights, factor):
        """Update all weights with the learning rates times `factor`."""
        self.adam.param_groups[0]["lr"] = self.lr * factor
        self.adam.step()
        for size, names in self.stacks.items():
            grad, momentum = stacked({n: weights[n].grad for n in names}, names), self.momenta[size]
            momentum.mul_(0.95).add_(grad)
            update = orthogonal(grad + 0.95 * momentum)
            update *= -self.lr * factor * 0.4 * size[-1] ** 0.5  # twice an AdamW update's size
            parts = update.split([weights[name].shape[:-2].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                w = weights[name]
                part = part.mT if w.shape[-2] > w.shape[-1] else part
                w.mul_(1 - 0.02 * self.lr * factor).add_(part.reshape(w.shape))

    def state(self):
        """Return everything a resumed run needs."""
        return {"muon": self.momenta, "adam": self.adam.state_dict()}

    def restore(self, state):
        """Take back what `state` returned."""
        self.momenta = state["muon"]
        self.adam.load_state_dict(state["adam"])


def stacked(matrices, names):
    """Stack the matrices of these names, wide ones and tall ones turned.

    {name: (..., O, I)} -> (n, min(O, I), max(O, I))
    """
    wide = (matrices[name].mT if matrices[name].shape[-2] > matrices[name].shape[-1]
            else matrices[name] for name in names)
    return torch.cat([w.reshape(-1, *w.shape[-2:]) for w in wide])
