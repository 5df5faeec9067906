#!/usr/bin/env bash
# Everything that needs a GPU, as one command; JSON goes to benchmarks/results.
#
#   bash benchmarks/gpu.sh [STEP ...]
#
#   tests        the tests marked `gpu`
#   kernels      training steps kernel by kernel, by the profiler
#   speed        forward passes and training steps: dense, generated, PyTorch
#   memory       temporaries and the time of every policy
#   allocator    the allocator's peak beside the compiled bytes
#   bitmap       packing and unpacking beside a copy
#   calibration  every implementation of single layers, for `auto`
#   cifar10      teacher, projection and student of configs/cifar10_resnet18_fast.py
#
# Without STEP, all of them. A step that has finished is skipped; delete $OUT/STEP.done to repeat
# it. A step that fails does not keep the others from running. Settings, from the environment:
#   PYTHON  the interpreter (python3)         OUT   results and logs (benchmarks/results)
#   WORK    run directory of cifar10 and compiled programs (runs/gpu)
#   TOY=1   tiny sizes, to try the script where there is no GPU; give OUT another directory
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # PyTorch and other steps share the GPU

python=${PYTHON:-python3} out=${OUT:-benchmarks/results} work=${WORK:-runs/gpu}
mkdir -p "$out" "$work"
cache=$work/compiled

if [[ -n ${TOY:-} ]]; then
  batches=(2) timing=(--rounds 2 --min-seconds 0 --calls 2)
  pytest=(--collect-only) contestants=("generate, quantised") kernels=(--batch 2)
  policies=(flax blocks) memory=(--batch 2) runs=2 bitmaps=(--size 4096 --runs 3)
  calibration=(--every 60 --max-gflop 0.05 --keep)
  cifar10=(--config.data.name=digits --config.data.batch_size=256 --config.model.width=0.0625
           --config.generation.base_out=4 --config.projection.num_steps=2
           --config.data.num_validation=None --config.data.augment.horizontal_flip=False
           --config.teacher.train.num_epochs=1 --config.student.train.num_epochs=1)
else
  batches=(128 512) timing=(--rounds 10 --min-seconds 1 --calls 10)
  contestants=("generate, quantised" "factored_out, quantised" "factored, quantised"
               "auto, quantised" "generate, stored" "factored_out, stored" "auto, stored")
  pytest=() kernels=(--batch 128)
  policies=(flax "flax, nn.remat" none convs blocks bitmap_blocks bitmap_units quantized_blocks)
  memory=() runs=20 bitmaps=(--size 33554432)
  calibration=(--network resnet18 resnet50 --max-gflop 150)
  cifar10=()
fi

tests() {
  grep -rl "mark\.gpu" tests | xargs "$python" -m pytest -q -m gpu "${pytest[@]}" \
    --junitxml="$out/tests_gpu.xml"
}
kernels() {
  "$python" benchmarks/kernels.py "${kernels[@]}" --only "generate, quantised" "auto, quantised" \
    --cache "$cache" --out "$out"
}
speed() {
  "$python" benchmarks/compute.py --network resnet18 --dtype bfloat16 --forward "${batches[@]}" \
    --train "${batches[@]}" "${timing[@]}" --only "${contestants[@]}" --jobs 4 --cache "$cache" \
    --out "$out"
}
memory() {
  "$python" benchmarks/memory.py --model resnet18 --dtype bfloat16 --runs "$runs" "${memory[@]}" \
    --policy "${policies[@]}" --cache "$cache" --out "$out"
}
allocator() {
  "$python" benchmarks/memory.py --model resnet18 --dtype bfloat16 --allocator "${memory[@]}" \
    --policy "${policies[@]}" --cache "$cache" --jobs 8 --out "$out"
}
bitmap() {
  "$python" benchmarks/bitmap.py "${bitmaps[@]}" --out "$out"
}
calibration() {
  "$python" benchmarks/calibrate_implementation.py --measure --dtype bfloat16 \
    "${calibration[@]}" --jobs "$(nproc)" --out "$out"
}
cifar10() {
  "$python" launch.py --config=configs/cifar10_resnet18_fast.py --workdir="$work/cifar10" \
    "${cifar10[@]}" && cp "$work/cifar10/report/summary.json" "$out/cifar10_resnet18_fast_gpu.json"
}

steps=("$@")
[[ $# -gt 0 ]] || steps=(tests kernels allocator memory speed bitmap calibration cifar10)
failed=()
for step in "${steps[@]}"; do
  if [[ ! $step =~ ^(tests|kernels|speed|memory|allocator|bitmap|calibration|cifar10)$ ]]; then
    sed -n '/^#   tests/,/^#   cifar10/s/^# //p' "$0" >&2
    echo "A step must be one of those above; got '$step'." >&2
    exit 2
  fi
done
for step in "${steps[@]}"; do
  if [[ -e $out/$step.done ]]; then
    echo "== $step: done before"
    continue
  fi
  echo "== $step"
  begin=$SECONDS
  if "$step" 2>&1 | tee "$out/$step.log"; then
    date -u +%FT%TZ >"$out/$step.done"
  else
    failed+=("$step")
  fi
  echo "== $step: $((SECONDS - begin)) s"
done
[[ ${#failed[@]} -eq 0 ]] || { echo "failed: ${failed[*]}" >&2; exit 1; }
