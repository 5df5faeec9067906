"""The memory profile of an experiment as JSON, Markdown and figures."""

import collections
import dataclasses
import importlib.metadata
import itertools
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mlg_jax._atomic import write_atomically
from mlg_jax._tables import padded_table
from mlg_jax.experiment._profile import (
    PLAIN,
    DensityProfile,
    NetworkProfile,
    PolicyProfile,
    largest_activation,
)
from mlg_jax.memory import STORAGES, crossover_density, densities_to_markdown, storage_curve
from mlg_jax.plots import plot_batch_memory, plot_densities, plot_residuals, plot_storage
from mlg_jax.train import WorkDirError

PROFILE_DIR = "profile"

_MIB = 2**20
_NUM_POINTS = 101  # of a curve, in steps of 1 %
_NUM_OPERATIONS = 8  # shown separately in a figure; the rest is summed up
_PACKAGES = ("jax", "jaxlib", "flax", "numpy")
_UNKNOWN = "not known"


def make_profile_dir(work_dir: Path) -> Path:
    """Makes the only directory that a profile writes to, so that it may run beside a training.

    Raises:
        WorkDirError: the directory cannot be made.
    """
    directory = work_dir / PROFILE_DIR
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkDirError(f"Cannot make {directory}: {error}.") from error
    return directory


def write_profile(
    directory: Path, config: Mapping[str, Any], networks: Mapping[str, NetworkProfile]
) -> dict[str, Any]:
    """Writes `profile.json`, `profile.md` and the figures.

    Args:
        directory: from `make_profile_dir`.
        config: the whole configuration.
        networks: from `profile_networks`.

    Returns:
        The content of `profile.json`.
    """
    profile = {
        "networks": {name: _network_json(network) for name, network in networks.items()},
        "storage": _storage(*largest_activation(networks)),
        "device": _device(networks),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "config": config,
    }
    write_atomically(directory / "profile.json", f"{json.dumps(profile, indent=1)}\n".encode())
    pictures = _draw(directory, profile, networks)
    write_atomically(directory / "profile.md", _markdown(profile, networks, pictures).encode())
    return json.loads((directory / "profile.json").read_text())


def profile_table(profile: Mapping[str, Any]) -> str:
    """A table of each network's memory under "none" and under the policy, legible as plain text.

    Args:
        profile: the content of `profile.json`.
    """
    names = (
        "network",
        "policy",
        "batch",
        "kept MiB",
        "activations MiB",
        "temporaries MiB",
        "GFLOP",
    )
    rows = []
    for name, network in profile["networks"].items():
        for label, measured in network["policies"].items():
            report, compiled = measured["report"], measured["report"]["compiled"] or {}
            flops = compiled.get("flops")
            rows.append(
                (
                    name,
                    label if label == measured["preset"] else f"{label}: {measured['preset']}",
                    str(measured["batch_size"]),
                    _mib(report["total_residual_bytes"]),
                    _mib(report["activation_bytes"]),
                    _mib(compiled.get("temporary_bytes")),
                    _UNKNOWN if flops is None else f"{flops / 1e9:,.3f}",
                )
            )
    return padded_table(names, rows, "llr")


def _device(networks: Mapping[str, NetworkProfile]) -> str:
    """What the programs were compiled for: the devices that are here, or a target."""
    report = next(iter(networks.values())).policies[PLAIN].report
    is_here = report.device == jax.devices()[0].device_kind
    return f"{jax.device_count()} x {report.device}" if is_here else report.device


def _network_json(network: NetworkProfile) -> dict[str, Any]:
    densities = network.densities
    return {
        "variables": network.source,
        "policies": {label: _policy_json(p) for label, p in network.policies.items()},
        "densities": {
            "num_batches": densities.num_batches,
            "layers": [
                dataclasses.asdict(row) | {"kind": densities.kinds[row.name]}
                for row in densities.by_layer
            ],
            "kinds": [dataclasses.asdict(row) for row in densities.by_kind],
        },
    }


def _policy_json(measured: PolicyProfile) -> dict[str, Any]:
    return {
        "preset": measured.policy.preset,
        "capacity": measured.policy.capacity,
        "capacities": dict(measured.policy.capacities),
        "batch_size": measured.batch_size,
        "report": measured.report.to_dict(),
        "sweep": [dataclasses.asdict(row) for row in measured.sweep],
    }


def _storage(num_elements: int, value_bits: int) -> dict[str, Any]:
    densities = np.linspace(0.0, 1.0, _NUM_POINTS).tolist()
    return {
        "num_elements": num_elements,
        "value_bits": value_bits,
        "densities": densities,
        "curves": {
            name: storage_curve(name, num_elements, densities, value_bits=value_bits).tolist()
            for name in STORAGES
        },
        "crossovers": [
            {
                "storage": one,
                "other": other,
                "density": crossover_density(one, other, num_elements, value_bits=value_bits),
            }
            for one, other in itertools.combinations(STORAGES, 2)
        ],
    }


