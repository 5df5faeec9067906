"""A unit, convolution + norm + activation: the smallest segment that a policy wraps."""

import functools
from collections.abc import Callable
from typing import Any

from mlg_jax._types import Array


def conv_norm_act(
    module: Any,
    x: Array,
    *,
    features: int,
    names: tuple[str, str],
    train: bool,
    act: Callable[[Array], Array] | None = None,
    **options: Any,
) -> Array:
    """`act(norm(conv(x)))`, made of the module's factories in its own scope.

    Args:
        module: a compact Linen module with the factories `conv` and `norm`; where `norm` is None
            the convolution has a bias instead.
        x: `[N, H, W, C]`.
        features: output channels.
        names: of the convolution and the norm.
        act: the activation; None leaves it out.
        train: as in the layers.
        **options: of the convolution.

    Returns:
        `[N, H', W', features]`.
    """
    conv, norm = names
    y = module.conv(features, use_bias=module.norm is None, name=conv, **options)(x, train=train)
    if module.norm is not None:
        y = module.norm(name=norm)(y, train=train)
    return y if act is None else act(y)


def run_unit(module: Any, x: Array, name: str, *, is_sparse: bool = True, **options: Any) -> Array:
    """`conv_norm_act` as the module's policy, `module.remat`, runs the unit of that name."""
    unit = functools.partial(conv_norm_act, **options)
    return module.remat.unit(unit, name, is_sparse=is_sparse)(module, x)
