"""GPUs for which XLA can compile on a machine that has none."""

import dataclasses

from mlg_jax._checks import check_choice

_KIB = 2**10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A GPU as XLA's compiler sees it.

    Attributes:
        description: the name that its driver reports.
        compute_capability: major and minor version.
        num_cores: streaming multiprocessors.
        fpus_per_core: float32 units of each.
        threads_per_core: largest number of resident threads of each.
        shared_memory_per_core, shared_memory_per_block: in bytes; a block can have at most the
            latter, and has it only where it asks for more than 48 KiB.
        memory_bytes, l2_bytes: device memory and second-level cache.
        bandwidth: of the device memory, in bytes per second.
        clock_ghz: of the cores.
        tensor_flops: of dense products of bfloat16 (T4: float16) with float32 sums, per second.
    """

    description: str
    compute_capability: tuple[int, int]
    num_cores: int
    fpus_per_core: int
    threads_per_core: int
    shared_memory_per_core: int
    shared_memory_per_block: int
    memory_bytes: int
    l2_bytes: int
    bandwidth: int
    clock_ghz: float
    tensor_flops: float


# The first four are XLA's own (openxla/xla, xla/backends/gpu/target_config/specs). It has none for
# the others: theirs are NVIDIA's published figures and the limits of their compute capability.
# `tensor_flops` are those of NVIDIA's data sheets.
TARGETS: dict[str, Target] = {
    "h100": Target(
        description="NVIDIA H100 80GB HBM3",
        compute_capability=(9, 0),
        num_cores=132,
        fpus_per_core=128,
        threads_per_core=2048,
        shared_memory_per_core=228 * _KIB,
        shared_memory_per_block=227 * _KIB,
        memory_bytes=84_942_979_072,
        l2_bytes=52_428_800,
        bandwidth=3_352_320_000_000,
        clock_ghz=1.98,
        tensor_flops=989e12,
    ),
    "h200": Target(
        description="NVIDIA H200 141GB HBM3e",
        compute_capability=(9, 0),
        num_cores=132,
        fpus_per_core=128,
        threads_per_core=2048,
        shared_memory_per_core=228 * _KIB,
        shared_memory_per_block=227 * _KIB,
        memory_bytes=151_397_597_184,
        l2_bytes=52_428_800,
        bandwidth=4_800_000_000_000,
        clock_ghz=1.98,
        tensor_flops=989e12,
    ),
    "a100": Target(
        description="NVIDIA A100-SXM4-40GB",
        compute_capability=(8, 0),
        num_cores=108,
        fpus_per_core=64,
        threads_per_core=2048,
        shared_memory_per_core=164 * _KIB,
        shared_memory_per_block=163 * _KIB,
        memory_bytes=42_331_013_120,
        l2_bytes=41_943_040,
        bandwidth=1_555_200_000_000,
        clock_ghz=1.41,
        tensor_flops=312e12,
    ),
    "a100_80gb": Target(
        description="NVIDIA A100-SXM4-80GB",
        compute_capability=(8, 0),
        num_cores=108,
        fpus_per_core=64,
        threads_per_core=2048,
        shared_memory_per_core=164 * _KIB,
        shared_memory_per_block=163 * _KIB,
        memory_bytes=85_100_068_864,
        l2_bytes=41_943_040,
        bandwidth=2_039_040_000_000,
        clock_ghz=1.41,
        tensor_flops=312e12,
    ),
    "l4": Target(
        description="NVIDIA L4",
        compute_capability=(8, 9),
        num_cores=58,
        fpus_per_core=128,
        threads_per_core=1536,
        shared_memory_per_core=100 * _KIB,
        shared_memory_per_block=99 * _KIB,
        memory_bytes=24 * 10**9,
        l2_bytes=48 * _KIB**2,
        bandwidth=300 * 10**9,
        clock_ghz=2.04,
        tensor_flops=121e12,
    ),
    "rtx4090": Target(
        description="NVIDIA GeForce RTX 4090",
        compute_capability=(8, 9),
        num_cores=128,
        fpus_per_core=128,
        threads_per_core=1536,
        shared_memory_per_core=100 * _KIB,
        shared_memory_per_block=99 * _KIB,
        memory_bytes=24 * 10**9,
        l2_bytes=72 * _KIB**2,
        bandwidth=1_008 * 10**9,
        clock_ghz=2.52,
        tensor_flops=165e12,
    ),
    "t4": Target(
        description="Tesla T4",
        compute_capability=(7, 5),
        num_cores=40,
        fpus_per_core=64,
        threads_per_core=1024,
        shared_memory_per_core=64 * _KIB,
        shared_memory_per_block=64 * _KIB,
        memory_bytes=16 * 10**9,
        l2_bytes=4 * _KIB**2,
        bandwidth=320 * 10**9,
        clock_ghz=1.59,
        tensor_flops=65e12,
    ),
}


def find_target(name: str) -> Target:
    """The target of this name.

    Raises:
        TypeError, ValueError: `name` is not a key of `TARGETS`.
    """
    check_choice("target", name, TARGETS)
    return TARGETS[name]


def to_text(target: Target, cuda_version: int) -> str:
    """XLA's description of the target, a `GpuTargetConfigProto` in text form.

    Args:
        target: the GPU.
        cuda_version: major version of the CUDA runtime, 12 or 13.
    """
    major, minor = target.compute_capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: {48 * _KIB}
  shared_memory_per_core: {target.shared_memory_per_core}
  threads_per_core_limit: {target.threads_per_core}
  core_count: {target.num_cores}
  fpus_per_core: {target.fpus_per_core}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
  memory_bandwidth: {target.bandwidth}
  l2_cache_size: {target.l2_bytes}
  clock_rate_ghz: {target.clock_ghz}
  device_memory_size: {target.memory_bytes}
  shared_memory_per_block_optin: {target.shared_memory_per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: {2**16}
  registers_per_block_limit: {2**16}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: {cuda_version} minor: {9 if cuda_version == 12 else 0} patch: 0 }}
device_description_str: "{target.description}"
"""
