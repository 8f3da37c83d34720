// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/testkit"
)

func causewayClient(t *testing.T, cfg rest.Config) *rest.RESTClient {
	t.Helper()
	if err := v1alpha1.AddToScheme(clientgoscheme.Scheme); err != nil {
		t.Fatal(err)
	}
	cfg.APIPath, cfg.GroupVersion, cfg.NegotiatedSerializer = "/apis", &v1alpha1.GroupVersion, clientgoscheme.Codecs.WithoutConversion()
	client, err := rest.RESTClientFor(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// The definition of AgentKeys is deleted, and the watch ends before it has told of
// the keys: they are forgotten. Without the right to read them, and without the API
// server, they are kept.
func TestAgentKeysAreDroppedWithTheirCRD(t *testing.T) {
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
	i := newIdentities(Env{Causeway: causewayClient(t, rest.Config{Host: server.URL})})
	listed := make(chan struct{})
	done := make(chan struct{})
	go func() { defer close(done); i.watch(t.Context(), sync.OnceFunc(func() { close(listed) })) }()
	<-listed
	keys := func() int { _, all := i.current(); return len(all) }
	if keys() != 1 {
		t.Fatalf("%d keys, want 1", keys())
	}
	code.Store(http.StatusForbidden)
	before := asked.Load()
	watched <- struct{}{}
	testkit.EventuallyTrue(t, 20*time.Second, "asked again", func() bool { return asked.Load() > before+1 })
	if keys() != 1 {
		t.Error("forgotten for lack of the right to read them")
	}
	code.Store(http.StatusNotFound)
	testkit.EventuallyTrue(t, 20*time.Second, "forgotten with the definition", func() bool { return keys() == 0 })
}

// keyServer is what an API server says about AgentKeys: a code for everything, or,
// with 200, that there are those that were written since.
type keyServer struct {
	mu     sync.Mutex
	code   int
	keys   map[string]string // node -> AgentKey
	lists  []time.Time
	writes []time.Time
	cut    context.CancelFunc // of the watches
	until  context.Context
}

func (k *keyServer) RoundTrip(r *http.Request) (*http.Response, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	answer := func(code int, body io.Reader) (*http.Response, error) {
		return &http.Response{StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(body), Request: r}, nil
	}
	status := func(code int) (*http.Response, error) {
		reasons := map[int]string{http.StatusNotFound: "NotFound", http.StatusForbidden: "Forbidden", http.StatusUnprocessableEntity: "Invalid", http.StatusInternalServerError: "InternalError"}
		return answer(code, strings.NewReader(fmt.Sprintf(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":%q,"code":%d}`, reasons[code], code)))
	}
	watch, list := r.URL.Query().Get("watch") != "", r.Method == http.MethodGet
	switch {
	case !list:
		k.writes = append(k.writes, time.Now())
	case !watch:
		k.lists = append(k.lists, time.Now())
	}
	name := path.Base(r.URL.Path)
	switch {
	case k.code != http.StatusOK:
		return status(k.code)
	case r.Method == http.MethodPatch && k.keys[name] == "":
		return status(http.StatusNotFound)
	case !list:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		var written v1alpha1.AgentKey
		if err := json.Unmarshal(body, &written); err != nil {
			return nil, err
		}
		if written.Name == "" {
			written.Name = name
		}
		whole, err := json.Marshal(&written)
		if err != nil {
			return nil, err
		}
		k.keys[written.Name] = string(whole)
		return answer(http.StatusOK, bytes.NewReader(whole))
	case r.URL.Query().Get("sendInitialEvents") != "":
		return status(http.StatusUnprocessableEntity) // it does not stream lists
	case watch:
		in, out := io.Pipe()
		context.AfterFunc(k.until, func() { _ = out.Close() })
		context.AfterFunc(r.Context(), func() { _ = out.CloseWithError(r.Context().Err()) })
		return answer(http.StatusOK, in)
	}
	return answer(http.StatusOK, strings.NewReader(`{"kind":"AgentKeyList","apiVersion":"causeway.dev/v1alpha1","metadata":{"resourceVersion":"1"},"items":[`+
		strings.Join(slices.Sorted(maps.Values(k.keys)), ",")+`]}`))
}

// say has everything answered with code from now on, and ends the watches.
func (k *keyServer) say(code int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cut != nil {
		k.cut()
	}
	k.until, k.cut = context.WithCancel(context.Background())
	k.code, k.lists, k.writes = code, nil, nil
	if code == http.StatusNotFound {
		k.keys = map[string]string{}
	}
}

func (k *keyServer) asked() (lists, writes int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.lists), len(k.writes)
}

func (k *keyServer) has(node string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[node] != ""
}

// While the API server does not know AgentKeys, an agent asks at increasing intervals. It
// writes its own as soon as the CRD exists, and again if that is created again. After every
// other failure it asks every few seconds.
func TestPublishWithoutAgentKeyCRD(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &keyServer{}
		server.say(http.StatusNotFound)
		i := newIdentities(Env{NodeName: "node-1", Store: NewStore(), Causeway: causewayClient(t, rest.Config{Host: "http://192.0.2.1", Transport: server, QPS: -1})})
		ctx, stop := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer func() { stop(); server.say(http.StatusNotFound) }()
		go i.run(ctx, make(chan struct{}))
		rare := func(when string) {
			t.Helper()
			time.Sleep(2 * time.Minute) // to back off
			server.say(http.StatusNotFound)
			time.Sleep(30 * time.Minute)
			lists, writes := server.asked()
			if lists < 30 || lists > 60 || writes > 60 { // a write is two requests
				t.Errorf("%s: %d lists and %d writes in half an hour, want 30 to 60 and 60 at most", when, lists, writes)
			}
		}
		appear := func(when string) {
			t.Helper()
			server.say(http.StatusOK)
			time.Sleep(time.Minute)
			synctest.Wait()
			if _, writes := server.asked(); !server.has("node-1") || writes != 2 {
				t.Errorf("%s: the key is there: %t, after %d writes, want 2 within a minute", when, server.has("node-1"), writes)
			}
		}
		rare("they are not there yet")
		appear("they are known now")
		rare("the definition was deleted")
		appear("it was made anew")
		for _, code := range []int{http.StatusForbidden, http.StatusInternalServerError} {
			server.say(code)
			time.Sleep(10 * time.Minute)
			if lists, _ := server.asked(); lists < 600/6 {
				t.Errorf("%d: %d lists in ten minutes, want one every 6 s or more", code, lists)
			}
		}
		server.say(http.StatusOK)
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if _, keys := i.current(); len(keys) != 1 {
			t.Errorf("%d keys 6 s after the last failure, want 1", len(keys))
		}
	})
}
