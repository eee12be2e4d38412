#!/usr/bin/env bash
# The comparisons of docs/benchmarks.md, one after the other, saved under runs/speed; then the plot.
# Remove a file there to measure it again.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python}"
mkdir -p runs/speed
compare() { # NAME OPTIONS…
  [ -e "runs/speed/$1.json" ] || { echo "== $1"; "$PYTHON" benchmarks/speed.py "${@:2}" --save "runs/speed/$1.json"; }
}
for precision in float32 bfloat16; do
  for data in hh_harmless dpo_en_demo; do
    compare "$data-defaults-$precision" --data "$data" --precision "$precision"
    compare "$data-sorted-$precision" --data "$data" --precision "$precision" --sorted --activation-checkpointing off
  done
  compare "hh_harmless-evaluation-$precision" --data hh_harmless --precision "$precision" --work evaluate
  compare "equal-defaults-$precision" --data generated --prompt-words 0 --answer-words 200 --precision "$precision" --steps 4
  compare "equal-sorted-$precision" --data generated --prompt-words 0 --answer-words 200 --precision "$precision" \
    --sorted --activation-checkpointing off
done
compare hh_harmless-memory-float32 --data hh_harmless --activation-checkpointing off --repeats 1
for prompt in 60 150 240 270; do
  compare "share-$prompt" --data generated --prompt-words "$prompt" --answer-words $((300 - prompt)) \
    --activation-checkpointing off --steps 3 --repeats 2
done
"$PYTHON" benchmarks/plot.py runs/speed/{hh,dpo}*-{defaults,sorted,evaluation}-*.json runs/speed/share-*.json
"$PYTHON" benchmarks/preparation.py --data hh_harmless
"$PYTHON" benchmarks/preparation.py --data dpo_en_demo --rows 2400
"$PYTHON" benchmarks/scoring.py
