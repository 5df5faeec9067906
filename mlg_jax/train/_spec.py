"""Frozen specifications of a training run: optimiser, schedule, pruning and loop."""

import dataclasses

from mlg_jax._checks import check_choice, check_instance, check_integer, check_real

OPTIMIZERS = ("sgd", "adam", "adamw", "radam", "muon")
SCHEDULES = ("constant", "cosine", "warmup_cosine", "exponential", "one_cycle", "triangular")
MODES = ("max", "min")
PRUNING_SCOPES = ("layer", "global")


def _check_decay(name: str, value: float) -> None:
    check_real(name, value, 0.0, 1.0)
    if value == 1.0:
        raise ValueError(f"`{name}` must be a number in [0, 1); got {value!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters with a learning rate or a weight decay of their own.

    Args:
        pattern: `fnmatch` pattern of their names, such as `"*/norm?/bias"`; a parameter belongs to
            the first group whose pattern matches.
        learning_rate: factor on the learning rate, >= 0. Parameters with 0 are frozen: they are
            not even differentiated.
        weight_decay: factor on the weight decay, >= 0; None leaves it to the general rule, which
            does not decay arrays with fewer than two axes.
        end_fraction: fraction of the run after which they stay as they are, in (0, 1].

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    pattern: str
    learning_rate: float = 1.0
    weight_decay: float | None = None
    end_fraction: float = 1.0

    def __post_init__(self) -> None:
        check_instance("pattern", self.pattern, str)
        check_real("learning_rate", self.learning_rate, 0.0)
        if self.weight_decay is not None:
            check_real("weight_decay", self.weight_decay, 0.0)
        check_real("end_fraction", self.end_fraction, 0.0, 1.0, exclusive_minimum=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookaheadSpec:
    """A slow average of the parameters, to which they return every few updates.

    After every `period` updates, and after the last one, `slow = d slow + (1 - d) params` and
    `params = slow`, where `d` rises with the cube of the fraction of the run that is over.

    Args:
        period: updates from one return to the next, >= 1.
        final_decay: `d` at the end of the run, in [0, 1).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Reference: https://arxiv.org/abs/1907.08610; the rising `d` is from
    https://arxiv.org/abs/2404.00498.
    """

    period: int = 5
    final_decay: float = 0.774  # 0.95^5

    def __post_init__(self) -> None:
        check_integer("period", self.period, 1)
        _check_decay("final_decay", self.final_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """An optimiser and its hyperparameters.

    Args:
        name: `sgd` (with Nesterov momentum), `adam`, `adamw`, `radam` or `muon`.
        weight_decay: >= 0. Added to the gradient for `sgd` and `adam`; decoupled from it for the
            others (multiplied by the learning rate, not part of the moments).
        momentum: momentum of `sgd` and `muon`, in [0, 1).
        b1: decay of the first moment, in [0, 1).
        b2: decay of the second moment, in (0, 1).
        eps: added to the square root of the second moment, > 0.
        clip_norm: gradients are clipped to this global norm, > 0; None does not clip.
        sam_rho: radius of sharpness-aware minimisation, > 0; None is off.
        groups: parameters with a learning rate or a weight decay of their own.
        lookahead: see `LookaheadSpec`; None is off.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    name: str = "radam"
    weight_decay: float = 0.0
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = None
    sam_rho: float | None = None
    groups: tuple[ParamGroup, ...] = ()
    lookahead: LookaheadSpec | None = None

    def __post_init__(self) -> None:
        check_choice("name", self.name, OPTIMIZERS)
        check_instance("groups", self.groups, tuple)
        for group in self.groups:
            check_instance("groups", group, ParamGroup)
        check_instance("lookahead", self.lookahead, (LookaheadSpec, type(None)))
        check_real("weight_decay", self.weight_decay, 0.0)
        check_real("eps", self.eps, 0.0, exclusive_minimum=True)
        _check_decay("momentum", self.momentum)
        _check_decay("b1", self.b1)
        _check_decay("b2", self.b2)
        if self.b2 == 0.0:
            raise ValueError("`b2` must be a number in (0, 1); got 0.0.")
        if self.clip_norm is not None:
            check_real("clip_norm", self.clip_norm, 0.0, exclusive_minimum=True)
        if self.sam_rho is not None:
            check_real("sam_rho", self.sam_rho, 0.0, exclusive_minimum=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """A learning rate schedule; `make_schedule` gives the formulas.

    Args:
        name: `constant`, `cosine`, `warmup_cosine`, `exponential`, `one_cycle` or `triangular`.
        learning_rate: the peak learning rate, > 0.
        final_fraction: final learning rate of `cosine`, `warmup_cosine`, `one_cycle` and
            `triangular`, as a fraction of the peak, in [0, 1].
        warmup_epochs: length of the linear rise of `warmup_cosine`, in epochs, >= 0; may be
            fractional.
        factor_per_epoch: factor of `exponential`, applied at the start of each epoch, in (0, 1].
        initial_fraction: initial learning rate of `one_cycle` and `triangular`, as a fraction of
            the peak, in [0, 1].
        peak_fraction: fraction of the run after which these two reach their peak, in (0, 1).

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    name: str = "constant"
    learning_rate: float = 1e-3
    final_fraction: float = 0.0
    warmup_epochs: float = 0.0
    factor_per_epoch: float = 0.98
    initial_fraction: float = 0.04
    peak_fraction: float = 0.3

    def __post_init__(self) -> None:
        check_choice("name", self.name, SCHEDULES)
        check_real("learning_rate", self.learning_rate, 0.0, exclusive_minimum=True)
        check_real("final_fraction", self.final_fraction, 0.0, 1.0)
        check_real("warmup_epochs", self.warmup_epochs, 0.0)
        check_real("factor_per_epoch", self.factor_per_epoch, 0.0, 1.0, exclusive_minimum=True)
        check_real("initial_fraction", self.initial_fraction, 0.0, 1.0)
        check_real("peak_fraction", self.peak_fraction, 0.0, 1.0, exclusive_minimum=True)
        if self.peak_fraction == 1.0:
            raise ValueError("`peak_fraction` must be a number in (0, 1); got 1.0.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruningSpec:
    """Gradual magnitude pruning of kernels during training.

    Args:
        final_sparsity: final fraction of zeros, in (0, 1).
        start_fraction: fraction of the run after which sparsity starts to rise, in [0, 1).
        end_fraction: fraction of the run after which the final sparsity is reached, in (0, 1]; the
            rest of the run trains the remaining weights.
        every_steps: updates between two prunings, >= 1.
        scope: `layer` (every kernel has the same sparsity, as in the paper) or `global` (the
            smallest weights of all kernels together are pruned).
        exclude: `fnmatch` patterns of parameter names that are not pruned, e.g. `"classifier/*"`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Reference: https://arxiv.org/abs/1710.01878.
    """

    final_sparsity: float
    start_fraction: float = 0.0
    end_fraction: float = 0.5
    every_steps: int = 100
    scope: str = "layer"
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_real("final_sparsity", self.final_sparsity, 0.0, 1.0, exclusive_minimum=True)
        if self.final_sparsity == 1.0:
            raise ValueError("`final_sparsity` must be a number in (0, 1); got 1.0.")
        check_real("end_fraction", self.end_fraction, 0.0, 1.0, exclusive_minimum=True)
        check_real("start_fraction", self.start_fraction, 0.0, 1.0)
        if self.start_fraction >= self.end_fraction:
            raise ValueError(
                f"`start_fraction` must be below `end_fraction` {self.end_fraction!r}; "
                f"got {self.start_fraction!r}."
            )
        check_integer("every_steps", self.every_steps, 1)
        check_choice("scope", self.scope, PRUNING_SCOPES)
        check_instance("exclude", self.exclude, tuple)
        for pattern in self.exclude:
            check_instance("exclude", pattern, str)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The training loop.

    Args:
        num_epochs: number of epochs, >= 1.
        optimizer: see `OptimizerSpec`.
        schedule: see `ScheduleSpec`.
        accumulation_steps: micro-batches per step, >= 1; the batch size does not change. Norm
            layers use the statistics of one micro-batch at a time. Weight quantisers clamp the
            cotangent of each micro-batch to [-1, 1], so the gradient equals that of the whole
            batch unless an entry exceeds 1 in a micro-batch. (The same holds for gradients taken
            per device in `jax.shard_map`. The trainer's own data parallelism differentiates the
            whole batch at once.)
        log_every_steps: steps between two log lines, >= 1; each one waits for the device.
        eval_every_epochs: epochs between two evaluations, >= 1; the last epoch is always evaluated.
        checkpoint_every_steps: steps between two checkpoints within an epoch, >= 1; None saves at
            the end of every epoch only.
        best_metric: the evaluation metric that selects the best checkpoint.
        best_mode: `max` or `min`.
        pruning: see `PruningSpec`; None does not prune. With pruning, only checkpoints of the
            final sparsity can be the best.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """

    num_epochs: int
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    accumulation_steps: int = 1
    log_every_steps: int = 50
    eval_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    best_metric: str = "accuracy"
    best_mode: str = "max"
    pruning: PruningSpec | None = None

    def __post_init__(self) -> None:
        check_integer("num_epochs", self.num_epochs, 1)
        check_instance("optimizer", self.optimizer, OptimizerSpec)
        check_instance("schedule", self.schedule, ScheduleSpec)
        check_integer("accumulation_steps", self.accumulation_steps, 1)
        check_integer("log_every_steps", self.log_every_steps, 1)
        check_integer("eval_every_epochs", self.eval_every_epochs, 1)
        if self.checkpoint_every_steps is not None:
            check_integer("checkpoint_every_steps", self.checkpoint_every_steps, 1)
        check_instance("best_metric", self.best_metric, str)
        check_choice("best_mode", self.best_mode, MODES)
        check_instance("pruning", self.pruning, (PruningSpec, type(None)))
