#!/usr/bin/env bash
# A run on a Cloud TPU that exists already, started from a machine with gcloud:
#
#     TPU_NAME=my-tpu ZONE=us-central2-b BUCKET=gs://my-bucket configs/clusters/cloud_tpu.sh
#     POD=1 TPU_NAME=my-slice ZONE=... BUCKET=... configs/clusters/cloud_tpu.sh
#
# NOT TRIED on a TPU: there was none at hand. Tried are the flags, what they say where there is no TPU, and restoring
# into TPUStrategy's variables on a stand-in for the TPU system.
#
# On the TPU VMs: this repository in ~/dist_restore, with the TensorFlow build for TPUs that Cloud TPU's documentation
# names. Checkpoints are in a bucket, because on a slice each host writes and reads for itself.
set -euo pipefail

: "${TPU_NAME:?name of the TPU}" "${ZONE:?its zone}" "${BUCKET:?where checkpoints are, gs://...}"

if [ -n "${POD:-}" ]; then
    # A pod slice of several hosts: this program runs on the first one alone, and drives the others, which it finds by
    # the TPU's name. It leaves the TPU library to their runtime.
    place="export TPU_LOAD_LIBRARY=0;"
    tpu="--tpu=$TPU_NAME --tpu_zone=$ZONE"
else
    # One host: the TPU is plugged into the machine that this runs on.
    place=""
    tpu="--tpu=local"
fi

# --batch_size is over all cores, and a multiple of their number.
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=0 --command="$place cd dist_restore && \
    python3 scripts/train_lm.py --strategy=tpu $tpu \
    --model_version=2 --steps=10000 --batch_size=${BATCH_SIZE:-256} \
    --checkpoint_dir=$BUCKET/v2 --checkpoint_every=500 \
    --restore_from=$BUCKET/v1 --rules=configs/rules/lm_v1_to_v2.toml \
    --log_dir=$BUCKET/tensorboard/v2"
