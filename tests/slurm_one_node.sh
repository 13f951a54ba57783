#!/usr/bin/env bash
# A real Slurm of one node, without systemd, munge or accounting, to test job arrays on. As root; needs Debian's slurm-wlm.
#   tests/slurm_one_node.sh up DIR      then: export SLURM_CONF=DIR/slurm.conf; sbatch ...; squeue
#   tests/slurm_one_node.sh down DIR
set -euo pipefail
verb=$1 dir=$(realpath -m "$2") host=$(hostname -s)
if [[ $verb == down ]]; then
  for name in slurmd slurmctld; do [[ -f $dir/$name.pid ]] && kill "$(cat "$dir/$name.pid")"; done
  exit 0
fi
mkdir -p "$dir/state" "$dir/spool"
cat > "$dir/slurm.conf" <<C
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,default_queue_depth=1000
MinJobAge=3600
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
C
export SLURM_CONF=$dir/slurm.conf
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF"
for _ in $(seq 50); do sinfo -h -o %t 2>/dev/null | grep -qE 'idle|mix|alloc' && break; sleep 0.2; done
sinfo
