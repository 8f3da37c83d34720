// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/announce/members"
)

const (
	// publishTimeout bounds one attempt to publish this agent's key; publishWait is how
	// long the announcer waits for the first that succeeds, and publishRetry the pause
	// between attempts. If the CRD is missing, the watch shows when it is there;
	// publishAbsent is for an agent that may write but not watch.
	publishTimeout = 2 * time.Second
	publishWait    = 3 * time.Second
	publishRetry   = 10 * time.Second
	publishAbsent  = time.Minute
)

// identities publishes this agent's key and follows the others'.
type identities struct {
	env Env

	mu      sync.Mutex
	own     *members.Identity // once it is published
	keys    map[string][]byte // of the nodes
	changed chan struct{}
	lost    chan struct{} // this node's is absent
}

func newIdentities(env Env) *identities {
	return &identities{env: env, keys: map[string][]byte{}, changed: make(chan struct{}, 1), lost: make(chan struct{}, 1)}
}

// run publishes and watches until ctx ends. ready is closed after the first attempt
// and the first list, or after publishWait.
func (i *identities) run(ctx context.Context, ready chan<- struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var done sync.WaitGroup
	done.Add(2)
	wg.Go(func() { i.watch(ctx, sync.OnceFunc(done.Done)) })
	wg.Go(func() { i.publish(ctx, sync.OnceFunc(done.Done)) })
	go func() { done.Wait(); close(ready) }()
}

// publish writes this agent's key, and uses it from then on. If the CRD of AgentKeys or
// the permission is missing, the agent uses the gossip key.
func (i *identities) publish(ctx context.Context, tried func()) {
	defer tried()
	log := logr.FromContextOrDiscard(ctx)
	id, err := members.NewIdentity()
	if err != nil {
		log.Error(err, "This agent gets no key of its own")
		return
	}
	for logged := false; ctx.Err() == nil; {
		select {
		case <-i.lost: // before this attempt
		default:
		}
		err := i.write(ctx, id.Public())
		again := (<-chan time.Time)(nil)
		if err == nil {
			logged = false
			i.mu.Lock()
			i.own = id
			i.mu.Unlock()
			wakeUp(i.changed)
		} else {
			pause := publishRetry
			if apierrors.IsNotFound(err) {
				pause = wait.Jitter(publishAbsent, 1)
			}
			again = time.After(pause)
			if !logged && ctx.Err() == nil {
				logged = true
				log.Error(err, "Publishing this agent's key failed, will try again; until then every holder of the gossip key can impersonate it")
			}
		}
		tried()
		select {
		case <-again:
		case <-i.lost:
		case <-ctx.Done():
		}
	}
}

// write creates or replaces the AgentKey of this node, which its Node owns.
func (i *identities) write(ctx context.Context, public []byte) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	meta := metav1.ObjectMeta{Name: i.env.NodeName}
	if node := i.env.Store.Node(i.env.NodeName); node != nil {
		meta.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	}
	body, err := json.Marshal(&v1alpha1.AgentKey{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "AgentKey"},
		ObjectMeta: meta, Spec: v1alpha1.AgentKeySpec{PublicKey: public},
	})
	if err != nil {
		return fmt.Errorf("encode AgentKey: %w", err)
	}
	change, err := json.Marshal(map[string]any{"spec": v1alpha1.AgentKeySpec{PublicKey: public}})
	if err != nil {
		return fmt.Errorf("encode AgentKey: %w", err)
	}
	err = i.env.Causeway.Patch(types.MergePatchType).Resource("agentkeys").Name(i.env.NodeName).Body(change).Do(ctx).Error()
	if apierrors.IsNotFound(err) {
		err = i.env.Causeway.Post().Resource("agentkeys").Body(body).Do(ctx).Error()
	}
	if err != nil {
		return fmt.Errorf("write AgentKey %s: %w", i.env.NodeName, err)
	}
	return nil
}

// watch follows the nodes' keys. Known keys stay while the API server cannot be reached
// or denies the request. When it no longer knows the CRD of AgentKeys, all are dropped:
// the CRD may be deleted before the watch has delivered the deletion of every key.
func (i *identities) watch(ctx context.Context, listed func()) {
	lw := cache.NewListWatchFromClient(i.env.Causeway, "agentkeys", metav1.NamespaceAll, fields.Everything())
	forget := func(err error) {
		if apierrors.IsNotFound(err) {
			_ = identityFeed{i, listed}.set(func(keys map[string][]byte) { clear(keys) })
		}
	}
	list, watching := lw.ListWithContextFunc, lw.WatchFuncWithContext
	lw.ListWithContextFunc = func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		o, err := list(ctx, options)
		forget(err)
		return o, err
	}
	lw.WatchFuncWithContext = func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		w, err := watching(ctx, options)
		forget(err)
		return w, err
	}
	follow(ctx, "agent keys", lw, &v1alpha1.AgentKey{}, identityFeed{i, listed})
	listed()
}

// current returns this agent's key pair, nil before it is published, and a copy of the
// keys of all nodes.
func (i *identities) current() (*members.Identity, map[string][]byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.own, maps.Clone(i.keys)
}

// identityFeed is a cache.ReflectorStore that keeps nothing but the keys.
type identityFeed struct {
	*identities
	listed func()
}

func (f identityFeed) set(edit func(map[string][]byte)) error {
	f.mu.Lock()
	edit(f.keys)
	f.mu.Unlock()
	wakeUp(f.changed)
	return nil
}

func (f identityFeed) Add(obj any) error {
	key := obj.(*v1alpha1.AgentKey)
	return f.set(func(keys map[string][]byte) { keys[key.Name] = key.Spec.PublicKey })
}

func (f identityFeed) Update(obj any) error { return f.Add(obj) }

func (f identityFeed) Delete(obj any) error {
	key, ok := obj.(*v1alpha1.AgentKey)
	if !ok {
		return nil // Replace follows
	}
	if key.Name == f.env.NodeName {
		wakeUp(f.lost)
	}
	return f.set(func(keys map[string][]byte) { delete(keys, key.Name) })
}

func (f identityFeed) Replace(objs []any, _ string) error {
	defer f.listed()
	return f.set(func(keys map[string][]byte) {
		clear(keys)
		for _, obj := range objs {
			key := obj.(*v1alpha1.AgentKey)
			keys[key.Name] = key.Spec.PublicKey
		}
		if _, ok := keys[f.env.NodeName]; !ok {
			wakeUp(f.lost)
		}
	})
}

func (f identityFeed) Resync() error { return nil }
