#!/bin/bash
# A SLURM of one machine on loopback, for trying `chorus launch slurm` and for its tests: slurm_loopback.sh start|stop DIR
# Needs root, and slurmctld, slurmd and munged (Debian: slurm-wlm, munge). No systemd, control groups or accounting.
set -eu
D=${2:-/tmp/slurm-loop}; H=$(hostname -s)
case $1 in
start)
  mkdir -p $D/{spool,state,log,munge}; chmod 755 $D; chmod 700 $D/munge
  [ -f $D/munge/key ] || { dd if=/dev/urandom of=$D/munge/key bs=1024 count=1 status=none; chmod 400 $D/munge/key; }
  cat > $D/slurm.conf <<C
ClusterName=loop
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/sock
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=60
SlurmdTimeout=60
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.log
SlurmdParameters=config_overrides
NodeName=$H NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=$H Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
C
  printf 'CgroupAutomount=no\n' > $D/cgroup.conf
  munged --socket=$D/munge/sock --key-file=$D/munge/key --pid-file=$D/munge/pid --log-file=$D/log/munged.log --seed-file=$D/munge/seed --force
  export SLURM_CONF=$D/slurm.conf
  slurmctld -f $D/slurm.conf
  slurmd -f $D/slurm.conf -N $H 2>&1 || slurmd -f $D/slurm.conf
  for i in $(seq 20); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
  sinfo; echo "export SLURM_CONF=$D/slurm.conf" ;;
stop)
  for f in slurmd.pid slurmctld.pid munge/pid; do [ -f $D/$f ] && kill $(cat $D/$f) || true; done ;;
esac
