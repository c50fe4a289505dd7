#!/bin/bash
# Runs a command on a GPU that no other command of this script has: bash scripts/on_free_gpu.sh python cli.py fit ...
#
# GPUS are the numbers that may be taken, by default those that nvidia-smi lists. A GPU is held by a lock on a
# file until the command and its children have ended, however they end. With all of them held it waits.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader)}
locks=${LOCKS:-${XDG_RUNTIME_DIR:-/tmp}}
while true; do
    for gpu in $gpus; do
        exec 9>"$locks/gpu_$gpu.lock"
        if flock --nonblock 9; then
            CUDA_VISIBLE_DEVICES=$gpu exec "$@"
        fi
    done
    sleep 1
done
