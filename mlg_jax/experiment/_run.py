"""The stages of an experiment; each resumes where it was interrupted."""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlg_jax.compress import project_model
from mlg_jax.config import ConfigError, ExperimentConfig, ModelConfig, to_json
from mlg_jax.experiment._check import check_experiment
from mlg_jax.experiment._export import export_student
from mlg_jax.experiment._implementation import student_implementation
from mlg_jax.experiment._inputs import check_fits, compute_dtype, has_checkpoint, load_data
from mlg_jax.experiment._profile import profile_networks
from mlg_jax.experiment._profile_report import make_profile_dir, write_profile
from mlg_jax.experiment._report import write_report
from mlg_jax.experiment._stage import Stage, train_stage
from mlg_jax.experiment._store import (
    ProjectionCheckpoint,
    is_projected,
    load_projection,
    save_projection,
)
from mlg_jax.experiment._tasks import Batches, classification_loss, student_loss
from mlg_jax.experiment._transfer import trainable_rule, transferred
from mlg_jax.layers import count_implementations, layer_records, variable_shapes
from mlg_jax.models import create_model, size_report
from mlg_jax.train import (
    CHECKPOINT_DIR,
    all_agree,
    bind_work_dir,
    evaluate,
    initial_masks,
    load_variables,
    make_eval_step,
    make_mesh,
    read_metrics,
    replicate,
    sharded,
    wait_for_all,
    zero_fraction,
)

_log = logging.getLogger("mlg_jax.experiment")

Variables = dict[str, Any]

_NUM_PROJECTION_IMAGES = 2000
_NUM_INITIAL_IMAGES = 5000


