"""The experiment that `launch.py` runs: teacher, projection, student, report."""

from mlg_jax.experiment._export import PACKED_FILE as PACKED_FILE
from mlg_jax.experiment._launch import launch as launch
from mlg_jax.experiment._launch import load_config as load_config
from mlg_jax.experiment._launch import log_to_stderr as log_to_stderr
from mlg_jax.experiment._launch import main as main
from mlg_jax.experiment._modes import MODES as MODES
from mlg_jax.experiment._modes import run_experiment as run_experiment
from mlg_jax.experiment._report import write_report as write_report
