"""`chorus launch`: any command of ours as a job of this machine, SLURM, Ray, SkyPilot or Kubernetes, kept in launches/."""
