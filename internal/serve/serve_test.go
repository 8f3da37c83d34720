// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") })

// pipes is a listener in memory, for time that does not pass by itself.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	here, there := net.Pipe()
	p.conns <- there
	return here
}

// Whatever a client leaves unsent, its connection ends.
func TestTimeouts(t *testing.T) {
	for name, sent := range map[string]string{
		"nothing":                "",
		"a part of the header":   "GET / HTTP/1.1\r\nHost: a\r\n",
		"a body that never ends": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx",
		"a chunked body":         "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		"a whole request, idle":  "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipes{make(chan net.Conn), make(chan struct{})}
				srv := Server(ok)
				ended := make(chan error, 1)
				go func() { ended <- srv.Serve(l) }()
				c := l.dial()
				begun := time.Now()
				go func() { _, _ = io.WriteString(c, sent) }()
				_, _ = io.Copy(io.Discard, c) // until the server closes
				if took := time.Since(begun); took > 40*time.Second {
					t.Errorf("held for %v", took)
				}
				_ = c.Close()
				_ = srv.Close()
				if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			})
		})
	}
}

func TestReadOnly(t *testing.T) {
	h := ReadOnly(ok)
	for _, tc := range []struct {
		method, body string
		want         int
	}{
		{"GET", "", 200}, {"HEAD", "", 200}, {"POST", "", 405}, {"PUT", "x", 405}, {"DELETE", "", 405}, {"OPTIONS", "", 405},
		{"CONNECT", "", 405}, {"GET", "x", 413},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tc.method, "/", strings.NewReader(tc.body)))
		if w.Code != tc.want {
			t.Errorf("%s with body %q: %d, want %d", tc.method, tc.body, w.Code, tc.want)
		}
		if w.Code == 405 && w.Header().Get("Allow") == "" {
			t.Errorf("%s: no header Allow", tc.method)
		}
	}
}

// One source with too many connections loses its own; others are answered.
func TestLimit(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const most = 4
	l := Limit(inner, most)
	srv := Server(ok)
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
	})
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
		c, err := d.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	answered := func(c net.Conn) bool {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			return false
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode == 200
	}
	other := dial("127.0.0.2")
	if !answered(other) {
		t.Fatal("not answered")
	}
	var hog []net.Conn
	for range 10 {
		c := dial("127.0.0.1")
		if !answered(c) {
			t.Fatal("the latest connection is not answered")
		}
		hog = append(hog, c)
	}
	if !answered(other) {
		t.Error("a connection of another source was closed")
	}
	open := 0
	for _, c := range hog {
		if answered(c) {
			open++
		}
	}
	if open != most-1 {
		t.Errorf("%d connections of the source with too many are open, want %d", open, most-1)
	}
	_ = other.Close()
}

// fakeReviews knows the tokens "scraper" and "nobody", and lets the first get
// /metrics.
func fakeReviews(calls *atomic.Int32, fail *atomic.Bool) *fake.Clientset {
	kube := fake.NewClientset()
	kube.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		calls.Add(1)
		if fail.Load() {
			return true, nil, errors.New("down")
		}
		r := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		r.Status.User.Username = r.Spec.Token
		r.Status.Authenticated = r.Spec.Token == "scraper" || r.Spec.Token == "nobody"
		return true, r, nil
	})
	kube.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		r := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := r.Spec.NonResourceAttributes
		r.Status.Allowed = r.Spec.User == "scraper" && at.Path == "/metrics" && at.Verb == "get"
		return true, r, nil
	})
	return kube
}

func TestReviewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		var fail atomic.Bool
		h := NewReviewer(fakeReviews(&calls, &fail), "/metrics").Protect(ok)
		ask := func(header, path string, want int) {
			t.Helper()
			r := httptest.NewRequest("GET", path, nil)
			if header != "" {
				r.Header.Set("Authorization", header)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%q for %s: %d %s, want %d", header, path, w.Code, w.Body, want)
			}
		}
		ask("", "/metrics", 401)
		ask("Basic scraper", "/metrics", 401)
		ask("Bearer ", "/metrics", 401)
		if calls.Load() != 0 {
			t.Errorf("%d reviews without a token", calls.Load())
		}
		ask("Bearer stranger", "/metrics", 401)
		ask("Bearer nobody", "/metrics", 403)
		ask("Bearer nobody", "/healthz", 403) // which the API server would allow by itself
		ask("Bearer scraper", "/metrics", 200)
		ask("Bearer scraper", "/healthz", 200)
		before := calls.Load()
		fail.Store(true)
		ask("Bearer scraper", "/metrics", 200) // still known
		ask("Bearer another", "/metrics", 503)
		if got := calls.Load() - before; got != 1 {
			t.Errorf("%d reviews for a known and an unknown token, want 1", got)
		}
		time.Sleep(2 * keepGranted)
		ask("Bearer scraper", "/metrics", 503)
		fail.Store(false)
		ask("Bearer scraper", "/metrics", 200)
	})
}

func TestSelfSigned(t *testing.T) {
	cfg, err := TLS("", "")
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(ok)
	srv.TLS = cfg
	srv.StartTLS()
	defer srv.Close()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if _, err := TLS("/nowhere/tls.crt", "/nowhere/tls.key"); err == nil {
		t.Error("no error for files that are not there")
	}
}
