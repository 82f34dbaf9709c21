#!/usr/bin/env bash
# CIM training: prepares what is missing (proposals of a folder of photos, response network, first labels), then
# trains, or continues a run that was stopped.
#   bash scripts/train_CIM.sh [CONFIG] [--set key=value ...]
#   bash scripts/train_CIM.sh resnet50_voc --set train.workers=8
#   GPUS=4 bash scripts/train_CIM.sh hrnet48_voc
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
if [[ $# -gt 0 && $1 == --help ]]; then sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
launch=(python)
if [[ ${GPUS:-1} -gt 1 ]]; then launch=(torchrun --standalone --nproc_per_node "$GPUS"); fi

missing="$(python "$root/tools/train.py" "$config" --missing "$@")"
for stage in $missing; do
  case $stage in
    proposals) python "$root/tools/pre/generate_proposals.py" "$config" "$@" ;;
    prm) "${launch[@]}" "$root/tools/train_prm.py" "$config" "$@" ;;
    first_labels) python "$root/tools/pre/AGPL_label_assign.py" "$config" "$@" ;;
  esac
done
"${launch[@]}" "$root/tools/train.py" "$config" "$@"
