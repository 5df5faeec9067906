"""Packed variables decode, bit for bit, to the values that quantised training uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mlg_jax import GenerationSpec, QuantSpec, fake_quantize
from mlg_jax.export import (
    PackedFileError,
    PackedModel,
    decode_variables,
    pack_variables,
    round_floats,
    to_codes,
    unpack_variables,
    write_packed,
)
from mlg_jax.kernels import Factor, LayerRecord
from mlg_jax.layers import layer_records
from mlg_jax.quant import MIN_BITS, decode
from tests._models import tiny_resnet, variable_shapes
from tests.export import _numpy_reader
from tests.export._examples import SCHEMES, coded

SHAPE = (5, 2, 7)


def layers(scheme):
    """One layer with a single factor per bit width, and the values."""
    rng, records, params = np.random.default_rng(3), [], {}
    for bits in range(MIN_BITS[scheme], 17):
        factor = Factor("kernel", SHAPE, QuantSpec(bits, scheme))
        records.append(LayerRecord((f"dense{bits}",), "dense", factors=(factor,)))
        params[f"dense{bits}"] = {"kernel": rng.normal(0, 0.3, SHAPE).astype(np.float32)}
    return records, {"params": params}


def quantized(records, variables):
    """The factors after `fake_quantize`."""
    flat = traverse_util.flatten_dict(variables)
    for record in records:
        for factor in record.factors:
            if factor.quant != QuantSpec():
                path = ("params", *record.path, factor.name)
                spec = factor.quant
                flat[path] = fake_quantize(jnp.asarray(flat[path]), spec)
    return traverse_util.unflatten_dict(flat)


def assert_same_bits(actual, expected):
    actual, expected = map(traverse_util.flatten_dict, (actual, expected))
    assert actual.keys() == expected.keys()
    for path in expected:
        one, other = np.asarray(actual[path]), np.asarray(expected[path])
        assert one.dtype == other.dtype and one.shape == other.shape, path
        assert one.tobytes() == other.tobytes(), path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_of_every_width_are_bit_exact(scheme):
    records, variables = layers(scheme)
    packed = pack_variables(records, variables, {})
    expected = quantized(records, variables)
    in_jit = jax.jit(lambda variables: quantized(records, variables))(variables)
    assert_same_bits(in_jit, expected)
    assert_same_bits(unpack_variables(packed), expected)
    assert_same_bits(jax.jit(decode_variables)(packed.tensors), expected)
    for tensor in packed.tensors:
        values = decode(to_codes(tensor))
        assert values.tobytes() == expected["params"][tensor.path[1]]["kernel"].tobytes()


def test_a_model_of_generated_layers():
    spec = GenerationSpec(2, 5, QuantSpec(3), QuantSpec(6, "qnn"), QuantSpec(1), init="variance")
    model = tiny_resnet(spec, channels=8, weight_bits=8)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), variable_shapes(model)
    )
    records = layer_records(model)
    packed = pack_variables(records, variables, {"a": (1, 2)})
    expected = jax.jit(lambda variables: quantized(records, variables))(variables)
    assert_same_bits(unpack_variables(packed), expected)
    assert_same_bits(jax.jit(decode_variables)(packed.tensors), expected)
    assert packed.manifest == {"a": [1, 2]}
    assert [t.path for t in packed.tensors] == sorted(t.path for t in packed.tensors)
    assert {(t.scheme, t.bits) for t in packed.tensors if t.bits} == {
        ("dorefa_sym", 1),
        ("dorefa_sym", 3),
        ("dorefa_sym", 8),
        ("qnn", 6),
    }


def test_bytes_are_those_of_the_accounting():
    records, variables = layers("qnn")
    packed = pack_variables(records, variables, {})
    assert packed.nbytes == sum(-(-r.num_bits // 8) + 8 for r in records)


def test_what_is_not_quantised_is_stored_as_it_is():
    factors = (Factor("kernel", (2,)), Factor("bias", (2,)))
    kernel = np.array([-0.0, 1e-42], np.float32)
    variables = {
        "params": {"dense": {"kernel": kernel, "bias": kernel[::-1]}},
        "batch_stats": {"range": {"is_set": np.array(False), "minimum": np.float32(-1.5)}},
    }
    packed = pack_variables([LayerRecord(("dense",), "dense", factors=factors)], variables, {})
    assert {t.scheme for t in packed.tensors} == {"bool", "float32"}
    assert_same_bits(unpack_variables(packed), variables)
    assert_same_bits(jax.jit(decode_variables)(packed.tensors), variables)


def test_floats_are_rounded_to_16_bits_if_asked(tmp_path):
    records, variables = layers("dorefa_sym")
    mean = np.array([1 / 3, -65504.0, 1e-9], np.float32)
    variables["batch_stats"] = {"norm": {"mean": mean, "is_set": np.array(True)}}
    exact = pack_variables(records, variables, {})
    packed = round_floats(exact)
    expected = quantized(records, variables)
    expected["batch_stats"]["norm"]["mean"] = mean.astype(np.float16).astype(np.float32)
    assert_same_bits(unpack_variables(packed), expected)
    assert_same_bits(jax.jit(decode_variables)(packed.tensors), expected)
    assert packed.nbytes == exact.nbytes - 2 * mean.size
    write_packed(tmp_path / "model", packed)
    found = traverse_util.unflatten_dict(_numpy_reader.read(tmp_path / "model")[1])
    assert_same_bits(found, expected)


@pytest.mark.bad_input
def test_what_16_bits_cannot_hold_is_named():
    packed = pack_variables([], {"batch_stats": {"mean": np.float32([1e5])}}, {})
    message = "magnitudes above 65,504, as in batch_stats/mean; got 16"
    with pytest.raises(ValueError, match=message):
        round_floats(packed)


def test_arrays_of_any_byte_order_are_packed_alike():
    records, variables = layers("qnn")
    swapped = jax.tree.map(lambda x: x.astype(x.dtype.newbyteorder(">")), variables)
    packed, expected = (pack_variables(records, v, {}) for v in (swapped, variables))
    assert_same_bits(unpack_variables(packed), unpack_variables(expected))


def test_the_unrounded_scheme_is_stored_as_its_values():
    record = LayerRecord(
        ("d",), "dense", factors=(Factor("kernel", (6,), QuantSpec(None, "tanh_norm")),)
    )
    x = np.linspace(-1, 2, 6, dtype=np.float32)
    packed = pack_variables([record], {"params": {"d": {"kernel": x}}}, {})
    expected = np.tanh(np.float64(x)) / np.tanh(2.0)
    assert np.allclose(unpack_variables(packed)["params"]["d"]["kernel"], expected, rtol=1e-6)


def test_any_finite_scale_is_decoded_in_silence():
    tensor = coded(("a",), (9,), "qnn", 3)
    constants = np.float32([-3e38, 3e38])
    packed = PackedModel((dataclasses.replace(tensor, constants=constants),), {})
    assert not np.all(np.isfinite(unpack_variables(packed)["a"]))


def pack_one(value, *, bits=4, manifest=None, shape=(2,)):
    record = LayerRecord(("d",), "dense", factors=(Factor("kernel", shape, QuantSpec(bits)),))
    variables = {"params": {"d": {"kernel": value}}}
    return pack_variables([record], variables, {} if manifest is None else manifest)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "value, options, error, message",
    [
        (np.ones(2), {}, TypeError, "must be float32 .or bool.; got float64 in params/d/kernel"),
        (np.ones(3, np.float32), {}, ValueError, r"with shape \(2,\); got \(3,\)"),
        (np.float32([1, np.nan]), {}, ValueError, "finite .* got NaN or infinity in params/d/ker"),
        (np.ones((0, 2), np.float32), {"shape": (0, 2)}, ValueError, r"got shape \(0, 2\)"),
        (np.float32([0, 1]), {"bits": 1}, ValueError, r"no exact zeros .* \(params/d/kernel\)"),
        (
            np.ones(2, np.float32),
            {"manifest": {"a": {1}}},
            TypeError,
            "`manifest` must be JSON-ser",
        ),
        (
            np.ones(2, np.float32),
            {"manifest": {"a": np.inf}},
            TypeError,
            "`manifest` must be JSON-ser",
        ),
        (np.ones(2, np.float32), {"manifest": [1]}, TypeError, "`manifest` must be Mapping"),
    ],
)
def test_bad_input(value, options, error, message):
    with pytest.raises(error, match=message):
        pack_one(value, **options)


@pytest.mark.bad_input
def test_a_missing_factor_is_named():
    record = LayerRecord(("a",), "dense", factors=(Factor("kernel", (2,)),))
    with pytest.raises(ValueError, match=r"params/a/kernel with shape \(2,\); got nothing"):
        pack_variables([record], {"params": {}}, {})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "path, shape, message",
    [
        (("params", "a-b"), (2,), "`packed` must fit the file format; .* name 'a-b'"),
        (("params", "a"), (1,) * 9, "other than 1 to 9 integers"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(tmp_path, path, shape, message):
    packed = PackedModel((coded(path, shape, "qnn", 2),), {})
    with pytest.raises(PackedFileError, match=message):
        write_packed(tmp_path / "model", packed)
    assert not any(tmp_path.iterdir())
