// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// clients to the API server.
type clients struct {
	kube     *kubernetes.Clientset
	causeway *rest.RESTClient
}

func newClients(cfg *rest.Config) (*clients, error) {
	binary := rest.CopyConfig(cfg)
	binary.ContentType = runtime.ContentTypeProtobuf
	binary.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	kube, err := kubernetes.NewForConfig(binary)
	if err != nil {
		return nil, fmt.Errorf("make Kubernetes client: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("register %s: %w", v1alpha1.GroupVersion, err)
	}
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	own := rest.CopyConfig(cfg)
	own.GroupVersion = &v1alpha1.GroupVersion
	own.APIPath = "/apis"
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	causeway, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("make %s client: %w", v1alpha1.GroupVersion, err)
	}
	return &clients{kube: kube, causeway: causeway}, nil
}

// watchBackoff is how a watch that has ended is retried. client-go would wait up to a
// minute. But while one watch is back and another is not, this node uses old endpoints,
// and other nodes, which know better, may leave an address to it. A node that gets
// another's key late considers it dead until then.
var watchBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Cap: 3 * time.Second, Steps: 10}

// absentBackoff is the same for a missing CRD, which all nodes ask for, each once or
// twice a minute. A node sees a new CRD within a minute, and within twice the time that
// it was missing if that is less.
var absentBackoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Cap: 30 * time.Second, Steps: 10}

// delays returns a function that returns the pause after an attempt with this error.
func delays() func(error) time.Duration {
	failed := watchBackoff.DelayWithReset(clock.RealClock{}, 2*time.Minute)
	absent := absentBackoff
	return func(err error) time.Duration {
		if apierrors.IsNotFound(err) {
			return absent.Step()
		}
		absent = absentBackoff
		return failed()
	}
}

// follow lists and watches into a store until ctx ends.
func follow(ctx context.Context, name string, lw cache.ListerWatcher, expected any, to cache.ReflectorStore) {
	log := logr.FromContextOrDiscard(ctx).WithValues("resource", name)
	backoff, delay := watchBackoff, delays()
	r := cache.NewReflectorWithOptions(lw, expected, to, cache.ReflectorOptions{Name: name, Backoff: &backoff})
	for ctx.Err() == nil {
		err := r.ListAndWatchWithContext(ctx)
		switch {
		case err == nil, ctx.Err() != nil:
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err): // after a long interruption
			log.V(1).Info("The watch has expired, will list again", "reason", err.Error())
		default:
			log.Error(err, "Watching failed, will try again")
		}
		select {
		case <-time.After(delay(err)):
		case <-ctx.Done():
		}
	}
}

// notHeadless selects what a proxy deals with.
const notHeadless = "!" + corev1.IsHeadlessService

// watch feeds the Store until ctx ends. announce includes the kinds that only the
// announcer reads.
func (c *clients) watch(ctx context.Context, s *Store, announce bool) {
	core, disc := c.kube.CoreV1().RESTClient(), c.kube.DiscoveryV1().RESTClient()
	type source struct {
		client   cache.Getter
		resource string
		selector string
		expected any
		feed     *feed
	}
	sources := []source{
		{core, "services", notHeadless, &corev1.Service{}, s.serviceFeed()},
		{disc, "endpointslices", notHeadless, &discoveryv1.EndpointSlice{}, s.sliceFeed()},
		{core, "nodes", "", &corev1.Node{}, s.nodeFeed()},
	}
	if announce {
		sources = append(sources,
			source{c.causeway, "loadbalanceraddresses", "", &v1alpha1.LoadBalancerAddress{}, s.addressFeed()},
			source{c.causeway, "loadbalancerpools", "", &v1alpha1.LoadBalancerPool{}, s.poolFeed()})
	}
	var wg sync.WaitGroup
	for _, src := range sources {
		lw := cache.NewFilteredListWatchFromClient(src.client, src.resource, metav1.NamespaceAll, func(o *metav1.ListOptions) {
			o.LabelSelector = src.selector
		})
		wg.Go(func() { follow(ctx, src.resource, lw, src.expected, src.feed) })
	}
	wg.Wait()
}
