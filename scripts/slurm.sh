#!/usr/bin/env bash
# A run on several nodes under SLURM, one process per GPU; from the repository's root: sbatch scripts/slurm.sh --dataset cifar10 ...
# All flags go to main.py. Nodes, GPUs and time are changed here or before the script's name: sbatch --nodes 4 scripts/slurm.sh ...
#SBATCH --job-name=at-bptt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Five minutes before the end the run is told to save and stop; the same command submitted again goes on from there.
#SBATCH --signal=TERM@300
set -euo pipefail
source "${SLURM_SUBMIT_DIR:?start this with sbatch}/scripts/python.sh" # sbatch runs a copy of this file, elsewhere
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts%%$'\n'*}"                # the first node, where rank 0 is
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) # jobs that share a node meet at ports of their own
srun "$PYTHON" main.py --resume "$@"
