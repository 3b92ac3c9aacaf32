#!/bin/bash
# A training command under DeepSpeed's own launcher; torchrun.sh starts its engine as well.
#
#   launch/deepspeed.sh run --data.manifest images.csv --out my-run
#   HOSTS=hostfile launch/deepspeed.sh run ...     (lines `node0 slots=8`; needs pdsh)
#
# ZeRO stage and all else are options of ours, not of a JSON file: --engine.zero_stage 2.
# score and prepare train nothing and have no engine: they run as they do under torchrun.sh.
# The launcher adds --local_rank=N before the command, which takes it.
set -eu

python=$(command -v python || command -v python3 || echo python3)
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null) || {
    echo "$0: $python has no torch; activate the environment of selftaught" >&2
    exit 2
}
RANKS=${RANKS:-$((gpus > 0 ? gpus : 1))}
[ "$gpus" -gt 0 ] || export DS_ACCELERATOR=cpu
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if [ -n "${HOSTS:-}" ]; then
    where=(--hostfile "$HOSTS" --master_port "${PORT:-29500}")
else
    where=(--num_gpus "$RANKS" --master_port "${PORT:-29500}")
fi
case ${1:?a command of selftaught} in
run | pretrain | finetune) set -- "$1" --engine.kind deepspeed "${@:2}" ;;
esac
exec deepspeed "${where[@]}" --module selftaught "$@"
