// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// boundInterval is how often this node's interfaces are searched for LoadBalancer
// addresses.
const boundInterval = 10 * time.Second

// watchBound reports, until ctx ends, LoadBalancer addresses that are bound to an
// interface of this node. The node answers for them, whichever node announces them:
// another load balancer (kube-vip, keepalived, PureLB) has left them there, or kube-proxy
// binds them.
func (a *announcer) watchBound(ctx context.Context) {
	log := logr.FromContextOrDiscard(ctx)
	tick := time.NewTicker(boundInterval)
	defer tick.Stop()
	known := map[netip.Addr]string{}
	for {
		on, err := boundAddresses()
		if err != nil {
			log.V(1).Info("Reading this node's addresses failed", "reason", err.Error())
			on = nil
		}
		for _, record := range a.env.Store.Addresses() {
			addr, err := netip.ParseAddr(record.Spec.Address)
			if err != nil {
				continue
			}
			iface := on[addr]
			if iface != "" && iface != known[addr] {
				log.Info("A LoadBalancer address is bound to an interface of this node, which answers for it, whichever node announces it; remove it there", "address", addr, "interface", iface)
				a.status.bound(record, iface)
			}
			known[addr] = iface
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// bound tells users that an address is bound to an interface of this node.
func (s *announceStatus) bound(record *v1alpha1.LoadBalancerAddress, iface string) {
	remedy := "what another load balancer (kube-vip, keepalived, PureLB) has left is removed by \"ip addr del\" there"
	if strings.HasPrefix(iface, kubeIPVS) {
		remedy = "set ipvs.strictARP in the configuration of kube-proxy, which binds it there"
	}
	s.record(record, corev1.EventTypeWarning, "AddressBound",
		fmt.Sprintf("bound here, on %s of node %s, which answers for it, whichever node announces it: %s", iface, s.env.NodeName, remedy))
}

// kubeIPVS begins the name of the dummy to which kube-proxy binds every Service's
// address in its mode ipvs.
const kubeIPVS = "kube-ipvs"

// boundAddresses returns the addresses of this node's interfaces for which its kernel
// answers on a LAN, and the interface of each. For IPv6 those are the addresses of the
// LAN's own interface; for IPv4 they are all, also of loopback and dummy interfaces,
// unless arp_ignore restricts an interface to its own.
func boundAddresses() (map[netip.Addr]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortStableFunc(addrs, func(x, y netlink.Addr) int { return x.LinkIndex - y.LinkIndex })
	names, lans, up := map[int]string{}, map[int]bool{}, map[int]bool{}
	for _, l := range links {
		at := l.Attrs()
		names[at.Index] = at.Name
		lans[at.Index] = len(at.HardwareAddr) == 6 && l.Type() != "dummy" && at.RawFlags&(unix.IFF_LOOPBACK|unix.IFF_NOARP) == 0
		up[at.Index] = at.RawFlags&unix.IFF_UP != 0
	}
	talks := func(l int) bool { return up[l] && arpIgnore("all") == 0 && arpIgnore(names[l]) == 0 }
	out := map[netip.Addr]string{}
	for _, a := range addrs {
		if a.IPNet == nil || a.IP.IsLoopback() || a.Flags&unix.IFA_F_DADFAILED != 0 {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		answers := lans[a.LinkIndex] || ip.Is4() && slices.ContainsFunc(lansOf(ip, addrs, lans), talks)
		if name := names[a.LinkIndex]; ok && answers && name != "" && out[ip] == "" {
			out[ip] = name
		}
	}
	return out, nil
}

// lansOf returns the interfaces on whose LAN hosts ask for an address: those whose subnet
// contains it, or all if there are none.
func lansOf(ip netip.Addr, addrs []netlink.Addr, lans map[int]bool) []int {
	var in, all []int
	for l := range lans {
		if lans[l] {
			all = append(all, l)
		}
	}
	for _, a := range addrs {
		if lans[a.LinkIndex] && a.IPNet != nil && a.Contains(ip.AsSlice()) {
			in = append(in, a.LinkIndex)
		}
	}
	if len(in) > 0 {
		return in
	}
	return all
}

// arpIgnore returns the setting of an interface, 0 if it cannot be read. The greater of
// an interface's own and that of "all" counts.
func arpIgnore(name string) int {
	b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", name, "arp_ignore"))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}
