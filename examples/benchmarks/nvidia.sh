#!/usr/bin/env bash
# All that is to be measured on an NVIDIA GPU of 80 GB or more, in one run of less than ten minutes:
#
#     examples/benchmarks/nvidia.sh FOLDER [SHAPE]
#
# leaves reports, pictures and a log in FOLDER. What a part cannot do, its log says; the others go on. SHAPE is 26b-a4b
# unless it is `tiny`, which tries the script out where there is no GPU.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
shape=${2:-26b-a4b}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
if [ "$shape" = tiny ]; then
    precisions="float32" contexts=64,128 batches=1,2 plain=float32
else
    precisions="bf16 fp8 4bit" contexts=512,4096,32768 batches=1,4,16 plain=bf16
fi

part() {  # name, command...
    local name=$1 start=$SECONDS
    shift
    echo "== $name: $*" | tee -a "$out/log.txt"
    timeout 240 "$@" >"$out/$name.out" 2>"$out/$name.err"
    echo "   exit $? after $((SECONDS - start)) s" | tee -a "$out/log.txt"
}

# What decides first: one context, one row, ours and the reference.
for precision in $precisions; do
    part "$precision" $python -m mlx_dgemma.benchmark --backend torch --dummy "$shape" --precision "$precision" \
        --context "${contexts%%,*}" --json --out "$out/$precision.json" --plot "$out/$precision.png"
done
for cache in dynamic static; do
    part "transformers-$cache" $python examples/benchmarks/transformers_step.py --shape "$shape" --cache $cache \
        --precision $plain --context "${contexts%%,*}"
done
part tests $python -m pytest -q tests/torch_backend/test_torch_cuda.py tests/torch_backend/test_torch_kernels.py
for precision in $precisions; do
    part "$precision-grid" $python -m mlx_dgemma.benchmark --backend torch --dummy "$shape" --precision "$precision" \
        --context "$contexts" --batch "$batches" --repeat 5 --json --out "$out/$precision-grid.json"
done
reports=()
for precision in $precisions; do [ -f "$out/$precision.json" ] && reports+=("$out/$precision.json"); done
part compare $python -m mlx_dgemma.benchmark compare "${reports[@]}" --plot "$out/compare.png"
cat "$out"/transformers-*.out "$out/compare.out"
