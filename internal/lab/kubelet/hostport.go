// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// hostPortTable is one nf_tables table a Pod, so that its end is one deletion.
func hostPortTable(number uint8) string { return fmt.Sprintf("lab-hostport-%d", number) }

// openHostPorts does for a Pod what the CNI plug-in portmap does: what comes to
// an address of the node and a host port goes to the Pod. It runs before a
// Service's rules, as portmap's does when it was there first.
func (k *Kubelet) openHostPorts(pod *corev1.Pod, p *podNetwork) error {
	if !hasHostPorts(pod) {
		return nil
	}
	var to, hairpins strings.Builder
	loopback := false
	for _, address := range p.addresses {
		family, local := "ip6", "::1"
		if address.Is4() {
			family, local = "ip", "127.0.0.0/8"
		}
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				match, err := hostPortMatch(port.HostIP, address)
				if err != nil {
					return err
				}
				if port.HostPort == 0 || match == "" {
					continue
				}
				fmt.Fprintf(&to, "    %s %s dport %d dnat %s to %s\n", match, strings.ToLower(string(port.Protocol)), port.HostPort,
					family, netip.AddrPortFrom(address, uint16(port.ContainerPort)))
				loopback = loopback || address.Is4()
			}
		}
		for _, source := range []string{address.String(), local} {
			fmt.Fprintf(&hairpins, "    ct status dnat %[1]s saddr %[2]s %[1]s daddr %[3]s masquerade\n", family, source, address)
		}
	}
	rules := fmt.Sprintf(`table inet %s {
  chain prerouting {
    type nat hook prerouting priority -101; policy accept;
%[2]s  }
  chain output {
    type nat hook output priority -101; policy accept;
%[2]s  }
  chain postrouting {
    type nat hook postrouting priority 99; policy accept;
%s  }
}
`, hostPortTable(p.number), to.String(), hairpins.String())
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("open host ports: %w: %s\n%s", err, out, rules)
	}
	if loopback { // for connections from the node's own 127.0.0.1
		return k.host.Sysctl("net/ipv4/conf/"+p.link+"/route_localnet", "1")
	}
	return nil
}

// hostPortMatch returns how rules recognise packets to a host IP, for a Pod's
// address: all of the node's addresses where none is given, nothing for one of
// another family.
func hostPortMatch(hostIP string, address netip.Addr) (string, error) {
	family, protocol := "ip6", "ipv6"
	if address.Is4() {
		family, protocol = "ip", "ipv4"
	}
	all := "meta nfproto " + protocol + " fib daddr type local"
	if hostIP == "" {
		return all, nil
	}
	host, err := netip.ParseAddr(hostIP)
	switch {
	case err != nil:
		return "", fmt.Errorf("hostIP: %w", err)
	case host.Is4() != address.Is4():
		return "", nil
	case host.IsUnspecified():
		return all, nil
	}
	return family + " daddr " + host.String(), nil
}

func (k *Kubelet) closeHostPorts(pod *corev1.Pod, p *podNetwork) {
	if !hasHostPorts(pod) {
		return
	}
	if out, err := exec.Command("nft", "delete", "table", "inet", hostPortTable(p.number)).CombinedOutput(); err != nil {
		k.log.Error(err, "Host ports not closed", "pod", pod.Name, "output", string(out))
	}
}

func hasHostPorts(pod *corev1.Pod) bool {
	for _, c := range pod.Spec.Containers {
		for _, port := range c.Ports {
			if port.HostPort != 0 && !pod.Spec.HostNetwork {
				return true
			}
		}
	}
	return false
}
