"""Checks of a configuration against its data and devices, before the first stage."""

from mlg_jax.config import ConfigError, ExperimentConfig
from mlg_jax.data import Dataset
from mlg_jax.experiment._tasks import EVAL_METRICS
from mlg_jax.train import TrainSpec, make_schedule


def check_experiment(config: ExperimentConfig, dataset: Dataset, num_devices: int) -> None:
    """Checks that every stage can run to its end with these data on these devices.

    Args:
        config: the experiment.
        dataset: its opened data set.
        num_devices: the number of devices that share a batch, over all processes.

    Raises:
        ConfigError: a schedule, metric or batch size that does not fit.
    """
    specs = {"student": config.student.train}
    if config.teacher.checkpoint is None:
        specs["teacher"] = config.teacher.train
    for name, spec in specs.items():
        try:
            _check_stage(spec, dataset)
        except ValueError as error:
            raise ConfigError(f"config.{name}.train: {error}") from error
        _check_rows("batch_size", config.data.batch_size, num_devices, spec.accumulation_steps)
    _check_rows("eval_batch_size", config.data.eval_batch_size, num_devices)


def _check_stage(spec: TrainSpec, dataset: Dataset) -> None:
    make_schedule(
        spec.schedule, num_epochs=spec.num_epochs, steps_per_epoch=dataset.steps_per_epoch
    )
    metrics = (*EVAL_METRICS, *([] if spec.pruning is None else ["zero_fraction"]))
    if dataset.num_validation and spec.best_metric not in metrics:
        raise ValueError(
            f"`best_metric` must be one of {sorted(metrics)}; got {spec.best_metric!r}."
        )


def _check_rows(name: str, num_rows: int, num_devices: int, num_parts: int = 1) -> None:
    if num_rows % (num_devices * num_parts):
        parts = f" times {num_parts} accumulation_steps" if num_parts > 1 else ""
        raise ConfigError(
            f"config.data.{name} must be a multiple of {num_devices} devices{parts}; "
            f"got {num_rows}."
        )
