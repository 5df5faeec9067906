"""Gives a model of plain Flax layers other kernels, by replacing its layers during each call."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from mlg_jax._checks import check_instance
from mlg_jax.kernels import (
    Kernels,
    KernelsByPath,
    KernelSpec,
    OrdinarySpec,
    by_path,
    is_plain,
    matches_path,
)
from mlg_jax.layers._conv import Conv
from mlg_jax.layers._dense import Dense

Implementation = str | tuple[tuple[str, str], ...]

# Plain layers and their replacements; our own layers are replaced if their kernels are ordinary.
_REPLACED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv: Conv,
    nn.Dense: Dense,
    Conv: Conv,
    Dense: Dense,
}


class KernelSwap(nn.Module):
    """Base class of foreign models whose kernels are replaced.

    Attributes:
        kernel: the parametrisation of all its convolutions and dense layers.
        implementation: how kernels are applied, as in `Conv`.
    """

    kernel: KernelSpec = OrdinarySpec()
    implementation: Implementation = "auto"

    @property
    def full_name(self) -> str:
        """The name of the foreign model's class, with its module."""
        raise NotImplementedError

    def check_patterns(self, paths: list[str]) -> None:
        """Raises ValueError unless every pattern matches one of the layers at these paths."""
        patterns = self.kernel.choices if isinstance(self.kernel, KernelsByPath) else ()
        for pattern, _ in patterns:
            if not any(matches_path(pattern, path) for path in paths):
                raise ValueError(
                    f"`kernels` must have patterns that match a layer of {paths}; got {pattern!r}."
                )


class Generated(KernelSwap):
    """A Linen module whose `nn.Conv` and `nn.Dense` layers get their kernels from `kernel`.

    Created by `generated`. It is called like the module, and its variables have the module's
    names, with factors in place of kernels.

    Attributes:
        model: the module.
    """

    model: nn.Module = dataclasses.field(kw_only=True)

    def setup(self) -> None:
        """Shares the scope of the module, so that variables keep their names."""
        nn.share_scope(self, self.model)

    @property
    def full_name(self) -> str:
        """The name of the module's class."""
        return f"{type(self.model).__module__}.{type(self.model).__qualname__}"

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The module's own input shape, if it has one."""
        return getattr(self.model, "input_shape", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        paths: list[str] = []
        with nn.intercept_methods(functools.partial(_replace, self, paths)):
            outputs = self.model(*args, **kwargs)
        if self.is_initializing():
            self.check_patterns(paths)
        return outputs


def _replace(
    outer: Generated,
    paths: list[str],
    next_fun: Callable[..., Any],
    args: Any,
    kwargs: Any,
    context: nn.module.InterceptorContext,
) -> Any:
    """Runs a layer of this package in the scope of a plain one.

    This is not a method of `Generated`, because that would itself be intercepted.
    """
    plain = context.module
    if type(plain) not in _REPLACED or context.method_name != "__call__":
        return next_fun(*args, **kwargs)
    options = replaceable(plain)
    if options is None:
        return next_fun(*args, **kwargs)
    paths.append("/".join(plain.path))
    layer = _REPLACED[type(plain)](
        **options, kernel=outer.kernel, implementation=outer.implementation, parent=plain.scope
    )
    return layer(*args, **kwargs)


def generated(
    model: nn.Module,
    kernels: Kernels,
    *,
    weight_bits: int | None = None,
    implementation: str | Mapping[str, str] = "auto",
) -> nn.Module:
    """Replaces the kernels of an existing Linen model.

    Its two-dimensional `flax.linen.Conv` and its `flax.linen.Dense` layers, and those of this
    package with ordinary kernels, get kernels of the given parametrisation; nothing else changes.
    Transposed, masked and one- or three-dimensional convolutions keep their kernels.

    Args:
        model: any Linen module.
        kernels: a `KernelSpec` for all these layers, or `{path pattern: spec or None}`, where the
            first pattern that matches (`fnmatch`, e.g. `"Block_*/Conv_1"`) decides and None leaves
            the kernel ordinary. A spec that does not apply to a layer's shape leaves it ordinary.
        weight_bits: bit width of ordinary kernels, 1 to 16; None does not quantise them.
        implementation: how kernels are applied, as in `Conv`, or `{path pattern: implementation}`.

    Returns:
        A Linen module, called and initialised like `model`. It can be trained, projected onto
        (`project_model`), compressed, counted (`size_report`) and saved (`save_packed`) like a
        model from `create_model`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: at initialisation, if a pattern matches no layer.

    Examples:
        >>> small = generated(model, GenerationSpec.from_bits(2, 44, 3, 6, 3))  # doctest: +SKIP
        >>> variables = small.init(jax.random.key(0), images)  # doctest: +SKIP

    Reference: https://arxiv.org/abs/2108.11430.
    """
    check_instance("model", model, nn.Module)
    kernel = by_path(kernels, weight_bits)
    chosen: Any = implementation
    if isinstance(implementation, Mapping):
        chosen = tuple(implementation.items())
    if isinstance(model, KernelSwap):
        return model.clone(kernel=kernel, implementation=chosen)
    return Generated(kernel, chosen, model=model)


def replaceable(plain: nn.Module) -> dict[str, Any] | None:
    """The options with which our layer computes the same as `plain`; None if it cannot."""
    if isinstance(plain, Conv | Dense) and not is_plain(plain.kernel):
        return None
    ours = {field.name for field in dataclasses.fields(_REPLACED[type(plain)])}
    ours -= {"kernel", "implementation"}
    values = {f.name: (getattr(plain, f.name), f.default) for f in dataclasses.fields(plain)}
    for name in ("parent", "name", "kernel", "implementation"):
        values.pop(name, None)
    if any(value is not default for n, (value, default) in values.items() if n not in ours):
        return None  # for example a custom `dot_general` or `promote_dtype`
    options = {name: value for name, (value, _) in values.items() if name in ours}
    is_other = isinstance(plain, nn.Conv | Conv) and not is_planar(**options)
    return None if is_other else options


def is_planar(kernel_size: Any, input_dilation: Any, mask: Any, **_: Any) -> bool:
    """Whether `Conv` supports a convolution with these options."""
    size = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    dilation = (input_dilation,) if isinstance(input_dilation, int) else tuple(input_dilation or ())
    return len(size) == 2 and set(dilation) <= {1} and mask is None
