#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
#
# The first process of the machine: mounts what programs expect, runs the
# program, reports its exit status on the third serial line, powers off.
/bin/busybox --install -s /bin
# Programs taken along from the host come before busybox.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ IN_TEST_VM=1 REQUIRE_KERNEL=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /run/netns
ln -s /proc/self/fd /dev/fd
mkdir -p /etc
printf '%s\n' 'icmp 1' 'tcp 6' 'udp 17' 'sctp 132' >/etc/protocols # ipset looks there
echo /bin/modprobe >/proc/sys/kernel/modprobe
# Networking of a machine that has only just been switched on: namespaces that
# a test makes start from the same values.
ip link set lo up
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
cd /vm/tree
sh /vm/command </dev/null >/dev/ttyS1 2>&1
echo "status $?" >/dev/ttyS2
poweroff -f
