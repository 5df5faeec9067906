"""Sharded batches: each device packs its own rows."""

from tests._devices import assert_on_four_devices


def test_four_devices_against_one():
    assert_on_four_devices("tests.remat.mesh_script")