class _Experiment:
    """Data, models and mesh of an experiment, and the stages that share them."""

    def __init__(self, config: ExperimentConfig, directory: Path) -> None:
        self._config, self._directory = config, directory
        self._mesh = make_mesh()
        self._dataset = load_data(config.data, sharded(self._mesh))
        check_experiment(config, self._dataset, self._mesh.size)
        self._key = jax.random.key(config.seed)
        self._teacher = self._maker(config.teacher_model)()
        self._make_student = functools.partial(
            self._maker(config.model),
            generation=config.generation.by_layer,
            weight_bits=config.generation.weight_bits,
            activation_bits=config.generation.activation_bits,
        )
        for model in (self._teacher, self._make_student(implementation="auto")):
            self._shapes(model)  # raises if the images do not fit the network

    def _maker(self, model: ModelConfig) -> functools.partial[Any]:
        """`create_model` with the arguments that teacher and student share."""
        return functools.partial(
            create_model,
            model.name,
            num_classes=self._dataset.num_classes,
            stem=model.stem,
            width=model.width,
            dtype=compute_dtype(model.dtype),
        )

    def claim(self) -> None:
        """Binds the directory to the configuration, which has been checked against the data."""
        bind_work_dir(self._directory, self._config.determining_json)
        _ = self._student  # may measure implementations, before anything is trained

    @functools.cached_property
    def _student(self) -> nn.Module:
        implementation = student_implementation(
            self._config,
            self._directory,
            self._make_student,
            self._dataset.image_shape,
            self._mesh.size,
        )
        return self._make_student(implementation=implementation)

    def train_teacher(self) -> None:
        """Stage 0; does nothing if `teacher.checkpoint` gives the teacher."""
        if self._config.teacher.checkpoint is not None:
            self._teacher_variables()  # raises if they do not fit
            return
        _log.info("teacher: %s", self._config.teacher_model.name)
        stage = self._teacher_stage(*self._teacher_start())
        self._train(stage, without=("generation", "student", "projection"))

    def project(self) -> None:
        """Stage 1."""
        if self._config.student.start == "random":
            return
        is_first = jax.process_index() == 0
        if all_agree(not is_first or is_projected(self._projection_path)):
            return
        self._projection_path.parent.mkdir(parents=True, exist_ok=True)
        store = ProjectionCheckpoint(
            self._projection_path.parent / "state.npz", is_writable=is_first
        )
        spec = self._config.projection.resolved(has_images=True)
        images, progress = None, f"step %d of {spec.num_steps}"
        if spec.metric == "data":
            images = self._dataset.normalized_images(_NUM_PROJECTION_IMAGES)
            progress = "layer %d"
        projection = project_model(
            self._student,
            self._teacher_variables(),
            key=jax.random.fold_in(self._key, 1),
            spec=spec,
            images=images,
            input_shape=self._input_shape,
            on_report=functools.partial(_log.info, f"projection: {progress}, loss %.6f"),
            store=store,
        )
        wait_for_all("projected")  # until then other processes may still look for the files
        if is_first:
            save_projection(self._projection_path, projection, store)
        wait_for_all("projection saved")

    def train_student(self) -> None:
        """Stage 2."""
        start = self._config.student.start
        variables = self._projected() if start == "projected" else self._fresh(self._student)
        _log.info("student: starts %s", start)
        self._train(self._student_stage(variables, start, self._teacher_variables))

    def profile(self) -> dict[str, Any]:
        """Measures the memory of both stages, with the latest variables."""
        directory = make_profile_dir(self._directory)
        teacher = self._teacher_stage(*self._teacher_so_far())
        student = self._student_stage(*self._student_so_far(), lambda: teacher.variables)
        stages = {stage.name: stage for stage in (teacher, student)}
        found = profile_networks(stages, self._config.remat, self._config.profile, self._mesh)
        return write_profile(directory, to_json(self._config), found)

    def report(self) -> dict[str, Any]:
        """Evaluates on the test set, and writes the report and the packed student."""
        batches = Batches(self._dataset, self._key)
        variables = {"teacher": (self._teacher, self._teacher_variables())}
        if self._config.student.start == "projected":
            variables["projected"] = (self._student, self._projected())
        variables["student"] = (self._student, self._trained("student"))
        test = list(batches.test())
        summary: dict[str, Any] = {
            name: self._tested(model, values, test) for name, (model, values) in variables.items()
        }
        summary["implementations"] = self._implementations()
        summary["teacher"] |= self._teacher_zeros(variables["teacher"][1]["params"])
        sizes = size_report(self._student, variables["student"][1], input_shape=self._input_shape)
        curves = {
            name: read_metrics(self._directory / name)
            for name in ("teacher", "student")
            if (self._directory / name).is_dir()
        }
        if jax.process_index() == 0:
            try:
                summary |= self._packed(variables["student"][1], summary["student"])
            except ConfigError as error:  # must not prevent the report
                _log.warning("%s", error)
            config = self._config.determining_json
            write_report(self._directory / "report", config, summary, sizes, curves)
        wait_for_all("report")
        return json.loads((self._directory / "report/summary.json").read_text())

    def _implementations(self) -> dict[str, dict[str, int]]:
        """The number of the student's layers by implementation, in inference and in training."""
        size = self._input_shape[1:]
        training = (self._config.data.batch_size, *size)
        return {
            "forward, batch 1": count_implementations(layer_records(self._student, (1, *size))),
            f"training, batch {training[0]}": count_implementations(
                layer_records(self._student, training, is_training=True)
            ),
        }

    def export(self) -> dict[str, Any]:
        """Writes the packed student, without reading the test set."""
        variables, metrics = self._trained("student"), {}
        if self._dataset.num_validation:
            batches = Batches(self._dataset, self._key).validation()
            found = self._evaluate(self._student, variables, batches)
            metrics = {f"validation_{name}": value for name, value in found.items()}
        packed = self._packed(variables, metrics) if jax.process_index() == 0 else {}
        wait_for_all("export")
        return packed

    def _packed(self, variables: Variables, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Writes the packed student; returns its entry of a summary."""
        student = (self._student, variables)
        return {"packed": export_student(self._directory, *student, self._dataset, metrics)}

    def _teacher_zeros(self, params: Any) -> dict[str, float]:
        """The share of zeros in a pruned teacher's kernels."""
        stage = self._config.teacher
        if stage.checkpoint is not None or stage.train.pruning is None:
            return {}
        masks = initial_masks(params, stage.train.pruning, trainable_rule(stage.trainable))
        return {"zero_fraction": float(zero_fraction(params, masks))}

    @property
    def _projection_path(self) -> Path:
        return self._directory / "projection/projected.npz"

    @property
    def _input_shape(self) -> tuple[int, ...]:
        return (1, *self._dataset.image_shape)

    def _train(self, stage: Stage, without: tuple[str, ...] = ()) -> None:
        """Trains a stage whose result does not depend on the parts `without` of the config."""
        train_stage(
            stage,
            self._config.remat,
            work_dir=self._directory,
            fingerprint={
                k: v for k, v in self._config.determining_json.items() if k not in without
            },
            mesh=self._mesh,
        )

    def _teacher_stage(self, variables: Variables, source: str) -> Stage:
        config = self._config.teacher
        return Stage(
            name="teacher",
            config=config,
            network=self._teacher,
            make_loss=functools.partial(
                classification_loss, label_smoothing=config.label_smoothing
            ),
            variables=variables,
            source=source,
            dataset=self._dataset,
            key=jax.random.fold_in(self._key, 2),
        )

    def _student_stage(
        self, variables: Variables, source: str, teacher: Callable[[], Mapping[str, Any]]
    ) -> Stage:
        """`teacher` is called only if the loss needs the teacher's logits."""
        config = self._config.student
        return Stage(
            name="student",
            config=config,
            network=self._student,
            make_loss=functools.partial(student_loss, input_shape=self._input_shape, config=config),
            variables=variables,
            source=source,
            dataset=self._dataset,
            key=jax.random.fold_in(self._key, 3),
            teach=None if config.loss == "cross_entropy" else self._teach(teacher()),
        )

    def _fresh(self, model: nn.Module) -> Variables:
        """Random values, and what the network takes from images."""
        key = jax.random.fold_in(self._key, 4)
        variables = jax.jit(model.init)(key, jnp.zeros(self._input_shape))
        if not hasattr(model, "initialized"):
            return variables
        return model.initialized(variables, self._dataset.normalized_images(_NUM_INITIAL_IMAGES))

    def _teach(self, variables: Mapping[str, Any]) -> Any:
        """A compiled function from normalised images to the teacher's logits."""
        variables = replicate(variables, self._mesh)
        apply = jax.jit(functools.partial(self._teacher.apply, train=False))
        return lambda image: apply(variables, image)

    def _teacher_start(self) -> tuple[Variables, str]:
        """The initial variables of stage 0, and their source."""
        fresh, given = self._fresh(self._teacher), self._config.teacher.init_checkpoint
        if given is None:
            return fresh, "fresh"
        variables = transferred(given, fresh, self._teacher, self._input_shape)
        return variables, "`teacher.init_checkpoint`"

    def _teacher_variables(self) -> Variables:
        given = self._config.teacher.checkpoint
        directory = self._checkpoints("teacher") if given is None else Path(given)
        return self._loaded(directory, self._teacher)

    def _teacher_so_far(self) -> tuple[Variables, str]:
        """The furthest trained variables there are, and their source."""
        if self._config.teacher.checkpoint is not None:
            return self._teacher_variables(), "the best checkpoint of `teacher.checkpoint`"
        if has_checkpoint(self._checkpoints("teacher")):
            return self._teacher_variables(), "the best checkpoint of the teacher"
        return self._teacher_start()

    def _student_so_far(self) -> tuple[Variables, str]:
        if has_checkpoint(self._checkpoints("student")):
            return self._trained("student"), "the best checkpoint of the student"
        if self._config.student.start == "projected" and self._projection_path.exists():
            return self._projected(), "the projection of the teacher"
        return self._fresh(self._student), "fresh"

    def _checkpoints(self, name: str) -> Path:
        return self._directory / name / CHECKPOINT_DIR

    def _trained(self, name: str) -> Variables:
        return self._loaded(self._checkpoints(name), self._student)

    def _loaded(self, directory: Path, model: nn.Module) -> Variables:
        params, state, _ = load_variables(directory)
        variables = {"params": params, **state}
        check_fits(directory, variables, self._shapes(model))
        return variables

    def _projected(self) -> Variables:
        return load_projection(self._projection_path)

    def _shapes(self, model: nn.Module) -> Any:
        return variable_shapes(model, self._input_shape)

    def _tested(self, model: nn.Module, variables: Variables, test: Any) -> dict[str, float]:
        """Metrics on the test set, from plain images and, if asked, from flipped and shifted."""
        found = self._evaluate(model, variables, test)
        tested = {f"test_{name}": value for name, value in found.items()}
        if self._config.report.augmented:
            found = self._evaluate(model, variables, test, is_augmented=True)
            tested |= {f"test_{name}_augmented": value for name, value in found.items()}
        return tested

    def _evaluate(
        self, model: nn.Module, variables: Variables, batches: Any, *, is_augmented: bool = False
    ) -> dict[str, float]:
        values = replicate(variables, self._mesh)
        state = {k: v for k, v in values.items() if k != "params"}
        step = make_eval_step(classification_loss(model, is_augmented=is_augmented), self._mesh)
        return evaluate(step, batches, params=values["params"], model_state=state, mesh=self._mesh)
