"""Costs of one layer: the counts and bytes of the original code."""

import json

import pytest

from mlg_jax import GenerationSpec
from mlg_jax._types import KernelShape, LayerGeometry
from mlg_jax.generation import generation_multiply_adds
from tests.conftest import REFERENCE

CASES = json.loads((REFERENCE / "mlg_conv.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["id"]))
def test_counts_and_bytes_match_the_original(case):
    bits = [case[f"{n}_bits"] for n in ("basis", "coeff_in", "coeff_out")]
    spec = GenerationSpec.from_bits(
        case["base_in"], case["base_out_requested"], *(None if b == 32 else b for b in bits)
    )
    k = case["kernel_size"]
    shape = KernelShape(case["out_channels"], case["in_channels"], (k, k))
    records = spec.bind(LayerGeometry(shape=shape)).factors
    assert sum(r.num_params for r in records) == case["num_params"]
    assert sum(r.num_bits for r in records) / 8 == case["bytes"]
    assert shape.size == case["num_params_full"]


def test_multiply_adds_by_hand():
    shape, spec = KernelShape(24, 16, (3, 3)), GenerationSpec(2, 10)
    within, across = 10 * (16 * 2) * 9, 24 * 10 * (16 * 9)
    assert generation_multiply_adds(spec.resolve(shape), shape) == within + across
    only_within = GenerationSpec(2, 0)
    assert generation_multiply_adds(only_within.resolve(shape), shape) == 24 * 16 * 2 * 9
