"""Surgery at the parameters: a rule makes one gradient of those that several losses have for the same weights.

The trainer calls backward once, on one scalar. That scalar's value is the plain total, and its backward pass takes the
gradient of each answer's loss by itself, has the rule combine them part by part (a backbone, a branch), and gives the
parameters what comes of it. So clipping, accumulation over batches, mixed precision and distributed training go on as
with any loss:

- Each loss is differentiated with the factor that the backward pass arrives with, and so with the gradient scaler's: 16
  bits underflow and overflow no earlier than they do without surgery, and a gradient that is not finite stays so, which
  makes the scaler skip the step. A rule must not depend on a common factor of its gradients.
- With several batches for one step of the optimizer the rule is applied in each batch, and the results are added.
- With several processes each one applies the rule to the gradients of its own pairs, and what comes of it is averaged.
  The gradient of no process's pairs is that of all, so the result is not the rule applied to the averages.
- What a loss does not reach bears no gradient of it, and what no loss reaches has none at all: the optimizer leaves it
  alone. The same holds for parameters that are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Gradients = tuple[Tensor | None, ...]
"""Of the parameters of a part, in their order; None for one that the loss does not reach."""
Rule = Callable[[str, dict[str, list[Tensor]]], list[Tensor]]
"""Name of a part and each loss's gradients there -> one gradient for each of its parameters. It is asked where more
than one loss reaches a part, and has zeros for a parameter that only others reach."""


def trained_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters that are trained, by part: "backbones.visible", "branches.fused", ..., "method"."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            room, part, *_ = name.split(".")
            parts.setdefault(room if room == "method" else f"{room}.{part}", []).append(parameter)
    return parts


def by_answer(losses: Mapping[str, Tensor], weights: Mapping[str, float], others: tuple[str, ...]) -> dict[str, Tensor]:
    """The weighted loss of each answer: those that go by the names `others`, and "fused", the sum of the rest."""
    weighted = {name: weights.get(name, 1.0) * loss for name, loss in losses.items()}
    fused = torch.stack([loss for name, loss in weighted.items() if name not in others]).sum()
    return {"fused": fused, **{name: weighted[name] for name in others}}


def reconciled(model: nn.Module, plain: Tensor, losses: Mapping[str, Tensor], rule: Rule) -> Tensor:
    """A scalar with the value of the plain total, whose backward pass is the rule's.

    Args:
        model: whose parameters are taught.
        plain: the total without surgery, a vector to be summed.
        losses: scalars that add up to it, each of them to be differentiated by itself.
        rule: see `Rule`.

    Returns:
        () the sum of `plain`; where no gradients are recorded, it has none.
    """
    parts = trained_parts(model)
    parameters = [p for part in parts.values() for p in part]
    sizes = {name: len(part) for name, part in parts.items()}
    value: Tensor = _Surgery.apply(plain.detach().sum(), losses, sizes, rule, *parameters)
    return value


class _Surgery(torch.autograd.Function):
    """Hands on a value; the gradients of the parameters are the rule's."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, losses: Mapping[str, Tensor], sizes: dict[str, int], rule: Rule, *parameters: Tensor
    ) -> Tensor:
        """The value itself."""
        ctx.losses, ctx.sizes, ctx.rule, ctx.parameters = losses, sizes, rule, parameters
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        """The factor that the total is multiplied by -> a gradient for each parameter."""
        losses, ctx.losses = ctx.losses, None  # with them goes what they keep of the forward pass
        if losses is None:
            raise RuntimeError("the losses were differentiated already: surgery takes one backward pass")
        found = {name: _gradients(loss, ctx.parameters, factor) for name, loss in losses.items()}
        combined: list[Tensor | None] = []
        for part, size in ctx.sizes.items():
            here = slice(len(combined), len(combined) + size)
            reaching = {name: g[here] for name, g in found.items() if any(one is not None for one in g[here])}
            if len(reaching) > 1:
                like = ctx.parameters[here]
                whole = {
                    name: [torch.zeros_like(p) if one is None else one for p, one in zip(like, g)]
                    for name, g in reaching.items()
                }
                combined += ctx.rule(part, whole)
            else:
                combined += next(iter(reaching.values()), (None,) * size)
        return (None, None, None, None, *combined)


def _gradients(loss: Tensor, parameters: tuple[Tensor, ...], factor: Tensor) -> Gradients:
    """Of a loss times a factor; None for parameters that it does not reach."""
    if not loss.requires_grad:
        return (None,) * len(parameters)
    # The losses have no graph in common but that of the backbones, which each of them needs whole.
    return torch.autograd.grad(loss, parameters, factor.to(loss.dtype), retain_graph=True, allow_unused=True)


def flat(gradients: list[Tensor]) -> Tensor:
    """The gradients of a part as one vector."""
    return torch.cat([g.flatten() for g in gradients])


def shaped(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """The vector cut into tensors of the shapes of `like`."""
    pieces = vector.split([g.numel() for g in like])
    return [piece.view(g.shape) for piece, g in zip(pieces, like)]