def _draw(
    directory: Path, profile: Mapping[str, Any], networks: Mapping[str, NetworkProfile]
) -> dict[str, list[str]]:
    """Draws the figures; returns file names by network, with general ones under ""."""
    pictures: dict[str, list[str]] = {"": ["storage.png"]}
    storage = profile["storage"]
    plot_storage(directory / "storage.png", storage["densities"], storage["curves"])
    for name, network in networks.items():
        pictures[name] = [f"residuals_{name}.png"]
        plot_residuals(directory / pictures[name][0], _operations(network))
        for label, measured in network.policies.items():
            pictures[name].append(f"sweep_{name}_{label}.png")
            rows = [dataclasses.asdict(row) for row in measured.sweep]
            plot_batch_memory(directory / pictures[name][-1], rows)
        if network.densities.by_layer:
            pictures[name].append(f"densities_{name}.png")
            histograms = {row.name: row.histogram for row in network.densities.by_layer}
            plot_densities(directory / pictures[name][-1], histograms)
    return pictures


def _operations(network: NetworkProfile) -> dict[str, dict[str, int]]:
    """Bytes of the activations by policy and operation, with small operations summed as "other"."""
    sizes = {k: p.report.bytes_by_operation for k, p in network.policies.items()}
    total: collections.Counter[str] = collections.Counter()
    for by_operation in sizes.values():
        total.update(by_operation)
    shown = [name for name, _ in total.most_common(_NUM_OPERATIONS)]
    folded: dict[str, dict[str, int]] = {}
    for label, by_operation in sizes.items():
        folded[label] = {name: by_operation.get(name, 0) for name in shown}
        if len(total) > len(shown):
            folded[label]["other"] = sum(by_operation.values()) - sum(folded[label].values())
    return folded


def _markdown(
    profile: Mapping[str, Any],
    networks: Mapping[str, NetworkProfile],
    pictures: Mapping[str, Sequence[str]],
) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in profile["versions"].items())
    parts = [
        "# Memory profile",
        profile_table(profile),
        "Kept: all residuals of the backward pass, including parameters. Activations: residuals "
        "that only the backward pass needs. Both are sums over all devices. Temporaries and FLOPs: "
        "of the compiled loss and gradient, per device, without the optimiser.",
        f"{profile['device']}, Python {profile['python']}, {versions}.",
    ]
    for name, network in networks.items():
        parts += _network_markdown(name, network, pictures[name])
    parts += _storage_markdown(profile["storage"])
    for name, network in networks.items():
        for label, measured in network.policies.items():
            parts += [f"## Residuals: {name}, {label}", measured.report.to_markdown()]
    parts += ["## Configuration", f"```json\n{json.dumps(profile['config'], indent=1)}\n```"]
    return "\n\n".join(parts) + "\n"


def _network_markdown(name: str, network: NetworkProfile, pictures: Sequence[str]) -> list[str]:
    parts = [f"## {name.capitalize()}", f"Variables: {network.source}."]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in pictures]
    for label, measured in network.policies.items():
        parts += [f"### Batch sizes: {name}, {label}", _sweep_table(measured)]
        if measured.policy.capacities:
            capacities = [(segment, f"{c:.4f}") for segment, c in measured.policy.capacities]
            parts += ["Capacities of the bitmaps:"]
            parts += [padded_table(("segment", "capacity"), capacities)]
    return [*parts, f"### Densities: {name}", *_density_markdown(network.densities)]


def _sweep_table(measured: PolicyProfile) -> str:
    kinds = ("parameter", "gradient", "activation", "temporary")
    rows = [
        (str(row.batch_size), *(_mib(getattr(row, f"{kind}_bytes")) for kind in kinds))
        for row in measured.sweep
    ]
    return padded_table(("batch", *(f"{kind} MiB" for kind in kinds)), rows, "r")


def _density_markdown(densities: DensityProfile) -> list[str]:
    if not densities.by_layer:
        return ["No segment of this model reports a density."]
    return [
        "Share of non-zero entries in the input of each segment, over "
        f"{densities.num_batches} batches.",
        densities_to_markdown(densities.by_kind),
        densities_to_markdown(densities.by_layer),
    ]


def _storage_markdown(storage: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in storage["crossovers"]:
        density = row["density"]
        rows.append((row["storage"], row["other"], "none" if density is None else f"{density:.5f}"))
    return [
        "## Storages",
        f"For {storage['num_elements']:,} entries of {storage['value_bits']} bits, the size of the "
        f'largest activation kept under "{PLAIN}".',
        "![storage](storage.png)",
        padded_table(("storage", "other", "equal size at density"), rows, "llr"),
    ]


def _mib(num_bytes: int | None) -> str:
    return _UNKNOWN if num_bytes is None else f"{num_bytes / _MIB:,.3f}"
