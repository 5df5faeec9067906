"""mlg_jax."""
