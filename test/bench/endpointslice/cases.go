// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// settleLimit is how long a contender may take to catch up.
const settleLimit = 10 * time.Minute

// flipRate is how many Pods change a second in the case many-services: half of
// what kube-controller-manager can follow on two cores. Beyond that it falls
// behind, and what it skips makes its writes fewer.
const flipRate = 50

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
	requestsBefore, err := cluster.writeRequests(ctx)
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
	requests, err := cluster.writeRequests(ctx)
	if err != nil {
		return samples{}, err
	}
	rss, err := c.rss()
	if err != nil {
		return samples{}, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return samples{
		latency: o.latency, cpu: after - before, rss: rss,
		sliceWrites: float64(o.writes), writes: requests - requestsBefore,
	}, nil
}

// oneService lets all Pods of one Service come, replaces every one of them as a
// Deployment does that rolls, and lets all go.
func oneService(ctx context.Context, cluster *clusterAPI, c *contender, s size) (samples, error) {
	if err := client.IgnoreAlreadyExists(cluster.createService(ctx, "one")); err != nil {
		return samples{}, err
	}
	return measure(ctx, cluster, c, nil, func(o *observer) error {
		old, fresh := make([]*corev1.Pod, s.onePods), make([]*corev1.Pod, s.onePods)
		come := func(ctx context.Context, pods []*corev1.Pod, i int) error {
			pod, err := cluster.createPod(ctx, fmt.Sprintf("one-%d-%08x", i, rand.Uint32()), "one", i)
			if err != nil {
				return err
			}
			pods[i] = pod
			o.expect(pod.Name, true)
			return cluster.setReady(ctx, pod, true)
		}
		goes := func(ctx context.Context, pod *corev1.Pod) error {
			return cluster.client.Delete(ctx, pod, client.GracePeriodSeconds(0))
		}
		if err := parallel(ctx, s.onePods, func(ctx context.Context, i int) error { return come(ctx, old, i) }); err != nil {
			return err
		}
		if err := o.settle(ctx, settleLimit); err != nil {
			return err
		}
		err := parallel(ctx, s.onePods, func(ctx context.Context, i int) error {
			if err := come(ctx, fresh, i); err != nil {
				return err
			}
			return goes(ctx, old[i])
		})
		if err != nil {
			return err
		}
		// What is to be seen must be seen before it goes.
		if err := o.settle(ctx, settleLimit); err != nil {
			return err
		}
		if err := parallel(ctx, s.onePods, func(ctx context.Context, i int) error { return goes(ctx, fresh[i]) }); err != nil {
			return err
		}
		return o.empty(ctx, settleLimit)
	})
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
