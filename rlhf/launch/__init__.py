"""`chorus launch`: any command of ours as a job of this machine or of SLURM, kept in launches/."""
