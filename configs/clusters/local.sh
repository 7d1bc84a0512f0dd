#!/usr/bin/env bash
# Workers as processes of this machine, to try a run before it goes to a real cluster. They train on the CPU: a worker
# drives all GPUs that it sees, and two cannot share one.
#
#     configs/clusters/local.sh                 two workers train version 1
#     WORKERS=3 configs/clusters/local.sh       three
#
# Tried on Linux with 2 to 4 workers and TensorFlow 2.21, on CPUs.
set -euo pipefail
cd "$(dirname "$0")/../.."

WORKERS="${WORKERS:-2}"
RUNS="${RUNS:-runs/local}"
PYTHON="${PYTHON:-python3}"

# launch_local sets TF_CONFIG for each worker, and writes its rank before each of its lines. Ctrl-C stops all after the
# same step, with a checkpoint; the same command once more goes on from there.
export CUDA_VISIBLE_DEVICES=-1
exec "$PYTHON" scripts/launch_local.py --workers="$WORKERS" --stderr_dir="$RUNS/stderr" -- \
    "$PYTHON" scripts/train_lm.py \
    --strategy=multiworker \
    --model_version=1 \
    --steps="${STEPS:-100}" \
    --batch_size="$((8 * WORKERS))" \
    --checkpoint_dir="$RUNS/v1" \
    --checkpoint_every=50 \
    --loss_log="$RUNS/v1.jsonl" \
    "$@"
