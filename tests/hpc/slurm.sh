#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a command against a Slurm cluster of its own:
#
#   tests/hpc/slurm.sh [-n NODES] [-c CPUS] COMMAND [ARGUMENT...]
#
# NODES (2) slurmd, each telling of CPUS (4) processors whatever this machine has, a slurmctld and a
# munged, all with their state in a temporary folder and all in namespaces of their own: of processes,
# so that nothing outlives the command, whatever ends it; of the network, with a loopback interface
# and no other, so that no port is open to anyone and several clusters can run at once; and of the
# host's name. Needs root, and the packages of tests/install-deps.sh hpc. The command finds sbatch,
# srun and the rest set up by SLURM_CONF; its exit code is that of this script. QF_SLURM_LOGS names a
# folder in which to leave the daemons' logs.
set -euo pipefail

fail() { echo "slurm.sh: $*" >&2; exit 125; }

if [ "${QF_SLURM_INSIDE:-}" != yes ]; then
  [ "$(id -u)" -eq 0 ] || fail "needs root, to make namespaces"
  for program in munged munge slurmctld slurmd sbatch ip unshare; do
    command -v "$program" >/dev/null || fail "there is no $program: tests/install-deps.sh hpc"
  done
  folder=$(mktemp -d "${TMPDIR:-/tmp}/quantfold-slurm-XXXXXX")
  finish() {
    if [ -n "${QF_SLURM_LOGS:-}" ]; then
      mkdir -p "$QF_SLURM_LOGS" && cp "$folder"/*.log "$QF_SLURM_LOGS" || true
    fi
    rm -rf "$folder"
  }
  trap finish EXIT
  # a signal to this script alone must end the cluster too: bash runs a trap only after `wait`
  QF_SLURM_INSIDE=yes QF_SLURM_FOLDER=$folder \
    unshare --uts --net --ipc --pid --mount-proc --fork --kill-child "$BASH" "$0" "$@" &
  inside=$!
  trap 'kill -KILL "$inside" 2>/dev/null || true; wait "$inside" || true; exit 143' TERM HUP INT
  code=0
  wait "$inside" || code=$?
  exit "$code"
fi

folder=$QF_SLURM_FOLDER nodes=2 cpus=4
unset QF_SLURM_INSIDE QF_SLURM_FOLDER
while getopts n:c: option; do
  case $option in
    n) nodes=$OPTARG ;;
    c) cpus=$OPTARG ;;
    *) exit 125 ;;
  esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || fail "no command"

echo localhost >/proc/sys/kernel/hostname
ip link set lo up
# glibc and Open MPI take a host with no address but 127.0.0.1 for one without network: a pair of
# interfaces that lead to each other
ip link add name end0 type veth peer name end1
ip addr add 192.0.2.1/24 dev end0
ip link set end0 up
ip link set end1 up

chmod 755 "$folder"
mkdir "$folder/state" "$folder/munge"
head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
# --force: the folder lies below /tmp, which others may write to
munged --force --socket="$folder/munge/socket" --key-file="$folder/munge.key" \
  --log-file="$folder/munged.log" --pid-file="$folder/munge/pid" --seed-file="$folder/munge/seed" \
  2>>"$folder/munged.log"

last=$((nodes - 1))
cat >"$folder/slurm.conf" <<CONF
ClusterName=quantfold
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
TmpFS=$folder/tmp-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
KillWait=2
MinJobAge=600
InactiveLimit=0
NodeName=n[0-$last] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[7000-$((7000 + last))] CPUs=$cpus RealMemory=16384
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
# Open MPI takes ranks of several nodes to share no memory, and names its files there by host and rank
export OMPI_MCA_btl=tcp,self
echo "CgroupAutomount=no" >"$folder/cgroup.conf"

slurmctld
for ((i = 0; i < nodes; i++)); do
  mkdir "$folder/spool-n$i" "$folder/tmp-n$i"
  slurmd -N "n$i"
done

up() { [ "$(timeout 5 sinfo --noheader --states=idle --format=%D 2>/dev/null)" = "$nodes" ]; }
SECONDS=0
until up; do
  if [ "$SECONDS" -ge 30 ]; then
    for log in "$folder"/*.log; do
      echo "== ${log##*/}"
      tail -n 20 "$log"
    done >&2
    fail "the nodes did not come up in 30 s"
  fi
  sleep 0.1
done

# Not exec: the first process of the namespace is to be this one, whose end is that of all others.
code=0
"$@" || code=$?
exit "$code"
