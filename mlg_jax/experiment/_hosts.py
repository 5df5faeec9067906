"""Command-line options for a run over several processes, which share one work directory."""

import argparse

from mlg_jax.train import initialize_distributed


def add_host_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the three options that make a process part of a larger run."""
    hosts = parser.add_argument_group(
        "several processes",
        "Start the same command once per process, with one work directory and all three options.",
    )
    hosts.add_argument("--coordinator_address", metavar="HOST:PORT", help="address of process 0")
    hosts.add_argument("--num_processes", type=int, metavar="N", help="total number of processes")
    hosts.add_argument("--process_id", type=int, metavar="I", help="index of this process, from 0")


def join_hosts(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Joins the processes given by the options; must be called before anything uses a device.

    Invalid options exit like any argparse error, with status 2.
    """
    address, count, index = (
        options.coordinator_address,
        options.num_processes,
        options.process_id,
    )
    missing = [value is None for value in (address, count, index)]
    if all(missing):
        return
    if any(missing):
        parser.error(
            "--coordinator_address, --num_processes and --process_id must be given together; got "
            f"{address}, {count} and {index}."
        )
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdigit():
        parser.error(f"--coordinator_address must be HOST:PORT; got {address!r}.")
    if count < 1:
        parser.error(f"--num_processes must be an integer >= 1; got {count}.")
    if not 0 <= index < count:
        parser.error(f"--process_id must be an integer in [0, {count - 1}]; got {index}.")
    initialize_distributed(coordinator_address=address, num_processes=count, process_id=index)
