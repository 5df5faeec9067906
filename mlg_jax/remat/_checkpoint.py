"""Checkpointing of a function: saves its inputs and named values by codecs, recomputes the rest."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from mlg_jax._checks import check_integer
from mlg_jax._ordering import (
    instantiate,
    materialize,
    materialize_off_cpu,
    opaque_false,
    wait_for,
    wait_for_predicate,
)
from mlg_jax._types import Array, Key
from mlg_jax.remat._codec import Codec, Identity
from mlg_jax.remat._overflow import check_on_overflow, poison, warn_of
from mlg_jax.remat._slices import in_slices, pull_back, slice_of
from mlg_jax.remat._trace import run_named


@dataclasses.dataclass(frozen=True)
class ResidualPolicy:
    """What a checkpointed function saves; everything else is recomputed in the backward pass.

    Attributes:
        activation: the codec of its activations (see `checkpoint`); its other arguments, such as
            parameters, are saved as they are.
        names: `jax.ad_checkpoint.checkpoint_name`s of values inside the function that are saved,
            too.
        named: the codec of those values.
        num_slices: number of slices of the batch (the first axis of every activation and output)
            that are processed one after another in both passes, so that recomputed values exist
            for one slice at a time. Only for functions that treat examples independently (no batch
            statistics), and not together with `names`.
        name: the function's name in warnings; if empty, its `__name__`.
        on_overflow: `warn` warns at the first overflow of a bitmap, which makes all gradients of
            the call NaN; `silent` is for training loops that look for NaN themselves.

    Raises:
        TypeError, ValueError: `num_slices` or `on_overflow` is not one of the above.
    """

    activation: Codec = Identity()
    names: tuple[str, ...] = ()
    named: Codec = Identity()
    num_slices: int = 1
    name: str = ""
    on_overflow: str = "warn"

    def __post_init__(self) -> None:
        check_on_overflow(self.on_overflow)
        check_integer("num_slices", self.num_slices, 1)
        if self.names and self.num_slices > 1:
            raise ValueError(f"`num_slices` must be 1 beside `names`; got {self.num_slices}.")

    @property
    def is_random(self) -> bool:
        """Whether one of its codecs rounds stochastically."""
        return self.activation.is_random or (bool(self.names) and self.named.is_random)


def store_residuals(
    fn: Callable[..., Any], policy: ResidualPolicy, activations: Sequence[int], key: Key | None
) -> Callable[..., Any]:
    """Returns `fn` with its residuals stored according to `policy`; see `checkpoint`."""
    name = policy.name or getattr(fn, "__name__", type(fn).__name__)
    policy = dataclasses.replace(policy, name=name)

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
        may_pack = _activation_leaves(args, activations)
        traced = [
            slice_of(x, policy.num_slices) if i in may_pack else x
            for i, x in zip(positions, arrays, strict=True)
        ]
        closed = jax.make_jaxpr(flat)(*traced)
        _check_pure(fn, closed)
        is_active = [False] * len(closed.consts) + [
            positions[i] in may_pack for i in range(len(arrays))
        ]
        outs = _run_stored(closed, policy, is_active, key, [*closed.consts, *arrays])
        return jax.tree.unflatten(trees[0], outs)

    return call


def _run_stored(
    closed: Any, policy: ResidualPolicy, is_active: list[bool], key: Key | None, inputs: list[Any]
) -> list[Any]:
    """Evaluates `closed` on `inputs`, its constants and arguments, with our own backward pass."""
    _check_floating(inputs, is_active, policy)
    num_consts = len(closed.consts)
    used = _used_variables(closed.jaxpr)
    variables = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    roles = [
        _role(x, active) if variable in used else "unused"
        for variable, x, active in zip(variables, inputs, is_active, strict=True)
    ]

    def run(parts: dict[str, list[Any]], saved: Any = None) -> tuple[list[Any], list[Any]]:
        queues = {role: iter(part) for role, part in parts.items()}
        flat = [None if role == "unused" else next(queues[role]) for role in roles]
        body = type(closed)(closed.jaxpr, flat[:num_consts])
        return run_named(body, policy.names, flat[num_consts:], saved)

    parts = {
        role: [x for x, r in zip(inputs, roles, strict=True) if r == role]
        for role in ("other", "plain", "active")
    }
    return _with_backward(run, policy)(key, parts["other"], parts["plain"], parts["active"])


def _role(x: Array, is_active: bool) -> str:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return "other"
    return "active" if is_active else "plain"


def _used_variables(jaxpr: Any) -> set[Any]:
    """The variables that some equation or output of `jaxpr` reads.

    Unused inputs are not passed on: the custom VJP would differentiate them, and with them
    everything that they were computed from. A Linen stem, for example, receives the parameters of
    the whole model.
    """
    atoms = [*jaxpr.outvars, *(atom for eqn in jaxpr.eqns for atom in eqn.invars)]
    return {atom for atom in atoms if isinstance(atom, core.Var)}


def _with_backward(run: Callable[..., Any], policy: ResidualPolicy) -> Callable[..., list[Any]]:
    """A custom VJP `(key, other, plain, active) -> outputs`.

    `other` are the non-floating inputs, `plain` the floating ones that are saved as they are, and
    `active` the activations.

    Forward: `run`, then the codecs encode `active` and the named values.
    Backward: waits for the cotangents, decodes, evaluates `run` again and pulls the cotangents
    back to the inputs that are differentiated. All cotangents are NaN if a codec lost entries.
    Residuals: `other` and `plain` as they are, `active` and the named values encoded.
    """

    @jax.custom_vjp
    def call(key: Any, other: Any, plain: Any, active: Any) -> list[Any]:
        return forward(other, plain, active)[0]

    def forward(other: Any, plain: Any, active: Any) -> tuple[list[Any], list[Any]]:
        def run_slice(active: Any) -> tuple[list[Any], list[Any]]:
            return run({"other": other, "plain": plain, "active": active})

        return in_slices(run_slice, active, policy.num_slices)

    def call_fwd(*primals: Any) -> tuple[Any, Any]:
        is_wanted = _Flags(tuple(p.perturbed for p in primals[2]))
        key, other, plain, active = jax.tree.map(lambda p: p.value, primals)
        if not policy.names:  # named values are saved anyway: XLA may rebuild `active` from them
            active = [materialize(x) for x in active]
        outs, named = forward(other, plain, active)
        keys = iter(_split(key, len(active) + len(named)))
        kept_active = [_encode(policy.activation, x, next(keys)) for x in active]
        kept_named = [_encode(policy.named, x, next(keys)) for x in named]
        if policy.activation.is_packing:
            # Pack before the outputs are used: otherwise the scheduler postpones packing and keeps
            # the dense array alive until then.
            outs = wait_for(outs, kept_active)
        return outs, (other, plain, is_wanted, kept_active, kept_named)

    def call_bwd(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
        other, plain, is_wanted, kept_active, kept_named = residuals
        cotangents = [instantiate(c) for c in cotangents]
        never = opaque_false([c for c in cotangents if c.dtype != jax.dtypes.float0])
        active = [policy.activation.decode(e, never) for e in kept_active]
        named = [policy.named.decode(e, never) for e in kept_named]
        if not active:
            plain = wait_for_predicate(plain, never)

        def again(wanted: list[Any], active: Any) -> list[Any]:
            queue = iter(wanted)
            mixed = [next(queue) if w else x for w, x in zip(is_wanted.values, plain, strict=True)]
            parts = {"other": other, "plain": mixed, "active": active}
            return run(parts, named if policy.names else None)[0]

        wanted = [x for w, x in zip(is_wanted.values, plain, strict=True) if w]
        d_wanted, d_active = pull_back(again, wanted, active, cotangents, policy.num_slices)
        # A block's branches each have a share in it; unless it is written down here, the next
        # recomputation keeps all of them.
        d_active = [materialize_off_cpu(d) for d in d_active]
        overflows = [policy.activation.overflow(e) for e in kept_active]
        overflows += [policy.named.overflow(e) for e in kept_named]
        known = [overflow for overflow in overflows if overflow is not None]
        if policy.on_overflow == "warn":
            warn_of(policy.name, known)
        d_wanted, d_active = poison((d_wanted, d_active), known)
        queue = iter(d_wanted)
        d_plain = [next(queue) if w else None for w in is_wanted.values]
        return None, None, d_plain, d_active

    call.defvjp(call_fwd, call_bwd, symbolic_zeros=True)
    return call


def _encode(codec: Codec, x: Array, key: Key | None) -> Any:
    return codec.encode(_once_differentiable(x) if codec.is_packing else x, key)


@jax.custom_jvp
def _once_differentiable(x: Array) -> Array:
    return x


@_once_differentiable.defjvp
def _once_differentiable_jvp(primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "A function that is checkpointed by a packing policy can be differentiated only once: "
        "packed bits have no derivative. For higher-order gradients use a policy that does not "
        "pack, such as `blocks`."
    )


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Flags:
    values: tuple[bool, ...]


def _split(key: Key | None, num: int) -> list[Any]:
    return [None] * num if key is None else list(jax.random.split(key, num))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _activation_leaves(args: Sequence[Any], activations: Sequence[int]) -> set[int]:
    """Positions, among the leaves of all arguments, of the leaves that may be packed."""
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


def _check_floating(inputs: list[Any], is_active: list[bool], policy: ResidualPolicy) -> None:
    for x, active in zip(inputs, is_active, strict=True):
        if active and policy.activation.is_packing and not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                "`activations` must select floating-point arrays, since the policy packs them; "
                f"got {x.dtype}{list(x.shape)}."
            )


def _check_pure(fn: Callable[..., Any], closed: Any) -> None:
    # JAX counts the use of a mapped axis (`psum` in `jax.shard_map`) as an effect; it is harmless.
    effects = [e for e in closed.effects if type(e).__name__ != "NamedAxisEffect"]
    if effects:
        name = getattr(fn, "__name__", repr(fn))
        raise ValueError(
            f"`fn` must have no side effects, since it runs again in the backward pass; {name} has "
            f"{sorted(map(str, effects))}."
        )
