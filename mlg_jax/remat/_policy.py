"""Named presets: which segments of a model are checkpointed, and how residuals are stored."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from mlg_jax._checks import check_choice, check_instance, check_real
from mlg_jax._types import CONV_OUTPUT, Array
from mlg_jax.remat._checkpoint import ResidualPolicy
from mlg_jax.remat._codec import GroupCodec, bitmap_or_dense
from mlg_jax.remat._linen import lift_policy
from mlg_jax.remat._overflow import check_on_overflow

DENSITIES = "densities"  # the variable collection into which segments sow their input's density
INPUT = "input"  # the variable's name there if the segment is a whole module
MAX_SLICES = 4  # of the batch, in blocks that treat examples independently
STREAM = "quantize"  # the random stream of stochastic codecs

MakePolicy = Callable[[float, Mesh | None], ResidualPolicy]
Segment = Callable[[nn.Module, Array], Array]


@dataclasses.dataclass(frozen=True)
class Preset:
    """How the two kinds of segments of a model are checkpointed; None leaves them to JAX.

    Attributes:
        block: `(capacity, mesh)` -> the policy of a block (a few units with their shortcut).
        unit: `(capacity, mesh)` -> the policy of a unit (convolution, norm and activation).
        is_exact: whether gradients equal those without the preset.
        needs_capacity: whether it stores bitmaps, which can overflow.
    """

    block: MakePolicy | None = None
    unit: MakePolicy | None = None
    is_exact: bool = True
    needs_capacity: bool = False


def _dense(capacity: float, mesh: Mesh | None) -> ResidualPolicy:
    return ResidualPolicy()


def _bitmap(capacity: float, mesh: Mesh | None) -> ResidualPolicy:
    return ResidualPolicy(bitmap_or_dense(capacity, mesh))


def _convs(capacity: float, mesh: Mesh | None) -> ResidualPolicy:
    return ResidualPolicy(names=(CONV_OUTPUT,))


def _bitmap_convs(capacity: float, mesh: Mesh | None) -> ResidualPolicy:
    return ResidualPolicy(bitmap_or_dense(capacity, mesh), names=(CONV_OUTPUT,))


def _quantized(capacity: float, mesh: Mesh | None) -> ResidualPolicy:
    return ResidualPolicy(GroupCodec(8, mesh=mesh))


PRESETS: dict[str, Preset] = {
    "none": Preset(),
    "convs": Preset(block=_convs),
    "bitmap": Preset(unit=_bitmap_convs, needs_capacity=True),
    "blocks": Preset(block=_dense),
    "bitmap_blocks": Preset(block=_bitmap, needs_capacity=True),
    "bitmap_units": Preset(block=_bitmap, unit=_bitmap, needs_capacity=True),
    "quantized_blocks": Preset(block=_quantized, is_exact=False),
}


@dataclasses.dataclass(frozen=True)
class RematSpec:
    """A preset with its capacities: the value of a model's `remat` attribute.

    Attributes:
        preset: a key of `PRESETS`.
        capacity: share of an activation's entries that may be non-zero, in (0, 1], for segments
            that are not in `capacities`.
        capacities: pairs `(segment name, capacity)`, see `choose_capacities`.
        mesh: the devices over which batches are split; None for one device.
        on_overflow: as in `ResidualPolicy`.
        policy: for every block in place of the preset's; None takes the preset's.

    Raises:
        TypeError, ValueError: an attribute is not one of the above.
    """

    preset: str = "none"
    capacity: float = 0.75
    capacities: tuple[tuple[str, float], ...] = ()
    mesh: Mesh | None = None
    on_overflow: str = "warn"
    policy: ResidualPolicy | None = None

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, PRESETS)
        check_instance("policy", self.policy, (ResidualPolicy, type(None)))
        check_on_overflow(self.on_overflow)
        check_real("capacity", self.capacity, 0.0, 1.0, exclusive_minimum=True)
        for name, capacity in self.capacities:
            check_real(f"capacities[{name!r}]", capacity, 0.0, 1.0, exclusive_minimum=True)

    def with_capacities(self, capacities: Mapping[str, float]) -> "RematSpec":
        """The same preset with these capacities, given by segment name."""
        return dataclasses.replace(self, capacities=tuple(sorted(capacities.items())))

    @property
    def exact(self) -> "RematSpec":
        """The same preset with capacity 1: it cannot overflow, as bitmaps become dense arrays."""
        return dataclasses.replace(self, capacity=1.0, capacities=())

    @property
    def needs_capacity(self) -> bool:
        """Whether the preset stores bitmaps, which can overflow."""
        return PRESETS[self.preset].needs_capacity

    @property
    def block_policy(self) -> MakePolicy | None:
        """`(capacity, mesh) -> policy` for blocks; None saves everything."""
        policy = self.policy
        return PRESETS[self.preset].block if policy is None else lambda capacity, mesh: policy

    def stem(self, fn: Segment, name: str = "stem", *, is_per_example: bool = False) -> Segment:
        """Wraps the first block, `fn(module, image)`; the images are inputs and saved uncopied."""
        policy = None if self.block_policy is None else _dense
        return self._wrap(
            fn, name, policy, is_sparse=False, is_per_example=is_per_example, is_given=True
        )

    def block(
        self,
        fn: Segment,
        name: str = "",
        *,
        is_sparse: bool = True,
        is_per_example: bool = False,
    ) -> Segment:
        """Wraps a block `fn(module, x)`: a few units with their shortcut.

        Args:
            fn: the block.
            name: appended to the module's path to name the segment.
            is_sparse: whether x has many zeros (a ReLU output); otherwise its capacity is 1.
            is_per_example: whether the block treats examples independently (no batch statistics);
                it is then recomputed in slices of the batch.
        """
        return self._wrap(fn, name, self.block_policy, is_sparse, is_per_example)

    def unit(self, fn: Segment, name: str = "", *, is_sparse: bool = True) -> Segment:
        """Wraps a unit `fn(module, x)`: convolution, norm and activation; see `block`."""
        return self._wrap(fn, name, PRESETS[self.preset].unit, is_sparse)

    def _wrap(
        self,
        fn: Segment,
        name: str,
        policy: MakePolicy | None,
        is_sparse: bool,
        is_per_example: bool = False,
        is_given: bool = False,
    ) -> Segment:
        if policy is None:
            return fn
        capacities = dict(self.capacities)

        def run(module: nn.Module, x: Array) -> Array:
            segment = "/".join((*module.path, *filter(None, [name])))
            if module.is_initializing():
                return fn(module, x)
            if module.is_mutable_collection(DENSITIES):
                if is_sparse:
                    _report_density(module, name, x)
                return fn(module, x)
            capacity = capacities.get(segment, self.capacity) if is_sparse else 1.0
            stored = dataclasses.replace(
                policy(capacity, self.mesh), name=segment, on_overflow=self.on_overflow
            )
            has_statistics = bool(module.variables.get("batch_stats"))
            if is_per_example and not (has_statistics or stored.names or self.mesh):
                stored = dataclasses.replace(stored, num_slices=math.gcd(len(x), MAX_SLICES))
            activations = () if is_given and stored.num_slices == 1 else (-1,)
            return lift_policy(fn, stored, activations=activations, stream=STREAM)(module, x)

        return run


def _report_density(module: nn.Module, name: str, x: Array) -> None:
    density = jnp.mean(x != 0, dtype=jnp.float32)
    module.sow(
        DENSITIES, name or INPUT, density, reduce_fn=jnp.maximum, init_fn=lambda: jnp.zeros(())
    )


NO_REMAT = RematSpec()
