// SPDX-License-Identifier: Apache-2.0

package proxybench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
)

// Cluster is an API server with Services.
type Cluster struct {
	Kube *kubernetes.Clientset
	// Kubeconfig is a file for the contenders; Assets has kube-proxy's program.
	Kubeconfig, Assets string
	// Services is how many there were at the start.
	Services int

	pods  bool // Pods instead of slices
	env   *envtest.Environment
	spare int // spare addresses used so far
	added int // Services added by measurements so far
}

// StartCluster starts an API server that has n Services. Stop it.
func StartCluster(ctx context.Context, n int) (*Cluster, error) { return startCluster(ctx, n, false) }

// StartClusterOfPods starts an API server that has n Services, their Pods and
// Causeway's API, but no slices yet. Stop it.
func StartClusterOfPods(ctx context.Context, n int) (*Cluster, error) {
	return startCluster(ctx, n, true)
}

func startCluster(ctx context.Context, n int, pods bool) (*Cluster, error) {
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver", "kube-proxy")
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: 2 * time.Minute}
	if pods {
		env.CRDDirectoryPaths = []string{"config/crd/bases"}
	}
	env.ControlPlane.GetAPIServer().Configure().
		Set("service-cluster-ip-range", "10.96.0.0/12").Set("advertise-address", NodeAddress)
	cfg, err := env.Start()
	if err != nil {
		return nil, fmt.Errorf("start API server: %w", err)
	}
	c := &Cluster{env: env, Assets: assets, Services: n, pods: pods}
	if err := c.fill(ctx, cfg); err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// Stop ends the API server.
func (c *Cluster) Stop() {
	if err := c.env.Stop(); err != nil {
		Progress("stop API server: %v", err)
	}
	if c.Kubeconfig != "" {
		_ = os.RemoveAll(filepath.Dir(c.Kubeconfig))
	}
}

func (c *Cluster) fill(ctx context.Context, cfg *rest.Config) error {
	fast := rest.CopyConfig(cfg)
	fast.QPS, fast.Burst = 1000, 1000
	var err error
	if c.Kube, err = kubernetes.NewForConfig(fast); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "proxybench-")
	if err != nil {
		return err
	}
	c.Kubeconfig = filepath.Join(dir, "kubeconfig")
	user, err := c.env.AddUser(envtest.User{Name: "bench", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		return err
	}
	data, err := user.KubeConfig()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.Kubeconfig, data, 0o600); err != nil {
		return err
	}
	if err := c.load(ctx); err != nil || c.pods {
		return err
	}
	return c.WaitListed(ctx)
}

// load writes the objects straight into etcd: through the API server 10,000
// Services take minutes, and how they got there does not matter here.
func (c *Cluster) load(ctx context.Context) error {
	w := &etcdWriter{url: c.env.ControlPlane.Etcd.URL.String() + "/v3/kv/txn"}
	w.put("/registry/minions/"+NodeName, node(NodeName))
	for i := 1; c.pods && i < nodes; i++ {
		w.put("/registry/minions/"+nodeName(i), node(nodeName(i)))
	}
	for i := range c.Services {
		name := ServiceName(i)
		svc := Service(i)
		if c.pods {
			svc.Spec.Selector = map[string]string{"app": name}
			for e := range EndpointsEach {
				p := pod(i, e)
				w.put("/registry/pods/"+Namespace+"/"+p.Name, p)
			}
		} else {
			w.put("/registry/endpointslices/"+Namespace+"/"+name, Slice(i, EndpointsOf(i)...))
		}
		w.put("/registry/services/specs/"+Namespace+"/"+name, svc)
		w.put("/registry/ipaddresses/"+ClusterIP(i).String(), ipAddress(i))
		if err := w.flush(ctx, 90); err != nil {
			return err
		}
	}
	return w.flush(ctx, 1)
}

// ReplaceEndpoint gives the Service of a round another endpoint in place of its
// first one. change does it and returns when the API server has it.
func (c *Cluster) ReplaceEndpoint(round int) (i int, fresh netip.Addr, change func(context.Context) error) {
	i = (round*7919 + 3) % c.Services
	c.spare++
	fresh = SpareAddr(c.spare)
	sl := Slice(i, append([]netip.Addr{fresh}, EndpointsOf(i)[1:]...)...)
	sl.UID = "" // an update without conditions
	return i, fresh, func(ctx context.Context) error {
		_, err := c.Kube.DiscoveryV1().EndpointSlices(Namespace).Update(ctx, sl, metav1.UpdateOptions{})
		return err
	}
}

// NewService makes the endpoints of one more Service. change makes the Service
// itself and returns when the API server has it.
func (c *Cluster) NewService(ctx context.Context) (i int, change func(context.Context) error, err error) {
	i = c.Services + c.added
	c.added++
	sl := Slice(i, EndpointsOf(i)...)
	sl.UID = ""
	if _, err := c.Kube.DiscoveryV1().EndpointSlices(Namespace).Create(ctx, sl, metav1.CreateOptions{}); err != nil {
		return 0, nil, err
	}
	svc := Service(i)
	svc.UID = ""
	return i, func(ctx context.Context) error {
		_, err := c.Kube.CoreV1().Services(Namespace).Create(ctx, svc, metav1.CreateOptions{})
		return err
	}, nil
}

// ipAddress is the record that the API server's allocator wants beside a
// Service, else it makes one and disturbs the measurement.
func ipAddress(i int) *networkingv1.IPAddress {
	ip := &networkingv1.IPAddress{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"},
		ObjectMeta: meta(ClusterIP(i).String()),
		Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: Namespace, Name: ServiceName(i)}},
	}
	ip.Namespace = ""
	ip.Labels = map[string]string{
		networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io",
	}
	return ip
}

// WaitListed waits until the API server shows a slice for every Service.
func (c *Cluster) WaitListed(ctx context.Context) error {
	for {
		l, err := c.Kube.DiscoveryV1().EndpointSlices(Namespace).List(ctx, metav1.ListOptions{Limit: 1, ResourceVersion: ""})
		if err != nil {
			return err
		}
		have := len(l.Items)
		if l.RemainingItemCount != nil {
			have += int(*l.RemainingItemCount)
		}
		if have >= c.Services {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// etcdWriter gathers puts for etcd's JSON gateway.
type etcdWriter struct {
	url string
	ops []map[string]any
	err error
}

func (w *etcdWriter) put(key string, obj any) {
	value, err := json.Marshal(obj)
	if err != nil {
		w.err = err
		return
	}
	w.ops = append(w.ops, map[string]any{"requestPut": map[string]any{"key": []byte(key), "value": value}})
}

// flush sends what was gathered if it is at least n puts.
func (w *etcdWriter) flush(ctx context.Context, n int) error {
	if w.err != nil || len(w.ops) < n {
		return w.err
	}
	body, err := json.Marshal(map[string]any{"success": w.ops})
	if err != nil {
		return err
	}
	w.ops = w.ops[:0]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("fill etcd: %w", err)
	}
	defer resp.Body.Close()
	if answer, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fill etcd: %s: %s", resp.Status, answer)
	}
	return nil
}
