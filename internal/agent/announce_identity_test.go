// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// The definition of AgentKeys is deleted, and the watch ends before it has told of
// the keys: they are forgotten. Without the right to read them, and without the API
// server, they are kept.
func TestKeysGoWithTheirDefinition(t *testing.T) {
	var code, asked atomic.Int32
	code.Store(http.StatusOK)
	watched := make(chan struct{}, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		asked.Add(1)
		query, now := r.URL.Query(), int(code.Load())
		reasons := map[int]string{http.StatusNotFound: "NotFound", http.StatusForbidden: "Forbidden", http.StatusServiceUnavailable: "ServiceUnavailable"}
		switch {
		case now == http.StatusOK && query.Get("sendInitialEvents") != "":
			now = http.StatusUnprocessableEntity // an API server that does not stream lists
			reasons[now] = "Invalid"
		case now == http.StatusOK && query.Get("watch") != "":
			w.(http.Flusher).Flush()
			<-watched
			return
		case now == http.StatusOK:
			fmt.Fprint(w, `{"kind":"AgentKeyList","apiVersion":"causeway.dev/v1alpha1","metadata":{"resourceVersion":"1"},"items":[
				{"metadata":{"name":"node-2"},"spec":{"publicKey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}]}`)
			return
		}
		w.WriteHeader(now)
		fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reasons[now], now)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(watched) })
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		t.Fatal(err)
	}
	client, err := rest.RESTClientFor(&rest.Config{Host: server.URL, APIPath: "/apis", ContentConfig: rest.ContentConfig{
		GroupVersion: &v1alpha1.GroupVersion, NegotiatedSerializer: clientgoscheme.Codecs.WithoutConversion(),
	}})
	if err != nil {
		t.Fatal(err)
	}
	i := newIdentities(Env{Causeway: client})
	listed := make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(done); i.watch(t.Context(), sync.OnceFunc(func() { close(listed) })) }()
	<-listed
	keys := func() int { _, all := i.current(); return len(all) }
	if keys() != 1 {
		t.Fatalf("%d keys, want 1", keys())
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	code.Store(http.StatusForbidden)
	before := asked.Load()
	watched <- struct{}{}
	until("not asked again", func() bool { return asked.Load() > before+1 })
	if keys() != 1 {
		t.Error("forgotten for lack of the right to read them")
	}
	code.Store(http.StatusNotFound)
	until("not forgotten with the definition", func() bool { return keys() == 0 })
}
