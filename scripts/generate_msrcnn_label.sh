#!/usr/bin/env bash
# Pseudo labels for Mask R-CNN: scores on the training photos, all detections of the classes each is said to show,
# and the copy with the scores that count (export.threshold, published 0.3).
#   bash scripts/generate_msrcnn_label.sh [CONFIG] [RUN or CHECKPOINT] [--set key=value ...]
#   GPUS=4 bash scripts/generate_msrcnn_label.sh resnet50_voc
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
config=resnet50_voc
checkpoint=()
if [[ $# -gt 0 && $1 == --help ]]; then sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0; fi
if [[ $# -gt 0 && $1 != --* ]]; then config=$1; shift; fi
if [[ $# -gt 0 && $1 != --* ]]; then checkpoint=(--checkpoint "$1"); shift; fi
launch=(python)
if [[ ${GPUS:-1} -gt 1 ]]; then launch=(torchrun --standalone --nproc_per_node "$GPUS"); fi
split="$(PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" python -c 'import sys
from cim.cli.common import parser, add_config_args, run
from cim.config.schema import load_config
p = parser("", "")
add_config_args(p)
a = p.parse_args(sys.argv[1:])
sys.exit(run(lambda: print(load_config(a.config, a.set).data.train_split)))' "$config" "$@")"
"${launch[@]}" "$root/tools/test.py" "$config" --split "$split" "${checkpoint[@]}" "$@"
python "$root/tools/generate_mask_for_MaskRCNN.py" "$config" "${checkpoint[@]}" "$@"
python "$root/tools/change_mask_thr.py" "$config" "$@"
