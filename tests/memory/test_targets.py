"""Compiling for a GPU that is not there: descriptions, schedules, and the compiler itself."""

import jax
import jax.numpy as jnp
import pytest

from mlg_jax._platform import traced_for, traced_platform
from mlg_jax.memory import TargetError, compile_for, memory_report
from mlg_jax.memory import _target_program as program
from mlg_jax.memory._schedule import num_bytes, read_schedule
from mlg_jax.memory.targets import TARGETS, to_text
from tests.memory._compiler import needs_compiler

TEXT = """HloModule jit_f, is_scheduled=true

ENTRY %main (p: f32[256]) -> (f32[256]) {
  %p = f32[256]{0} parameter(0)
  %a = f32[1024]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(f)/mul"}
  %c = (f32[512]{0}, s8[8192]{0}) custom-call(%a), custom_call_target="__cublas$lt$matmul"
  %g = f32[512]{0} get-tuple-element(%c), index=0
  %b = bf16[4096]{0} fusion(%g), kind=kLoop
  %o = f32[256]{0} fusion(%b), kind=kLoop
  ROOT %t = (f32[256]{0}) tuple(%o)
}
"""


def test_a_schedule_has_kernels_a_peak_and_workspaces():
    schedule = read_schedule(TEXT)
    assert [kernel.name for kernel in schedule.kernels] == ["%a", "%c", "%b", "%o"]
    assert schedule.kernels[1].target == "__cublas$lt$matmul"
    assert schedule.kernels[0].made_by == "jit(f)/mul"
    # With the workspace 4096 + 2048 + 8192 bytes are alive, without it at most 2048 + 8192.
    assert [buffer.num_bytes for buffer in schedule.alive_at_peak()] == [8192, 4096, 2048]
    assert schedule.workspace_bytes == (4096 + 2048 + 8192) - (2048 + 8192)


def test_bytes_of_shapes():
    assert num_bytes("(bf16[3,5]{1,0}, pred[7], f32[])") == 30 + 7 + 4


@pytest.mark.parametrize("name", TARGETS)
def test_descriptions_hold_the_numbers(name):
    target = TARGETS[name]
    text = to_text(target, 12)
    assert f"core_count: {target.num_cores}" in text
    assert f"memory_bandwidth: {target.bandwidth}" in text
    assert f'device_description_str: "{target.description}"' in text
    assert 2e11 < target.bandwidth < target.tensor_flops < 1e15
    assert target.shared_memory_per_block <= target.shared_memory_per_core


def test_functions_are_traced_again_for_another_platform():
    traced = []

    @jax.jit
    def f(x):
        traced.append(traced_platform())
        return x

    f(1.0)
    with traced_for("gpu"):
        f(1.0)
    f(1.0)
    assert traced == [jax.default_backend(), "gpu"]


@pytest.mark.bad_input
def test_bad_input(monkeypatch):
    x = jnp.ones(3)
    with pytest.raises(ValueError, match=r"`target` must be one of .*'h100'.*; got 'h1000'"):
        memory_report(jnp.sum, x, target="h1000")
    monkeypatch.setattr(program, "_PLUGINS", {12: "no_such_plugin"})
    with pytest.raises(ImportError, match=r'pip install "mlg-jax\[cuda12\]"'):
        compile_for("h100", jnp.sum, x)


@pytest.mark.bad_input
def test_functions_that_call_the_host_and_failures_of_the_compiler(monkeypatch):
    monkeypatch.setattr(program, "_PLUGINS", {12: "json"})

    def warns(x):
        jax.debug.callback(print, x)
        return x

    with pytest.raises(TargetError, match="`fn` must not call back to the host"):
        compile_for("h100", warns, jnp.ones(3))
    monkeypatch.setattr(program, "to_text", lambda target, version: "nonsense")
    with pytest.raises(TargetError, match="could not be compiled for 'h100' with jax"):
        compile_for("h100", jnp.sin, jnp.ones(3))


@needs_compiler
@pytest.mark.parametrize("name", TARGETS)
def test_every_target_compiles(name):
    found = compile_for(name, lambda x: jnp.sin(x) @ jnp.cos(x).T, jnp.ones((128, 256)))
    assert found.memory.argument_bytes == 4 * 128 * 256
    assert found.memory.output_bytes == 4 * 128 * 128
    own = found.memory.temporary_bytes - found.memory.workspace_bytes
    assert 0 < own < 2**20
    assert 2 <= len(found.schedule.kernels) <= 4


@needs_compiler
def test_the_report_is_of_the_target():
    report = memory_report(
        lambda w, x: jnp.sum(jnp.tanh(x @ w) ** 2),
        jnp.ones((256, 512)),
        jnp.ones((64, 256)),
        target="h100",
    )
    assert report.device == "NVIDIA H100 80GB HBM3, compiled for" and report.allocator is None
    assert report.compiled.temporary_bytes > report.activation_bytes > 0
    assert "workspaces among them" in report.to_markdown()
