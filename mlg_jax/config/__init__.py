"""The typed schema of an experiment, and its construction from a configuration file."""

from mlg_jax.config._parse import ConfigError as ConfigError
from mlg_jax.config._parse import parse_config as parse_config
from mlg_jax.config._schema import MEASURED as MEASURED
from mlg_jax.config._schema import ExperimentConfig as ExperimentConfig
from mlg_jax.config._schema import GenerationConfig as GenerationConfig
from mlg_jax.config._schema import ModelConfig as ModelConfig
from mlg_jax.config._schema import ProfileConfig as ProfileConfig
from mlg_jax.config._schema import RematConfig as RematConfig
from mlg_jax.config._schema import ReportConfig as ReportConfig
from mlg_jax.config._schema import StudentConfig as StudentConfig
from mlg_jax.config._schema import TeacherConfig as TeacherConfig
from mlg_jax.config._schema import to_json as to_json
