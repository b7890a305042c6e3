#!/bin/bash
# What there is to measure on a GPU, in pieces of at most nine minutes each. A piece that is done is not run again, so a
# machine that is lost takes one piece with it: run the same command on the next.
#
#   benchmarks/gpu.sh FOLDER [PIECE...]          everything that FOLDER misses, or these pieces
#   benchmarks/gpu.sh --toy FOLDER [PIECE...]    the same commands with toy sizes on whatever there is: a rehearsal
#   IMAGES=folder:data/imagenette224 benchmarks/gpu.sh FOLDER
#
# IMAGES are real JPEGs in class folders, read as `ssl-bench speed --data` does. FOLDER gets the text of each piece
# (PIECE.txt; errors in PIECE.log), the GPU's load meanwhile (PIECE.load.csv, where nvidia-smi is), and the rows of the suite. Status 0: every
# piece is done; 1: some are not, which the last lines name.
set -u
toy=
if [ "${1:-}" = --toy ]; then toy=1; shift; fi
out=${1:?usage: benchmarks/gpu.sh [--toy] FOLDER [PIECE...]}
shift
python=${PYTHON:-python}
images=${IMAGES:-folder:data/imagenette224}
small=vit_small_patch16_224 base=vit_base_patch16_224 batch=256 large=128 rounds=3 seconds=15 limit=540
if [ -n "$toy" ]; then
  small=vit_micro_patch8_32 base=vit_micro_patch4_32 batch=16 large=16 rounds=1 seconds=0.1
  images=${IMAGES:-synthetic}
fi
mkdir -p "$out"

export python toy images small base batch large rounds seconds limit out

# speed METHOD BACKBONE BATCH DATA [MORE...]: as JSON; in a rehearsal with the heads of the quick recipe
speed() {
  local method=$1 backbone=$2 size=$3 data=$4
  shift 4
  $python -m ssl_bench.cli speed "$method" ${toy:+--recipe quick} --backbone "$backbone" --batch "$size" --data "$data" \
    --rounds "$rounds" --seconds "$seconds" --json "$@"
}

# One piece. The suite goes as far as it comes in its time, and the next piece goes on.
run() {
  local method=${1#*_}
  case $1 in
    tests) CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} $python -m pytest -m gpu tests/gpu ;;
    small_*) SSL_BENCH_MEMORY=0 speed "$method" "$small" "$batch" "$images" ;; # each image is decoded when it is needed
    base_*) SSL_BENCH_MEMORY=0 speed "$method" "$base" "$large" "$images" ;;
    compile_*) speed "$method" "$small" "$batch" synthetic --against compile=true ;;
    suite_*)
      if [ -n "$toy" ]; then
        $python -m ssl_bench.cli bench quick --out "$out/suite" --dry-run
      else
        timeout $((limit - 60)) $python -m ssl_bench.cli bench imagenette-vit-small --data "$images" --out "$out/suite"
        case $? in 0 | 124) ;; *) false ;; esac # 124: its time is up, and the next piece goes on
      fi
      ;;
  esac
}
export -f speed run

pieces=tests
for method in mae moco_v3 dino ibot; do
  pieces="$pieces small_$method base_$method compile_$method"
done
pieces="$pieces suite_1 suite_2 suite_3"

missing=
for piece in ${@:-$pieces}; do
  case " $pieces " in *" $piece "*) ;; *) echo "no piece $piece; there are: $pieces" >&2; exit 2 ;; esac
  [ -e "$out/$piece.done" ] && continue
  echo "== $piece"
  load=
  if command -v nvidia-smi > /dev/null; then
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv,noheader -l 1 > "$out/$piece.load.csv" 2> /dev/null &
    load=$!
  fi
  if timeout --kill-after 10 "$limit" bash -c "run $piece" > "$out/$piece.txt" 2> "$out/$piece.log"; then
    touch "$out/$piece.done"
  else
    missing="$missing $piece"
    tail -n 3 "$out/$piece.log"
  fi
  [ -z "$load" ] || kill "$load" 2> /dev/null
done
[ -z "$missing" ] || { echo "not done:$missing" >&2; exit 1; }
