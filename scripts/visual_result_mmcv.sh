#!/usr/bin/env bash
# Detections painted over the photos, beside the ground truth where there is one (mmcv is not needed).
#   bash scripts/visual_result_mmcv.sh [CONFIG] [RUN] [tools/visualize.py options]
#   bash scripts/visual_result_mmcv.sh resnet50_voc runs/resnet50_voc --score-threshold 0.5 --max-images 200
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
run=()
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
if [[ $# -gt 0 && $1 != --* ]]; then run=(--set "work_dir=$1"); shift; fi
python "$root/tools/visualize.py" "$config" "$@" "${run[@]}"
