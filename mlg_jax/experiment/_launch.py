"""The command line of `launch.py`: a configuration file, overrides, a mode."""

import argparse
import logging
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from mlg_jax._errors import user_message
from mlg_jax.config import ConfigError, ExperimentConfig, parse_config, to_json
from mlg_jax.experiment._hosts import add_host_flags, join_hosts
from mlg_jax.experiment._modes import MODES, run_experiment
from mlg_jax.experiment._profile_report import PROFILE_DIR, profile_table
from mlg_jax.train import TrainingInterrupted, enable_compilation_cache

SHOW = "show"  # a mode of the command line only

_PREFIX = "--config."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `launch.py`; returns the exit status: 0, 2 after an input error, 75 if interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [a for a in given if a.startswith(_PREFIX)]
    parser = _parser()
    options = parser.parse_args([a for a in given if not a.startswith(_PREFIX)])
    join_hosts(parser, options)
    log_to_stderr()
    try:
        config = load_config(options.config, overrides)
        if options.mode == SHOW:
            sys.stdout.write("".join(f"{line}\n" for line in shown(config)))
            return 0
        work_dir = options.workdir or Path("runs") / Path(options.config).stem
        return launch(config, work_dir, options.mode)
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2


def launch(config: ExperimentConfig, work_dir: str | Path, mode: str = "train") -> int:
    """Runs or resumes an experiment as a command, and prints its summary.

    Args:
        config: the experiment.
        work_dir: see `run_experiment`, whose errors are raised here, too.
        mode: likewise.

    Returns:
        The exit status: 0, or 75 if a signal interrupted it.
    """
    if mode != "profile":  # a profile writes only to its own directory
        enable_compilation_cache(Path(work_dir) / "compilation_cache")
    try:
        summary = run_experiment(config, work_dir, mode=mode)
    except TrainingInterrupted as stop:
        logging.getLogger("mlg_jax").warning("%s Run the same command to resume.", stop)
        return stop.exit_code
    if jax.process_index() == 0:
        if mode == "profile":
            directory = Path(work_dir) / PROFILE_DIR
            sys.stdout.write(f"{profile_table(summary)}\nprofile    {directory}\n")
        else:
            _print_summary(summary, Path(work_dir) / "report")
    return 0


def shown(config: ExperimentConfig) -> list[str]:
    """Every value of a resolved configuration, as `a.b=VALUE`; also an override of `launch.py`."""

    def lines(path: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Mapping):
            yield f"{path}={value!r}"
            return
        for name, part in value.items():
            yield from lines(f"{path}.{name}" if path else name, part)

    return list(lines("", to_json(config)))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Loads an experiment from a Python file that defines `get_config()`.

    Args:
        path: the file.
        overrides: options of the form `--config.a.b=value`.

    Raises:
        ConfigError: the file is missing, fails when it is run or has no `get_config`; or a key or
            value is invalid.
    """
    if not Path(path).is_file():
        raise ConfigError(f"`config` must be a Python file; there is no {path}.")
    values = _values_of(path)
    pairs: dict[str, str] = {}
    for override in overrides:
        key, separator, value = override.removeprefix(_PREFIX).partition("=")
        if not separator:
            raise ConfigError(f"{override} must have a value: {_PREFIX}{key}=VALUE.")
        pairs[key] = value
    return parse_config(values, pairs)


def _values_of(path: str | Path) -> Mapping[str, Any]:
    """Runs the file and its `get_config()`."""
    try:
        namespace = runpy.run_path(str(path))
        if "get_config" not in namespace:
            raise ConfigError(f"`config` must define get_config(); {path} does not.")
        values = namespace["get_config"]()
    except ConfigError:
        raise
    except Exception as error:
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
        ]
        where = f" in line {lines[-1]}" if lines else ""
        raise ConfigError(
            f"`config` must be a file that Python can run; {path} fails{where}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"get_config() in {path} must return a ConfigDict; got {values!r}.")
    return values


def log_to_stderr() -> None:
    """Logs this package's messages; `force` replaces the handler that orbax has installed."""
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    logging.getLogger("mlg_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):  # orbax logs, with tracebacks, errors that it also raises
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch.py",
        description="Trains a network (the teacher), fits generated kernels to it (the "
        "projection), trains the network with generated kernels (the student) and writes a report. "
        "The same command resumes an interrupted run.",
        epilog="--config.a.b=VALUE overrides one value of the configuration, for example "
        "--config.data.batch_size=64.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="configuration, such as configs/NAME.py",
    )
    parser.add_argument(
        "--workdir",
        default=None,
        metavar="DIR",
        help="directory for checkpoints and results (default: runs/NAME)",
    )
    parser.add_argument(
        "--mode",
        default="train",
        choices=(*MODES, SHOW),
        help="train: run all stages and report; eval: only report on the trained networks; "
        "export: only write the packed student again; profile: measure the memory of training; "
        "show: only print every value of the configuration (default: train)",
    )
    add_host_flags(parser)
    return parser


def _print_summary(summary: dict[str, Any], directory: Path) -> None:
    for name in ("teacher", "projected", "student"):
        if name in summary:
            sys.stdout.write(f"{name:10} {summary[name]['test_accuracy']:.2%} test accuracy\n")
    if "packed" in summary:
        packed = summary["packed"]
        path = directory.parent / packed["file"]
        sys.stdout.write(f"{'packed':10} {path}, {packed['bytes']:,} bytes\n")
    if "size" in summary:
        size = summary["size"]
        sys.stdout.write(
            f"{'size':10} {size['kb']:,.2f} of {size['dense_kb']:,.2f} KB ({size['ratio']:.4f})\n"
            f"{'report':10} {directory}\n"
        )
