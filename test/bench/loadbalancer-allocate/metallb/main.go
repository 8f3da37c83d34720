// SPDX-License-Identifier: Apache-2.0

// Command metallb gives N Services an address of a /16 by MetalLB's allocator
// and prints the CPU seconds that it took. Its module's path lies within
// MetalLB's, whose packages are internal.
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"go.universe.tf/metallb/internal/allocator"
	"go.universe.tf/metallb/internal/allocator/k8salloc"
	"go.universe.tf/metallb/internal/config"
	"go.universe.tf/metallb/internal/ipfamily"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "metallb:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: metallb N")
	}
	n, err := strconv.Atoi(os.Args[1])
	if err != nil {
		return err
	}
	_, cidr, err := net.ParseCIDR("198.18.0.0/16")
	if err != nil {
		return err
	}
	a := allocator.New(func(string) {})
	a.SetPools(&config.Pools{ByName: map[string]*config.Pool{"lan": {Name: "lan", CIDR: []*net.IPNet{cidr}, AutoAssign: true}}})
	given := make(map[string]bool, n)
	start := cpuSeconds()
	for i := range n {
		svc := service(i)
		ips, err := a.Allocate(svc.Namespace+"/"+svc.Name, svc, ipfamily.IPv4, k8salloc.Ports(svc), "", k8salloc.BackendKey(svc))
		if err != nil || len(ips) != 1 {
			return fmt.Errorf("allocate for Service %d: %v, %w", i, ips, err)
		}
		given[ips[0].String()] = true
	}
	took := cpuSeconds() - start
	if len(given) != n {
		return fmt.Errorf("%d addresses for %d Services", len(given), n)
	}
	fmt.Println(took)
	return nil
}

func service(i int) *v1.Service {
	return &v1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%d", i)},
		Spec: v1.ServiceSpec{
			Type: v1.ServiceTypeLoadBalancer, IPFamilies: []v1.IPFamily{v1.IPv4Protocol},
			Selector: map[string]string{"app": "web"},
			Ports:    []v1.ServicePort{{Name: "http", Protocol: v1.ProtocolTCP, Port: 80}},
		},
	}
}

// cpuSeconds is the CPU time that this process has used.
func cpuSeconds() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it cannot fail for oneself
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
