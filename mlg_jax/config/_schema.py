"""The typed schema of an experiment, which validates configuration files."""

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from mlg_jax._checks import check_choice, check_instance, check_integer, check_real
from mlg_jax.data import DataSpec
from mlg_jax.generation import ProjectionSpec
from mlg_jax.kernels import GenerationSpec, KernelSpec, OrdinarySpec, implementation_names
from mlg_jax.memory.targets import TARGETS
from mlg_jax.models import MODELS, STEMS
from mlg_jax.quant import MAX_BITS, QuantSpec, recommended_ratio
from mlg_jax.remat import PRESETS
from mlg_jax.train import TrainSpec

DTYPES = ("float32", "bfloat16", "auto")
LOSSES = ("distillation", "adaptive", "cross_entropy")
STARTS = ("projected", "random")
TRAINABLE = ("all", "biases", "classifier")
MEASURED = "measured"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture of the student and, unless it has its own, of the teacher.

    Args:
        name: one of `MODELS`.
        stem: `cifar` or `imagenet`.
        width: factor on every channel count.
        dtype: of the computation: `float32`, `bfloat16`, or `auto`, which is bfloat16 on a GPU and
            float32 elsewhere.
    """

    name: str
    stem: str = "cifar"
    width: float = 1.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("name", self.name, MODELS)
        check_choice("stem", self.stem, STEMS)
        check_real("width", self.width, 0.0, exclusive_minimum=True)
        check_choice("dtype", self.dtype, DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the student's kernels are generated, in the paper's notation Bi-Bo-qb-qu-qv.

    Args:
        base_in, base_out: numbers of bases within and across kernels, Bi and Bo.
        basis_bits, coeff_in_bits, coeff_out_bits: bit widths of B, U and V; None
            does not quantise.
        weight_bits: bit width of the classifier; None does not quantise.
        activation_bits: bit width of the inputs of convolutions and classifier; None does not
            quantise.
        scheme: the quantiser of the factors, a scheme of `QuantSpec`.
        ratio: share of the entries that are rounded in training, in (0, 1]; `recommended` is the
            published value for each width.
        init: `fan_out` or `variance`; used if the student does not start from a projection.
        implementation: how generated layers are computed: `auto`, `generate`, `factored_out` or
            `factored`, all with the same result; `measured` times each layer at the first start,
            and keeps the fastest choices in the work directory.
        layers: exceptions, path pattern (`fnmatch`) -> notation such as "3-24-4-6-4", or the bit
            width of an ordinary kernel, 1 to 16, or 32 without quantisation (None is
            `weight_bits`); the first match decides.
    """

    base_in: int
    base_out: int
    basis_bits: int | None = None
    coeff_in_bits: int | None = None
    coeff_out_bits: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None
    scheme: str = "dorefa_sym"
    ratio: float | str = 1.0
    init: str = "fan_out"
    implementation: str = "auto"
    layers: Mapping[str, str | int | None] | tuple[tuple[str, str | int | None], ...] = ()

    def __post_init__(self) -> None:
        assert self.spec  # building it checks its arguments
        check_instance("layers", self.layers, (Mapping, tuple))
        pairs = self.layers.items() if isinstance(self.layers, Mapping) else self.layers
        object.__setattr__(self, "layers", tuple(tuple(pair) for pair in pairs))
        assert self.by_layer  # likewise
        check_choice("implementation", self.implementation, (*implementation_names(), MEASURED))

    @property
    def spec(self) -> GenerationSpec:
        """The `GenerationSpec` of all layers but the exceptions in `layers`."""
        widths = (self.basis_bits, self.coeff_in_bits, self.coeff_out_bits)
        return self._spec(self.base_in, self.base_out, widths)

    @property
    def by_layer(self) -> GenerationSpec | dict[str, KernelSpec | None]:
        """The argument `generation` of `create_model`."""
        if not self.layers:
            return self.spec
        pairs = typing.cast(tuple[tuple[str, str | int | None], ...], self.layers)
        own = {name: self._parsed(name, value) for name, value in pairs}
        own.setdefault("*", self.spec)
        return own

    def _spec(self, base_in: int, base_out: int, widths: Sequence[int | None]) -> GenerationSpec:
        b, u, v = map(self._quantizer, widths)
        return GenerationSpec(base_in, base_out, b, u, v, init=self.init)

    def _parsed(self, pattern: str, value: str | int | None) -> KernelSpec | None:
        if value is None:
            return None
        if type(value) is int and (value == 32 or 1 <= value <= MAX_BITS):
            return OrdinarySpec(self._quantizer(_width(value)))
        if not isinstance(value, str) or not re.fullmatch(r"\d+(-\d+){4}", value):
            raise ValueError(
                f"`layers[{pattern!r}]` must be None, a bit width (1 to {MAX_BITS}, or 32) or "
                f"five numbers Bi-Bo-qb-qu-qv such as '2-44-3-6-3'; got {value!r}."
            )
        base_in, base_out, *widths = map(int, value.split("-"))
        return self._spec(base_in, base_out, [_width(n) for n in widths])

    def _quantizer(self, bits: int | None) -> QuantSpec:
        if isinstance(self.ratio, str):
            check_choice("ratio", self.ratio, ("recommended",))
            return QuantSpec(bits, self.scheme, 1.0 if bits is None else recommended_ratio(bits))
        return QuantSpec(bits, self.scheme, self.ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Stage 0, the dense network.

    Args:
        train: the training loop.
        model: the teacher's network; None is the student's, as a projection needs.
        checkpoint: directory of checkpoints with a trained teacher; None trains one.
        label_smoothing: of the cross-entropy, in [0, 1].
        init_checkpoint: initial variables: a directory of checkpoints, a file with a PyTorch state
            dict, or a packed model (`.mlg`), of the same network with any number of classes; None
            starts from random values.
        trainable: the parameters that train: `all`; `biases` (of layers and norms, and the whole
            classifier); or `classifier`. For the latter two, norms use their running statistics,
            which stay fixed.
    """

    train: TrainSpec
    model: ModelConfig | None = None
    checkpoint: str | None = None
    label_smoothing: float = 0.0
    init_checkpoint: str | None = None
    trainable: str = "all"

    def __post_init__(self) -> None:
        check_instance("model", self.model, (ModelConfig, type(None)))
        check_instance("checkpoint", self.checkpoint, (str, type(None)))
        check_real("label_smoothing", self.label_smoothing, 0.0, 1.0)
        check_instance("init_checkpoint", self.init_checkpoint, (str, type(None)))
        if self.checkpoint is not None and self.init_checkpoint is not None:
            raise ValueError(
                "`init_checkpoint` must be None if `checkpoint` gives a trained teacher; "
                f"got {self.init_checkpoint!r}."
            )
        _check_trainable(self.trainable, is_random=self.init_checkpoint is None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Stage 2, the network with generated kernels.

    Args:
        train: the training loop.
        start: initial variables, `projected` (from stage 1) or `random`.
        loss: `distillation` (beta T^2 KL + (1 - beta) cross-entropy), `adaptive`, `cross_entropy`.
        beta: weight of the teacher's term in `distillation`, in [0, 1].
        temperature: T in `distillation`, > 0.
        penalty: weight of the orthogonality penalty, >= 0.
        label_smoothing: of the cross-entropy, in [0, 1].
        trainable: as in `TeacherConfig`; values other than `all` need a projected start.
    """

    train: TrainSpec
    start: str = "projected"
    loss: str = "distillation"
    beta: float = 0.9
    temperature: float = 3.0
    penalty: float = 0.05
    label_smoothing: float = 0.0
    trainable: str = "all"

    def __post_init__(self) -> None:
        check_choice("start", self.start, STARTS)
        check_choice("loss", self.loss, LOSSES)
        check_real("beta", self.beta, 0.0, 1.0)
        check_real("temperature", self.temperature, 0.0, exclusive_minimum=True)
        check_real("penalty", self.penalty, 0.0)
        check_real("label_smoothing", self.label_smoothing, 0.0, 1.0)
        _check_trainable(self.trainable, is_random=self.start == "random")
        if self.train.pruning is not None:
            raise ValueError(
                "`train.pruning` must be None for generated kernels, because zeros in factors do "
                f"not make zeros in kernels; got {self.train.pruning!r}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RematConfig:
    """What training saves for the backward pass, for teacher and student.

    Args:
        policy: a preset (`mlg_jax.remat.PRESETS`), or `auto`: the fastest exact preset whose
            compiled program needs at most `budget_mib` of temporary memory.
        budget_mib: budget for `auto` in MiB per device, > 0.
        capacity: share of an activation's entries that a bitmap can hold, in (0, 1]; None measures
            it on the first batches, per layer.
        margin: added to measured densities, relative to them, >= 0.
    """

    policy: str = "none"
    budget_mib: float | None = None
    capacity: float | None = None
    margin: float = 0.1

    def __post_init__(self) -> None:
        check_choice("policy", self.policy, (*PRESETS, "auto"))
        if (self.policy == "auto") != (self.budget_mib is not None):
            raise ValueError(
                "`budget_mib` must be a number for policy 'auto' and None for all others; "
                f"got {self.budget_mib!r} for {self.policy!r}."
            )
        if self.budget_mib is not None:
            check_real("budget_mib", self.budget_mib, 0.0, exclusive_minimum=True)
        if self.capacity is not None:
            check_real("capacity", self.capacity, 0.0, 1.0, exclusive_minimum=True)
        check_real("margin", self.margin, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Settings of `--mode=profile`; they have no effect on training.

    Args:
        target: a GPU to compile for (`mlg_jax.memory.targets.TARGETS`) in place of the devices that
            are here; `remat.policy=auto` then fits its budget to this GPU.
        num_batches: batches over which activation densities are measured; None is one epoch.
    """

    target: str | None = None
    num_batches: int | None = None

    def __post_init__(self) -> None:
        if self.target is not None:
            check_choice("target", self.target, TARGETS)
        if self.num_batches is not None:
            check_integer("num_batches", self.num_batches, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of the report; they have no effect on training.

    Args:
        augmented: whether networks are also evaluated on averages over flipped and shifted images
            (`mlg_jax.data.evaluation_views`), reported beside the plain evaluation.
    """

    augmented: bool = False

    def __post_init__(self) -> None:
        check_instance("augmented", self.augmented, bool)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment: teacher, projection, student.

    Args:
        seed: for initial values, augmentation and random quantisation, in [0, 2^32); the order of
            batches depends on `data.seed`.
        data, model, generation, teacher, projection, student, remat, report, profile: the parts.
    """

    data: DataSpec
    model: ModelConfig
    generation: GenerationConfig
    teacher: TeacherConfig
    student: StudentConfig
    projection: ProjectionSpec = ProjectionSpec()
    remat: RematConfig = RematConfig()
    report: ReportConfig = ReportConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0, 2**32 - 1)  # JAX ignores higher bits
        if self.student.start == "projected" and self.teacher_model != self.model:
            raise ValueError(
                "`student.start` must be 'random' if `teacher.model` is another network than "
                f"`model`; got {self.student.start!r}."
            )

    @property
    def teacher_model(self) -> ModelConfig:
        """The teacher's network."""
        return self.model if self.teacher.model is None else self.teacher.model

    @property
    def determining_json(self) -> dict[str, Any]:
        """The settings that determine the results of a run, as nested JSON values."""
        without = ("profile", "report")
        return {name: value for name, value in to_json(self).items() if name not in without}


def to_json(config: Any) -> Any:
    """Converts a spec to nested JSON values."""
    if dataclasses.is_dataclass(config):
        fields = dataclasses.fields(config)
        return {field.name: to_json(getattr(config, field.name)) for field in fields}
    return [to_json(value) for value in config] if isinstance(config, tuple) else config


def _width(bits: int) -> int | None:
    """The bit width for a number in the paper's notation, where 32 does not quantise."""
    return None if bits == 32 else bits


def _check_trainable(trainable: str, *, is_random: bool) -> None:
    check_choice("trainable", trainable, TRAINABLE)
    if is_random and trainable != "all":
        raise ValueError(
            f"`trainable` must be 'all' if training starts from random values; got {trainable!r}."
        )
