// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// boundInterval is how often this node's interfaces are looked at for LoadBalancer
// addresses.
const boundInterval = 10 * time.Second

// watchBound reports LoadBalancer addresses that are bound to an interface of this
// node, which answers for them then, whoever announces them: another load balancer
// (kube-vip, keepalived) has left them there. It looks until ctx ends.
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
				log.Info("A LoadBalancer address is bound to an interface of this node, which answers for it whoever announces it; remove it there", "address", addr, "interface", iface)
				a.status.bound(record, addr, iface)
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
func (s *announceStatus) bound(record *v1alpha1.LoadBalancerAddress, addr netip.Addr, iface string) {
	if s.env.Recorder == nil {
		return
	}
	ref := &corev1.ObjectReference{APIVersion: v1alpha1.GroupVersion.String(), Kind: "LoadBalancerAddress", Name: record.Name, UID: record.UID}
	s.env.Recorder.Eventf(ref, nil, corev1.EventTypeWarning, "AddressBound", "Announce", "%s",
		fmt.Sprintf("bound here, on %s of node %s, which answers for it whoever announces it: what another load balancer (kube-vip, keepalived) has left is removed by \"ip addr del\" there", iface, s.env.NodeName))
}

// boundAddresses gives the addresses of this node's interfaces. Those of dummies are
// left out: ipvs binds every Service's address to one, and does not answer for it.
func boundAddresses() (map[netip.Addr]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		if l.Type() != "dummy" && !strings.HasPrefix(l.Attrs().Name, "kube-ipvs") {
			names[l.Attrs().Index] = l.Attrs().Name
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortStableFunc(addrs, func(x, y netlink.Addr) int { return x.LinkIndex - y.LinkIndex })
	out := map[netip.Addr]string{}
	for _, a := range addrs {
		if a.IPNet == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(a.IP)
		if name := names[a.LinkIndex]; ok && name != "" && out[ip.Unmap()] == "" {
			out[ip.Unmap()] = name
		}
	}
	return out, nil
}
