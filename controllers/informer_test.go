// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	toolscache "k8s.io/client-go/tools/cache"
)

// TestInformersAfterAnOutage: an informer has what was created within seconds of the API
// server's return, also if that does not know the watch's version any more.
func TestInformersAfterAnOutage(t *testing.T) {
	for _, expired := range []bool{false, true} {
		for range 5 { // pauses are random
			synctest.Test(t, func(t *testing.T) { outage(t, expired) })
		}
	}
}

func outage(t *testing.T, expired bool) {
	const down, within = time.Minute, 8 * time.Second
	back := time.Now().Add(down)
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new", ResourceVersion: "2"}}
	started, refused, watches := false, false, 0
	listOptions := metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind()
	api := &toolscache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			if !started {
				started = true
				return &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, nil
			}
			if time.Now().Before(back) {
				return nil, syscall.ECONNREFUSED
			}
			return &corev1.ServiceList{ListMeta: metav1.ListMeta{ResourceVersion: "2"}, Items: []corev1.Service{*service}}, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewInvalid(listOptions, "", nil) // as one that cannot stream lists
			}
			watches++
			w := watch.NewFake()
			switch {
			case watches == 1: // the outage begins
				time.AfterFunc(5*time.Second, w.Stop) // a shorter watch would be listed anew
			case time.Now().Before(back):
				return nil, syscall.ECONNREFUSED
			case expired && o.ResourceVersion == "1":
				refused = true
				return nil, apierrors.NewResourceExpired("too old")
			case o.ResourceVersion == "1":
				go w.Add(service)
			}
			return w, nil
		},
	}
	informer := newInformer(api, &corev1.Service{}, 0, toolscache.Indexers{})
	seen := make(chan time.Time, 8)
	_, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: func(any) { seen <- time.Now() }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { informer.RunWithContext(ctx); close(done) }()
	if late := (<-seen).Sub(back); late < 0 || late > within {
		t.Errorf("expired %v: seen %v after the API server's return, want at most %v", expired, late, within)
	}
	cancel()
	<-done
	if refused != expired {
		t.Errorf("the version of the watch was refused: %v, want %v", refused, expired)
	}
}
