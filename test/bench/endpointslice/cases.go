// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// settleLimit is how long a contender may take to catch up.
const settleLimit = 10 * time.Minute

// flipRate is how many Pods change a second in the case many-services.
const flipRate = 100

// podsPerService is that of the case many-services.
const podsPerService = 3

// measure runs the contender around work and takes its figures. Before work it
// waits until all of the Pods in ready have endpoints, which is not counted.
func measure(ctx context.Context, cluster *clusterAPI, c *contender, ready []*corev1.Pod, work func(*observer) error) (samples, error) {
	o, err := cluster.observe(ctx)
	if err != nil {
		return samples{}, err
	}
	defer o.stop()
	for _, pod := range ready {
		o.expect(pod.Name, true)
	}
	if err := c.start(); err != nil {
		return samples{}, err
	}
	defer c.stop()
	if err := o.settle(ctx, settleLimit); err != nil {
		return samples{}, fmt.Errorf("%w\n%s", err, c.tail())
	}
	time.Sleep(5 * time.Second) // for what is left of the start
	o.mu.Lock()
	o.latency, o.writes = nil, 0
	o.mu.Unlock()
	before, err := c.cpu()
	if err != nil {
		return samples{}, err
	}
	if err := work(o); err != nil {
		return samples{}, err
	}
	if err := o.settle(ctx, settleLimit); err != nil {
		return samples{}, fmt.Errorf("%w\n%s", err, c.tail())
	}
	time.Sleep(3 * time.Second) // for what follows the last slice
	after, err := c.cpu()
	if err != nil {
		return samples{}, err
	}
	rss, err := c.rss()
	if err != nil {
		return samples{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return samples{latency: o.latency, cpu: after - before, rss: rss, writes: float64(o.writes)}, nil
}

// oneService lets all Pods of one Service come, replaces a fifth of them, and
// lets all go.
func oneService(ctx context.Context, cluster *clusterAPI, c *contender, s size) (samples, error) {
	if err := client.IgnoreAlreadyExists(cluster.createService(ctx, "one")); err != nil {
		return samples{}, err
	}
	return measure(ctx, cluster, c, nil, func(o *observer) error {
		var mu sync.Mutex
		pods := map[string]*corev1.Pod{}
		come := func(ctx context.Context, i int) error {
			pod, err := cluster.createPod(ctx, fmt.Sprintf("one-%d-%d", i, rand.Uint32()), "one", i)
			if err != nil {
				return err
			}
			o.expect(pod.Name, true)
			if err := cluster.setReady(ctx, pod, true); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			pods[pod.Name] = pod
			return nil
		}
		if err := parallel(ctx, s.onePods, come); err != nil {
			return err
		}
		if err := o.settle(ctx, settleLimit); err != nil {
			return err
		}
		old := take(pods, s.onePods/5)
		err := parallel(ctx, len(old), func(ctx context.Context, i int) error {
			if err := come(ctx, i); err != nil {
				return err
			}
			return cluster.client.Delete(ctx, old[i], client.GracePeriodSeconds(0))
		})
		if err != nil {
			return err
		}
		// What is to be seen must be seen before it goes.
		if err := o.settle(ctx, settleLimit); err != nil {
			return err
		}
		rest := take(pods, len(pods))
		return parallel(ctx, len(rest), func(ctx context.Context, i int) error {
			return cluster.client.Delete(ctx, rest[i], client.GracePeriodSeconds(0))
		})
	})
}

// take removes n of the Pods from the map and returns them.
func take(pods map[string]*corev1.Pod, n int) []*corev1.Pod {
	var taken []*corev1.Pod
	for name, pod := range pods {
		if len(taken) == n {
			break
		}
		taken = append(taken, pod)
		delete(pods, name)
	}
	return taken
}

// loadManyServices makes the Services and Pods of the case many-services.
func loadManyServices(ctx context.Context, cluster *clusterAPI, s size) error {
	progress("making %d Services of %d Pods", s.services, podsPerService)
	return parallel(ctx, s.services, func(ctx context.Context, i int) error {
		app := fmt.Sprintf("web-%d", i)
		if err := cluster.createService(ctx, app); err != nil {
			return err
		}
		for n := range podsPerService {
			pod, err := cluster.createPod(ctx, fmt.Sprintf("%s-%d", app, n), app, i+n)
			if err != nil {
				return err
			}
			if err := cluster.setReady(ctx, pod, true); err != nil {
				return err
			}
		}
		return nil
	})
}

// manyServices makes Pods unready and ready again at a steady rate.
func manyServices(ctx context.Context, cluster *clusterAPI, c *contender, s size) (samples, error) {
	var list corev1.PodList
	if err := cluster.client.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{"tier": "web"}); err != nil {
		return samples{}, err
	}
	pods := make([]*corev1.Pod, 0, len(list.Items))
	for i := range list.Items {
		pods = append(pods, &list.Items[i])
	}
	return measure(ctx, cluster, c, pods, func(o *observer) error {
		ticker := time.NewTicker(time.Second / flipRate)
		defer ticker.Stop()
		rng := rand.New(rand.NewPCG(1, 2))
		chosen := rng.Perm(len(pods))
		flips := min(s.flips, len(pods))
		err := parallel(ctx, flips, func(ctx context.Context, i int) error {
			<-ticker.C
			pod := pods[chosen[i]]
			o.expect(pod.Name, false)
			return cluster.setReady(ctx, pod, false)
		})
		if err != nil {
			return err
		}
		// Ready again, as the next contender must find them.
		return parallel(ctx, flips, func(ctx context.Context, i int) error {
			<-ticker.C
			pod := pods[chosen[i]]
			o.expect(pod.Name, true)
			return cluster.setReady(ctx, pod, true)
		})
	})
}
