#!/usr/bin/env bash
# Two machines of eight GPUs under SLURM, from the repository's root: sbatch examples/slurm.sh
# Lightning reads the ranks from SLURM: srun starts one process a GPU, as many a machine as `trainer.devices` says.
#SBATCH --job-name=fc-lightning
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
# Three minutes before the time is over the ranks save last.ckpt, and have SLURM start the job again. It starts again by
# itself where a machine has failed or another job went first. Each time the run goes on in its folder.
#SBATCH --signal=USR1@180
#SBATCH --requeue

set -euo pipefail
source "${VENV:-.venv}/bin/activate"
export FC_LIGHTNING_CACHE="${FC_LIGHTNING_CACHE:-$PWD/.cache/fc-lightning}" # on a disk that all machines see

# What is given to sbatch behind the script goes to the run: sbatch examples/slurm.sh --trainer.max_epochs 2
# To go on, in a new job, with the run of job 123: sbatch examples/slurm.sh --trainer.logger.init_args.version job_123
srun python main.py fit --config configs/gemma2_2b_it.yaml --config configs/hardware/nodes_2.yaml \
    --trainer.logger.init_args.version "job_$SLURM_JOB_ID" --ckpt_path last "$@"
