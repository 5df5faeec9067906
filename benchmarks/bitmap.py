"""Times packing and unpacking, relative to a plain copy of the same array.

    python benchmarks/bitmap.py [--size 65536 4194304] [--dtype float32 bfloat16] [--runs 31]

Everything is compiled first and timed in one process. There are two kinds of copy: one whose result
reuses the memory of the previous result, and `fresh`, whose results are all kept, so that the
operating system has to provide new pages, as in the first step of a program.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from _measure import compiled_bytes, median_seconds, save

from mlg_jax._tables import table_head, table_row
from mlg_jax.bitmap import pack, unpack

COLUMNS = (
    "dtype",
    "entries",
    "density",
    "copy ms",
    "fresh",
    "pack",
    "unpack",
    "temporary MiB",
    "bytes",
)
DENSITIES = (0.1, 0.3, 0.5, 0.7)
MARGIN = 0.05  # of the capacity above the density


def random_array(size, dtype, density):
    """Normally distributed entries, a share of `density` kept and the rest zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=size)
    x[rng.random(size) >= density] = 0.0
    return jnp.asarray(x, dtype)


def measure_copy(x, num_runs):
    """Times the reference, one elementwise operation, first without and then with kept results."""
    copy = jax.jit(lambda x: -x).lower(x).compile()
    kept = []
    return {
        "copy": median_seconds(lambda: copy(x), num_runs=num_runs),
        "copy_fresh": median_seconds(lambda: kept.append(copy(x)) or kept[-1], num_runs=9),
    }


def measure(x, density, num_runs):
    """Seconds and temporary bytes of both directions."""
    packing = jax.jit(lambda x: pack(x, capacity=density + MARGIN)).lower(x).compile()
    bitmap = packing(x)
    unpacking = jax.jit(unpack).lower(bitmap).compile()
    assert not bitmap.overflowed and jnp.array_equal(unpacking(bitmap), x)
    calls = {"pack": (packing, x), "unpack": (unpacking, bitmap)}
    return {
        name: {
            "seconds": median_seconds(lambda c=c, a=a: c(a), num_runs=num_runs),
            "bytes": compiled_bytes(c),
        }
        for name, (c, a) in calls.items()
    } | {"packed_bytes": bitmap.nbytes, "dense_bytes": x.nbytes}


def main():
    """Measures every size, dtype and density and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", type=int, nargs="+", default=[2**16, 2**20, 2**22], help="numbers of entries"
    )
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], help="dtypes")
    parser.add_argument("--runs", type=int, default=31, help="timed calls")
    parser.add_argument("--out", default=None, help="directory of the JSON file")
    args = parser.parse_args()
    results = []
    print(table_head(COLUMNS))
    for dtype in args.dtype:
        for size in args.size:
            for density in DENSITIES:
                x = random_array(size, dtype, density)
                row = measure_copy(x, args.runs) | measure(x, density, args.runs)
                results.append({"dtype": dtype, "size": size, "density": density} | row)
                copy = row["copy"]["median"]
                pack_s, unpack_s = (row[k]["seconds"]["median"] for k in ("pack", "unpack"))
                temporary = [row[k]["bytes"]["temporary"] / 2**20 for k in ("pack", "unpack")]
                cells = (
                    dtype,
                    str(size),
                    str(density),
                    f"{1e3 * copy:.2f}",
                    f"{row['copy_fresh']['median'] / copy:.1f}x",
                    f"{pack_s / copy:.1f}x",
                    f"{unpack_s / copy:.1f}x",
                    f"{temporary[0]:.2f} / {temporary[1]:.2f}",
                    f"{row['packed_bytes'] / row['dense_bytes']:.2f}",
                )
                print(table_row(cells), flush=True)
    path = save("bitmap", results, *([args.out] if args.out else []))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
