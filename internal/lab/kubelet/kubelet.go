// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/causeway-lb/causeway/internal/lab/network"
)

// Kubelet runs one node's Pods.
type Kubelet struct {
	config Config
	client kubernetes.Interface
	log    logr.Logger
	events record.EventRecorder
	// host is the node's own network namespace.
	host      *network.Namespace
	addresses *addresses

	mu      sync.Mutex
	workers map[types.UID]*worker
	running sync.WaitGroup
}

// New makes a kubelet for the node whose namespaces this process is in.
func New(config Config, log logr.Logger) (*Kubelet, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("kubelet config: %w", err)
	}
	client, err := kubernetes.NewForConfig(config.rest())
	if err != nil {
		return nil, fmt.Errorf("make client: %w", err)
	}
	host, err := network.Current(config.Node)
	if err != nil {
		return nil, err
	}
	return &Kubelet{
		config: config, client: client, log: log, host: host,
		addresses: newAddresses(config.PodCIDRs),
		workers:   map[types.UID]*worker{},
	}, nil
}

// Run serves until ctx ends, then stops the containers without grace.
func (k *Kubelet) Run(ctx context.Context) error {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: k.client.CoreV1().Events("")})
	k.events = broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: k.config.Node})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.keepNode(ctx) })
	group.Go(func() error { return k.serve(ctx) })
	group.Go(func() error { return k.watchPods(ctx) })
	err := group.Wait()
	k.running.Wait()
	return err
}

func (k *Kubelet) watchPods(ctx context.Context) error {
	source := cache.NewListWatchFromClient(k.client.CoreV1().RESTClient(), "pods", corev1.NamespaceAll,
		fields.OneTermEqualSelector("spec.nodeName", k.config.Node))
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source,
		ObjectType:    &corev1.Pod{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { k.update(ctx, o.(*corev1.Pod)) },
			UpdateFunc: func(_, o any) { k.update(ctx, o.(*corev1.Pod)) },
			DeleteFunc: func(o any) {
				if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = gone.Obj
				}
				if pod, ok := o.(*corev1.Pod); ok {
					k.forget(pod)
				}
			},
		},
	})
	controller.RunWithContext(ctx)
	return nil
}

// update starts a worker for a new Pod and tells an old one what changed.
func (k *Kubelet) update(ctx context.Context, pod *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := k.workers[pod.UID]
	if w == nil {
		if finished(pod) && pod.DeletionTimestamp == nil {
			return
		}
		w = newWorker(k, pod)
		k.workers[pod.UID] = w
		k.running.Go(func() {
			w.run(ctx)
			k.mu.Lock()
			delete(k.workers, pod.UID)
			k.mu.Unlock()
		})
	}
	w.update(pod)
}

// forget stops a Pod that is gone from the API without a graceful deletion.
func (k *Kubelet) forget(pod *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if w := k.workers[pod.UID]; w != nil {
		w.gone()
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// retry calls f until it succeeds or ctx ends, waiting between 0.1 and 1 s. It
// tells whether f succeeded.
func retry(ctx context.Context, f func() error) bool {
	for wait := 100 * time.Millisecond; f() != nil; wait = min(2*wait, time.Second) {
		if !sleep(ctx, wait) {
			return false
		}
	}
	return true
}

// sleep waits and tells whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func sorted(values []string) []string {
	slices.Sort(values)
	return values
}
