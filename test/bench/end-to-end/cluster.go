// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/causeway-lb/causeway/internal/lab"
)

const (
	namespace = "bench"
	nodeName  = "bench-node" // the Node that this program plays the kubelet of

	// measured is how many of the Services have an address on the LAN.
	measured = 40
	// idlePods is how many Pods each of the others has.
	idlePods = 2
	// loaders is how many Services are made at a time.
	loaders = 24

	port, targetPort = 80, 38001
	installLimit     = 3 * time.Minute
)

// installOurs installs Causeway, whole.
func installOurs(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	if err := l.Install(ctx); err != nil {
		return err
	}
	return installSample(ctx, l)
}

// installPeer installs kube-proxy, and of Causeway what hands out and announces
// addresses.
func installPeer(ctx context.Context, l *lab.Lab) error {
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	manifest, err := os.ReadFile(filepath.Join(l.Setup.Source, "test/e2e/loadbalanceronly/testdata/kube-proxy.yaml"))
	if err != nil {
		return fmt.Errorf("read manifest of kube-proxy: %w", err)
	}
	text := strings.ReplaceAll(string(manifest), "MODE", "nftables")
	if _, err := l.Kubectl(ctx, strings.NewReader(text), "apply", "-f", "-"); err != nil {
		return err
	}
	if err := l.WaitDaemonSet(ctx, "kube-system", "kube-proxy", len(l.Nodes())+1); err != nil {
		return err
	}
	if err := l.Apply(ctx, "config/overlays/loadbalancer-only"); err != nil {
		return err
	}
	if err := l.WaitInstalled(ctx); err != nil {
		return err
	}
	return installSample(ctx, l)
}

// installSample makes the servers that answer, and the pool.
func installSample(ctx context.Context, l *lab.Lab) error {
	err := l.Wait(ctx, "the webhooks", func(ctx context.Context) (bool, string, error) {
		err := l.Apply(ctx, "config/samples/go-http")
		return err == nil, "", err
	})
	if err != nil {
		return err
	}
	return l.WaitDeployment(ctx, "default", "go-http")
}

// cluster is a lab with the Services.
type cluster struct {
	lab    *lab.Lab
	meters []*meter
}

// meter is a Service with an address and its one Pod.
type meter struct {
	service  string
	pod      *corev1.Pod
	frontend string
}

// load makes Node, Services and Pods, and waits until those that are measured
// have been reached once.
func (c *cluster) load(ctx context.Context, services int) error {
	if err := c.makeNode(ctx); err != nil {
		return err
	}
	servers, err := c.servers(ctx)
	if err != nil {
		return err
	}
	progress("making %d Services", services)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(loaders)
	for i := range services - measured {
		group.Go(func() error { return c.makeIdle(groupCtx, i) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i := range measured {
		m, err := c.makeMeter(ctx, i, servers[i%len(servers)])
		if err != nil {
			return err
		}
		c.meters = append(c.meters, m)
	}
	progress("warming up")
	for _, m := range c.meters {
		if err := c.address(ctx, m); err != nil {
			return err
		}
		if _, err := c.sample(ctx, m); err != nil {
			return err
		}
	}
	progress("measuring")
	return nil
}

// makeNode makes the Node and keeps it alive until ctx ends.
func (c *cluster) makeNode(ctx context.Context) error {
	api := c.lab.Kubernetes
	if _, err := api.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	_, err := api.CoreV1().Nodes().Create(ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{corev1.LabelNodeExcludeBalancers: ""}},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Node: %w", err)
	}
	const ready = `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Benchmark","message":"played"}]}}`
	if _, err := api.CoreV1().Nodes().PatchStatus(ctx, nodeName, []byte(ready)); err != nil {
		return fmt.Errorf("write status of Node: %w", err)
	}
	leases := api.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	lease, err := leases.Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: new(nodeName), LeaseDurationSeconds: new(int32(40)), RenewTime: &metav1.MicroTime{Time: time.Now()},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Lease: %w", err)
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(10 * time.Second):
			}
			lease.Spec.RenewTime = &metav1.MicroTime{Time: time.Now()}
			if renewed, err := leases.Update(ctx, lease, metav1.UpdateOptions{}); err == nil {
				lease = renewed
			}
		}
	}()
	return nil
}

// servers returns the addresses of the sample's Pods.
func (c *cluster) servers(ctx context.Context) ([]string, error) {
	pods, err := c.lab.Kubernetes.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=go-http"})
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	var addresses []string
	for i := range pods.Items {
		addresses = append(addresses, pods.Items[i].Status.PodIP)
	}
	if len(addresses) == 0 {
		return nil, fmt.Errorf("list servers: there are none")
	}
	return addresses, nil
}

func (c *cluster) makeService(ctx context.Context, name string, kind corev1.ServiceType) error {
	_, err := c.lab.Kubernetes.CoreV1().Services(namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: kind, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Port: port, TargetPort: intstr.FromInt32(targetPort)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create Service: %w", err)
	}
	return nil
}

