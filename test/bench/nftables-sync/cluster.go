// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
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

// cluster is an API server with n Services.
type cluster struct {
	env        *envtest.Environment
	kube       *kubernetes.Clientset
	kubeconfig string
	assets     string
	services   int
	spare      int // spare addresses used so far
	added      int // Services added by measurements so far
}

func startCluster(ctx context.Context, n int) (*cluster, error) {
	assets, err := controlplane.Assets(ctx, "etcd", "kube-apiserver", "kube-proxy")
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{BinaryAssetsDirectory: assets, ControlPlaneStartTimeout: 2 * time.Minute}
	env.ControlPlane.GetAPIServer().Configure().
		Set("service-cluster-ip-range", "10.96.0.0/12").Set("advertise-address", nodeAddress)
	cfg, err := env.Start()
	if err != nil {
		return nil, fmt.Errorf("start API server: %w", err)
	}
	c := &cluster{env: env, assets: assets, services: n}
	if err := c.fill(ctx, cfg); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (c *cluster) stop() {
	if err := c.env.Stop(); err != nil {
		progress("stop API server: %v", err)
	}
	if c.kubeconfig != "" {
		_ = os.RemoveAll(filepath.Dir(c.kubeconfig))
	}
}

func (c *cluster) fill(ctx context.Context, cfg *rest.Config) error {
	fast := rest.CopyConfig(cfg)
	fast.QPS, fast.Burst = 1000, 1000
	var err error
	if c.kube, err = kubernetes.NewForConfig(fast); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nftables-sync-")
	if err != nil {
		return err
	}
	c.kubeconfig = filepath.Join(dir, "kubeconfig")
	user, err := c.env.AddUser(envtest.User{Name: "bench", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		return err
	}
	data, err := user.KubeConfig()
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.kubeconfig, data, 0o600); err != nil {
		return err
	}
	if err := c.load(ctx); err != nil {
		return err
	}
	return c.waitListed(ctx)
}

// load writes the objects straight into etcd: through the API server 10,000
// Services take minutes, and how they got there does not matter here.
func (c *cluster) load(ctx context.Context) error {
	w := &etcdWriter{url: c.env.ControlPlane.Etcd.URL.String() + "/v3/kv/txn"}
	w.put("/registry/minions/"+nodeName, node())
	for i := range c.services {
		name := serviceName(i)
		w.put("/registry/services/specs/"+namespace+"/"+name, service(i))
		w.put("/registry/endpointslices/"+namespace+"/"+name, slice(i, endpointsOf(i)...))
		w.put("/registry/ipaddresses/"+clusterIP(i).String(), ipAddress(i))
		if err := w.flush(ctx, 90); err != nil {
			return err
		}
	}
	return w.flush(ctx, 1)
}

// ipAddress is the record that the API server's allocator wants beside a
// Service, else it makes one and disturbs the measurement.
func ipAddress(i int) *networkingv1.IPAddress {
	ip := &networkingv1.IPAddress{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "IPAddress"},
		ObjectMeta: meta(clusterIP(i).String()),
		Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: namespace, Name: serviceName(i)}},
	}
	ip.Namespace = ""
	ip.Labels = map[string]string{
		networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io",
	}
	return ip
}

// waitListed waits until the API server shows all slices.
func (c *cluster) waitListed(ctx context.Context) error {
	for {
		l, err := c.kube.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{Limit: 1, ResourceVersion: ""})
		if err != nil {
			return err
		}
		have := len(l.Items)
		if l.RemainingItemCount != nil {
			have += int(*l.RemainingItemCount)
		}
		if have >= c.services {
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
