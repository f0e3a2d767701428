#!/usr/bin/env bash
# Two machines with eight GPUs each under SLURM, from the root of the repository: sbatch examples/slurm.sh
# Lightning reads the ranks from SLURM: srun starts one process per GPU, `trainer.devices` of them per machine.
#SBATCH --job-name=fc-lightning
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
# Three minutes before the time limit the ranks save last.ckpt and requeue the job. SLURM also requeues it after a failure
# of a machine or a preemption. Each time the run resumes in its folder.
#SBATCH --signal=USR1@180
#SBATCH --requeue

set -euo pipefail
source "${VENV:-.venv}/bin/activate"
export FC_LIGHTNING_CACHE="${FC_LIGHTNING_CACHE:-$PWD/.cache/fc-lightning}" # on a disk shared by all machines

# Arguments after the script are passed to the run: sbatch examples/slurm.sh --trainer.max_epochs 2
# To resume the run of job 123 in a new job: sbatch examples/slurm.sh --trainer.logger.init_args.version job_123
# A step has 16 × 8,192 tokens, eight times as many as in the recipe: meant for 100,000 conversations and more.
srun python main.py fit --config configs/gemma2_2b_it.yaml --config configs/trainer/ddp.yaml \
    --config configs/hardware/gpu_80gb.yaml --trainer.devices 8 --trainer.num_nodes 2 \
    --trainer.accumulate_grad_batches 1 \
    --trainer.logger.init_args.version "job_$SLURM_JOB_ID" --ckpt_path last "$@"