// makeIdle makes a Service that nobody asks, with its Pods.
func (c *cluster) makeIdle(ctx context.Context, i int) error {
	name := fmt.Sprintf("idle-%d", i)
	if err := c.makeService(ctx, name, corev1.ServiceTypeClusterIP); err != nil {
		return err
	}
	for n := range idlePods {
		pod, err := c.makePod(ctx, fmt.Sprintf("%s-%d", name, n), name)
		if err != nil {
			return err
		}
		at := i*idlePods + n
		if err := c.setReady(ctx, pod, fmt.Sprintf("10.245.%d.%d", at/250, at%250+1), true); err != nil {
			return err
		}
	}
	return nil
}

// makeMeter makes a Service that is measured, its Pod not ready yet.
func (c *cluster) makeMeter(ctx context.Context, i int, server string) (*meter, error) {
	name := fmt.Sprintf("meter-%d", i)
	if err := c.makeService(ctx, name, corev1.ServiceTypeLoadBalancer); err != nil {
		return nil, err
	}
	pod, err := c.makePod(ctx, name, name)
	if err != nil {
		return nil, err
	}
	return &meter{service: name, pod: pod}, c.setReady(ctx, pod, server, false)
}

func (c *cluster) makePod(ctx context.Context, name, app string) (*corev1.Pod, error) {
	pod, err := c.lab.Kubernetes.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			NodeName: nodeName, AutomountServiceAccountToken: new(false),
			Containers: []corev1.Container{{Name: "server", Image: "example.com/none"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create Pod: %w", err)
	}
	return pod, nil
}

// setReady writes the Pod's status as its kubelet would.
func (c *cluster) setReady(ctx context.Context, pod *corev1.Pod, address string, ready bool) error {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Phase = corev1.PodRunning
	pod.Status.PodIP, pod.Status.PodIPs = address, []corev1.PodIP{{IP: address}}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	written, err := c.lab.Kubernetes.CoreV1().Pods(namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	if err != nil {
		return fmt.Errorf("write status of Pod: %w", err)
	}
	*pod = *written
	return nil
}

// address waits for the Service's address on the LAN.
func (c *cluster) address(ctx context.Context, m *meter) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return c.lab.Wait(ctx, "address of "+m.service, func(ctx context.Context) (bool, string, error) {
		s, err := c.lab.Kubernetes.CoreV1().Services(namespace).Get(ctx, m.service, metav1.GetOptions{})
		if err != nil || len(s.Status.LoadBalancer.Ingress) == 0 {
			return false, "none yet", err
		}
		address, err := netip.ParseAddr(s.Status.LoadBalancer.Ingress[0].IP)
		m.frontend = netip.AddrPortFrom(address, port).String()
		return err == nil, "", err
	})
}

// sample makes the Pod ready, gives the time until the client has reached it,
// and makes it unready again. It ends when connections fail.
func (c *cluster) sample(ctx context.Context, m *meter) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.dial(ctx, m, false); err != nil {
		return 0, err
	}
	began := time.Now()
	result := make(chan error, 1)
	go func() { result <- c.setReady(ctx, m.pod, m.pod.Status.PodIP, true) }()
	if err := c.dial(ctx, m, true); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := <-result; err != nil {
		return 0, err
	}
	if err := c.setReady(ctx, m.pod, m.pod.Status.PodIP, false); err != nil {
		return 0, err
	}
	if err := c.dial(ctx, m, false); err != nil {
		return 0, err
	}
	// At a time that is not tied to any timer of the contenders.
	time.Sleep(rand.N(300 * time.Millisecond)) //nolint:gosec // no secret
	return took, nil
}

// dial connects from the client every two milliseconds, whether the attempt
// before has ended or not, until one succeeds, or until ten in a row do not. What
// refuses may do it with ICMP messages, of which the kernel sends few.
func (c *cluster) dial(ctx context.Context, m *meter, succeed bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Shorter than the first retransmission of a SYN, which would be measured
	// in place of what it waits for.
	dialer := &net.Dialer{Timeout: 200 * time.Millisecond}
	reached := make(chan bool)
	attempt := func() {
		conn, err := c.lab.Machine(lab.Client).DialWith(ctx, dialer, "tcp", m.frontend)
		if err == nil {
			conn.Close()
		}
		select {
		case reached <- err == nil:
		case <-ctx.Done():
		}
	}
	failures := 0
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case ok := <-reached:
			if failures++; ok {
				failures = 0
			}
			if ok && succeed || failures == 10 && !succeed {
				return nil
			}
		case <-ticker.C:
			go attempt()
		case <-ctx.Done():
			return fmt.Errorf("connect to %s, wanted to succeed: %t: %w", m.frontend, succeed, ctx.Err())
		}
	}
}
