#!/usr/bin/env bash
# Response network (PRM) from tags: trains, or continues a run that was stopped.
#   bash scripts/train_PRM.sh [CONFIG] [--set key=value ...]
#   bash scripts/train_PRM.sh resnet50_voc --set prm.precision=bf16
#   GPUS=4 bash scripts/train_PRM.sh resnet50_coco2017
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
if [[ $# -gt 0 && $1 == --help ]]; then sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
launch=(python)
if [[ ${GPUS:-1} -gt 1 ]]; then launch=(torchrun --standalone --nproc_per_node "$GPUS"); fi
"${launch[@]}" "$root/tools/train_prm.py" "$config" "$@"
