"""Specs reject invalid arguments with clear messages."""

import dataclasses

import pytest

from mlg_jax.train import OptimizerSpec, ScheduleSpec, TrainSpec


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: OptimizerSpec(name="sdg"), ValueError, r"`name` must be one of .*'sgd'.*'sdg'"),
        (lambda: OptimizerSpec(weight_decay=-1), ValueError, "`weight_decay` must be .*; got -1"),
        (lambda: OptimizerSpec(momentum=1.0), ValueError, r"`momentum` .* in \[0, 1\); got 1.0"),
        (lambda: OptimizerSpec(b1=1.0), ValueError, r"`b1` .* in \[0, 1\); got 1.0"),
        (lambda: OptimizerSpec(b2=0.0), ValueError, r"`b2` .* in \(0, 1\); got 0.0"),
        (lambda: OptimizerSpec(eps="x"), TypeError, "`eps` must be .*; got 'x'"),
        (lambda: OptimizerSpec(clip_norm=0), ValueError, "`clip_norm` must be .*; got 0"),
        (lambda: OptimizerSpec(sam_rho=-0.1), ValueError, "`sam_rho` must be .*; got -0.1"),
        (lambda: ScheduleSpec(name="cos"), ValueError, "`name` must be one of .*'cosine'.*'cos'"),
        (lambda: ScheduleSpec(learning_rate=0), ValueError, "`learning_rate` .*; got 0"),
        (lambda: ScheduleSpec(final_fraction=2), ValueError, "`final_fraction` .*; got 2"),
        (lambda: ScheduleSpec(factor_per_epoch=0), ValueError, "`factor_per_epoch` .*; got 0"),
        (lambda: ScheduleSpec(peak_fraction=1.0), ValueError, "`peak_fraction` .*; got 1.0"),
        (lambda: TrainSpec(num_epochs=0), ValueError, "`num_epochs` must be .*; got 0"),
        (lambda: TrainSpec(num_epochs=1, best_mode="top"), ValueError, "`best_mode` .*'top'"),
        (lambda: TrainSpec(num_epochs=1, optimizer="sgd"), TypeError, "`optimizer` .*'sgd'"),
        (lambda: TrainSpec(num_epochs=True), TypeError, "`num_epochs` must be .*; got True"),
        (
            lambda: TrainSpec(num_epochs=1, checkpoint_every_steps=0),
            ValueError,
            "`checkpoint_every_steps` must be .*; got 0",
        ),
        (
            lambda: TrainSpec(num_epochs=1, accumulation_steps=1.5),
            TypeError,
            "`accumulation_steps` must be .*; got 1.5",
        ),
    ],
)
def test_error_messages(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("spec", [OptimizerSpec(), ScheduleSpec(), TrainSpec(num_epochs=1)])
def test_specs_are_frozen_hashable_values(spec):
    assert hash(spec) == hash(dataclasses.replace(spec))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"
    with pytest.raises(TypeError):
        type(spec)("positional")
