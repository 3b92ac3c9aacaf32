#!/bin/bash
# Any selftaught command on all GPUs of this machine, or on those of many machines.
#
#   launch/torchrun.sh run --data.manifest images.csv --out my-run
#
# Many machines: the same line on each, with the same HEAD (one of the machines, a free port).
# The run folder must be on a file system that all of them see.
#
#   NODES=4 HEAD=node0:29400 launch/torchrun.sh run --data.manifest images.csv --out my-run
#
# NODES may be a range, 2:4: the run begins with two and restarts when others come or go. The
# global batch stays what it is; it must divide by every number of ranks that can occur.
set -eu

python=$(command -v python || command -v python3 || echo python3)
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "$0: $python has no torch; activate the environment of selftaught" >&2
    exit 2
}
RANKS=${RANKS:-$((gpus > 0 ? gpus : 1))}  # on each machine
NODES=${NODES:-1}
# A machine that fails restarts all ranks from the newest checkpoint, so many times.
RESTARTS=${RESTARTS:-3}
# Ranks of a stopped run have so long to save; torch before 2.13 gives them 30 s.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-240}
# A new store at every restart: in the shared one ranks find the addresses of those that are gone.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ "$NODES" = 1 ]; then
    meet=(--standalone)
else
    meet=(--rdzv-backend c10d --rdzv-endpoint "${HEAD:?the machine and port where all meet}"
        --rdzv-id "${JOB:-selftaught}")
fi
exec "$python" -m torch.distributed.run "${meet[@]}" --nnodes "$NODES" --nproc-per-node "$RANKS" \
    --max-restarts "$RESTARTS" -m selftaught "$@"
