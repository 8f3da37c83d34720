// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/causeway-lb/causeway/controllers"
)

const (
	namespace = "bench"
	nodes     = 10
	loaders   = 24 // requests at a time while objects are made
)

// clusterAPI is an API server with etcd and nothing else.
type clusterAPI struct {
	env        *envtest.Environment
	config     *rest.Config
	client     client.WithWatch
	metrics    rest.Interface
	kubeconfig string
	addresses  atomic.Int64
}

func startCluster(assets string) (*clusterAPI, error) {
	ctrl.SetLogger(logr.Discard())
	env := &envtest.Environment{
		BinaryAssetsDirectory:    assets,
		ControlPlaneStartTimeout: time.Minute,
		CRDDirectoryPaths:        []string{filepath.Join("config", "crd", "bases")},
		ErrorIfCRDPathMissing:    true,
	}
	env.ControlPlane.GetAPIServer().Configure().Set("service-cluster-ip-range", "10.96.0.0/12")
	config, err := env.Start()
	if err != nil {
		return nil, fmt.Errorf("start API server: %w", err)
	}
	c := &clusterAPI{env: env, config: config}
	if err := c.prepare(context.Background()); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

func (c *clusterAPI) stop() {
	if err := c.env.Stop(); err != nil {
		progress("stop API server: %v", err)
	}
}

// prepare makes a client, a kubeconfig for the contenders, the namespaces, and
// the Nodes.
func (c *clusterAPI) prepare(ctx context.Context) error {
	config := rest.CopyConfig(c.config)
	config.QPS = -1
	var err error
	if c.client, err = client.NewWithWatch(config, client.Options{Scheme: controllers.NewScheme()}); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	discovery, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("make client for metrics: %w", err)
	}
	c.metrics = discovery.RESTClient()
	user, err := c.env.AddUser(envtest.User{Name: "bench", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		return fmt.Errorf("add user: %w", err)
	}
	text, err := user.KubeConfig()
	if err != nil {
		return fmt.Errorf("make kubeconfig: %w", err)
	}
	dir, err := os.MkdirTemp("", "bench-endpointslice-")
	if err != nil {
		return err
	}
	c.kubeconfig = filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(c.kubeconfig, text, 0o600); err != nil {
		return err
	}
	objects := []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "causeway-system"}},
	}
	for i := range nodes {
		objects = append(objects, &corev1.Node{ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%3)},
		}})
	}
	for _, object := range objects {
		if err := c.client.Create(ctx, object); err != nil {
			return fmt.Errorf("create %T: %w", object, err)
		}
	}
	return nil
}

// parallel calls f for 0 to n-1, loaders at a time.
func parallel(ctx context.Context, n int, f func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(loaders)
	for i := range n {
		group.Go(func() error { return f(ctx, i) })
	}
	return group.Wait()
}

func (c *clusterAPI) createService(ctx context.Context, name string) error {
	return c.client.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name, "tier": "web"},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	})
}

// createPod makes a Pod as large as Pods commonly are, not ready yet.
func (c *clusterAPI) createPod(ctx context.Context, name, app string, node int) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{
			"app": app, "tier": "web", "pod-template-hash": "5d9c7b6f4",
		}},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%d", node%nodes),
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example.com/team/application:v1.2.3",
				Env:   []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "LOG_LEVEL", Value: "info"}},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}},
			}},
		},
	}
	if err := c.client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("create Pod: %w", err)
	}
	return pod, nil
}

// address returns an address that no other Pod has.
func (c *clusterAPI) address() string {
	n := c.addresses.Add(1)
	return fmt.Sprintf("10.%d.%d.%d", 128+n/62500, n/250%250, n%250+1)
}

// setReady writes the Pod's status.
func (c *clusterAPI) setReady(ctx context.Context, pod *corev1.Pod, ready bool) error {
	if pod.Status.PodIP == "" {
		pod.Status.PodIP = c.address()
		pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	pod.Status.Phase = corev1.PodRunning
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()}}
	if err := c.client.Status().Update(ctx, pod); err != nil {
		return fmt.Errorf("write status of Pod: %w", err)
	}
	return nil
}

// deleteSlices removes what a contender has made.
func (c *clusterAPI) deleteSlices(ctx context.Context) error {
	for _, object := range []client.Object{&discoveryv1.EndpointSlice{}, &corev1.Endpoints{}} { //nolint:staticcheck
		if err := c.client.DeleteAllOf(ctx, object, client.InNamespace(namespace)); err != nil {
			return fmt.Errorf("delete %T: %w", object, err)
		}
	}
	return nil
}

// writeRequests returns how many requests the API server has counted that write
// what a contender may write.
func (c *clusterAPI) writeRequests(ctx context.Context) (float64, error) {
	text, err := c.metrics.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, fmt.Errorf("read metrics of the API server: %w", err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return 0, fmt.Errorf("parse metrics of the API server: %w", err)
	}
	total := 0.0
	for _, metric := range families["apiserver_request_total"].GetMetric() {
		label := map[string]string{}
		for _, pair := range metric.GetLabel() {
			label[pair.GetName()] = pair.GetValue()
		}
		switch label["verb"] {
		case "POST", "PUT", "PATCH", "APPLY", "DELETE":
		default:
			continue
		}
		switch resource := label["resource"]; {
		case resource == "endpointslices", resource == "endpoints", resource == "events",
			resource == "services" && label["subresource"] == "status":
			total += metric.GetCounter().GetValue()
		}
	}
	return total, nil
}
