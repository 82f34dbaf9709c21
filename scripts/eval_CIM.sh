#!/usr/bin/env bash
# Detections and metrics of a trained network, with test-time augmentation.
#   bash scripts/eval_CIM.sh [CONFIG] [RUN or CHECKPOINT] [--set key=value ...]
#   GPUS=4 bash scripts/eval_CIM.sh resnet50_voc
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
checkpoint=()
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
if [[ $# -gt 0 && $1 != --* ]]; then checkpoint=(--checkpoint "$1"); shift; fi
launch=(python)
if [[ ${GPUS:-1} -gt 1 ]]; then launch=(torchrun --standalone --nproc_per_node "$GPUS"); fi
"${launch[@]}" "$root/tools/test.py" "$config" "${checkpoint[@]}" "$@"
python "$root/tools/evaluation.py" "$config" --if-annotated "${checkpoint[@]}" "$@"
