#!/bin/busybox sh
# The first process of the virtual machine: makes it look like a node, runs /commands, says how that ended, and switches off.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ PROXY_LAB_PATIENCE=10
status='unknown: the machine could not be set up'
# Messages of the kernel must not come between what is said.
trap 'dmesg -n 1; printf "\n%s%s\n" "vm: exit status " "$status"; poweroff -f' EXIT
set -e
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
hostname vm
ip link set lo up
# Scenarios set its timeouts before an agent has it loaded.
modprobe nf_conntrack
set +e
sh -e /commands
status=$?
