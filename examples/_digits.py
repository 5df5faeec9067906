"""Scikit-learn's digits, and a plain training loop for any Linen model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import mlg_jax

SHAPE = (1, 8, 8, 1)
NUM_TRAIN = 1437


def digits():
    """`(images, labels)` for training and for testing; images are `[N, 8, 8, 1]`, normalised."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images = ((images - images.mean()) / images.std()).astype(np.float32).reshape(-1, *SHAPE[1:])
    train, test = order[:NUM_TRAIN], order[NUM_TRAIN:]
    return (images[train], labels[train]), (images[test], labels[test])


def train(model, variables, images, labels, *, num_epochs, learning_rate=2e-3, batch_size=64):
    """Adam on cross-entropy; returns the trained variables."""
    steps_per_epoch = len(images) // batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, num_epochs * steps_per_epoch)
    optimizer = optax.adam(schedule)

    def loss_fn(params, state, x, y):
        variables = {"params": params, **state}
        logits, state = model.apply(variables, x, train=True, mutable=list(state))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @jax.jit
    def step(params, state, opt_state, x, y):
        grads, state = jax.grad(loss_fn, has_aux=True)(params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), dict(state), opt_state

    params = variables["params"]
    state = {name: value for name, value in variables.items() if name != "params"}
    opt_state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(num_epochs):
        order = rng.permutation(len(images))[: steps_per_epoch * batch_size]
        for rows in order.reshape(steps_per_epoch, batch_size):
            params, state, opt_state = step(params, state, opt_state, images[rows], labels[rows])
    return {"params": params, **state}


def accuracy(model, variables, images, labels):
    """Share of correctly classified images."""
    logits = jax.jit(model.apply)(variables, jnp.asarray(images))
    return float(np.mean(np.argmax(logits, -1) == labels))


def score(model, variables, images, labels):
    """Accuracy and stored size in KB."""
    size = mlg_jax.size_report(model, variables, input_shape=SHAPE)
    return accuracy(model, variables, images, labels), size.kb
