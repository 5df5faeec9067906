"""Parameter groups, lookahead and the triangular schedule, against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from mlg_jax.train import LookaheadSpec, OptimizerSpec, ParamGroup, ScheduleSpec, make_schedule
from mlg_jax.train._optimizer import check_groups, make_optimizer, without_frozen


def run(spec, num_steps, params, grads):
    optimizer = make_optimizer(spec, lambda count: 0.1, num_steps=num_steps)
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(grads, state, params)
        params = {name: params[name] + updates[name] for name in params}
    return params


def test_groups_have_their_own_rates_and_decay_and_end():
    groups = (ParamGroup(pattern="b*", learning_rate=4.0, weight_decay=0.25, end_fraction=0.5),)
    spec = OptimizerSpec(name="sgd", momentum=0.0, weight_decay=0.2, groups=groups)
    params = {"a": jnp.ones((1, 1)), "b": jnp.ones(1)}
    found = run(spec, 4, params, {"a": jnp.ones((1, 1)), "b": jnp.ones(1)})
    a = b = 1.0
    for step in range(4):
        a -= 0.1 * (1 + 0.2 * a)
        b -= 0.4 * (1 + 0.05 * b) * (step < 2)
    np.testing.assert_allclose([found["a"].item(), found["b"].item()], [a, b], rtol=1e-6)


def test_lookahead_returns_to_the_slow_average():
    spec = OptimizerSpec(
        name="sgd", momentum=0.0, lookahead=LookaheadSpec(period=2, final_decay=0.5)
    )
    found = run(spec, 5, {"a": jnp.zeros(1)}, {"a": -jnp.ones(1)})
    fast = slow = 0.0
    for step in range(1, 6):
        fast += 0.1
        if step % 2 == 0 or step == 5:
            decay = 0.5 * (step / 5) ** 3
            slow = fast = decay * slow + (1 - decay) * fast
    np.testing.assert_allclose(found["a"], [fast], rtol=1e-6)


def test_a_rate_of_zero_freezes():
    spec = OptimizerSpec(groups=(ParamGroup(pattern="stem/*", learning_rate=0.0),))
    rule = without_frozen(None, spec)
    assert rule is not None and not rule("stem/kernel") and rule("other/kernel")
    assert without_frozen(None, OptimizerSpec()) is None


@pytest.mark.bad_input
def test_the_length_of_the_run_is_needed():
    with pytest.raises(ValueError, match="`num_steps` must be given"):
        make_optimizer(OptimizerSpec(lookahead=LookaheadSpec()), lambda count: 0.1)


@pytest.mark.bad_input
def test_a_pattern_that_matches_nothing():
    spec = OptimizerSpec(groups=(ParamGroup(pattern="norm*/bias"),))
    check_groups(spec, {"norm1": {"bias": jnp.zeros(1)}})
    with pytest.raises(ValueError, match=r"match a parameter of \['a/bias'\]; got 'norm\*/bias'"):
        check_groups(spec, {"a": {"bias": jnp.zeros(1)}})


def test_triangular_schedule():
    spec = ScheduleSpec(
        name="triangular",
        learning_rate=2.0,
        initial_fraction=0.2,
        peak_fraction=0.25,
        final_fraction=0.1,
    )
    schedule = make_schedule(spec, num_epochs=2, steps_per_epoch=4)
    found = [float(schedule(t)) for t in (0, 1, 2, 5, 8)]
    np.testing.assert_allclose(found, [0.4, 1.2, 2.0, 1.1, 0.2], rtol=1e-6)
