#!/usr/bin/env bash
# Mask R-CNN on the pseudo labels (scripts/generate_msrcnn_label.sh makes them), then its row in metrics.json.
#   bash scripts/train_mask_rcnn.sh [CONFIG] [--labels FILE] [--set key=value ...]
#   GPUS=4 bash scripts/train_mask_rcnn.sh resnet50_voc --set refine.precision=bf16
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
if [[ $# -gt 0 && $1 == --help ]]; then sed -n '2,4s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
launch=(python)
if [[ ${GPUS:-1} -gt 1 ]]; then launch=(torchrun --standalone --nproc_per_node "$GPUS"); fi
"${launch[@]}" "$root/tools/train_mask_rcnn.py" "$config" "$@"
