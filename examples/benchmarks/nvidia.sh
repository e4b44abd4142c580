#!/usr/bin/env bash
# All that is to be measured on an NVIDIA GPU of 80 GB or more, in three parts of at most eight minutes:
#
#     examples/benchmarks/nvidia.sh FOLDER 1|2|3 [SHAPE]
#
#   1  is it right, against the CPU; then a step in bf16, fp8 and 4 bits at a context of 512, and which kernels it is
#   2  transformers' step, dynamic and static cache
#   3  4 bits at longer contexts and with more rows
#
# Each leaves all.tgz (reports, logs) and summary.txt in FOLDER, made anew after everything that ends. What fails says so
# there, and the rest goes on; what would begin after LIMIT seconds (470) is left out. SHAPE is 26b-a4b unless it is
# `tiny`, which tries the script out where there is no GPU. PYTHON names the python.
set -uo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
call=$2 shape=${3:-26b-a4b} limit=${LIMIT:-470}
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-$(command -v python3 || command -v python)}
# Tests compile for most of their time: several at once, and one that hangs ends alone, where pytest has these plugins.
plugins=$("$python" -c "import xdist, pytest_timeout; print('-n 8 --timeout 150 --timeout-method thread')" 2>/dev/null)
log=$(mktemp -d)
if [ "$shape" = tiny ]; then
    precisions="float32" context=64 contexts=64,128 rows=1,2 plain=float32
else
    precisions="bf16 fp8 4bit" context=512 contexts=512,4096,32768 rows=1,4,8 plain=bf16
fi

pack() { tar czf "$out/all.part" -C "$log" . && mv "$out/all.part" "$out/all.tgz"; }

part() {  # name, most seconds, command...
    local name=$1 most=$2 left=$((limit - SECONDS)) start=$SECONDS
    shift 2
    if [ "$left" -lt 15 ]; then echo "$name: left out, no time" | tee -a "$out/summary.txt"; return; fi
    timeout "$((most < left ? most : left))" "$@" >"$log/$name.out" 2>"$log/$name.err"
    echo "$name: exit $? after $((SECONDS - start)) s" | tee -a "$out/summary.txt"
    tail -n 12 "$log/$name.out" | cut -c1-200 | tee -a "$out/summary.txt"
    tail -n 3 "$log/$name.err" | cut -c1-300 | tee -a "$out/summary.txt"
    pack
}

benchmark() {  # name, most seconds, flags of `benchmark`...
    local name=$1 most=$2
    shift 2
    part "$name" "$most" "$python" -m mlx_dgemma.benchmark --backend torch --dummy "$shape" --out "$log/$name.json" "$@"
}

part imports 60 "$python" -c "import jsonschema, mlx_dgemma.benchmark.__main__, mlx_dgemma.torch_backend.dummy"
case $call in
1)
    part tests 170 "$python" -m pytest -q -p no:cacheprovider --tb short $plugins tests/torch_backend/test_torch_cuda.py tests/torch_backend/test_torch_kernels.py
    for precision in $precisions; do benchmark "$precision" 150 --precision "$precision" --context "$context"; done
    for precision in $precisions; do  # what it was compiled for is cached by now
        part "$precision-kernels" 100 "$python" examples/benchmarks/torch_kernels.py --shape "$shape" --precision "$precision" --context "$context"
    done
    ;;
2)
    for cache in dynamic static; do  # static compiles for minutes
        part "transformers-$cache" 400 "$python" examples/benchmarks/transformers_step.py --shape "$shape" --cache $cache --precision "$plain" --context "$context"
    done
    ;;
3)
    benchmark "${precisions##* }-grid" 460 --precision "${precisions##* }" --context "$contexts" --batch "$rows" --repeat 5
    ;;
esac
