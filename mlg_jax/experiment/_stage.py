"""A training stage as a value: a network with its loss, its data and its initial variables."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import Mesh

from mlg_jax.config import RematConfig, StudentConfig, TeacherConfig
from mlg_jax.data import Dataset
from mlg_jax.experiment._remat import AdaptiveRemat, MakeLoss
from mlg_jax.experiment._tasks import Batches, classification_loss, make_task
from mlg_jax.experiment._transfer import model_to_train, trainable_rule
from mlg_jax.train import TrainableRule, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One network with everything that determines its training.

    Attributes:
        name: of its directory within the work directory.
        config: the stage's part of the configuration.
        network: the network as it is evaluated.
        make_loss: makes the training loss of a network.
        variables: the initial variables, with `params` among them.
        source: where `variables` come from, in words.
        dataset: the opened data set.
        key: of the stage's random numbers.
        teach: normalised images to the teacher's logits; None if the loss needs none.
    """

    name: str
    config: TeacherConfig | StudentConfig
    network: nn.Module
    make_loss: MakeLoss
    variables: Mapping[str, Any]
    source: str
    dataset: Dataset
    key: jax.Array
    teach: Callable[[jax.Array], jax.Array] | None = None

    @functools.cached_property
    def model(self) -> Any:
        """The network as it is trained."""
        return model_to_train(self.network, self.config.trainable)

    @functools.cached_property
    def batches(self) -> Batches:
        """The data as the loss takes them."""
        return Batches(self.dataset, jax.random.fold_in(self.key, 1), self.teach)

    @property
    def is_trainable(self) -> TrainableRule | None:
        """The parameters that train, by name; None trains all."""
        return trainable_rule(self.config.trainable)


def train_stage(
    stage: Stage,
    remat: RematConfig,
    *,
    work_dir: Path,
    fingerprint: Mapping[str, Any],
    mesh: Mesh,
) -> None:
    """Trains a stage to its end, or resumes it.

    Args:
        stage: what to train.
        remat: the checkpointing policy.
        work_dir: the experiment's; the stage writes to the subdirectory of its name.
        fingerprint: the parts of the configuration that affect the stage's result.
        mesh: the devices.

    Raises:
        As `mlg_jax.train.train`.
    """
    adaptive = AdaptiveRemat(remat, stage.model, stage.make_loss, mesh, stage.key)
    adaptive.prepare(stage.variables, stage.batches.train(0, 0))
    train(
        make_task(
            stage.dataset,
            stage.batches,
            adaptive.loss_fn,
            classification_loss(stage.network),
            stage.is_trainable,
            exact_loss_fn=adaptive.exact_loss_fn,
            on_overflow=adaptive.on_overflow,
            on_epoch_end=adaptive.on_epoch_end,
        ),
        stage.config.train,
        params=stage.variables["params"],
        model_state={k: v for k, v in stage.variables.items() if k != "params"},
        key=stage.key,
        work_dir=work_dir / stage.name,
        config=dict(fingerprint),
        mesh=mesh,
    )
