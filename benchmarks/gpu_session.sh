#!/usr/bin/env bash
# Everything that needs a GPU, in one go: build, tests, sanitizers, benchmarks, experiments.
#
#   bash benchmarks/gpu_session.sh DIR [tests|sanitizers|benchmarks|experiments]...
#
# Writes logs, stages.json, gpu.json, gpu.md and runs/ into DIR; division-80.json and division-65.json are
# the summaries of decomposed division at 80 and 65 % of the data. Runs that a time limit cut off go on when
# the session is started again with the same DIR. Needs Python with a CUDA build of torch, Triton,
# pytest, hypothesis and SciPy; nvcc or CuPy for the CUDA kernels. PYTHON names the interpreter. Installs
# the package in place, without its dependencies. Goes on after a stage that fails and exits with 1.
set -uo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ]; then
  echo "usage: bash benchmarks/gpu_session.sh DIR [tests|sanitizers|benchmarks|experiments]..." >&2
  exit 2
fi
out=$1
shift
wanted=${*:-tests sanitizers benchmarks experiments}
for part in $wanted; do
  case $part in
    tests | sanitizers | benchmarks | experiments) ;;
    *)
      echo "$part: expected tests, sanitizers, benchmarks or experiments" >&2
      exit 2
      ;;
  esac
done
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
stages="$out/stages.tsv"
: >"$stages"
failed=0

# stage NAME SECONDS COMMAND...: runs it with a time limit, keeps its log, notes its exit status.
stage() {
  local name=$1 limit=$2 started=$SECONDS status
  shift 2
  echo "== $name"
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  tail -n 4 "$out/$name.log"
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - started))" >>"$stages"
  [ "$status" -eq 0 ] || failed=1
}

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
  echo "torch of $python finds no CUDA device" >&2
  exit 1
}

stage install 300 "$python" -m pip install --no-deps --no-build-isolation -e .

for part in $wanted; do
  case $part in
    tests)
      stage tests 500 "$python" -m pytest -q -m gpu -p no:cacheprovider \
        --continue-on-collection-errors tests
      ;;
    sanitizers)
      # Freed memory goes back to the driver, so that a read past a tensor is a read past an allocation.
      for tool in memcheck racecheck synccheck initcheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "sanitizer-$tool" 140 \
          compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m benchmarks.gpu.small
      done
      ;;
    benchmarks)
      stage benchmarks 500 "$python" -m benchmarks.gpu --out "$out/gpu"
      ;;
    experiments)
      # The first seed of every arm comes first; one process leaves gaps that others fill.
      for share in 80:3 65:1; do
        percent=${share%:*}
        stage "division-$percent" 900 "$python" -m experiments.decomposed_division.study \
          --preset "paper$percent" --seeds "${share#*:}" --jobs 4 --device cuda --out "$out/runs"
        summary="$out/runs/decomposed_division/study-paper$percent/summary.json"
        [ ! -e "$summary" ] || cp "$summary" "$out/division-$percent.json"
      done
      ;;
  esac
done

"$python" - "$stages" "$out/stages.json" <<'PROGRAM'
import json
import sys

rows = [line.rstrip("\n").split("\t") for line in open(sys.argv[1], encoding="utf-8")]
stages = [{"stage": s, "exit_status": int(e), "seconds": int(t)} for s, e, t in rows]
json.dump(stages, open(sys.argv[2], "w", encoding="utf-8"), indent=1)
for row in stages:
    print(f"{row['stage']:<20} exit {row['exit_status']:>3}  {row['seconds']:>4} s")
PROGRAM
exit "$failed"
