"""A function that keeps little for its backward pass: chosen values, each stored by a codec."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mlg_jax._tie import compute_once, false_that_depends_on, tie, tie_if
from mlg_jax._types import Array, Key
from mlg_jax.remat._codec import Codec, Dense
from mlg_jax.remat._trace import run_named


@dataclasses.dataclass(frozen=True)
class Storage:
    """What one checkpointed function keeps; all else is computed again in the backward pass.

    Attributes:
        activation: how its activations (see `checkpoint`) are stored; other arguments, its
            parameters, stay as they are.
        names: the values under these `jax.ad_checkpoint.checkpoint_name`s are kept too.
        named: how those are stored.
    """

    activation: Codec = Dense()
    names: tuple[str, ...] = ()
    named: Codec = Dense()

    @property
    def is_random(self) -> bool:
        """A codec rounds at random."""
        return self.activation.is_random or (bool(self.names) and self.named.is_random)


def store_residuals(
    fn: Callable[..., Any], storage: Storage, activations: Sequence[int], key: Key | None
) -> Callable[..., Any]:
    """`fn` with `storage` for its residuals; see `checkpoint`."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = jax.tree.flatten((args, kwargs))
        positions = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
        trees: list[Any] = []

        def flat(*arrays: Array) -> list[Any]:
            filled = list(leaves)
            for i, array in zip(positions, arrays, strict=True):
                filled[i] = array
            filled_args, filled_kwargs = jax.tree.unflatten(tree, filled)
            out, out_tree = jax.tree.flatten(fn(*filled_args, **filled_kwargs))
            trees.append(out_tree)
            return out

        arrays = [leaves[i] for i in positions]
        closed = jax.make_jaxpr(flat)(*arrays)
        _check_pure(fn, closed)
        may_pack = _activation_leaves(args, activations)
        is_active = [False] * len(closed.consts) + [
            positions[i] in may_pack for i in range(len(arrays))
        ]
        outs = _run_stored(closed, storage, is_active, key, [*closed.consts, *arrays])
        return jax.tree.unflatten(trees[0], outs)

    return call


def _run_stored(
    closed: Any, storage: Storage, is_active: list[bool], key: Key | None, inputs: list[Any]
) -> list[Any]:
    """Evaluates `closed` on its constants and arguments with a backward pass of our own."""
    num_consts = len(closed.consts)
    is_float = [jnp.issubdtype(x.dtype, jnp.floating) for x in inputs]
    roles = ["other" if not f else "active" if a else "plain" for f, a in zip(is_float, is_active)]

    def run(parts: dict[str, list[Any]], saved: Any = None) -> tuple[list[Any], list[Any]]:
        queues = {role: iter(part) for role, part in parts.items()}
        flat = [next(queues[role]) for role in roles]
        body = type(closed)(closed.jaxpr, flat[:num_consts])
        return run_named(body, storage.names, flat[num_consts:], saved)

    parts = {
        role: [x for x, r in zip(inputs, roles) if r == role]
        for role in ("other", "plain", "active")
    }
    return _with_backward(run, storage)(key, parts["other"], parts["plain"], parts["active"])


def _with_backward(run: Callable[..., Any], storage: Storage) -> Callable[..., list[Any]]:
    """`(key, other, plain, active) -> outputs`.

    Backward: decodes what was kept, all of it waiting for the cotangents, evaluates the function
    again and pulls the cotangents back. If a codec lost entries, every cotangent is NaN.
    Residuals: `other` and `plain` as they are, `active` and the named values encoded.
    """

    @jax.custom_vjp
    def call(key: Any, other: Any, plain: Any, active: Any) -> list[Any]:
        return run({"other": other, "plain": plain, "active": active})[0]

    def call_fwd(key: Any, other: Any, plain: Any, active: Any) -> tuple[Any, Any]:
        active = [compute_once(x) for x in active]
        outs, named = run({"other": other, "plain": plain, "active": active})
        keys = iter(_split(key, len(active) + len(named)))
        kept_active = [storage.activation.encode(x, next(keys)) for x in active]
        kept_named = [storage.named.encode(x, next(keys)) for x in named]
        if type(storage.activation) is not Dense:
            # Packed before the outputs may be used: else the scheduler keeps the array meanwhile.
            outs = tie(outs, to=(kept_active))
        return outs, (other, plain, kept_active, kept_named)

    def call_bwd(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        other, plain, kept_active, kept_named = residuals
        never = false_that_depends_on([c for c in cotangents if c.dtype != jax.dtypes.float0])
        active = [storage.activation.decode(e, never) for e in kept_active]
        named = [storage.named.decode(e, never) for e in kept_named]
        if not active:
            plain = tie_if(plain, never)

        def again(plain: Any, active: Any) -> list[Any]:
            parts = {"other": other, "plain": plain, "active": active}
            return run(parts, named if storage.names else None)[0]

        _, vjp = jax.vjp(again, plain, active)
        lost = [storage.activation.is_lost(e) for e in kept_active]
        lost += [storage.named.is_lost(e) for e in kept_named]
        return (None, None, *_poison(vjp(cotangents), [x for x in lost if x is not None]))

    call.defvjp(call_fwd, call_bwd)
    return call


def _poison(cotangents: Any, lost: list[Array]) -> Any:
    if not lost:
        return cotangents
    is_lost = functools.reduce(jnp.logical_or, lost)
    return jax.tree.map(lambda c: jnp.where(is_lost, jnp.array(jnp.nan, c.dtype), c), cotangents)


def _split(key: Key | None, num: int) -> list[Any]:
    return [None] * num if key is None else list(jax.random.split(key, num))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _activation_leaves(args: Sequence[Any], activations: Sequence[int]) -> set[int]:
    """Positions, among all leaves of the arguments, of those that may be packed."""
    counts = [len(jax.tree.leaves(arg)) for arg in args]
    found: set[int] = set()
    for index in activations:
        if not -len(args) <= index < len(args):
            raise ValueError(
                f"`activations` must be positions of the {len(args)} positional arguments; "
                f"got {index}."
            )
        start = sum(counts[: index % len(args)])
        found.update(range(start, start + counts[index % len(args)]))
    return found


def _check_pure(fn: Callable[..., Any], closed: Any) -> None:
    if closed.effects:
        name = getattr(fn, "__name__", repr(fn))
        raise ValueError(
            f"`fn` must have no side effects, since it runs again in the backward pass; {name} has "
            f"{sorted(str(effect) for effect in closed.effects)}."
        )
