"""What is kept for the backward pass, and how it is stored."""

from mlg_jax.remat._policy import NO_REMAT as NO_REMAT
from mlg_jax.remat._policy import Policy as Policy
